"""A filesystem that retries every call, for libraries that do not retry.

It uses no Ray, so that functions that run in workers may import it.
"""

import os
import sys
from collections.abc import Callable
from contextlib import suppress
from typing import Any, BinaryIO

import pyarrow as pa
from pyarrow import fs as pafs

from vlcp_ray.store import files
from vlcp_ray.store.io import retry


def retrying(filesystem: pafs.FileSystem) -> pafs.PyFileSystem:
    """Wrap a filesystem so that calls that fail with transient errors are retried.

    Of a stream only the opening is retried. A file of a local disk appears under its name when its stream is closed, as
    an object of a store does: a process that is killed leaves the old file, or none.
    """
    return pafs.PyFileSystem(_RetryingHandler(filesystem))


class _RetryingHandler(pafs.FileSystemHandler):  # type: ignore[misc] # pyarrow has no types
    def __init__(self, filesystem: pafs.FileSystem) -> None:
        self.filesystem = filesystem

    def __eq__(self, other: object) -> bool:
        return isinstance(other, _RetryingHandler) and bool(self.filesystem.equals(other.filesystem))

    def __hash__(self) -> int:
        return hash(self.filesystem.type_name)

    def _retry(self, name: str, *values: Any, **options: Any) -> Any:
        call: Callable[..., Any] = getattr(self.filesystem, name)
        return retry(lambda: call(*values, **options), f"{name.replace('_', ' ')} {values[0]}")

    def get_type_name(self) -> str:
        return str(self.filesystem.type_name)

    def normalize_path(self, path: str) -> str:
        return str(self.filesystem.normalize_path(path))

    def get_file_info(self, paths: list[str]) -> Any:
        return self._retry("get_file_info", paths)

    def get_file_info_selector(self, selector: pafs.FileSelector) -> Any:
        return self._retry("get_file_info", selector)

    def create_dir(self, path: str, recursive: bool) -> None:
        if self.get_type_name() != "s3":  # S3 has no folders; pyarrow would write an object for each parent
            self._retry("create_dir", path, recursive=recursive)

    def delete_dir(self, path: str) -> None:
        self._retry("delete_dir", path)

    def delete_dir_contents(self, path: str, missing_dir_ok: bool) -> None:
        self._retry("delete_dir_contents", path, missing_dir_ok=missing_dir_ok)

    def delete_root_dir_contents(self) -> None:
        raise NotImplementedError("a whole store is never deleted")

    def delete_file(self, path: str) -> None:
        self._retry("delete_file", path)

    def move(self, src: str, dest: str) -> None:
        self._retry("move", src, dest)

    def copy_file(self, src: str, dest: str) -> None:
        self._retry("copy_file", src, dest)

    def open_input_stream(self, path: str) -> Any:
        return self._retry("open_input_stream", path)

    def open_input_file(self, path: str) -> Any:
        return self._retry("open_input_file", path)

    def open_output_stream(self, path: str, metadata: dict[str, str] | None) -> Any:
        if isinstance(self.filesystem, pafs.LocalFileSystem):
            file = retry(lambda: open(files.temporary(path), "wb"), f"open output stream {path}")  # noqa: SIM115
            return pa.PythonFile(_WholeFile(file, path), mode="w")
        return self._retry("open_output_stream", path, metadata=metadata)

    def open_append_stream(self, path: str, metadata: dict[str, str] | None) -> Any:
        return self._retry("open_append_stream", path, metadata=metadata)


class _WholeFile:
    """A Python file for pyarrow to write to: hidden until it is closed, and then renamed to its path.

    It is removed where closing fails, where an exception ends the `with` block, and where nobody closes it.
    """

    def __init__(self, file: BinaryIO, path: str) -> None:
        self.file, self.path = file, path
        self.handled = sys.exception()  # by the caller, who may write a file because of it

    @property
    def closed(self) -> bool:
        return self.file.closed

    def write(self, content: Any) -> int:
        return self.file.write(content)

    def flush(self) -> None:
        self.file.flush()

    def close(self) -> None:
        raised = sys.exception()  # pyarrow closes its stream at the end of a `with` block that an exception ends, too
        try:
            self.file.close()
            if raised is None or raised is self.handled:
                os.replace(self.file.name, self.path)
        finally:
            self._remove()

    def __del__(self) -> None:
        with suppress(OSError):
            self.file.close()
        self._remove()

    def _remove(self) -> None:
        with suppress(OSError):  # it has been renamed
            os.unlink(self.file.name)
