"""The layout `arrow`: folders that `save_to_disk` of Hugging Face's datasets has written."""

from collections.abc import Container, Iterator, Sequence
from contextlib import suppress
from typing import TYPE_CHECKING, Any, Final

import pyarrow as pa
from pyarrow import fs as pafs

from vlcp_ray.monitoring.memory import limit_growth
from vlcp_ray.sources.layout import Layout
from vlcp_ray.sources.reader import (
    Listing,
    Part,
    Row,
    check_class_count,
    image_id,
    list_folders,
    list_shards,
    lost_shard,
    split_of_folder,
    tables,
)
from vlcp_ray.sources.shards import ShardError, ShardFile, open_shard
from vlcp_ray.sources.table_columns import (
    BOMB_BYTES,
    BOMB_RATIO,
    MAX_ROWS,
    Columns,
    class_keys,
    contents_of,
    file_names,
    make_row,
)
from vlcp_ray.sources.table_files import TableFiles

if TYPE_CHECKING:
    pass

if TYPE_CHECKING:
    from vlcp_ray.stages.ingest import Ingest

_STATE: Final = "state.json"  # in every folder of a split, or in the folder of a set without splits
_ROWS: Final = 256
_DAMAGE: Final = (OSError, ValueError, pa.ArrowException, MemoryError, OverflowError)


class ArrowFiles(TableFiles):
    """Read `train/data-00000-of-00001.arrow`, with the columns that parquet files of the hub have.

    Memory: one batch of a file, as it was written; `datasets` writes 1,000 rows or fewer. A batch that takes more than
    256 MiB and 100 times its bytes in the file is damage, and so is one of more than 2 GiB and 8 times `max_bytes`.
    """

    layout, extension = "arrow", "arrow"
    title, file_title = "a saved dataset", "an Arrow stream"

    def _files_of_set(self, files: dict[str, str], settings: "Ingest") -> dict[str, str]:
        # Beside them are what `map` and `filter` have stored: cache-*.arrow.
        return {name: split for name, split in files.items() if not name.rpartition("/")[2].startswith("cache-")}

    def parts(self) -> Sequence[Part]:
        return [Part(path, split) for path, split in sorted(self.files.items())]

    def images(self, part: Part, skipped: object = None, ids: bool = False) -> Iterator[Listing]:
        try:
            for row in self._rows(part, (), with_images=ids):
                yield Listing(part.split, row.class_key, row.source, row.image_id if ids else "")
        except ShardError as error:
            raise ValueError(f"{part.path}: {error}") from error

    def read(self, part: Part, done: Container[str], skipped: object = None) -> Iterator[pa.Table]:
        yield from tables(self._readable_rows(part, done))

    def _readable_rows(self, part: Part, done: Container[str]) -> Iterator[Row]:
        """Yield the rows of a file, and a rejected one for what cannot be read at its end."""
        at = ""
        try:
            for row in self._rows(part, done, with_images=True):
                at = row.source
                yield row
        except ShardError as error:
            if not at:
                yield lost_shard(part, str(error))
                return
            source = f"{part.path}:after {at.rpartition('#')[2]}"
            detail = f"the file is damaged ({error}); download it again"
            yield Row(image_id(part.split, "", source), "", part.split, source, b"", "unreadable", detail)

    def _rows(self, part: Part, done: Container[str], with_images: bool) -> Iterator[Row]:
        """Yield the rows that are wanted, or have no class, and are not done; bytes and ids only with images.

        Raises:
            ShardError: the file is damaged.
        """
        first = 0
        for batch, columns in self._batches(part.path):
            keys = class_keys(batch.column(columns.label), columns, self.glossary)
            is_wanted = [key in self.wanted or key not in self.keys for key in keys]
            rows = [row for row, yes in enumerate(is_wanted) if yes and f"{part.path}#{first + row}" not in done]
            for start in range(0, len(rows), _ROWS):
                some = rows[start : start + _ROWS]
                pictures = self._pictures(batch, columns, some) if with_images else ((None, None) for _ in some)
                for row, picture in zip(some, pictures, strict=True):
                    yield make_row(part, first + row, keys[row], picture, self.max_bytes)
            first += len(batch)

    def _pictures(
        self, batch: pa.RecordBatch, columns: Columns, rows: Sequence[int]
    ) -> Iterator[tuple[Any, str | None]]:
        """Yield the bytes, as an Arrow buffer or None, and the file name of some rows."""
        images = batch.column(columns.image).take(pa.array(rows, pa.int64()))
        for content, name in zip(contents_of(images), file_names(images), strict=True):
            yield content.as_buffer(), name if self.has_names else None

    def _read_classes(self) -> set[str]:
        keys: set[str] = set()
        for path in self.files:
            try:
                for batch, columns in self._batches(path):
                    found = class_keys(batch.column(columns.label), columns, self.glossary)
                    keys |= {key for key in found if key}
                    check_class_count(keys)
            except ShardError:
                continue
        return keys

    def _read_columns(self, path: str) -> Columns:
        return self._open(path)[1]

    def _first_images(self) -> Iterator[pa.Array]:
        for path in self.files:
            with suppress(ShardError):
                for batch, columns in self._batches(path):
                    if not columns.paths:
                        return
                    yield batch.column(columns.image)

    def _batches(self, path: str) -> Iterator[tuple[pa.RecordBatch, Columns]]:
        """Yield the batches of a file.

        Raises:
            ShardError: the file is damaged, or a batch takes too much memory.
            StoreError: the store fails.
        """
        reader, columns, shard = self._open(path)
        while True:
            start = shard.tell()
            try:
                with limit_growth(self.memory):
                    batch = reader.read_next_batch()
                    batch.validate(full=True)
            except StopIteration:
                return
            except _DAMAGE as error:
                raise shard.damage(error) from error
            _check_size(batch, shard.tell() - start)
            yield batch, columns

    def _open(self, path: str) -> tuple[Any, Columns, ShardFile]:
        """Open a stream and read its schema.

        Raises:
            ShardError: it is damaged.
            ConfigError: it lacks a column, or one has a type that is not read.
        """
        shard = open_shard(self.filesystem, f"{self.path}/{path}", self.limit)
        try:
            reader = pa.ipc.open_stream(shard)
            schema = reader.schema
        except _DAMAGE as error:
            raise shard.damage(error) from error
        return reader, self._find_columns(schema, path), shard


def _check_size(batch: pa.RecordBatch, stored: int) -> None:
    """Refuse a batch of too many rows, or one that takes too much memory. Raises ShardError."""
    if len(batch) > MAX_ROWS:
        raise ShardError(f"a batch has {len(batch)} rows, the limit is {MAX_ROWS}")
    size, limit = batch.get_total_buffer_size(), max(BOMB_BYTES, BOMB_RATIO * stored)
    if size > limit:
        raise ShardError(f"a batch takes {size} bytes, from {stored} in the file, the limit is {limit}")


def _is_saved(filesystem: pafs.FileSystem, path: str) -> bool:
    """Return whether a folder, or one of its folders of splits, is one of `save_to_disk`."""
    if filesystem.get_file_info(path).is_file:
        return False
    folders = [path, *(folder for name, folder in list_folders(filesystem, path) if split_of_folder(name))]
    states = filesystem.get_file_info([f"{folder}/{_STATE}" for folder in folders])
    saved = [folder for folder, state in zip(folders, states, strict=True) if state.is_file]
    return any(list_shards(filesystem, folder, "arrow") for folder in saved)


LAYOUT: Final = Layout("arrow", "a folder of datasets' save_to_disk", _is_saved, ArrowFiles, has_class_key=True)
