"""Whether ranks get exactly the rows they ask for, however the blocks lie."""

from pathlib import Path

import numpy as np
import pyarrow as pa
import pytest
import ray

from vlcp_ray.flow.train import Rows, _sorted_rows
from vlcp_ray.schemas import tensor_array
from vlcp_ray.store import Step, Store

pytestmark = [pytest.mark.usefixtures("ray_session"), pytest.mark.filterwarnings("default")]


def pairs(n: int) -> pa.Table:
    moments = np.arange(n, dtype=np.float16)[:, None, None, None, None] * np.ones((1, 2, 8, 2, 2), np.float16)
    ids = [f"i{i:03d}" for i in range(n)]
    return pa.table(
        {"image_id": ids, "caption": [f"row {i}" for i in range(n)], "train_moments": tensor_array(moments)}
    )


def test_rows_come_in_the_order_that_was_asked_for() -> None:
    table = pairs(30)
    blocks = [ray.put(table.slice(start, length)) for start, length in ((0, 4), (4, 20), (24, 6))]
    fetch = Rows(blocks, [4, 24, 30]).fetch()
    positions = np.array([29, 0, 4, 3, 23, 24, 0])
    assert fetch(positions).equals(table.take(positions))


@pytest.mark.parametrize("window", [10, 1000])
def test_rows_are_sorted_however_they_were_written(
    window: int, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("vlcp_ray.flow.train.WINDOW", window)
    artifact = Store.at(str(tmp_path)).artifact(Step("pair", 1, {}))
    table = pairs(40)
    order = np.random.default_rng(0).permutation(40)
    for part in range(4):
        artifact.write_table(f"pairs/{part}.parquet", table.take(order[part * 10 : part * 10 + 10]))
    rows = _sorted_rows(artifact, 40)
    assert rows.ends[-1] == 40
    assert rows.fetch()(np.arange(40))["image_id"].to_pylist() == table["image_id"].to_pylist()
