"""Kills workers and drivers of a real run, at chosen and at random moments; what is made must be what a calm run makes.

In this order, as the runs share one undisturbed run: it takes some minutes a test.
"""

import os
import random
import signal
import time
from collections.abc import Callable
from pathlib import Path

import pyarrow as pa
import pytest

from tests.faults.runs import Run, assert_equal, begun, children, kill_one, resident, sealed, tables, write_scale

pytestmark = pytest.mark.faults

#: The kinds of workers: the stage, its table, and the title that the process has while it works.
WORKERS = {
    "ingest": ("ingest", "images", "ray::_read_part"),
    "captioning or encoding": ("pair", "pairs", "ray::MapWorker(MapBatches(Stage)).submit"),
    "a rank": ("finetune", "progress", "ray::RayTrainWorker"),
    "a class": ("prototype", "prototypes", "ray::_one_class"),
    "generation": ("generate", "synthetic", "ray::MapWorker(MapBatches(Stage)).submit"),
    "a trial": ("evaluate", "scores", "ray::_trial"),
}
KILLS = 20


def test_one_worker_of_each_kind_is_killed_in_its_work(folder: Path, calm: dict[str, pa.Table]) -> None:
    run = Run(folder / "workers", write_scale(folder))
    killed = []
    for kind, (stage, table, title) in WORKERS.items():
        run.until(lambda stage=stage, title=title: sealed(run.root, stage) or title in children_titles(run))
        if stage in ("pair", "finetune", "evaluate"):  # in the middle; the others last a second or two
            run.until(lambda stage=stage, table=table: sealed(run.root, stage) or begun(run.root, stage, table))
        run.until(lambda stage=stage, title=title: sealed(run.root, stage) or kill_one(run.process.pid, title))
        killed += [] if sealed(run.root, stage) else [kind]
    assert run.code() == 0, run.said()
    assert_equal(run.root, calm)
    assert {"captioning or encoding", "a rank", "a trial"} <= set(killed)
    assert len(killed) >= len(WORKERS) - 1, killed


def children_titles(run: Run) -> str:
    return " ".join(children(run.process.pid).values())


def test_the_captioning_engine_dies_in_its_work(folder: Path, calm: dict[str, pa.Table]) -> None:
    """The engine lives in the actor of the two that took the most memory: vLLM beside a VAE."""
    run = Run(folder / "engine", write_scale(folder), "--to", "pair")
    run.until(lambda: begun(run.root, "pair", "pairs"))
    stage = [pid for pid, title in children(run.process.pid).items() if "MapBatches(Stage)" in title]
    os.kill(max(stage, key=resident), signal.SIGKILL)
    assert run.code() == 0, run.said()
    assert tables(run.root, "pair")["pair pairs"].equals(calm["pair pairs"])


def test_a_killed_driver_goes_on_with_other_workers(folder: Path, calm: dict[str, pa.Table]) -> None:
    root = folder / "drivers"
    middles: dict[str, Callable[[], bool]] = {
        "pair": lambda: begun(root, "pair", "pairs"),
        "finetune": lambda: begun(root, "finetune", "progress"),
        "evaluate": lambda: begun(root, "evaluate", "scores"),
    }
    for number, (stage, is_middle) in enumerate(middles.items()):
        run = Run(root, write_scale(folder, workers=1 + number % 2, cpus=1 + number % 2))
        run.until(lambda is_middle=is_middle: is_middle())
        run.kill()
        assert not sealed(root, stage)
    last = Run(root, write_scale(folder, workers=1, cpus=1))
    assert last.code() == 0, last.said()
    assert_equal(root, calm)


def test_twenty_kills_at_random_moments(folder: Path, calm: dict[str, pa.Table]) -> None:
    draw, root = random.Random(time.time_ns()), folder / "random"
    seconds = [round(draw.uniform(2, 25), 2) for _ in range(KILLS)]
    print(f"killed after {seconds} seconds")  # told where the test fails
    for pause in seconds:
        run = Run(root, write_scale(folder))
        time.sleep(pause)
        run.kill()
    last = Run(root, write_scale(folder))
    assert last.code() == 0, last.said()
    assert_equal(root, calm)


def test_of_two_drivers_at_once_the_second_says_so_and_stops(folder: Path, calm: dict[str, pa.Table]) -> None:
    root = folder / "two"
    first = Run(root, write_scale(folder))
    first.until(lambda: begun(root, "pair", "pairs"))
    second = Run(root, write_scale(folder))
    assert second.code() == 1
    assert "is being made by another run (process" in second.said()
    assert "Traceback" not in second.said()
    assert first.code() == 0, first.said()
    assert_equal(root, calm)


def test_a_stopped_driver_ends_in_order_and_goes_on(folder: Path, calm: dict[str, pa.Table]) -> None:
    root = folder / "stopped"
    run = Run(root, write_scale(folder))
    run.until(lambda: begun(root, "pair", "pairs"))
    run.process.terminate()
    assert run.code() == 143
    assert "the same command goes on from here" in run.said()
    assert not list((root / "leases").iterdir())
    last = Run(root, write_scale(folder))
    assert last.code() == 0, last.said()
    assert_equal(root, calm)
