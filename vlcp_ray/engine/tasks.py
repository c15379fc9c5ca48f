"""Run functions on Ray workers: one call, or many with a limited number in flight."""

from collections.abc import Callable, Iterable, Iterator, Sequence
from functools import wraps
from typing import Any, Final

import ray
from ray.util.scheduling_strategies import NodeAffinitySchedulingStrategy

from vlcp_ray.scale import Pool
from vlcp_ray.store import written

#: Retries of a task whose worker or machine dies: more than the 7 losses of a week with one lost machine a day.
_RETRIES: Final = 20
_ANSWER: Final = 60.0  # seconds in which a machine answers


def task(function: Callable[..., Any], pool: Pool) -> Any:
    """Make a remote function that runs on the workers of a pool, and is retried on another worker if one dies.

    Its result is read by `result` or `in_flight`.
    """
    # Without `max_calls=0` Ray ends a worker after each call that had a GPU, and torch would be loaded again.
    options = {"num_cpus": pool.num_cpus, "num_gpus": pool.num_gpus, "max_calls": 0, "max_retries": _RETRIES}
    return ray.remote(**options)(_with_written(function))


def run_remote(function: Callable[..., Any], *arguments: Any) -> Any:
    """Call a function on a worker and return its result, so that the driver never holds a column of an image set."""
    return result(ray.remote(_with_written(function)).remote(*arguments))


def run_all(function: Callable[..., Any], calls: Sequence[tuple[Any, ...]]) -> list[Any]:
    """Call a function on workers, once with each tuple of arguments, and return the results in their order."""
    if not calls:
        return []
    remote = ray.remote(_with_written(function))
    return [result(reference) for reference in [remote.remote(*arguments) for arguments in calls]]


def call_on_machines(function: Callable[..., Any], *arguments: Any) -> list[tuple[str, Any]]:
    """Call a function once on every machine of the cluster, and return address and result of each.

    Machines that are lost meanwhile, or do not answer, are left out.

    Raises:
        Exception: that of the function.
    """
    remote = ray.remote(num_cpus=0, max_retries=0)(function)
    calls = {}
    for node in ray.nodes():
        if node["Alive"]:
            here = NodeAffinitySchedulingStrategy(node["NodeID"], soft=False)
            calls[remote.options(scheduling_strategy=here).remote(*arguments)] = node["NodeManagerAddress"]
    ended, _ = ray.wait(list(calls), num_returns=len(calls), timeout=_ANSWER)
    results = []
    for reference in ended:
        try:
            results.append((calls[reference], ray.get(reference)))
        except ray.exceptions.RayTaskError:
            raise
        except ray.exceptions.RayError:
            continue
    return results


def result(reference: ray.ObjectRef) -> Any:
    """Wait for a call of `task`, record the files that it has written, and return its result."""
    value, records = ray.get(reference)
    written.load(records)
    return value


def in_flight(submit: Iterable[Callable[[], ray.ObjectRef]], limit: int) -> Iterator[Any]:
    """Start calls of `task` in order, at most `limit` at a time, and yield their results as they end.

    Args:
        submit: functions that start one call each; each is called when there is room for its call.
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
    return result(ready)


def _with_written(function: Callable[..., Any]) -> Callable[..., tuple[Any, str]]:
    """Return the function with the records of the files that it writes beside its result (see `store.written`)."""

    @wraps(function)  # Ray names the process after the function
    def call(*arguments: Any) -> tuple[Any, str]:
        return function(*arguments), written.dump()

    return call
