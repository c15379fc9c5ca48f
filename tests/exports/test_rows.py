"""Whether a table comes in one order, whatever its files and however much is read at a time."""

from pathlib import Path

import numpy as np
import pyarrow as pa
import pytest

from vlcp_ray.exports.rows import in_order
from vlcp_ray.schemas import MEMBERS, conform
from vlcp_ray.store import Artifact, Step, Store


def members(n: int) -> pa.Table:
    ids = [f"i{number:03d}" for number in range(n)]
    columns = {"image_id": ids, "label": [number % 3 for number in range(n)], "cluster": [0] * n}
    return conform(pa.table({**columns, "distance": np.arange(n, dtype=np.float32)}), MEMBERS)


def artifact(root: Path, files: int, seed: int) -> Artifact:
    """Members in a random order in so many files."""
    made, table = Store.at(str(root)).artifact(Step("prototype", 1, {})), members(100)
    order = np.random.default_rng(seed).permutation(100)
    for number, rows in enumerate(np.array_split(order, files)):
        made.write_table(f"members/{number}.parquet", table.take(rows))
    return made


@pytest.mark.parametrize("files", [1, 7, 40])
@pytest.mark.parametrize("rows", [1, 16, 100, 1000])
def test_rows_come_sorted_and_all_of_them(files: int, rows: int, tmp_path: Path) -> None:
    parts = list(in_order(artifact(tmp_path, files, seed=files), "members", MEMBERS.names, ("label", "image_id"), rows))
    expected = members(100).sort_by([("label", "ascending"), ("image_id", "ascending")])
    assert pa.concat_tables(parts).to_pylist() == expected.to_pylist()
    assert [len(part) for part in parts[:-1]] == [rows] * (len(parts) - 1)


def test_a_table_without_files_has_no_rows(tmp_path: Path) -> None:
    nothing = Store.at(str(tmp_path)).artifact(Step("prototype", 1, {}))
    assert list(in_order(nothing, "members", MEMBERS.names, ("image_id",), 10)) == []
