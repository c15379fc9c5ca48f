"""Whether row-wise and group-wise plans keep every row, resume by row, and write nothing twice."""

import os
from pathlib import Path

import pyarrow as pa
import pyarrow.compute as pc
import pytest
import ray

from vlcp_ray.flow.data import REJECTED_TABLE, TARGET, Keep, Work, Write, keep, read, stream, stream_groups
from vlcp_ray.scale import Pool
from vlcp_ray.schemas import MEMBERS, REJECTED, conform, reject, with_column
from vlcp_ray.store import Artifact, Step, Store

pytestmark = [pytest.mark.usefixtures("ray_session"), pytest.mark.filterwarnings("default")]
ROWS = 100


def members(n: int) -> pa.Table:
    rows = {"image_id": [f"i{i:03d}" for i in range(n)], "label": [i % 7 for i in range(n)]}
    return conform(pa.table({**rows, "cluster": [0] * n, "distance": [float(i) for i in range(n)]}), MEMBERS)


def artifact(root: Path, name: str) -> Artifact:
    return Store.at(str(root)).artifact(Step(name, 1, {}))


class Square:
    """Squares the distance; rejects every tenth row; on request fails at a row, or dies there once."""

    def __init__(self, fail_at: str = "", dies_at: str = "", died: str = "") -> None:
        self.fail_at, self.dies_at, self.died = fail_at, dies_at, died

    def __call__(self, table: pa.Table) -> pa.Table:
        ids = table["image_id"].to_pylist()
        if self.fail_at in ids:
            raise RuntimeError("power cut")
        if self.dies_at in ids and not os.path.exists(self.died):
            open(self.died, "w").close()
            os._exit(1)  # as a worker that is killed, or whose machine is taken away
        table = with_column(table, "distance", pc.multiply(table["distance"], table["distance"]))
        table = with_column(table, "source", pa.array(ids))
        return reject(table, {row: ("undecodable", "x") for row, name in enumerate(ids) if name.endswith("0")})


def run(
    source: Artifact, target: Artifact, fail_at: str = "", workers: int = 1, batch: int = 16, block: int = 10
) -> int:
    write = Write({"": target}, "square", "members", MEMBERS)
    rows = keep(read(source, "members"), done=ray.put(write.done(target)))
    work = Work(f"{__name__}:Square", {"fail_at": fail_at}, Pool(num_workers=workers, num_cpus=0.5, batch_size=batch))
    return sum(good + bad for good, bad, _ in stream(rows, [work], write, block))


def tables(target: Artifact) -> tuple[list[dict[str, object]], list[dict[str, object]]]:
    good = target.table("members", MEMBERS).sort_by("image_id").to_pylist()
    return good, target.table(REJECTED_TABLE, REJECTED).sort_by("image_id").to_pylist()


def test_rows_in_are_rows_out_plus_rejected_whatever_the_workers(tmp_path: Path) -> None:
    source, one, two = (artifact(tmp_path, name) for name in ("source", "one", "two"))
    source.write_table("members/a.parquet", members(ROWS))
    assert run(source, one) == ROWS
    assert run(source, two, workers=2, batch=7, block=33) == ROWS
    good, bad = tables(one)
    assert [row["distance"] for row in good] == [float(i * i) for i in range(ROWS) if i % 10]
    assert [row["image_id"] for row in bad] == [f"i{i:03d}" for i in range(0, ROWS, 10)]
    assert {row["stage"] for row in bad} == {"square"}
    assert tables(two) == (good, bad)


def test_a_worker_that_dies_costs_no_row_and_doubles_none(tmp_path: Path) -> None:
    source, calm, target = (artifact(tmp_path, name) for name in ("source", "calm", "target"))
    source.write_table("members/a.parquet", members(ROWS))
    run(source, calm)
    write = Write({"": target}, "square", "members", MEMBERS)
    dying = {"dies_at": "i050", "died": str(tmp_path / "died")}
    work = Work(f"{__name__}:Square", dying, Pool(num_workers=2, min_workers=1, num_cpus=0.5, batch_size=10))
    counted = list(stream(read(source, "members"), [work], write, 10))
    assert sum(good + bad for good, bad, _ in counted) == ROWS
    assert all(20 < peaks.memory < 10_000 and not peaks.gpu_memory for _, _, peaks in counted)
    assert (tmp_path / "died").exists()
    assert tables(target) == tables(calm)


def test_a_run_that_broke_goes_on_with_the_rest_and_ends_equal(tmp_path: Path) -> None:
    source, whole, broken = (artifact(tmp_path, name) for name in ("source", "whole", "broken"))
    source.write_table("members/a.parquet", members(ROWS))
    run(source, whole)
    with pytest.raises(Exception, match="power cut"):
        run(source, broken, fail_at="i055")
    there = len(tables(broken)[0]) + len(tables(broken)[1])
    assert run(source, broken) == ROWS - there  # not a row twice
    assert tables(broken) == tables(whole)
    assert run(source, broken) == 0


def test_one_plan_fills_several_artifacts(tmp_path: Path) -> None:
    targets = {name: artifact(tmp_path, name) for name in ("a", "b")}
    write = Write(targets, "square", "members", MEMBERS)
    block = pa.concat_tables([with_column(members(n), TARGET, pa.array([t] * n)) for t, n in (("a", 3), ("b", 5))])
    assert write(block).select(["rows", "rejected"]).to_pylist() == [{"rows": 8, "rejected": 0}]
    assert write(block)["rows"].to_pylist() == [8]  # a task that runs twice writes the same files
    assert [len(tables(target)[0]) for target in targets.values()] == [3, 5]


def test_keep_takes_the_split_and_leaves_out_what_is_done() -> None:
    table = pa.table({"image_id": ["a", "b", "c"], "split": ["train", "val", "train"]})
    kept = Keep(ray.put(pa.array(["c"])), where={"split": "train"})(table)
    assert kept.to_pylist() == [{"image_id": "a", "split": "train"}]


def test_groups_are_whole(tmp_path: Path) -> None:
    source = artifact(tmp_path, "source")
    for part in range(4):
        source.write_table(f"members/{part}.parquet", members(ROWS).slice(part * 25, 25))

    def total(group: pa.Table) -> pa.Table:
        return pa.table({"label": group["label"][:1], "rows": [len(group)], "sum": [pc.sum(group["distance"]).as_py()]})

    rows = keep(read(source, "members"), done=ray.put(pa.array([3], pa.int32())), id_column="label")
    made = {row["label"]: (row["rows"], row["sum"]) for row in stream_groups(rows, "label", 6, total, Pool())}
    expected = {k: (len(range(k, ROWS, 7)), float(sum(range(k, ROWS, 7)))) for k in range(7) if k != 3}
    assert made == expected


def test_an_empty_table_is_an_error_with_a_cure(tmp_path: Path) -> None:
    with pytest.raises(ValueError, match="has no rows; remove the folder"):
        read(artifact(tmp_path, "source"), "members")
