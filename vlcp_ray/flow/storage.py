"""Knows how Ray's libraries, which ask a store once, are given one that is asked again."""

from collections.abc import Callable
from typing import Any

from pyarrow import fs as pafs

from vlcp_ray.store import patiently


def patient(filesystem: pafs.FileSystem) -> pafs.PyFileSystem:
    """The same filesystem, of which every call is made again while the store refuses it.

    Streams are the store's own: what they carry does not pass through Python.
    """
    return pafs.PyFileSystem(_Patient(filesystem))


class _Patient(pafs.FileSystemHandler):  # type: ignore[misc] # pyarrow has no types
    def __init__(self, filesystem: pafs.FileSystem) -> None:
        self.filesystem = filesystem

    def __eq__(self, other: object) -> bool:
        return isinstance(other, _Patient) and bool(self.filesystem.equals(other.filesystem))

    def __hash__(self) -> int:
        return hash(self.filesystem.type_name)

    def _ask(self, name: str, *values: Any, **options: Any) -> Any:
        call: Callable[..., Any] = getattr(self.filesystem, name)
        return patiently(lambda: call(*values, **options), f"{name.replace('_', ' ')} {values[0]}")

    def get_type_name(self) -> str:
        return str(self.filesystem.type_name)

    def normalize_path(self, path: str) -> str:
        return str(self.filesystem.normalize_path(path))

    def get_file_info(self, paths: list[str]) -> Any:
        return self._ask("get_file_info", paths)

    def get_file_info_selector(self, selector: pafs.FileSelector) -> Any:
        return self._ask("get_file_info", selector)

    def create_dir(self, path: str, recursive: bool) -> None:
        self._ask("create_dir", path, recursive=recursive)

    def delete_dir(self, path: str) -> None:
        self._ask("delete_dir", path)

    def delete_dir_contents(self, path: str, missing_dir_ok: bool) -> None:
        self._ask("delete_dir_contents", path, missing_dir_ok=missing_dir_ok)

    def delete_root_dir_contents(self) -> None:
        raise NotImplementedError("nothing here may delete a whole store")

    def delete_file(self, path: str) -> None:
        self._ask("delete_file", path)

    def move(self, src: str, dest: str) -> None:
        self._ask("move", src, dest)

    def copy_file(self, src: str, dest: str) -> None:
        self._ask("copy_file", src, dest)

    def open_input_stream(self, path: str) -> Any:
        return self._ask("open_input_stream", path)

    def open_input_file(self, path: str) -> Any:
        return self._ask("open_input_file", path)

    def open_output_stream(self, path: str, metadata: dict[str, str] | None) -> Any:
        return self._ask("open_output_stream", path, metadata=metadata)

    def open_append_stream(self, path: str, metadata: dict[str, str] | None) -> Any:
        return self._ask("open_append_stream", path, metadata=metadata)
