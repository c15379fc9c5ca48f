"""Tests of tasks: a limited number is in flight, every result is returned, and a task is retried."""

import os
from functools import partial
from pathlib import Path

import pytest
import ray

from vlcp_ray.engine.tasks import call_on_machines, in_flight, task
from vlcp_ray.scale import Pool

pytestmark = [pytest.mark.usefixtures("ray_session"), pytest.mark.filterwarnings("default")]


@ray.remote(num_cpus=0)
class Meter:
    """Count how many tasks run at once."""

    def __init__(self) -> None:
        self.running = self.maximum = 0

    def add(self, change: int) -> int:
        self.running += change
        self.maximum = max(self.maximum, self.running)
        return self.maximum


def count_itself(meter: ray.actor.ActorHandle, number: int) -> int:
    ray.get(meter.add.remote(1))
    ray.get(meter.add.remote(-1))
    return number


def test_in_flight_returns_all_results_within_its_limit() -> None:
    meter = Meter.remote()
    call = task(count_itself, Pool(num_cpus=0.5))
    results = list(in_flight((partial(call.remote, meter, number) for number in range(9)), limit=2))
    assert sorted(results) == list(range(9))
    assert ray.get(meter.add.remote(0)) <= 2


def test_in_flight_starts_no_more_tasks_than_its_limit() -> None:
    started = []

    def start(number: int) -> ray.ObjectRef:
        started.append(number)
        return ray.put((number, "{}"))

    results = in_flight((partial(start, number) for number in range(100)), limit=3)
    next(results)
    assert len(started) == 3


def _die_once(marker: str) -> int:
    if not os.path.exists(marker):
        open(marker, "w").close()
        os._exit(1)
    return os.getpid()


def test_task_whose_worker_dies_is_retried(tmp_path: Path) -> None:
    call = task(_die_once, Pool(num_cpus=0.5))
    (pid,) = in_flight([partial(call.remote, str(tmp_path / "died"))], limit=1)
    assert (tmp_path / "died").exists()
    assert pid != os.getpid()


def test_call_on_machines_calls_a_function_once_on_each(tmp_path: Path) -> None:
    def mark(folder: Path) -> str:
        (folder / str(os.getpid())).touch()
        return str(os.getpid())

    ((_, name),) = call_on_machines(mark, tmp_path)
    assert [path.name for path in tmp_path.iterdir()] == [name]


def fail() -> None:
    os._exit(1)


def refuse() -> None:
    raise ValueError("a reason")


def test_call_on_machines_leaves_out_those_that_are_lost_but_no_error() -> None:
    assert call_on_machines(fail) == []
    with pytest.raises(ValueError, match="a reason"):
        call_on_machines(refuse)
