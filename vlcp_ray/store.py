"""Knows where an artifact lives, what its fingerprint is, when it is sealed, and how its files appear whole."""

import hashlib
import json
import time
import uuid
from collections.abc import Callable, Iterable, Mapping, Sequence
from contextlib import suppress
from dataclasses import dataclass, field
from functools import cached_property
from pathlib import Path
from typing import Any, Final, TypeVar

import pyarrow as pa
from pyarrow import fs as pafs

from vlcp_ray.filesystems import open_uri

MANIFEST: Final = "manifest.json"
#: Stores in which an object is seen only once it is complete; elsewhere a file is written aside and renamed.
_WHOLE_OBJECT_STORES: Final = ("s3", "gcs", "abfs")
#: Seconds before another attempt at what the store has refused.
_PAUSES: Final = (0.5, 1.0, 2.0, 4.0, 8.0, 15.0)


T = TypeVar("T")


class StoreError(ValueError):
    """The store cannot be used."""


@dataclass(frozen=True)
class Step:
    """One artifact to be: a stage, what it is for, the settings that decide its content and what it is made from."""

    stage: str
    version: int
    science: Mapping[str, Any]
    key: Mapping[str, Any] = field(default_factory=dict)
    inputs: "Mapping[str, Step]" = field(default_factory=dict)

    @cached_property
    def fingerprint(self) -> str:
        """Hash of stage, version, science and the inputs' fingerprints: the same on every machine."""
        inputs = {name: step.fingerprint for name, step in self.inputs.items()}
        content = [self.stage, self.version, dict(self.science), dict(self.key), inputs]
        text = json.dumps(content, sort_keys=True, separators=(",", ":"))
        return hashlib.sha256(text.encode()).hexdigest()[:12]

    @property
    def title(self) -> str:
        """The stage and what it is for, in words: `prototype seed 0 ipc 5`."""
        return " ".join([self.stage, *(f"{k} {v}" if k != "method" else str(v) for k, v in self.key.items())])


@dataclass(frozen=True)
class Store:
    """The root under which all artifacts lie."""

    filesystem: pafs.FileSystem
    path: str

    @classmethod
    def at(cls, root: str) -> "Store":
        filesystem, path = open_uri(root, "--root")
        if isinstance(filesystem, pafs.LocalFileSystem) and Path(path).is_file():
            raise ValueError(f"--root {root}: it is a file; give a folder, or one that is not there yet")
        return cls(filesystem, path)

    def artifact(self, step: Step) -> "Artifact":
        return Artifact(self.filesystem, f"{self.path}/{step.stage}-{step.fingerprint}")


@dataclass(frozen=True)
class Artifact:
    """A folder with tables (folders of parquet files) and, once it is complete, a manifest: the seal."""

    filesystem: pafs.FileSystem
    path: str

    def exists(self) -> bool:
        """Whether anything was ever written for it."""
        info = patiently(lambda: self.filesystem.get_file_info(self.path), f"look for {self.path}")
        return bool(info.type != pafs.FileType.NotFound)

    def manifest(self) -> dict[str, Any] | None:
        """What the seal says, or None while the artifact is not sealed."""
        content = self.read_bytes(MANIFEST)
        manifest: dict[str, Any] | None = None if content is None else json.loads(content)
        return manifest

    def seal(self, manifest: Mapping[str, Any]) -> None:
        self.write_bytes(MANIFEST, json.dumps(manifest, indent=2, sort_keys=True).encode())

    def read_bytes(self, name: str) -> bytes | None:
        """The content of a file, or None where there is none."""

        def read() -> bytes:
            with self.filesystem.open_input_stream(f"{self.path}/{name}") as stream:
                content: bytes = stream.read()
                return content

        try:
            return patiently(read, f"read {self.path}/{name}")
        except FileNotFoundError:
            return None

    def write_bytes(self, name: str, content: bytes) -> None:
        self._write_whole(name, lambda sink: sink.write(content))

    def write_table(self, name: str, table: pa.Table) -> None:
        """Write one parquet file, `<table>/<part>.parquet`. It appears whole or not at all.

        Raises:
            StoreError: as all that writes here, when the store refused it for half a minute.
        """
        from pyarrow import parquet  # here and below: it loads pandas, for which `plan` has no time

        # Images are compressed already, and a dictionary or a minimum of them is wasted work.
        small = [f.name for f in table.schema if not pa.types.is_binary(f.type)]
        codec = {f.name: "snappy" if f.name in small else "none" for f in table.schema}
        options = {"use_dictionary": small, "write_statistics": small, "compression": codec}
        self._write_whole(name, lambda sink: parquet.write_table(table, sink, **options))

    def files(self, folder: str, suffix: str = ".parquet") -> list[str]:
        """The complete files of a folder, sorted; none where the folder is not there yet."""
        place = f"{self.path}/{folder}" if folder else self.path
        selector = pafs.FileSelector(place, allow_not_found=True)
        found = patiently(lambda: self.filesystem.get_file_info(selector), f"list {place}")
        paths = (str(info.path) for info in found if info.is_file)
        return sorted(p for p in paths if p.endswith(suffix) and not Path(p).name.startswith("."))

    def table(self, folder: str, schema: pa.Schema, columns: Sequence[str] | None = None) -> pa.Table:
        """All rows of a table, or none of them where nothing was written; `columns` saves reading the rest."""
        files = self.files(folder)
        if not files:
            return pa.schema([f for f in schema if columns is None or f.name in columns]).empty_table()
        from pyarrow import dataset as pads

        wanted = None if columns is None else list(columns)
        return patiently(
            lambda: pads.dataset(files, filesystem=self.filesystem, format="parquet").to_table(columns=wanted),
            f"read {self.path}/{folder}",
        )

    def rows(
        self, folder: str, schema: pa.Schema, columns: Sequence[str], key: str, values: pa.ChunkedArray | pa.Array
    ) -> pa.Table:
        """The rows of a table whose `key` is among the values; the rest is not kept."""
        import pyarrow.compute as pc
        from pyarrow import dataset as pads

        files = self.files(folder)
        if not files:
            return self.table(folder, schema, columns)
        values = values.combine_chunks() if isinstance(values, pa.ChunkedArray) else values
        wanted = {"columns": list(columns), "filter": pc.field(key).isin(values)}
        return patiently(
            lambda: pads.dataset(files, filesystem=self.filesystem, format="parquet").to_table(**wanted),
            f"read {self.path}/{folder}",
        )

    def delete(self, folder: str) -> None:
        """Remove a folder of the artifact and all that is in it."""
        patiently(lambda: self.filesystem.delete_dir(f"{self.path}/{folder}"), f"delete {self.path}/{folder}")

    def put_folder(self, local: Path, name: str) -> None:
        """Copy a local folder, file by file, to `<artifact>/<name>`; an empty name is the artifact itself."""
        for file in sorted(p for p in local.rglob("*") if p.is_file()):
            with file.open("rb") as source:
                self._write_whole(f"{name}/{file.relative_to(local)}".lstrip("/"), _copy_from(source))

    def get_folder(self, name: str, local: Path) -> str:
        """A local folder with the files of `<artifact>/<name>`: the folder itself where it is local already."""
        if isinstance(self.filesystem, pafs.LocalFileSystem):
            return f"{self.path}/{name}"
        source, here = f"{self.path}/{name}", pafs.LocalFileSystem()
        patiently(lambda: pafs.copy_files(source, str(local), self.filesystem, here), f"read {source}")
        return str(local)

    def _write_whole(self, name: str, write: Callable[[Any], object]) -> None:
        path = f"{self.path}/{name}"
        patiently(lambda: self._attempt(path, write), f"write {path}")

    def _attempt(self, path: str, write: Callable[[Any], object]) -> None:
        folder, _, file = path.rpartition("/")
        self.filesystem.create_dir(folder, recursive=True)
        if self.filesystem.type_name in _WHOLE_OBJECT_STORES:
            with self.filesystem.open_output_stream(path) as sink:
                write(sink)
            return
        aside = f"{folder}/.{file}.{uuid.uuid4().hex}"
        try:
            with self.filesystem.open_output_stream(aside) as sink:
                write(sink)
            self.filesystem.move(aside, path)
        except OSError:
            self._forget(aside)
            raise

    def _forget(self, path: str) -> None:
        """Remove what an attempt has left, if the store lets one: on a full disk it is in the way of the next."""
        with suppress(OSError):
            self.filesystem.delete_file(path)


def patiently(act: Callable[[], T], what: str) -> T:
    """Do it, again and again if the store refuses it for a while: it may be full, busy or out of reach.

    Args:
        act: is called anew for every attempt.

    Raises:
        FileNotFoundError: at once; that is an answer and no refusal.
        StoreError: the store refused every time, or at once where a file is in the place of a folder.
    """
    for pause in _PAUSES:
        try:
            return act()
        except FileNotFoundError:
            raise
        except NotADirectoryError as error:
            raise StoreError(f"cannot {what}: on that path lies a file, not a folder; name another folder") from error
        except OSError:
            time.sleep(pause)
    try:
        return act()
    except FileNotFoundError:
        raise
    except OSError as error:
        raise StoreError(
            f"the store refuses to {what}, {len(_PAUSES) + 1} times in {sum(_PAUSES):.0f} s: {error}. Free space or "
            "give the right to use it; the same command then goes on from here"
        ) from error


def _copy_from(source: Any) -> Callable[[Any], object]:
    def copy(sink: Any) -> None:
        source.seek(0)
        while block := source.read(1 << 24):
            sink.write(block)

    return copy


def part_name(ids: Iterable[str]) -> str:
    """The name of a file that holds these rows: the same rows written twice land on the same name."""
    return hashlib.blake2b("\n".join(ids).encode(), digest_size=10).hexdigest() + ".parquet"
