"""Tests of reading single rows of PAIRS: sorted by id, in any order, from local files and from a real S3 server."""

from pathlib import Path

import numpy as np
import pyarrow as pa
import pytest
from pyarrow import parquet

from tests.s3 import Proxy
from tests.stages.finetune.test_trainer import make_pairs
from vlcp_ray.stages.finetune import rows as rows_module
from vlcp_ray.stages.finetune.rows import index_rows
from vlcp_ray.store.artifact import Artifact, Step, Store
from vlcp_ray.store.io import StoreError

COLUMNS = ["image_id", "caption", "train_moments"]


def write(root: str, table: pa.Table) -> Artifact:
    """Write rows in a random order as four files and an empty one."""
    artifact = Store.at(root).artifact(Step("pair", 1, {}))
    order = np.random.default_rng(0).permutation(len(table))
    for part, rows in enumerate(np.array_split(order, 4)):
        artifact.write_table(f"pairs/{part}.parquet", table.take(rows))
    artifact.write_table("pairs/empty.parquet", table.slice(0, 0))
    return artifact


@pytest.mark.parametrize("kept", [0, 2**29], ids=["ranges", "whole files"])
def test_rows_of_shuffled_files_are_sorted_and_read_in_any_order(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, kept: int
) -> None:
    monkeypatch.setattr(rows_module, "_KEPT_BYTES", kept)
    table = make_pairs(40)
    rows = index_rows(write(str(tmp_path), table))
    assert rows.index["image_id"].to_pylist() == table["image_id"].to_pylist()
    read = rows.reader()
    for positions in (np.arange(40), np.array([29, 0, 4, 3, 23, 24, 0])):
        assert read(positions).equals(table.take(positions).select(COLUMNS).cast(read(positions).schema))


def test_row_of_s3_is_one_request_of_its_bytes_and_small_sets_are_read_once(
    s3_proxy: Proxy, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    table = make_pairs(40)
    rows = index_rows(write(s3_proxy.uri(f"rows{tmp_path}"), table))
    before, read_rows = s3_proxy.count(), rows.reader()
    for _ in range(3):
        assert len(read_rows(np.arange(40))) == 40
    assert dict(s3_proxy.count() - before) == {"GET": 4}
    monkeypatch.setattr(rows_module, "_KEPT_BYTES", 0)
    before = s3_proxy.count()
    read = rows.reader()(np.array([7, 31, 12]))
    assert read["image_id"].to_pylist() == ["img-007", "img-031", "img-012"]
    assert read["train_moments"].equals(table.take([7, 31, 12])["train_moments"])
    assert dict(s3_proxy.count() - before) == {"GET": 3}


def test_index_of_a_file_that_another_tool_has_written_names_the_repair(tmp_path: Path) -> None:
    artifact = write(str(tmp_path), make_pairs(40))
    path = Path(artifact.path, "pairs", "0.parquet")
    parquet.write_table(parquet.read_table(path), path, compression="zstd")
    with pytest.raises(StoreError, match=r"0.parquet .* \(its tensors are not one page of plain values\)"):
        index_rows(artifact)
    path.write_bytes(b"PAR1")
    with pytest.raises(StoreError, match=r"0.parquet cannot be read .* remove the folder"):
        index_rows(artifact)
