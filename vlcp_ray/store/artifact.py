"""Artifacts: fingerprints, tables and files, and the manifest that marks an artifact as complete."""

import hashlib
import json
import tempfile
from collections.abc import Iterable, Iterator, Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager
from dataclasses import dataclass, field
from functools import cached_property, partial
from pathlib import Path
from typing import TYPE_CHECKING, Any, Final

import pyarrow as pa
from pyarrow import fs as pafs
from pydantic import BaseModel, ConfigDict, FiniteFloat, ValidationError

from vlcp_ray.settings import ConfigError
from vlcp_ray.store import files, written
from vlcp_ray.store.files import File
from vlcp_ray.store.io import StoreError, open_uri, retry
from vlcp_ray.store.tables import check_types

if TYPE_CHECKING:
    from pyarrow import dataset as pads

MANIFEST: Final = "manifest.json"
#: Requests at the same time, where many small files are read or many folders are listed.
THREADS: Final = 32
_PAGE: Final = 2**31 - 1  # bytes, the most that parquet allows
#: Tables of S3 up to this size are read whole, with one request for a file.
_WHOLE_BYTES: Final = 64 * 2**20
#: Words of errors of stores, in messages of pyarrow that have no number.
_STORE_WORDS: Final = ("AWS Error", "google::cloud", "Azure Error", "HTTP")
#: The fields that every manifest has.
_COUNTS: Final = ("rows_in", "rows", "rejected", "seconds")


@dataclass(frozen=True)
class Step:
    """A node of the artifact graph: a stage, its version, the settings and inputs that determine the artifact, its key.

    Args:
        key: identifies the artifact among those of its stage: seed, ipc, method.
        words: what else tells it from those, for its title only: the teacher, where a job has several.
    """

    stage: str
    version: int
    settings: Mapping[str, Any]
    key: Mapping[str, Any] = field(default_factory=dict)
    inputs: "Mapping[str, Step]" = field(default_factory=dict)
    words: str = ""

    @cached_property
    def fingerprint(self) -> str:
        """Hash of stage, version, settings, key and the inputs' fingerprints: the same on every machine."""
        inputs = {name: step.fingerprint for name, step in self.inputs.items()}
        content = [self.stage, self.version, dict(self.settings), dict(self.key), inputs]
        text = json.dumps(content, sort_keys=True, separators=(",", ":"))
        return hashlib.sha256(text.encode()).hexdigest()[:12]

    @property
    def folder(self) -> str:
        """The name of the artifact's folder."""
        return f"{self.stage}-{self.fingerprint}"

    @property
    def title(self) -> str:
        """The stage and its key in words: `prototype seed 0 ipc 5`."""
        keys = [f"{k} {v}" if k != "method" else str(v) for k, v in self.key.items()]
        return " ".join([self.stage, *keys, *([self.words] if self.words else [])])


class _Entry(BaseModel):
    model_config = ConfigDict(strict=True)

    bytes: int
    sha256: str


class _Fields(BaseModel):
    """The types of the fields of manifests; a manifest has some of them, and others."""

    model_config = ConfigDict(strict=True, extra="allow")

    rows_in: int = 0
    rows: int = 0
    rejected: int = 0
    seconds: FiniteFloat = 0.0
    files: dict[str, _Entry] = {}
    scale: dict[str, Any] = {}
    class_names: list[str] = []
    train: list[int] = []
    splits: dict[str, int] = {}
    top1: float = 0.0


class _Manifest(dict[str, Any]):
    """The fields of a manifest; one that is looked up and missing is damage."""

    def __init__(self, content: bytes, path: str, repair: str) -> None:
        self.path, self.repair = path, repair
        try:
            super().__init__(_Fields.model_validate_json(content).model_dump(exclude_unset=True))
        except ValidationError as error:
            first = error.errors()[0]
            reason = ": ".join(map(str, (*first["loc"], first["msg"])))
            raise StoreError(f"{path} cannot be read ({reason}); {repair}") from error

    def __missing__(self, name: str) -> Any:
        raise StoreError(f"{self.path} lacks the field {name!r}; {self.repair}")


Manifest = dict[str, Any]
#: Of several artifacts, by fingerprint; None for one that is not complete.
Manifests = Mapping[str, Manifest | None]


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

    def check_writable(self) -> None:
        """Make the root, where it is a folder of this machine, and refuse one in which no file can be made.

        What another store refuses is known with its first file.

        Raises:
            ConfigError: names the reason and the fix.
        """
        if not isinstance(self.filesystem, pafs.LocalFileSystem):
            return
        try:
            Path(self.path).mkdir(parents=True, exist_ok=True)
            tempfile.TemporaryFile(dir=self.path).close()
        except OSError as error:
            raise ConfigError(
                f"--root {self.path}: no file can be made there ({error.strerror}); give a folder in which you may "
                "write"
            ) from error

    def artifact(self, step: Step) -> "Artifact":
        """Return the artifact of a step."""
        return Artifact(self.filesystem, f"{self.path}/{step.folder}")

    def manifests(self, steps: Sequence[Step]) -> Manifests:
        """Read the manifests of all steps that have one, by fingerprint; None for an artifact that is not complete.

        The root is listed once. Steps without a folder are left out; the manifests of the others are read in parallel.

        Raises:
            StoreError: a manifest is damaged.
        """
        present = set(retry(lambda: files.list_folders(self.filesystem, self.path), f"list {self.path}"))
        started = [step for step in steps if step.folder in present]
        if not started:
            return {}
        with ThreadPoolExecutor(THREADS) as threads:
            manifests = threads.map(lambda step: self.artifact(step).manifest(_COUNTS), started)
            return {step.fingerprint: manifest for step, manifest in zip(started, manifests, strict=True)}


@dataclass(frozen=True)
class Artifact:
    """A folder with tables (folders of parquet files) and a manifest, which is written last."""

    filesystem: pafs.FileSystem
    path: str

    def manifest(self, needed: Sequence[str] = ()) -> Manifest | None:
        """Read the manifest, or return None while the artifact is not complete.

        Args:
            needed: fields that it must have; another one that is missing is an error when it is looked up.

        Raises:
            StoreError: it is damaged: no JSON, a field of a wrong type, or a field that is missing.
        """
        content = self.read_bytes(MANIFEST)
        if content is None:
            return None
        manifest = _Manifest(content, f"{self.path}/{MANIFEST}", self.repair)
        for name in needed:
            manifest[name]
        return manifest

    def complete(self, manifest: Mapping[str, Any]) -> None:
        """Write the manifest, which marks the artifact as complete."""
        self.write_bytes(MANIFEST, json.dumps(manifest, indent=2, sort_keys=True).encode())

    def read_bytes(self, name: str) -> bytes | None:
        """Read a file, or return None where there is none."""
        path = f"{self.path}/{name}"
        try:
            return retry(lambda: files.read(self.filesystem, path), f"read {path}")
        except FileNotFoundError:
            return None

    def write_bytes(self, name: str, content: bytes | memoryview | Path) -> None:
        """Write one file, or copy a local one. It appears whole or not at all.

        Raises:
            StoreError: the store cannot be written; all methods that write raise it.
        """
        path = f"{self.path}/{name}"
        retry(lambda: files.write(self.filesystem, path, content), f"write {path}")
        written.record(path, written.measure(files.local_blocks(content)))

    def write_table(self, name: str, table: pa.Table) -> None:
        """Write one parquet file, `<table>/<part>.parquet`. It appears whole or not at all."""
        from pyarrow import parquet  # here and below: it loads pandas, which `plan` does not need

        # Images are compressed already; dictionaries and statistics of them would be wasted work.
        small = [f.name for f in table.schema if not pa.types.is_binary(f.type)]
        codec = {f.name: "snappy" if f.name in small else "none" for f in table.schema}
        sink = pa.BufferOutputStream()
        options = {"use_dictionary": small, "write_statistics": small, "compression": codec}
        # A column is one page: where a row of a tensor lies in the file is then known (see `stages.finetune.rows`).
        parquet.write_table(table, sink, **options, row_group_size=len(table) or 1, data_page_size=_PAGE)
        self.write_bytes(name, memoryview(sink.getvalue()))

    def files(self, folder: str = "", suffix: str = "", *, recursive: bool = False) -> list[File]:
        """List the complete files of a folder, sorted; none where the folder does not exist.

        Args:
            folder: relative to the artifact; the artifact itself by default.
            suffix: the end of the wanted names.
        """
        parent = f"{self.path}/{folder}" if folder else self.path
        found = retry(lambda: files.list_files(self.filesystem, parent, recursive=recursive), f"list {parent}")
        return [file for file in found if file.path.endswith(suffix)]

    def parts(self, table: str) -> list[File]:
        """List the parquet files of a table."""
        return self.files(table, ".parquet")

    def table(self, folder: str, schema: pa.Schema, columns: Sequence[str] | None = None) -> pa.Table:
        """Read all rows of a table, or no row where nothing was written.

        Args:
            columns: all by default.
        """
        parts = self.parts(folder)
        if not parts:
            return pa.schema([f for f in schema if columns is None or f.name in columns]).empty_table()
        return self.read_parts(parts, columns)

    def rows(
        self, folder: str, schema: pa.Schema, columns: Sequence[str], key: str, values: pa.ChunkedArray | pa.Array
    ) -> pa.Table:
        """Read the rows of a table whose `key` is among the values; of a large one only the files that have any."""
        import pyarrow.compute as pc

        parts = self.parts(folder) if len(values) else []
        values = values.combine_chunks() if isinstance(values, pa.ChunkedArray) else values
        wanted = pc.field(key).isin(values)

        def has_any(part: File) -> bool:
            return len(self.read_parts([part], [key], wanted)) > 0

        if sum(part.size for part in parts) > _WHOLE_BYTES:
            with ThreadPoolExecutor(THREADS) as threads:
                parts = [part for part, found in zip(parts, threads.map(has_any, parts), strict=True) if found]
        if not parts:
            return pa.schema([f for f in schema if f.name in columns]).empty_table()
        return self.read_parts(parts, columns, wanted, list(dict.fromkeys((*columns, key))))

    def read_parts(
        self,
        parts: Sequence[File],
        columns: Sequence[str] | None = None,
        where: Any = None,
        read: Sequence[str] | None = None,
    ) -> pa.Table:
        """Read files of a table. All have the types of the first one.

        Args:
            columns: all by default.
            where: an Arrow expression; all rows by default.
            read: the columns and those of the expression.

        Raises:
            StoreError: a file is damaged, or has columns of types that are not ours (see `store.tables`).
        """
        names = None if columns is None else list(columns)
        read = names if read is None else read
        folder = parts[0].path.rpartition("/")[0]
        if isinstance(self.filesystem, pafs.S3FileSystem) and sum(part.size for part in parts) <= _WHOLE_BYTES:
            with self.naming_damage(folder), ThreadPoolExecutor(THREADS) as threads:
                parse = partial(self._read_and_parse, columns=read)
                table = pa.concat_tables(threads.map(parse, (part.path for part in parts)))
                return (table if where is None else table.filter(where)).select(names or table.column_names)

        def scan() -> pa.Table:
            with self.naming_damage(folder):
                return self.open_parts(parts, read).to_table(columns=names, filter=where)

        return retry(scan, f"read {parts[0].path}")

    def open_parts(self, parts: Sequence[File], columns: Sequence[str] | None = None) -> "pads.Dataset":
        """Open files of a table as one Arrow dataset, to read them in batches.

        Args:
            columns: those that will be read; all by default.
        """
        from pyarrow import dataset as pads  # slow to import: it imports pandas

        form = pads.ParquetFileFormat()
        fragments = [form.make_fragment(part.path, self.filesystem, file_size=part.size) for part in parts]
        with self.naming_damage(parts[0].path):
            schema = fragments[0].physical_schema
        self._check_types(schema, columns, parts[0].path)
        return pads.FileSystemDataset(fragments, schema, form, self.filesystem)

    def read_part(self, name: str) -> pa.Table:
        """Read one file of a table, whose size is not known."""
        return self._read_and_parse(f"{self.path}/{name}", columns=None)

    def _read_and_parse(self, path: str, columns: Sequence[str] | None) -> pa.Table:
        from pyarrow import parquet

        content = retry(lambda: files.read(self.filesystem, path), f"read {path}")
        with self.naming_damage(path):
            file = parquet.ParquetFile(pa.BufferReader(content))
            self._check_types(file.schema_arrow, columns, path)
            return file.read(columns=None if columns is None else list(columns))

    @contextmanager
    def naming_damage(self, place: str) -> Iterator[None]:
        """Turn pyarrow's errors on damaged files into errors that name the file or folder and the fix.

        Raises:
            StoreError: a file is damaged. Errors of the store are raised unchanged.
        """
        try:
            yield
        except (pa.ArrowException, OSError) as error:
            if not _is_damage(error):
                raise
            raise StoreError(f"{place} cannot be read ({str(error).splitlines()[0]}); {self.repair}") from error

    def _check_types(self, schema: pa.Schema, columns: Sequence[str] | None, path: str) -> None:
        try:
            check_types(schema, columns, path, self.repair)
        except ValueError as error:
            raise StoreError(str(error)) from error

    @property
    def repair(self) -> str:
        """What a user should do if the artifact's files are damaged."""
        return f"the artifact is damaged: remove the folder {self.path} and re-run the same command"

    def delete(self, folder: str) -> None:
        """Remove a folder of the artifact and everything in it."""
        path = f"{self.path}/{folder}"
        if isinstance(self.filesystem, pafs.S3FileSystem):
            self.delete_files(self.files(folder, recursive=True))
        else:
            retry(lambda: self.filesystem.delete_dir(path), f"delete {path}")

    def delete_files(self, parts: Sequence[File]) -> None:
        """Remove files of the artifact; those that are gone already are left out."""
        paths = [part.path for part in parts]
        retry(lambda: files.delete(self.filesystem, paths), f"delete files of {self.path}")

    def put_folder(self, local: Path, name: str) -> None:
        """Copy a local folder, file by file, to `<artifact>/<name>`; an empty name means the artifact itself."""
        for file in sorted(p for p in local.rglob("*") if p.is_file()):
            self.write_bytes(f"{name}/{file.relative_to(local)}".lstrip("/"), file)

    def get_folder(self, name: str, local: Path) -> str:
        """Return a local folder with the files of `<artifact>/<name>`: the folder itself where it is local already."""
        source = f"{self.path}/{name}"
        if isinstance(self.filesystem, pafs.LocalFileSystem):
            return source
        for file in self.files(name, recursive=True):
            target = local / file.path[len(source) + 1 :]
            retry(partial(files.download, self.filesystem, file, target), f"read {file.path}")
        return str(local)


def _is_damage(error: Exception) -> bool:
    """Return whether pyarrow could not parse a file: its OSError on that has neither a number nor the words of a store.

    A read that failed has one of them, and the errors of filesystems in Python have classes of their own.
    """
    if isinstance(error, pa.ArrowException):
        return True
    is_plain = type(error) is OSError and error.errno is None
    return is_plain and not any(word in str(error) for word in _STORE_WORDS)


def part_name(ids: Iterable[str]) -> str:
    """Name the file of these rows: a hash of their ids, so that the same rows written twice get the same name."""
    return hashlib.blake2b("\n".join(ids).encode(), digest_size=10).hexdigest() + ".parquet"
