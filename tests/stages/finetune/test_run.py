"""Tests of the sorted rows that the ranks of fine-tuning read."""

from pathlib import Path

import numpy as np
import pyarrow as pa
import pytest
import ray

from vlcp_ray.schemas import tensor_array
from vlcp_ray.stages.finetune.run import SortedPairs, _sort_pairs
from vlcp_ray.store.artifact import Step, Store

pytestmark = [pytest.mark.usefixtures("ray_session"), pytest.mark.filterwarnings("default")]


def make_pairs(n: int) -> pa.Table:
    moments = np.arange(n, dtype=np.float16)[:, None, None, None, None] * np.ones((1, 2, 8, 2, 2), np.float16)
    ids = [f"i{i:03d}" for i in range(n)]
    return pa.table(
        {"image_id": ids, "caption": [f"row {i}" for i in range(n)], "train_moments": tensor_array(moments)}
    )


def test_sorted_pairs_reader_returns_rows_in_order_of_positions() -> None:
    table = make_pairs(30)
    blocks = [ray.put(table.slice(start, length)) for start, length in ((0, 4), (4, 20), (24, 6))]
    read_rows = SortedPairs(blocks, [4, 24, 30]).reader()
    positions = np.array([29, 0, 4, 3, 23, 24, 0])
    assert read_rows(positions).equals(table.take(positions))


@pytest.mark.parametrize("window", [10, 1000])
def test_sort_pairs_of_shuffled_files_sorts_by_image_id(window: int, tmp_path: Path) -> None:
    artifact = Store.at(str(tmp_path)).artifact(Step("pair", 1, {}))
    table = make_pairs(40)
    order = np.random.default_rng(0).permutation(40)
    for part in range(4):
        artifact.write_table(f"pairs/{part}.parquet", table.take(order[part * 10 : part * 10 + 10]))
    rows = _sort_pairs(artifact, 40, window)
    assert rows.ends[-1] == 40
    assert rows.reader()(np.arange(40))["image_id"].to_pylist() == table["image_id"].to_pylist()
