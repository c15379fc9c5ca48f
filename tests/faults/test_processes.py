"""Tests of real runs whose workers and drivers are killed, at chosen and at random moments.

All compare with one undisturbed run. Each takes some minutes.
"""

import os
import random
import signal
import time
from collections.abc import Callable
from pathlib import Path

import pyarrow as pa
import pytest
from pyarrow import parquet

from tests.faults.runs import (
    Run,
    assert_equal,
    children,
    is_complete,
    is_under_way,
    kill_one,
    read_tables,
    resident,
    write_scale,
)

pytestmark = pytest.mark.faults

#: The kinds of workers: the stage, its table, and the title of the process while it works.
WORKERS = {
    "ingest": ("ingest", "images", "ray::ReadPart"),
    "captioning or encoding": ("pair", "pairs", "ray::MapWorker(MapBatches(RowActor)).submit"),
    "a rank": ("finetune", "progress", "ray::RayTrainWorker"),
    "a class": ("prototype", "prototypes", "ray::_process_class"),
    "generation": ("generate", "synthetic", "ray::MapWorker(MapBatches(RowActor)).submit"),
    "a trial": ("evaluate", "scores", "ray::_trial"),
}
KILLS = 20


def test_run_with_a_killed_worker_of_each_kind_equals_the_undisturbed_run(
    folder: Path, undisturbed: dict[str, pa.Table]
) -> None:
    run = Run(folder / "workers", write_scale(folder))
    killed = []
    for kind, (stage, table, title) in WORKERS.items():
        run.wait_until(lambda stage=stage, title=title: is_complete(run.root, stage) or title in children_titles(run))
        if stage in ("pair", "finetune", "evaluate"):  # when a part is written; the other stages take a second or two
            run.wait_until(
                lambda stage=stage, table=table: is_complete(run.root, stage) or is_under_way(run.root, stage, table)
            )
        run.wait_until(
            lambda stage=stage, title=title: is_complete(run.root, stage) or kill_one(run.process.pid, title)
        )
        killed += [] if is_complete(run.root, stage) else [kind]
    assert run.exit_code() == 0, run.output()
    assert_equal(run.root, undisturbed)
    assert {"captioning or encoding", "a rank", "a trial"} <= set(killed)
    assert len(killed) >= len(WORKERS) - 1, killed


def children_titles(run: Run) -> str:
    return " ".join(children(run.process.pid).values())


def test_run_with_a_killed_captioning_engine_equals_the_undisturbed_run(
    folder: Path, undisturbed: dict[str, pa.Table]
) -> None:
    """The engine runs in the larger one of the two actors: vLLM needs more memory than the VAE."""
    run = Run(folder / "engine", write_scale(folder), "--to", "pair")
    run.wait_until(lambda: is_under_way(run.root, "pair", "pairs"))
    actors = [pid for pid, title in children(run.process.pid).items() if "MapBatches(RowActor)" in title]
    os.kill(max(actors, key=resident), signal.SIGKILL)
    assert run.exit_code() == 0, run.output()
    assert read_tables(run.root, "pair")["pair pairs"].equals(undisturbed["pair pairs"])


def test_training_of_dits_whose_rank_and_driver_are_killed_equals_the_undisturbed_one(folder: Path) -> None:
    settings = ('compare.methods=["minimax"]', "ipc=[2]", "seeds=[0]", "compare.minimax.model=demo/dit")
    settings += ("compare.minimax.epochs=8", "compare.minimax.batch_size=32", "compare.minimax.classes_per_model=2")
    changed = [part for text in settings for part in ("--set", text)]
    undisturbed = Run(folder / "dits", write_scale(folder), *changed, "--to", "select")
    assert undisturbed.exit_code() == 0, undisturbed.output()
    run = Run(folder / "killed dits", write_scale(folder), *changed, "--to", "select")
    run.wait_until(lambda: is_under_way(run.root, "finetune", "classes/0000/progress"))
    run.wait_until(lambda: kill_one(run.process.pid, "ray::RayTrainWorker"))
    run.wait_until(lambda: is_under_way(run.root, "finetune", "classes/0001/progress"))
    run.kill()
    last = Run(run.root, write_scale(folder), *changed, "--to", "select")
    assert last.exit_code() == 0, last.output()
    one, two = (
        {path.relative_to(root.root): path.read_bytes() for path in root.root.glob("*/classes/*/model/*.safetensors")}
        for root in (undisturbed, last)
    )
    assert len(one) == 2
    assert one == two
    sets = [parquet.read_table(next(root.root.glob("select-*/synthetic"))) for root in (undisturbed, last)]
    assert sets[0].sort_by("image_id").equals(sets[1].sort_by("image_id"))


def test_run_with_killed_drivers_resumes_with_other_workers(folder: Path, undisturbed: dict[str, pa.Table]) -> None:
    root = folder / "drivers"
    conditions: dict[str, Callable[[], bool]] = {
        "pair": lambda: is_under_way(root, "pair", "pairs"),
        "finetune": lambda: is_under_way(root, "finetune", "progress"),
        "evaluate": lambda: is_under_way(root, "evaluate", "scores"),
    }
    for number, (stage, condition) in enumerate(conditions.items()):
        run = Run(root, write_scale(folder, workers=1 + number % 2, cpus=1 + number % 2))
        run.wait_until(condition)
        run.kill()
        assert not is_complete(root, stage)
    last = Run(root, write_scale(folder, workers=1, cpus=1))
    assert last.exit_code() == 0, last.output()
    assert_equal(root, undisturbed)


def test_run_killed_twenty_times_at_random_equals_the_undisturbed_run(
    folder: Path, undisturbed: dict[str, pa.Table]
) -> None:
    generator, root = random.Random(time.time_ns()), folder / "random"
    seconds = [round(generator.uniform(2, 25), 2) for _ in range(KILLS)]
    print(f"killed after {seconds} seconds")  # shown if the test fails
    for pause in seconds:
        run = Run(root, write_scale(folder))
        time.sleep(pause)
        run.kill()
    last = Run(root, write_scale(folder))
    assert last.exit_code() == 0, last.output()
    assert_equal(root, undisturbed)


def test_second_driver_of_the_same_job_exits_with_the_reason(folder: Path, undisturbed: dict[str, pa.Table]) -> None:
    root = folder / "two"
    first = Run(root, write_scale(folder))
    first.wait_until(lambda: is_under_way(root, "pair", "pairs"))
    second = Run(root, write_scale(folder))
    assert second.exit_code() == 1
    assert "is being made by another run (process" in second.output()
    assert "Traceback" not in second.output()
    assert first.exit_code() == 0, first.output()
    assert_equal(root, undisturbed)


def test_terminated_driver_deletes_its_lease_and_resumes(folder: Path, undisturbed: dict[str, pa.Table]) -> None:
    root = folder / "stopped"
    run = Run(root, write_scale(folder))
    run.wait_until(lambda: is_under_way(root, "pair", "pairs"))
    run.process.terminate()
    assert run.exit_code() == 143
    assert "re-run the same command to resume" in run.output()
    assert not list((root / "leases").iterdir())
    last = Run(root, write_scale(folder))
    assert last.exit_code() == 0, last.output()
    assert_equal(root, undisturbed)
