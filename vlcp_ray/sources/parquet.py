"""The layout `parquet`: tables of the Hugging Face hub, with images as struct<bytes, path> and named label numbers."""

from collections.abc import Container, Iterable, Iterator, Sequence
from contextlib import suppress
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, Final

import pyarrow as pa
import pyarrow.compute as pc
from pyarrow import fs as pafs

from vlcp_ray.monitoring.memory import limit_growth
from vlcp_ray.settings import ConfigError
from vlcp_ray.sources.layout import Layout
from vlcp_ray.sources.parquet_pages import Demand, measure
from vlcp_ray.sources.reader import (
    Listing,
    Part,
    Row,
    check_class_count,
    has_shards,
    image_id,
    list_folders,
    list_shards,
    list_some,
    lost_shard,
    split_of,
    split_of_folder,
    suffix_among,
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
from vlcp_ray.sources.tars import EXTENSIONS

if TYPE_CHECKING:
    from vlcp_ray.stages.ingest import Ingest

_BATCH: Final = 256  # rows
_LABELS_AT_ONCE: Final = 2**14
_BATCH_BYTES: Final = 32 * 2**20
_BUFFER: Final = 2**20  # bytes of a column that Arrow holds packed, besides the page that it unpacks
_MIN_PAGE_LIMIT: Final = 2**27  # old writers put the images of 1,000 rows into one page
_MAX_FOOTER: Final = 2**26  # bytes
_MANY_FILES: Final = 64  # enough parts for all workers; fewer files are split at their row groups
_ROWS_PER_PART: Final = 2_000
_DAMAGE: Final = (OSError, ValueError, pa.ArrowException, MemoryError, ShardError, OverflowError)


@dataclass(frozen=True)
class Opened:
    """A file whose footer was read.

    Args:
        file: pyarrow's `ParquetFile`.
        columns: its columns.
        shard: the file under it.
        memory: bytes that reading a batch may take.
    """

    file: Any
    columns: Columns
    shard: ShardFile
    memory: int

    def demand(self, group: int, names: Iterable[str]) -> Demand:
        """Measure what reading some columns of a row group takes. Raises ShardError for damaged headers."""
        metadata = self.file.metadata.row_group(group)
        chunks = (metadata.column(number) for number in range(metadata.num_columns))
        found = [measure(self.shard, chunk) for chunk in chunks if _is_of(chunk, names)]
        return Demand(max(d.page for d in found), max(d.value for d in found), sum(d.total for d in found))

    def batches(self, group: int, names: Sequence[str], size: int) -> Iterator[pa.RecordBatch]:
        """Read columns of a row group in batches of some rows.

        Raises:
            StoreError: the store fails.
            ShardError: the bytes are damaged.
        """
        batches = self.file.iter_batches(size, row_groups=[group], columns=list(names), use_threads=False)
        while True:
            try:
                with limit_growth(self.memory):
                    batch = next(batches, None)
            except _DAMAGE as error:
                raise self.shard.damage(error) from error
            if batch is None:
                return
            yield batch


class Parquet(TableFiles):
    """Read `train-*.parquet` and `validation-*.parquet`, as the hub serves them.

    Memory: a worker holds one page of each column, packed and unpacked, its dictionary, and batches of 32 MiB or of one
    row. With the default `max_bytes` all of it together stays under 1 GiB, whatever the file says; row groups that need
    more are rejected as too large before anything of them is unpacked. Where a decoder asks for more than the sizes
    of its page, the process gets 2 GiB and 8 times `max_bytes` at most.
    """

    layout, extension = "parquet", "parquet"
    title, file_title = "parquet", "parquet"

    def _files_of_set(self, files: dict[str, str], settings: "Ingest") -> dict[str, str]:
        if settings.layout == "auto":
            _check_configurations(self.path, files)
        return files

    def parts(self) -> Sequence[Part]:
        """List a part per file, or, for fewer than 64 files, per row groups of about 2,000 rows."""
        files = sorted(self.files.items())
        if len(files) >= _MANY_FILES:
            return [Part(path, split) for path, split in files]
        return [part for path, split in files for part in self._split_file(path, split)]

    def _split_file(self, path: str, split: str) -> Iterator[Part]:
        try:
            metadata = self._open(path).file.metadata
        except ShardError:
            yield Part(path, split)  # reading it makes it a rejected row
            return
        first, rows = 0, 0
        for group in range(metadata.num_row_groups):
            rows += metadata.row_group(group).num_rows
            if rows >= _ROWS_PER_PART or group == metadata.num_row_groups - 1:
                yield Part(path, split, start=first, end=group + 1)
                first, rows = group + 1, 0

    def images(self, part: Part, skipped: object = None, ids: bool = False) -> Iterator[Listing]:
        try:
            yield from self._list(part, ids)
        except ShardError as error:
            raise ValueError(f"{part.path}: {error}") from error

    def _list(self, part: Part, ids: bool) -> Iterator[Listing]:
        opened = self._open(part.path)
        metadata = opened.file.metadata
        first = sum(metadata.row_group(group).num_rows for group in range(part.start))
        for group in range(part.start, part.end or metadata.num_row_groups):
            keys: Sequence[str | None] = self._read_keys(opened, group)
            rows = self._rows_to_read(part, first, keys, ())
            images = self._identify(opened, group, rows) if ids else ((None, None) for _ in rows)
            for row, image in zip(rows, images, strict=True):
                made = make_row(part, first + row, keys[row], image, self.max_bytes)
                yield Listing(part.split, keys[row] or "", made.source, made.image_id if ids else "")
            first += metadata.row_group(group).num_rows

    def read(self, part: Part, done: Container[str], skipped: object = None) -> Iterator[pa.Table]:
        """See `Source.read`. Reads images only from row groups that have a wanted row not yet done.

        A label number is named by the class names in its own file. Rows that cannot be read are rejected one by one.
        """
        try:
            opened = self._open(part.path)
        except ShardError as error:
            yield from tables([lost_shard(part, str(error))])
            return
        metadata = opened.file.metadata
        first = sum(metadata.row_group(group).num_rows for group in range(part.start))
        for group in range(part.start, part.end or metadata.num_row_groups):
            yield from tables(self._read_group(part, opened, group, first, done))
            first += metadata.row_group(group).num_rows

    def _read_group(self, part: Part, opened: Opened, group: int, first: int, done: Container[str]) -> Iterator[Row]:
        """Read the wanted rows of a row group, whose first row is row `first` of the file."""
        try:
            keys: Sequence[str | None] = self._read_keys(opened, group)
        except ShardError as error:
            claimed = opened.file.metadata.row_group(group).num_rows
            rows_lost = claimed if claimed <= MAX_ROWS else 1  # a count that nobody can check
            for row in self._rows_to_read(part, first, [""] * rows_lost, done):
                yield _lost_row(part, first + row, "", group, error)
            return
        rows, read = self._rows_to_read(part, first, keys, done), 0
        try:
            for row, image in zip(rows, self._read_images(opened, group, rows), strict=True):
                yield make_row(part, first + row, keys[row], image, self.max_bytes)
                read += 1
        except ShardError as error:
            for row in rows[read:]:
                yield _lost_row(part, first + row, keys[row] or "", group, error)

    def _rows_to_read(self, part: Part, first: int, keys: Sequence[str | None], done: Container[str]) -> Sequence[int]:
        """List the rows of a row group that are wanted, or have no class, and are not done."""
        return [
            row
            for row, key in enumerate(keys)
            if (key in self.wanted or key not in self.keys) and f"{part.path}#{first + row}" not in done
        ]

    def _identify(self, opened: Opened, group: int, rows: Sequence[int]) -> Iterator[tuple[Any, str | None]]:
        """Yield what gives some rows of a row group their ids: file names, and bytes from the first row without a name.

        Raises:
            ShardError: it is damaged, or has fewer rows, or takes too much memory.
        """
        named = 0
        for name in self._read_names(opened, group, rows):
            if not name:
                break
            yield None, name
            named += 1
        yield from self._read_images(opened, group, rows[named:])

    def _read_names(self, opened: Opened, group: int, rows: Sequence[int]) -> Iterator[str | None]:
        """Read the file names of some rows of a row group, without the bytes; none where they are no identity."""
        paths = opened.columns.paths
        if not (rows and paths and self.has_names):
            return
        demand = self._check_pages(opened, group, paths)
        for images in _select(opened.batches(group, paths, _rows_for(demand.value, _LABELS_AT_ONCE)), rows):
            yield from file_names(images)

    def _read_images(self, opened: Opened, group: int, rows: Sequence[int]) -> Iterator[tuple[Any, str | None]]:
        """Read the bytes, as an Arrow buffer or None, and the file name of some rows of a row group, in their order.

        Raises:
            _TooLargeError: the row group would take too much memory; nothing was read.
            ShardError: it is damaged, or has fewer rows.
        """
        if not rows:
            return
        read = 0
        for images in _select(opened.batches(group, opened.columns.parts, self._batch_size(opened, group)), rows):
            for content, name in zip(contents_of(images), file_names(images), strict=True):
                yield content.as_buffer(), name if self.has_names else None
            read += len(images)
        if read < len(rows):
            raise ShardError(f"it has fewer than {rows[-1] + 1} rows")

    def _batch_size(self, opened: Opened, group: int) -> int:
        """Return the number of rows whose images take at most 32 MiB.

        Raises:
            _TooLargeError: a page is over the limit, or the row group is a bomb.
        """
        parts = opened.columns.parts
        demand = self._check_pages(opened, group, parts)
        if demand.total <= _BATCH_BYTES:
            return _BATCH
        metadata = opened.file.metadata.row_group(group)
        chunks = [metadata.column(number) for number in range(metadata.num_columns)]
        stored = sum(min(c.total_compressed_size, opened.shard.size) for c in chunks if _is_of(c, parts))
        limit = max(BOMB_BYTES, BOMB_RATIO * stored)
        if demand.total <= limit:
            return _rows_for(demand.value)
        total, longest = 0, 1
        for batch in opened.batches(group, parts, _rows_for(demand.value)):
            sizes = pc.binary_length(contents_of(batch.column(0)))
            total, longest = total + (pc.sum(sizes).as_py() or 0), max(longest, pc.max(sizes).as_py() or 0)
            if total > limit:
                raise _TooLargeError(
                    f"the images of its row group take more than {limit} bytes, from {stored} in the file"
                )
        return _rows_for(longest)

    def _check_pages(self, opened: Opened, group: int, names: Sequence[str]) -> Demand:
        limit = max(_MIN_PAGE_LIMIT, 2 * self.max_bytes)
        demand = opened.demand(group, names)
        if demand.page > limit:
            raise _TooLargeError(f"a page of its row group has {demand.page} bytes, the limit is {limit}")
        return demand

    def _read_keys(self, opened: Opened, group: int) -> list[str | None]:
        """Read the class keys of a row group. Raises ShardError if it is damaged, or has too much of anything."""
        count = opened.file.metadata.row_group(group).num_rows
        if count > MAX_ROWS:
            raise ShardError(f"it has {count} rows, the limit is {MAX_ROWS}")
        name = opened.columns.label
        demand = self._check_pages(opened, group, [name])
        keys: list[str | None] = []
        one: dict[str, str] = {}  # of each key, so that a million labels are not a million strings
        total = 0
        for batch in opened.batches(group, [name], _rows_for(demand.value, _LABELS_AT_ONCE)):
            total += batch.nbytes
            if total > BOMB_BYTES:
                raise _TooLargeError(f"the labels of its row group take more than {BOMB_BYTES} bytes")
            found = class_keys(batch.column(0), opened.columns, self.glossary)
            keys += [key and one.setdefault(key, key) for key in found]
            check_class_count(one)
        if len(keys) != count:
            raise ShardError(f"it has {len(keys)} labels for {count} rows")
        return keys

    def _read_classes(self) -> set[str]:
        keys: set[str] = set()
        for path in self.files:
            try:
                opened = self._open(path)
            except ShardError:
                continue
            for group in range(opened.file.metadata.num_row_groups):
                with suppress(ShardError):
                    keys |= {key for key in self._read_keys(opened, group) if key}
                    check_class_count(keys)
        return keys

    def _read_columns(self, path: str) -> Columns:
        return self._open(path).columns

    def _first_images(self) -> Iterator[pa.Array]:
        """See `TableFiles`: of each row group, with their file names only."""
        for path in self.files:
            with suppress(ShardError):
                opened = self._open(path)
                paths = opened.columns.paths
                if not paths:
                    return
                for group in range(opened.file.metadata.num_row_groups):
                    self._check_pages(opened, group, paths)
                    if (batch := next(opened.batches(group, paths, _BATCH), None)) is not None:
                        yield batch.column(0)

    def _open(self, path: str) -> Opened:
        """Read the footer of a file.

        Raises:
            ShardError: it is damaged.
            ConfigError: it lacks a column, or one has a type that is not read.
        """
        from pyarrow import parquet  # slow to import: it imports pandas

        shard = open_shard(self.filesystem, f"{self.path}/{path}", self.limit)
        shard.seek(max(shard.size - 8, 0))
        if (footer := int.from_bytes(shard.read(4), "little")) > _MAX_FOOTER:
            raise ShardError(f"its footer has {footer} bytes, the limit is {_MAX_FOOTER}")
        try:
            file = parquet.ParquetFile(shard, buffer_size=_BUFFER, pre_buffer=False)
            schema = file.schema_arrow
        except _DAMAGE as error:
            raise shard.damage(error) from error
        return Opened(file, self._find_columns(schema, path), shard, self.memory)


def _select(batches: Iterable[pa.RecordBatch], rows: Sequence[int]) -> Iterator[pa.Array]:
    """Yield some rows, given by their increasing numbers, of the only column of batches."""
    start, wanted = 0, pa.array(rows, pa.int64())
    for batch in batches:
        inside = pc.and_(pc.greater_equal(wanted, start), pc.less(wanted, start + len(batch)))
        yield batch.column(0).take(pc.subtract(wanted.filter(inside), start))
        start += len(batch)


def _is_of(chunk: Any, names: Iterable[str]) -> bool:
    """Return whether a chunk is of one of some columns: that of a list has more parts in its path."""
    return any(f"{chunk.path_in_schema}.".startswith(f"{name}.") for name in names)


class _TooLargeError(ShardError):
    """A row group that would take too much memory."""


def _rows_for(size: int, most: int = _BATCH) -> int:
    """Return how many rows of some bytes make a batch of 32 MiB; at least one."""
    return max(1, min(most, _BATCH_BYTES // max(size, 1)))


def _lost_row(part: Part, number: int, key: str, group: int, error: ShardError) -> Row:
    source = f"{part.path}#{number}"
    reason, detail = "unreadable", f"row group {group} is damaged ({error}); download the file again"
    if isinstance(error, _TooLargeError):
        reason, detail = "too_large", str(error)
    return Row(image_id(part.split, key, source), key, part.split, source, b"", reason, detail)


def _check_configurations(path: str, files: Iterable[str]) -> None:
    """Refuse a repository with several configurations, which mostly are the same images in other sizes.

    Raises:
        ConfigError: names them.
    """
    names = (file.partition("/") for file in files)
    found = {top for top, _, rest in names if rest and not split_of_folder(top) and split_of(rest) == "train"}
    if len(found) > 1:
        first = min(found)
        raise ConfigError(
            f"ingest.source: {path} has the configurations {list_some(sorted(found))}; choose one of them: "
            f'ingest.config = "{first}", or read all of them with ingest.layout = "parquet"'
        )


def _has_parquet(filesystem: pafs.FileSystem, path: str) -> bool:
    """Return whether there are parquet files, other than the tables that img2dataset puts beside its tars."""
    if not has_shards(filesystem, path, "parquet"):
        return False
    if filesystem.get_file_info(path).is_file:
        return True
    folders = [path, *(folder for name, folder in list_folders(filesystem, path) if split_of_folder(name))]
    tables, tars = (
        {
            f"{folder}/{name.removesuffix(suffix_among(name, kind))}"
            for folder in folders
            for name in list_shards(filesystem, folder, kind)
        }
        for kind in ("parquet", EXTENSIONS)
    )
    return not tables or bool(tables - tars)


LAYOUT: Final = Layout(
    "parquet",
    "train-*.parquet",
    _has_parquet,
    Parquet,
    has_class_key=True,
)
