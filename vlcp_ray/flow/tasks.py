"""Knows how many independent pieces of work run at once on Ray and hand back their results as they end."""

from collections.abc import Callable, Iterable, Iterator
from typing import Any, Final

import ray

from vlcp_ray.scale import Pool

#: How often a piece is begun again whose worker or machine has died: one of three spot machines a day for a week.
_RETRIES: Final = 20


def task(function: Callable[..., Any], pool: Pool) -> Any:
    """A function as pieces of work that a worker of the pool does, and another one if that dies."""
    # Without `max_calls=0` Ray ends a worker after each call that had a GPU, and torch would be loaded again.
    options = {"num_cpus": pool.num_cpus, "num_gpus": pool.num_gpus, "max_calls": 0, "max_retries": _RETRIES}
    return ray.remote(**options)(function)


def in_flight(submit: Iterable[Callable[[], ray.ObjectRef]], limit: int) -> Iterator[Any]:
    """Start pieces of work in order, never more than `limit` at a time, and yield results as they come.

    Args:
        submit: functions that start one piece each. They are called late, so that a million of them cost nothing.
    """
    running: set[ray.ObjectRef] = set()
    for start in submit:
        running.add(start())
        if len(running) >= limit:
            yield _first(running)
    while running:
        yield _first(running)


def _first(running: set[ray.ObjectRef]) -> Any:
    (ready,), _ = ray.wait(list(running), num_returns=1)
    running.remove(ready)
    return ray.get(ready)
