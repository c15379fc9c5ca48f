"""Read a table of any size in sorted order, with at most four of its files in memory."""

from collections.abc import Iterator, Sequence
from functools import lru_cache
from typing import Final

import numpy as np
import pyarrow as pa

from vlcp_ray.store.artifact import Artifact

_FILES_IN_MEMORY: Final = 4  # of `rows_per_block` rows each


def read_sorted(
    artifact: Artifact, folder: str, columns: Sequence[str], order: Sequence[str], rows: int
) -> Iterator[pa.Table]:
    """Read the rows of a table in sorted order, a part at a time.

    Args:
        columns: the columns to read.
        order: the columns to sort by; only these are in memory for the whole table.
        rows: of every part but the last.
    """
    parts = artifact.parts(folder)
    content = lru_cache(maxsize=_FILES_IN_MEMORY)(lambda number: artifact.read_parts([parts[number]], columns))
    keys = [artifact.read_parts([part], order) for part in parts]
    if not keys:
        return
    file_of = np.repeat(np.arange(len(parts)), [len(part) for part in keys])
    row_of = np.concatenate([np.arange(len(part)) for part in keys])
    places = pa.concat_tables(keys).append_column("place", pa.array(np.arange(len(file_of))))
    places = places.sort_by([(name, "ascending") for name in order])["place"].to_numpy()
    for start in range(0, len(places), rows):
        part = places[start : start + rows]
        by_file = np.argsort(file_of[part], kind="stable")  # each file is opened once for a part
        numbers, firsts = np.unique(file_of[part][by_file], return_index=True)
        taken = [
            content(int(number)).take(row_of[part][of_file])
            for number, of_file in zip(numbers, np.split(by_file, firsts[1:]), strict=True)
        ]
        yield pa.concat_tables(taken).take(np.argsort(by_file))
