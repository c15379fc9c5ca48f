"""Tests of writing, counting and completing the rows of artifacts."""

from pathlib import Path

import pyarrow as pa
import pytest

from tests.engine.member_rows import artifact, members, read_tables
from vlcp_ray.config import Job
from vlcp_ray.engine.context import Context
from vlcp_ray.engine.writing import TARGET, WriteRows, complete_rows, count_rows
from vlcp_ray.scale import Scale
from vlcp_ray.schemas import SYNTHETIC, with_column
from vlcp_ray.settings import build
from vlcp_ray.stages.prototype import MEMBERS
from vlcp_ray.store.artifact import Step, Store


def test_write_rows_fills_several_artifacts(tmp_path: Path) -> None:
    targets = {name: artifact(tmp_path, name) for name in ("a", "b")}
    write = WriteRows(targets, "square", "members", MEMBERS)
    block = pa.concat_tables([with_column(members(n), TARGET, pa.array([t] * n)) for t, n in (("a", 3), ("b", 5))])
    assert write(block).select(["rows", "rejected"]).to_pylist() == [{"rows": 8, "rejected": 0}]
    assert write(block)["rows"].to_pylist() == [8]  # a task that runs twice writes the same files
    assert [len(read_tables(target)[0]) for target in targets.values()] == [3, 5]


@pytest.mark.usefixtures("ray_session")
@pytest.mark.filterwarnings("default")
def test_complete_rows_with_a_row_written_twice_is_refused(tmp_path: Path) -> None:
    step = Step("pair", 1, {})
    context = Context(build(Job, {"name": "x"}, "x"), Scale(), Store.at(str(tmp_path)))
    target = context.artifact(step)
    write = WriteRows({"": target}, "pair", "members", MEMBERS)
    write(members(4))
    write(members(3))  # three of these rows again, in another file
    assert count_rows(write, target) == {"ids": 7, "unique": 4, "rejected": 0}
    with pytest.raises(RuntimeError, match="pair: 3 rows were written twice"):
        complete_rows(context, step, write, 4, {"seconds": 1.0})
    assert target.manifest() is None


def test_done_rows_of_a_table_without_image_ids_count_rejected_ones(tmp_path: Path) -> None:
    """SYNTHETIC is written by prototype_id, which is the `source` of a rejected row."""
    target = artifact(tmp_path, "generate")
    write = WriteRows({"": target}, "generate", "synthetic", SYNTHETIC, "prototype_id")
    row = {"image_id": "s", "label": 0, "class_name": "cat", "split": "train", "image": b"x", "text": "a", "seed": 1}
    rows = [row | {"prototype_id": f"0-{n}", "source": f"0-{n}", "reason": "", "detail": ""} for n in range(3)]
    rows[1]["reason"] = "not_finite"
    assert write(pa.Table.from_pylist(rows)).select(["rows", "rejected"]).to_pylist() == [{"rows": 2, "rejected": 1}]
    assert sorted(write.done(target).to_pylist()) == ["0-0", "0-1", "0-2"]


def test_rows_beside_are_those_of_good_rows_without_nulls(tmp_path: Path) -> None:
    target = artifact(tmp_path, "a")
    distances = pa.schema([("image_id", pa.string()), ("seconds", pa.int32())])
    write = WriteRows({"": target}, "square", "members", MEMBERS, beside={"times": distances})
    block = with_column(members(4), "seconds", pa.array([7, None, 8, 9], pa.int32()))
    block = with_column(block, "reason", pa.array(["", "", "", "too_slow"]))
    block = with_column(with_column(block, "detail", pa.array([""] * 4)), "source", pa.array([""] * 4))
    assert write(block).select(["rows", "rejected"]).to_pylist() == [{"rows": 3, "rejected": 1}]
    assert target.table("times", distances)["seconds"].to_pylist() == [7, 8]
    write(members(4))  # without the column, as of saved captions
    assert len(target.table("times", distances)) == 2


def test_rows_beside_of_an_interrupted_run_are_removed(tmp_path: Path) -> None:
    target = artifact(tmp_path, "a")
    times = pa.schema([("image_id", pa.string()), ("seconds", pa.int32())])
    write = WriteRows({"": target}, "square", "members", MEMBERS, beside={"times": times})
    for count in (2, 4):  # the first row has no time: its file has the name of that of all rows
        write(with_column(members(count), "seconds", pa.array([None, *range(1, count)], pa.int32())))
    write.remove_unfinished(target)
    assert sorted(target.table("times", times)["seconds"].to_pylist()) == [1, 1, 2, 3]
    target.delete_files(
        [part for part in target.parts("members") if target.read_part(f"members/{part.name}").num_rows == 4]
    )
    write.remove_unfinished(target)
    assert target.table("times", times)["seconds"].to_pylist() == [1]
