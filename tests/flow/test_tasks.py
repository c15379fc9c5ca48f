"""Whether work in flight stays within its limit and every result comes back."""

import os
from functools import partial
from pathlib import Path

import pytest
import ray

from vlcp_ray.flow.tasks import in_flight, task
from vlcp_ray.scale import Pool

pytestmark = [pytest.mark.usefixtures("ray_session"), pytest.mark.filterwarnings("default")]


@ray.remote(num_cpus=0)
class Meter:
    """Counts how many pieces run at once."""

    def __init__(self) -> None:
        self.now = self.most = 0

    def add(self, change: int) -> int:
        self.now += change
        self.most = max(self.most, self.now)
        return self.most


@ray.remote(num_cpus=0.5)
def piece(meter: ray.actor.ActorHandle, number: int) -> int:
    ray.get(meter.add.remote(1))
    ray.get(meter.add.remote(-1))
    return number


def test_all_results_come_and_never_more_than_the_limit_run() -> None:
    meter = Meter.remote()
    made = list(in_flight((partial(piece.remote, meter, number) for number in range(9)), limit=2))
    assert sorted(made) == list(range(9))
    assert ray.get(meter.add.remote(0)) <= 2


def test_pieces_are_started_late() -> None:
    started = []

    def start(number: int) -> ray.ObjectRef:
        started.append(number)
        return ray.put(number)

    results = in_flight((partial(start, number) for number in range(100)), limit=3)
    next(results)
    assert len(started) == 3


def _dies_once(died: str) -> int:
    if not os.path.exists(died):
        open(died, "w").close()
        os._exit(1)
    return os.getpid()


def test_a_piece_whose_worker_dies_is_begun_again(tmp_path: Path) -> None:
    call = task(_dies_once, Pool(num_cpus=0.5))
    (pid,) = in_flight([partial(call.remote, str(tmp_path / "died"))], limit=1)
    assert (tmp_path / "died").exists()
    assert pid != os.getpid()
