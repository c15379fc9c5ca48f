"""Knows how many independent pieces of work run at once on Ray and hand back their results as they end."""

from collections.abc import Callable, Iterable, Iterator
from typing import Any

import ray


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
