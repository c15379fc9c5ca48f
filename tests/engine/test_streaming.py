"""Tests of row-wise plans: every row is kept, a plan is resumed by row, and no row is written twice."""

import os
from pathlib import Path

import pyarrow as pa
import pyarrow.compute as pc
import pytest
import ray
from pyarrow import parquet

from tests.engine.clock import set_clock
from tests.engine.member_rows import artifact, members, read_tables
from tests.hostile import with_pickled_column
from vlcp_ray.config import Job
from vlcp_ray.engine.context import Context
from vlcp_ray.engine.streaming import FilterRows, RowWork, filter_rows, read, read_all, run_rows, stream
from vlcp_ray.engine.writing import TARGET, WriteRows
from vlcp_ray.scale import Pool, Scale
from vlcp_ray.schemas import reject, with_column
from vlcp_ray.settings import build
from vlcp_ray.stages.prototype import MEMBERS
from vlcp_ray.store.artifact import Artifact, Step, Store

pytestmark = [pytest.mark.usefixtures("ray_session"), pytest.mark.filterwarnings("default")]
ROWS = 100


class Square:
    """Square the distance, reject every tenth row, and on request fail at a row, or let the process die there once."""

    def __init__(self, fail_at: str = "", dies_at: str = "", marker: str = "") -> None:
        self.fail_at, self.dies_at, self.marker = fail_at, dies_at, marker

    def __call__(self, table: pa.Table) -> pa.Table:
        ids = table["image_id"].to_pylist()
        if self.fail_at in ids:
            raise RuntimeError("power cut")
        if self.dies_at in ids and not os.path.exists(self.marker):
            open(self.marker, "w").close()
            os._exit(1)  # like a worker that is killed, or whose machine is lost
        table = with_column(table, "distance", pc.multiply(table["distance"], table["distance"]))
        table = with_column(table, "source", pa.array(ids))
        return reject(table, {row: ("undecodable", "x") for row, name in enumerate(ids) if name.endswith("0")})


def run(
    source: Artifact, target: Artifact, fail_at: str = "", workers: int = 1, batch: int = 16, block: int = 10
) -> int:
    write = WriteRows({"": target}, "square", "members", MEMBERS)
    rows = filter_rows(read(source, "members"), done=ray.put(write.done(target)))
    work = RowWork(
        f"{__name__}:Square", {"fail_at": fail_at}, Pool(num_workers=workers, num_cpus=0.5, batch_size=batch)
    )
    return sum(good + bad for good, bad, _ in stream(rows, [work], write, block))


def test_stream_with_any_workers_keeps_or_rejects_every_row(tmp_path: Path) -> None:
    source, one, two = (artifact(tmp_path, name) for name in ("source", "one", "two"))
    source.write_table("members/a.parquet", members(ROWS))
    assert run(source, one) == ROWS
    assert run(source, two, workers=2, batch=7, block=33) == ROWS
    good, bad = read_tables(one)
    assert [row["distance"] for row in good] == [float(i * i) for i in range(ROWS) if i % 10]
    assert [row["image_id"] for row in bad] == [f"i{i:03d}" for i in range(0, ROWS, 10)]
    assert {row["stage"] for row in bad} == {"square"}
    assert read_tables(two) == (good, bad)


def test_stream_with_a_dying_worker_writes_every_row_once(tmp_path: Path) -> None:
    source, undisturbed, target = (artifact(tmp_path, name) for name in ("source", "undisturbed", "target"))
    source.write_table("members/a.parquet", members(ROWS))
    run(source, undisturbed)
    write = WriteRows({"": target}, "square", "members", MEMBERS)
    arguments = {"dies_at": "i050", "marker": str(tmp_path / "died")}
    work = RowWork(f"{__name__}:Square", arguments, Pool(num_workers=2, min_workers=1, num_cpus=0.5, batch_size=10))
    blocks = list(stream(read(source, "members"), [work], write, 10))
    assert sum(good + bad for good, bad, _ in blocks) == ROWS
    assert all(20 < peaks.memory < 10_000 and not peaks.gpu_memory for _, _, peaks in blocks)
    assert (tmp_path / "died").exists()
    assert read_tables(target) == read_tables(undisturbed)


def test_stream_after_an_error_resumes_with_the_rest(tmp_path: Path) -> None:
    source, whole, broken = (artifact(tmp_path, name) for name in ("source", "whole", "broken"))
    source.write_table("members/a.parquet", members(ROWS))
    run(source, whole)
    with pytest.raises(Exception, match="power cut"):
        run(source, broken, fail_at="i055")
    written = len(read_tables(broken)[0]) + len(read_tables(broken)[1])
    assert run(source, broken) == ROWS - written
    assert read_tables(broken) == read_tables(whole)
    assert run(source, broken) == 0


def test_run_rows_shares_the_time_by_rows_also_where_all_rows_of_one_are_done(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    small, large = steps = [Step("square", 1, {}, {"ipc": ipc}) for ipc in (1, 5)]
    totals = {small.fingerprint: 10, large.fingerprint: 50}
    context = Context(build(Job, {"name": "x"}, "x"), Scale(), Store.at(str(tmp_path)))
    write = WriteRows({step.fingerprint: context.artifact(step) for step in steps}, "square", "members", MEMBERS)
    source = artifact(tmp_path, "source")
    for step, count in zip(steps, totals.values(), strict=True):
        rows = with_column(members(count), TARGET, pa.array([step.fingerprint] * count))
        source.write_table(f"members/{count}.parquet", rows)
        if step is small:
            write(rows)  # by an interrupted run
    left = filter_rows(read(source, "members"), where={TARGET: large.fingerprint})
    set_clock(monkeypatch, "vlcp_ray.engine.streaming", 12.0)
    seconds = run_rows(context, steps, left, [], write, totals)
    assert seconds == {small.fingerprint: 2.0, large.fingerprint: 10.0}
    assert [len(read_tables(context.artifact(step))[0]) for step in steps] == [10, 50]


def test_filter_rows_keeps_the_split_and_drops_done_rows() -> None:
    table = pa.table({"image_id": ["a", "b", "c"], "split": ["train", "val", "train"]})
    kept = FilterRows(ray.put(pa.array(["c"])), where={"split": "train"})(table)
    assert kept.to_pylist() == [{"image_id": "a", "split": "train"}]


def test_read_of_many_files_returns_all_rows_with_their_files(tmp_path: Path) -> None:
    source = artifact(tmp_path, "source")
    rows = members(50)
    for number in range(25):
        source.write_table(f"members/{number:02}.parquet", rows.slice(2 * number, 2))
    read_back = pa.concat_tables(ray.get(read_all([source], "members", ["image_id"]).to_arrow_refs()))
    assert read_back.column_names == ["image_id", "path"]
    expected = [
        (row["image_id"], f"{source.path}/members/{n // 2:02}.parquet") for n, row in enumerate(rows.to_pylist())
    ]
    assert sorted(zip(*read_back.to_pydict().values(), strict=True)) == expected


def test_read_of_an_empty_table_names_the_folder_to_remove(tmp_path: Path) -> None:
    with pytest.raises(ValueError, match="has no rows; remove the folder"):
        read(artifact(tmp_path, "source"), "members")


def test_read_of_pickled_values_runs_nothing_and_names_the_folder_to_remove(tmp_path: Path) -> None:
    source, target = artifact(tmp_path, "source"), artifact(tmp_path, "target")
    for name in ("a", "b"):
        source.write_table(f"members/{name}.parquet", members(3))
    poisoned = with_pickled_column(members(3), "image_id", tmp_path / "EXECUTED")
    parquet.write_table(poisoned, f"{source.path}/members/c.parquet")
    with pytest.raises(Exception, match=r"remove the folder .*/source-[0-9a-f]+ and re-run"):
        run(source, target)
    assert not (tmp_path / "EXECUTED").exists()
