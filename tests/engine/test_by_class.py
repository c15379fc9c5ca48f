"""Tests of group-wise execution: shared rows and a shuffle give the same tables, and a plan is resumed by class."""

from dataclasses import dataclass
from pathlib import Path

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc
import pytest
import ray

from tests.engine.clock import set_clock
from tests.engine.member_rows import artifact, members
from vlcp_ray.config import Job
from vlcp_ray.engine import by_class
from vlcp_ray.engine.by_class import (
    SHARED_BYTES,
    SHARED_ROWS,
    ClassRows,
    class_file,
    classes_done,
    each_class,
    run_classes,
    stream_groups,
)
from vlcp_ray.engine.context import Context
from vlcp_ray.engine.streaming import filter_rows, read
from vlcp_ray.scale import Pool, Scale
from vlcp_ray.schemas import tensor_array, tensors
from vlcp_ray.settings import build
from vlcp_ray.stages.prototype import MEMBERS, Prototype, prototypes_schema
from vlcp_ray.stages.prototype.run import PrototypeTask
from vlcp_ray.store.artifact import Artifact, Step, Store

pytestmark = [pytest.mark.usefixtures("ray_session"), pytest.mark.filterwarnings("default")]
SCHEMA = prototypes_schema((4, 2, 2))
CLASSES, ROWS, N_MEMBERS = 3, 20, 100


def write_pairs(root: Path) -> Artifact:
    n, random = CLASSES * ROWS, np.random.default_rng(0)
    table = pa.table(
        {
            "image_id": [f"i{i:03d}" for i in range(n)],
            "label": pa.array([i % CLASSES for i in range(n)], pa.int32()),
            "class_name": [f"class {i % CLASSES}" for i in range(n)],
            "caption": [f"a thing of {i} sides and {i % 5} colours like blue" for i in range(n)],
            "latent": tensor_array(random.normal(size=(n, 4, 2, 2)).astype(np.float16)),
        }
    )
    source = artifact(root, "pair")
    for part in range(4):
        source.write_table(f"pairs/{part}.parquet", table.slice(part * 15, 15))
    return source


def make_prototypes(root: Path, name: str, source: Artifact, labels: list[int]) -> Artifact:
    target = artifact(root, name)
    rows = ClassRows(source, "pairs", ("image_id", "label", "class_name", "caption", "latent"))
    assert rows.labels() == list(range(CLASSES))
    work = PrototypeTask(Prototype(), None, {(0, 2): target}, SCHEMA)
    assert len(list(each_class(rows, CLASSES * ROWS, labels, work, Pool(num_workers=2)))) == len(labels)
    return target


def test_each_class_of_shared_and_shuffled_rows_writes_the_same_tables(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    source = write_pairs(tmp_path)
    one = make_prototypes(tmp_path, "one", source, [0, 1, 2])
    monkeypatch.setattr("vlcp_ray.engine.by_class.SHARED_ROWS", 0)
    two = make_prototypes(tmp_path, "two", source, [0, 1, 2])
    for name, schema in (("prototypes", SCHEMA), ("members", MEMBERS)):
        first, second = (a.table(name, schema).sort_by(schema.names[0]) for a in (one, two))
        assert first.equals(second)
    assert len(tensors(one.table("prototypes", SCHEMA)["latent"])) == 2 * CLASSES


@dataclass(frozen=True)
class Mark:
    """Keep the ids, and say which table a row is of."""

    name: str

    def __call__(self, rows: pa.Table) -> pa.Table:
        return rows.select(["image_id", "label"]).append_column("table", pa.array([self.name] * len(rows), pa.string()))


@dataclass(frozen=True)
class WriteRows:
    target: Artifact

    def __call__(self, rows: pa.Table) -> None:
        self.target.write_table(f"rows/{class_file(rows)}", rows.sort_by("image_id"))


@pytest.mark.parametrize(("n_rows", "n_bytes"), [(64, 0), (SHARED_ROWS + 1, 0), (64, SHARED_BYTES + 1)])
def test_each_class_adds_the_prepared_rows_of_other_tables(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, n_rows: int, n_bytes: int
) -> None:
    """Shared where there are few rows in few bytes, else in a shuffle; the rows are the same."""
    shuffles: list[str] = []
    stream = by_class.stream_groups
    monkeypatch.setattr(by_class, "stream_groups", lambda *rest: shuffles.append("") or stream(*rest))
    source, other, target = write_pairs(tmp_path), artifact(tmp_path, "other"), artifact(tmp_path, "target")
    columns = ("image_id", "label", "class_name")
    added = [{"image_id": f"x{i}", "label": i % 2, "class_name": "yes" if i else "no"} for i in range(4)]
    schema = pa.schema([("image_id", pa.string()), ("label", pa.int32()), ("class_name", pa.string())])
    other.write_table("things/0.parquet", pa.Table.from_pylist(added, schema=schema))
    rows = ClassRows(source, "pairs", columns, prepare=Mark("first"))
    more = ClassRows(other, "things", columns, {"class_name": "yes"}, Mark("second"))
    assert len(list(each_class(rows, n_rows, [0, 2], WriteRows(target), Pool(num_workers=2), [more], n_bytes))) == 2
    assert bool(shuffles) == (n_rows > SHARED_ROWS or n_bytes > SHARED_BYTES)
    assert classes_done([target], "rows") == [0, 2]
    written = target.table("rows", schema).to_pylist()
    assert sorted(row["image_id"] for row in written if row["table"] == "second") == ["x2"]
    assert sum(row["table"] == "first" for row in written) == 2 * ROWS
    assert {row["label"] for row in written} == {0, 2}


@dataclass(frozen=True)
class WriteSets:
    """Write the rows of a class to each artifact, which takes as many seconds for each row as it is told."""

    targets: tuple[tuple[Artifact, float], ...]

    def __call__(self, rows: pa.Table) -> dict[str, float]:
        for target, _ in self.targets:
            target.write_table(f"rows/{class_file(rows)}", rows)
        label = rows["label"][0].as_py()
        return {target.path: each * (label + 1) for target, each in self.targets}


@pytest.mark.parametrize("shared_rows", [SHARED_ROWS, 0])
def test_run_classes_shares_the_time_by_the_measured_seconds(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, shared_rows: int
) -> None:
    monkeypatch.setattr(by_class, "SHARED_ROWS", shared_rows)
    context = Context(build(Job, {"name": "x"}, "x"), Scale(), Store.at(str(tmp_path)))
    small, large = steps = [Step("square", 1, {}, {"ipc": ipc}) for ipc in (1, 5)]
    work = WriteSets(((context.artifact(small), 0.25), (context.artifact(large), 1.25)))
    rows = ClassRows(write_pairs(tmp_path), "pairs", ("image_id", "label"))
    set_clock(monkeypatch, "vlcp_ray.engine.by_class", 12.0)

    def run(labels: list[int] | None = None) -> dict[str, float]:
        return run_classes(context, steps, "rows", rows, CLASSES * ROWS, work, Pool(num_workers=2), labels)

    shares = {small.fingerprint: 2.0, large.fingerprint: 10.0}
    assert run([0, 2]) == shares
    assert classes_done([context.artifact(step) for step in steps], "rows") == [0, 2]
    assert run() == shares  # of class 1
    assert classes_done([context.artifact(step) for step in steps], "rows") == [0, 1, 2]
    assert run() == {small.fingerprint: 6.0, large.fingerprint: 6.0}  # nothing was measured


def test_classes_done_lists_written_classes(tmp_path: Path) -> None:
    source = write_pairs(tmp_path)
    target = make_prototypes(tmp_path, "one", source, [0, 2])
    assert classes_done([target], "prototypes") == [0, 2]
    make_prototypes(tmp_path, "one", source, [1])
    assert classes_done([target], "prototypes") == [0, 1, 2]


def test_stream_groups_calls_the_function_with_whole_groups(tmp_path: Path) -> None:
    source = artifact(tmp_path, "source")
    for part in range(4):
        source.write_table(f"members/{part}.parquet", members(N_MEMBERS).slice(part * 25, 25))

    def total(group: pa.Table) -> pa.Table:
        return pa.table({"label": group["label"][:1], "rows": [len(group)], "sum": [pc.sum(group["distance"]).as_py()]})

    rows = filter_rows(read(source, "members"), done=ray.put(pa.array([3], pa.int32())), id_column="label")
    groups = {row["label"]: (row["rows"], row["sum"]) for row in stream_groups(rows, "label", 6, total, Pool())}
    expected = {k: (len(range(k, N_MEMBERS, 7)), float(sum(range(k, N_MEMBERS, 7)))) for k in range(7) if k != 3}
    assert groups == expected
