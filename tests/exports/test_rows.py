"""Tests of reading a table in sorted order, for any number of files and rows in a part."""

from pathlib import Path

import numpy as np
import pyarrow as pa
import pytest

from vlcp_ray.exports.rows import read_sorted
from vlcp_ray.schemas import conform
from vlcp_ray.stages.prototype import MEMBERS
from vlcp_ray.store.artifact import Artifact, Step, Store


def members(n: int) -> pa.Table:
    ids = [f"i{number:03d}" for number in range(n)]
    columns = {"image_id": ids, "label": [number % 3 for number in range(n)], "cluster": [0] * n}
    return conform(pa.table({**columns, "distance": np.arange(n, dtype=np.float32)}), MEMBERS)


def write_members(root: Path, files: int, seed: int) -> Artifact:
    """100 rows of MEMBERS in random order in this number of files."""
    artifact, table = Store.at(str(root)).artifact(Step("prototype", 1, {})), members(100)
    order = np.random.default_rng(seed).permutation(100)
    for number, rows in enumerate(np.array_split(order, files)):
        artifact.write_table(f"members/{number}.parquet", table.take(rows))
    return artifact


@pytest.mark.parametrize("files", [1, 7, 40])
@pytest.mark.parametrize("rows", [1, 16, 100, 1000])
def test_read_sorted_returns_all_rows_in_order(files: int, rows: int, tmp_path: Path) -> None:
    artifact = write_members(tmp_path, files, seed=files)
    parts = list(read_sorted(artifact, "members", MEMBERS.names, ("label", "image_id"), rows))
    expected = members(100).sort_by([("label", "ascending"), ("image_id", "ascending")])
    assert pa.concat_tables(parts).to_pylist() == expected.to_pylist()
    assert [len(part) for part in parts[:-1]] == [rows] * (len(parts) - 1)


def test_read_sorted_of_a_table_without_files_is_empty(tmp_path: Path) -> None:
    empty = Store.at(str(tmp_path)).artifact(Step("prototype", 1, {}))
    assert list(read_sorted(empty, "members", MEMBERS.names, ("image_id",), 10)) == []
