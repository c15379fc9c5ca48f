"""Read single rows of PAIRS by their position in the order of image_id: their moments are ranges of bytes of files."""

from collections.abc import Callable, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from typing import Any, Final

import numpy as np
import pyarrow as pa
from pyarrow import fs as pafs

from vlcp_ray.schemas import tensor_array
from vlcp_ray.sources.parquet_pages import read_header
from vlcp_ray.sources.shards import ShardError
from vlcp_ray.stages.finetune.batches import Positions
from vlcp_ray.store import files
from vlcp_ray.store.artifact import THREADS, Artifact
from vlcp_ray.store.files import File
from vlcp_ray.store.io import StoreError, retry

_MOMENTS: Final = "train_moments"
_KEPT_BYTES: Final = 2**29  # of all files, in each rank
_INDEX: Final = pa.schema(
    [("image_id", pa.string()), ("caption", pa.large_string()), ("file", pa.int32()), ("start", pa.int64())]
)


@dataclass(frozen=True)
class PairRows:
    """The rows of PAIRS, sorted by image_id. Only ids and captions are in memory.

    Args:
        filesystem: of the files.
        parts: the files.
        shape: of the moments of a row, (views, 2c, h, w).
        index: for each row image_id, caption, the number of its file, and where its moments start there, in bytes.
    """

    filesystem: pafs.FileSystem
    parts: Sequence[File]
    shape: tuple[int, ...]
    index: pa.Table

    def __len__(self) -> int:
        return len(self.index)

    def reader(self) -> Callable[[Positions], pa.Table]:
        """Return a function from positions to their rows: image_id, caption and train_moments, in the same order.

        It reads a range of a file for each row; of a small set it reads whole files, and keeps them.

        Raises:
            StoreError: raised by the function, where the store cannot be read.
        """
        size = _row_bytes(self.shape)
        is_small = sum(part.size for part in self.parts) <= _KEPT_BYTES
        is_local = isinstance(self.filesystem, pafs.LocalFileSystem)
        kept: dict[int, bytes] = {}

        def read(number: int, start: int) -> bytes:
            path = self.parts[number].path
            if not is_small:
                return retry(lambda: files.read_range(self.filesystem, path, start, size), f"read {path}")
            if number not in kept:
                kept[number] = retry(lambda: files.read(self.filesystem, path), f"read {path}")
            return kept[number][start : start + size]

        def read_rows(positions: Positions) -> pa.Table:
            rows = self.index.take(pa.array(positions))
            ranges = (rows["file"].to_pylist(), rows["start"].to_pylist())
            if is_small or is_local:
                parts = list(map(read, *ranges))
            else:
                with ThreadPoolExecutor(THREADS) as threads:
                    parts = list(threads.map(read, *ranges))
            moments = np.frombuffer(b"".join(parts), np.float16).reshape(len(rows), *self.shape)
            return rows.select(["image_id", "caption"]).append_column(_MOMENTS, tensor_array(moments))

        return read_rows


def index_rows(pairs: Artifact) -> PairRows:
    """Read ids and captions of PAIRS, and find where the moments of every row are.

    Raises:
        StoreError: a file is damaged, or the store cannot be read.
    """
    parts = pairs.parts("pairs")
    with ThreadPoolExecutor(THREADS) as threads:
        found = list(threads.map(lambda one: _index_file(pairs, *one), enumerate(parts)))
    tables = [table for table, _ in found if len(table)]
    (shape,) = {shape for table, shape in found if len(table)}
    return PairRows(
        pairs.filesystem,
        parts,
        shape,
        pa.concat_tables(tables).sort_by("image_id").combine_chunks(),
    )


def _index_file(pairs: Artifact, number: int, part: File) -> tuple[pa.Table, tuple[int, ...]]:
    from pyarrow import parquet

    def read() -> tuple[pa.Table, tuple[int, ...], int]:
        with pairs.naming_damage(part.path), pairs.filesystem.open_input_file(part.path) as source:
            file = parquet.ParquetFile(source)
            shape = tuple(file.schema_arrow.field(_MOMENTS).type.shape)
            names = file.read(["image_id", "caption"])
            return names, shape, _first_value(source, file.metadata, _row_bytes(shape)) if len(names) else 0

    try:
        names, shape, start = retry(read, f"read {part.path}")
    except (ShardError, KeyError, AttributeError) as error:  # a header, or columns, of another writer
        raise StoreError(f"{part.path} cannot be read ({' '.join(str(error).split())}); {pairs.repair}") from error
    starts = pa.array(start + _row_bytes(shape) * np.arange(len(names)))
    table = names.append_column("file", pa.repeat(number, len(names))).append_column("start", starts)
    return table.select(_INDEX.names).cast(_INDEX), shape


def _first_value(source: Any, metadata: Any, row_bytes: int) -> int:
    """Return where the moments of the first row start: `Artifact.write_table` writes them as one page of plain values.

    Raises:
        ShardError: they are not written so.
    """
    group = metadata.row_group(0)
    columns = [group.column(number) for number in range(group.num_columns)]
    (column,) = [column for column in columns if column.path_in_schema.split(".")[0] == _MOMENTS]
    header, size = read_header(source, column.data_page_offset)
    page, values = header[3], metadata.num_rows * row_bytes
    is_plain = column.compression == "UNCOMPRESSED" and header[5].get(2, 0) == 0
    if metadata.num_row_groups != 1 or not is_plain or header[5][1] != column.num_values or page < values:
        raise ShardError("its tensors are not one page of plain values")
    return int(column.data_page_offset + size + page - values)


def _row_bytes(shape: Sequence[int]) -> int:
    return int(np.prod(shape)) * np.dtype(np.float16).itemsize
