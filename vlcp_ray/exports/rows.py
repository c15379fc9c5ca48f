"""Knows how a table of any size is read in one order, whatever the files that hold it, a few files at a time."""

from collections.abc import Iterator, Sequence
from functools import lru_cache
from typing import Final

import numpy as np
import pyarrow as pa
from pyarrow import parquet

from vlcp_ray.store import Artifact, patiently

_FILES_HELD: Final = 4  # of `rows_per_block` rows each


def in_order(
    artifact: Artifact, folder: str, columns: Sequence[str], order: Sequence[str], rows: int
) -> Iterator[pa.Table]:
    """The rows of a table, sorted, so many at a time.

    Args:
        columns: what is read of it.
        order: the columns to sort by, which are all that is held of the whole table.
        rows: of every part but the last.
    """
    files = artifact.files(folder)

    def read(file: int, names: Sequence[str]) -> pa.Table:
        source, wanted = files[file], list(names)
        return patiently(
            lambda: parquet.read_table(source, filesystem=artifact.filesystem, columns=wanted), f"read {source}"
        )

    content = lru_cache(maxsize=_FILES_HELD)(lambda file: read(file, columns))
    keys = [read(file, order) for file in range(len(files))]
    if not keys:
        return
    file_of = np.repeat(np.arange(len(files)), [len(part) for part in keys])
    row_of = np.concatenate([np.arange(len(part)) for part in keys])
    places = pa.concat_tables(keys).append_column("place", pa.array(np.arange(len(file_of))))
    places = places.sort_by([(name, "ascending") for name in order])["place"].to_numpy()
    for start in range(0, len(places), rows):
        part = places[start : start + rows]
        by_file = np.argsort(file_of[part], kind="stable")
        numbers, firsts = np.unique(file_of[part][by_file], return_index=True)
        found = [
            content(int(number)).take(row_of[part][mine])
            for number, mine in zip(numbers, np.split(by_file, firsts[1:]), strict=True)
        ]
        yield pa.concat_tables(found).take(np.argsort(by_file))
