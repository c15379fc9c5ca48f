"""Run functions on Ray workers: one call, or many with a limited number in flight."""

from collections.abc import Callable, Iterable, Iterator
from typing import Any, Final

import ray

from vlcp_ray.scale import Pool

#: Retries of a task whose worker or machine dies: more than the 7 losses of a week with one lost machine a day.
_RETRIES: Final = 20


def task(function: Callable[..., Any], pool: Pool) -> Any:
    """Make a remote function that runs on the workers of a pool, and is retried on another worker if one dies."""
    # Without `max_calls=0` Ray ends a worker after each call that had a GPU, and torch would be loaded again.
    options = {"num_cpus": pool.num_cpus, "num_gpus": pool.num_gpus, "max_calls": 0, "max_retries": _RETRIES}
    return ray.remote(**options)(function)


def run_remote(function: Callable[..., Any], *arguments: Any) -> Any:
    """Call a function on a worker and return its result, so that the driver never holds a column of an image set."""
    return ray.get(ray.remote(function).remote(*arguments))


def in_flight(submit: Iterable[Callable[[], ray.ObjectRef]], limit: int) -> Iterator[Any]:
    """Start tasks in order, at most `limit` at a time, and yield their results as they end.

    Args:
        submit: functions that start one task each; each is called when there is room for its task.
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
