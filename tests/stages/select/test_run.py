"""Tests of select: all compared methods through both protocols, equal sets for one worker and two."""

from collections.abc import Callable, Sequence
from pathlib import Path

import numpy as np
import pyarrow as pa
import pytest
import ray
from safetensors.torch import save

from tests.engine.clock import set_clock
from tests.engine.member_rows import artifact
from vlcp_ray.config import Job, load_job
from vlcp_ray.demo import digits
from vlcp_ray.engine.writing import TARGET
from vlcp_ray.methods import METHODS
from vlcp_ray.methods.method import Run
from vlcp_ray.methods.synthetic_rows import as_synthetic
from vlcp_ray.models.teacher import build_teacher
from vlcp_ray.pipeline import graph, run
from vlcp_ray.scale import Pool, Scale
from vlcp_ray.schemas import SYNTHETIC
from vlcp_ray.stages import STAGES
from vlcp_ray.stages.evaluate import SCORES
from vlcp_ray.stages.select.run import SelectionTask, SelectRows
from vlcp_ray.store.artifact import Manifest, Step, Store

pytestmark = [pytest.mark.usefixtures("ray_session"), pytest.mark.filterwarnings("default")]
JOB = Path(__file__).parents[3] / "jobs" / "digits-compare.toml"
EVALUATED = ("random", "herding", "k-center", "rded")
MADE = (*EVALUATED, "moderate", "el2n", "forgetting", "sre2l", "idc-1", "idc")
EARLY = ["rank.networks=2", "rank.epochs=1"]
PIXELS = [
    "compare.sre2l.steps=2",
    "compare.idc.outer_steps=1",
    "compare.idc.inner_steps=1",
    "compare.idc.network=ConvNet-3",
    "compare.idc.width=8",
    "compare.idc.classes=5",
    "compare.idc.train_images=64",
    "compare.idc.batch_size=16",
]
OVERRIDES = [
    "ipc=[2]",
    "seeds=[0]",
    "teach.epochs=1",
    "teach.width=8",
    "evaluate.epochs=2",
    "evaluate.full_epochs=1",
    "evaluate.width=8",
]


def job(methods: Sequence[str] = (*EVALUATED, "full"), *more: str) -> Job:
    """Load the job of some methods; a setting of other methods would be refused."""
    own = [*more, *(EARLY if "el2n" in methods else ()), *(PIXELS if "idc" in methods else ())]
    return load_job(JOB, [*OVERRIDES, f"compare.methods={list(methods)}", *own])


def run_with(root: Path, workers: int) -> tuple[dict[str, pa.Table], pa.Table]:
    pool = Pool(num_workers=workers, num_cpus=1)
    store = Store.at(str(root))
    steps = list(run(job(), store, "report", Scale(evaluate=pool, ingest=pool)))
    made_by = [manifest["scale"]["generate"] for manifest in manifests_of(store, steps, "select")]
    assert made_by == [pool.model_dump(exclude_none=True)] * 4  # not the pool of the models, which are not used
    assert all(manifest["seconds"] > 0 for stage in STAGES for manifest in manifests_of(store, steps, stage))
    scores = [store.artifact(step).table("scores", SCORES) for step in steps if step.stage == "evaluate"]
    return sets_of(store, steps), pa.concat_tables(scores).sort_by("trial_id").drop_columns("seconds")


def sets_of(store: Store, steps: Sequence[Step]) -> dict[str, pa.Table]:
    """The sets by their method."""
    return {
        step.key["method"]: store.artifact(step).table("synthetic", SYNTHETIC).sort_by("image_id")
        for step in steps
        if step.stage == "select"
    }


def manifests_of(store: Store, steps: Sequence[Step], stage: str) -> list[Manifest]:
    return [store.artifact(step).manifest() or {} for step in steps if step.stage == stage]


def test_graph_without_generated_sets_has_no_models() -> None:
    stages = [step.stage for step in graph(job())]
    assert {stage: stages.count(stage) for stage in stages} == {
        "ingest": 1,
        "teach": 1,
        "select": 4,
        "evaluate": 5,
        "report": 1,
    }


def test_select_with_one_or_two_workers_gives_the_same_sets_and_scores(tmp_path: Path) -> None:
    sets, scores = run_with(tmp_path / "one", 1)
    assert {method: len(table) for method, table in sets.items()} == dict.fromkeys(EVALUATED, 20)
    assert all(set(table["label"].to_pylist()) == set(range(10)) for table in sets.values())
    trials = set(zip(*(scores[name].to_pylist() for name in ("method", "protocol")), strict=True))
    assert trials == {(m, p) for m in EVALUATED for p in ("minimax", "rded", "rded-stored")} | {("full", "minimax")}
    assert len(scores) == 13
    again, same = run_with(tmp_path / "two", 2)
    assert same.equals(scores)
    assert all(again[method].equals(sets[method]) for method in sets)


def test_select_of_optimised_and_difficult_images_is_the_same_with_one_or_two_workers(tmp_path: Path) -> None:
    made = []
    for workers in (1, 2):
        pool, store = Pool(num_workers=workers, num_cpus=1), Store.at(str(tmp_path / str(workers)))
        steps = list(run(job(MADE[4:]), store, "select", Scale(evaluate=pool, ingest=pool)))
        (ranked,) = manifests_of(store, steps, "rank")
        assert ranked["rows"] == 2
        made.append(sets_of(store, steps))
    assert {name: len(table) for name, table in made[0].items()} == dict.fromkeys(MADE[4:], 20) | {"idc": 80}
    assert all(set(table["label"].to_pylist()) == set(range(10)) for table in made[0].values())
    assert all(made[1][name].equals(table) for name, table in made[0].items())


def test_select_of_partitions_that_was_interrupted_makes_only_what_is_missing(tmp_path: Path) -> None:
    settings = job(("sre2l", "idc-1", "idc"), "ipc=[1,2]")
    store, pool = Store.at(str(tmp_path)), Pool(num_workers=2, num_cpus=1)
    scale = Scale(evaluate=pool, ingest=pool)
    steps = [step for step in run(settings, store, "select", scale) if step.stage == "select"]
    files = {file: file.stat().st_mtime_ns for file in tmp_path.glob("select-*/synthetic/*.parquet")}
    assert len(files) == 2 + 2 * 2 * 2  # a batch of sre2l in both sets, two partitions in each of idc-1 and idc
    content = {file: file.read_bytes() for file in files}
    lost = [next(file for file in files if step.folder in str(file)) for step in steps if step.key["ipc"] == 2]
    for step in steps:
        (tmp_path / step.folder / "manifest.json").unlink()
    for file in lost:
        file.unlink()
    list(run(settings, store, "select", scale))
    assert {file: file.read_bytes() for file in files} == content
    made = {file for file, time in files.items() if file.stat().st_mtime_ns != time}
    sre2l = {file for file in files if any(step.folder in str(file) for step in steps if step.key["method"] == "sre2l")}
    assert made == {*lost, *sre2l}


def test_difficulty_is_measured_once_for_all_methods_seeds_and_sizes() -> None:
    settings = job(MADE, "ipc=[1,2,5]", "seeds=[0,1]")
    ranked = [step for step in graph(settings) if step.stage == "rank"]
    assert len(ranked) == 1
    assert ranked == [step for step in graph(job(MADE)) if step.stage == "rank"]
    users = {step.key["method"] for step in graph(settings) if "difficulty" in step.inputs}
    assert users == {"el2n", "forgetting"}
    assert not [step for step in graph(job(["random"])) if step.stage == "rank"]


def test_select_rows_of_two_sets_returns_a_shared_row_twice() -> None:
    rows = pa.Table.from_pylist([dict(row) for row in digits.rows("val")][:4])
    ids = rows["image_id"].to_pylist()
    selected = SelectRows({"small": ids[:1], "large": ids[:3]})(rows).select(["image_id", TARGET]).to_pylist()
    expected = [(ids[0], "small"), *((image_id, "large") for image_id in ids[:3])]
    assert [(row["image_id"], row[TARGET]) for row in selected] == expected


@pytest.fixture
def rows() -> pa.Table:
    return pa.Table.from_pylist([dict(row) for row in digits.rows("val") if row["label"] == 3])


def selection_task(root: Path) -> SelectionTask:
    """Make the task of all methods that need all images of a class, with an untrained teacher."""
    settings, store = job(), Store.at(str(root))
    teacher = build_teacher(settings.teach, num_classes=10, input_size=settings.teach.input_size, seed=0)
    runs = {
        METHODS[step.key["method"]].code: {(step.key["seed"], step.key["ipc"]): store.artifact(step)}
        for step in graph(settings)
        if step.stage == "select" and METHODS[step.key["method"]].form == "class"
    }
    return SelectionTask(settings, ray.put(save(dict(teacher.state_dict()))), runs, "cpu")


def test_selection_task_of_shuffled_rows_writes_the_same_sets(tmp_path: Path, rows: pa.Table) -> None:
    shuffled = rows.take(np.random.default_rng(0).permutation(len(rows)))
    one, two = selection_task(tmp_path / "one"), selection_task(tmp_path / "two")
    one(rows)
    two(shuffled)
    assert len(one.runs) == 3
    for code, runs in one.runs.items():
        (table,) = [artifact.table("synthetic", SYNTHETIC) for artifact in runs.values()]
        (again,) = [artifact.table("synthetic", SYNTHETIC) for artifact in two.runs[code].values()]
        assert len(table) == 2
        assert again.equals(table)


def test_selection_task_divides_the_seconds_of_a_method_among_its_sets(
    tmp_path: Path, rows: pa.Table, monkeypatch: pytest.MonkeyPatch
) -> None:
    clock = set_clock(monkeypatch, "vlcp_ray.stages.select.run")

    def select(code: str) -> Callable[..., dict[Run, pa.Table]]:
        def select_images(images: pa.Table, runs: Sequence[Run], *_: object) -> dict[Run, pa.Table]:
            clock.now += {"slow": 12.0, "fast": 0.5}[code]
            return {run: as_synthetic(images.slice(0, run[1])) for run in runs}

        return select_images

    monkeypatch.setattr("vlcp_ray.stages.select.run.resolve_name", select)
    slow = {run: artifact(tmp_path, f"slow {run}") for run in ((0, 1), (0, 5), (1, 5))}
    fast = {(0, 1): artifact(tmp_path, "fast")}
    seconds = SelectionTask(job(), None, {"slow": slow, "fast": fast}, "cpu")(rows)
    assert seconds == {made.path: 4.0 for made in slow.values()} | {made.path: 0.5 for made in fast.values()}
    for (_, ipc), made in slow.items():
        assert len(made.table("synthetic", SYNTHETIC)) == ipc


def test_selection_task_of_too_small_a_class_names_it(tmp_path: Path, rows: pa.Table) -> None:
    with pytest.raises(ValueError, match=r"class 'digit three': 1 images are fewer than ipc = 2"):
        selection_task(tmp_path)(rows.slice(0, 1))
