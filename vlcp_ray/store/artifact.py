"""Artifacts: fingerprints, atomic writes of files, and the manifest that marks an artifact as complete."""

import hashlib
import json
import uuid
from collections.abc import Callable, Iterable, Mapping, Sequence
from contextlib import suppress
from dataclasses import dataclass, field
from functools import cached_property
from pathlib import Path
from typing import TYPE_CHECKING, Any, Final

import pyarrow as pa
from pyarrow import fs as pafs

from vlcp_ray.store.io import StoreError, open_uri, retry
from vlcp_ray.store.tables import check_types

if TYPE_CHECKING:
    from pyarrow import dataset as pads

MANIFEST: Final = "manifest.json"
#: Stores in which an object appears only when it is complete; elsewhere a file is written to another name and renamed.
_WHOLE_OBJECT_STORES: Final = ("s3", "gcs", "abfs")


@dataclass(frozen=True)
class Step:
    """A node of the artifact graph: a stage, its version, the settings and inputs that determine the artifact, its key.

    Args:
        key: identifies the artifact among those of its stage: seed, ipc, method.
    """

    stage: str
    version: int
    settings: Mapping[str, Any]
    key: Mapping[str, Any] = field(default_factory=dict)
    inputs: "Mapping[str, Step]" = field(default_factory=dict)

    @cached_property
    def fingerprint(self) -> str:
        """Hash of stage, version, settings, key and the inputs' fingerprints: the same on every machine."""
        inputs = {name: step.fingerprint for name, step in self.inputs.items()}
        content = [self.stage, self.version, dict(self.settings), dict(self.key), inputs]
        text = json.dumps(content, sort_keys=True, separators=(",", ":"))
        return hashlib.sha256(text.encode()).hexdigest()[:12]

    @property
    def title(self) -> str:
        """The stage and its key in words: `prototype seed 0 ipc 5`."""
        return " ".join([self.stage, *(f"{k} {v}" if k != "method" else str(v) for k, v in self.key.items())])


@dataclass(frozen=True)
class Store:
    """The root folder of all artifacts."""

    filesystem: pafs.FileSystem
    path: str

    @classmethod
    def at(cls, root: str) -> "Store":
        """Open the store at a folder or URI, which need not exist yet.

        Raises:
            ValueError: the root is a file, or a URI that cannot be opened.
        """
        filesystem, path = open_uri(root, "--root")
        if isinstance(filesystem, pafs.LocalFileSystem) and Path(path).is_file():
            raise ValueError(f"--root {root}: it is a file; give a folder, which need not exist yet")
        return cls(filesystem, path)

    def artifact(self, step: Step) -> "Artifact":
        """Return the artifact of a step."""
        return Artifact(self.filesystem, f"{self.path}/{step.stage}-{step.fingerprint}")


@dataclass(frozen=True)
class Artifact:
    """A folder with tables (folders of parquet files) and a manifest, which is written last."""

    filesystem: pafs.FileSystem
    path: str

    def exists(self) -> bool:
        """Return whether anything has been written."""
        info = retry(lambda: self.filesystem.get_file_info(self.path), f"check whether {self.path} exists")
        return bool(info.type != pafs.FileType.NotFound)

    def manifest(self) -> dict[str, Any] | None:
        """Read the manifest, or return None while the artifact is not complete."""
        content = self.read_bytes(MANIFEST)
        manifest: dict[str, Any] | None = None if content is None else json.loads(content)
        return manifest

    def complete(self, manifest: Mapping[str, Any]) -> None:
        """Write the manifest, which marks the artifact as complete."""
        self.write_bytes(MANIFEST, json.dumps(manifest, indent=2, sort_keys=True).encode())

    def read_bytes(self, name: str) -> bytes | None:
        """Read a file, or return None where there is none."""

        def read() -> bytes:
            with self.filesystem.open_input_stream(f"{self.path}/{name}") as stream:
                content: bytes = stream.read()
                return content

        try:
            return retry(read, f"read {self.path}/{name}")
        except FileNotFoundError:
            return None

    def write_bytes(self, name: str, content: bytes) -> None:
        """Write one file. It appears whole or not at all."""
        self._write_whole(name, lambda sink: sink.write(content))

    def write_table(self, name: str, table: pa.Table) -> None:
        """Write one parquet file, `<table>/<part>.parquet`. It appears whole or not at all.

        Raises:
            StoreError: the store cannot be written; all methods that write raise it.
        """
        from pyarrow import parquet  # here and below: it loads pandas, which `plan` does not need

        # Images are compressed already; dictionaries and statistics of them would be wasted work.
        small = [f.name for f in table.schema if not pa.types.is_binary(f.type)]
        codec = {f.name: "snappy" if f.name in small else "none" for f in table.schema}
        options = {"use_dictionary": small, "write_statistics": small, "compression": codec}
        self._write_whole(name, lambda sink: parquet.write_table(table, sink, **options))

    def files(self, folder: str, suffix: str = ".parquet") -> list[str]:
        """List the complete files of a folder, sorted; none where the folder does not exist."""
        parent = f"{self.path}/{folder}" if folder else self.path
        selector = pafs.FileSelector(parent, allow_not_found=True)
        infos = retry(lambda: self.filesystem.get_file_info(selector), f"list {parent}")
        paths = (str(info.path) for info in infos if info.is_file)
        return sorted(p for p in paths if p.endswith(suffix) and not Path(p).name.startswith("."))

    def table(self, folder: str, schema: pa.Schema, columns: Sequence[str] | None = None) -> pa.Table:
        """Read all rows of a table, or no row where nothing was written.

        Args:
            columns: all by default.
        """
        files = self.files(folder)
        if not files:
            return pa.schema([f for f in schema if columns is None or f.name in columns]).empty_table()
        names = None if columns is None else list(columns)
        return self._read_table(folder, lambda: self.open_files(files, names).to_table(columns=names))

    def open_files(self, files: Sequence[str], columns: Sequence[str] | None = None) -> "pads.Dataset":
        """Open parquet files of the artifact as one Arrow dataset. All have the types of the first one.

        Args:
            columns: those that will be read; all by default.

        Raises:
            StoreError: a column has an extension type that is not ours (see `store.tables`).
        """
        from pyarrow import dataset as pads  # slow to import: it imports pandas

        dataset = pads.dataset(list(files), filesystem=self.filesystem, format="parquet")
        try:
            check_types(dataset.schema, columns, files[0], self.repair)
        except ValueError as error:
            raise StoreError(str(error)) from error
        return dataset

    @property
    def repair(self) -> str:
        """What a user should do if the artifact's files are damaged."""
        return f"the artifact is damaged: remove the folder {self.path} and re-run the same command"

    def rows(
        self, folder: str, schema: pa.Schema, columns: Sequence[str], key: str, values: pa.ChunkedArray | pa.Array
    ) -> pa.Table:
        """Read the rows of a table whose `key` is among the values."""
        import pyarrow.compute as pc

        files = self.files(folder)
        if not files:
            return self.table(folder, schema, columns)
        values = values.combine_chunks() if isinstance(values, pa.ChunkedArray) else values
        options = {"columns": list(columns), "filter": pc.field(key).isin(values)}
        return self._read_table(folder, lambda: self.open_files(files, [*columns, key]).to_table(**options))

    def _read_table(self, folder: str, read: Callable[[], pa.Table]) -> pa.Table:
        try:
            return retry(read, f"read {self.path}/{folder}")
        except pa.ArrowException as error:
            reason = str(error).splitlines()[0]
            raise StoreError(f"{self.path}/{folder} cannot be read ({reason}); {self.repair}") from error

    def delete(self, folder: str) -> None:
        """Remove a folder of the artifact and everything in it."""
        retry(lambda: self.filesystem.delete_dir(f"{self.path}/{folder}"), f"delete {self.path}/{folder}")

    def put_folder(self, local: Path, name: str) -> None:
        """Copy a local folder, file by file, to `<artifact>/<name>`; an empty name means the artifact itself."""
        for file in sorted(p for p in local.rglob("*") if p.is_file()):
            with file.open("rb") as source:
                self._write_whole(f"{name}/{file.relative_to(local)}".lstrip("/"), _copy_from(source))

    def get_folder(self, name: str, local: Path) -> str:
        """Return a local folder with the files of `<artifact>/<name>`: the folder itself where it is local already."""
        if isinstance(self.filesystem, pafs.LocalFileSystem):
            return f"{self.path}/{name}"
        source, target = f"{self.path}/{name}", pafs.LocalFileSystem()
        retry(lambda: pafs.copy_files(source, str(local), self.filesystem, target), f"read {source}")
        return str(local)

    def _write_whole(self, name: str, write: Callable[[Any], object]) -> None:
        path = f"{self.path}/{name}"
        retry(lambda: self._write_once(path, write), f"write {path}")

    def _write_once(self, path: str, write: Callable[[Any], object]) -> None:
        folder, _, file = path.rpartition("/")
        self.filesystem.create_dir(folder, recursive=True)
        if self.filesystem.type_name in _WHOLE_OBJECT_STORES:
            with self.filesystem.open_output_stream(path) as sink:
                write(sink)
            return
        temporary = f"{folder}/.{file}.{uuid.uuid4().hex}"
        try:
            with self.filesystem.open_output_stream(temporary) as sink:
                write(sink)
            self.filesystem.move(temporary, path)
        except OSError:
            with suppress(OSError):  # on a full disk the part would take the space of the next attempt
                self.filesystem.delete_file(temporary)
            raise


def _copy_from(source: Any) -> Callable[[Any], object]:
    def copy(sink: Any) -> None:
        source.seek(0)
        while block := source.read(1 << 24):
            sink.write(block)

    return copy


def part_name(ids: Iterable[str]) -> str:
    """Name the file of these rows: a hash of their ids, so that the same rows written twice get the same name."""
    return hashlib.blake2b("\n".join(ids).encode(), digest_size=10).hexdigest() + ".parquet"
