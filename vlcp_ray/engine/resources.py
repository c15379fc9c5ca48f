"""Log the devices that stages use, and wait for devices that the cluster does not have yet."""

import textwrap
import time
from collections.abc import Iterator, Sequence
from typing import Any, Final

import ray
from ray.autoscaler.sdk import request_resources
from ray.data._internal.execution.execution_callback import ExecutionCallback

from vlcp_ray.engine.cluster import joined_address
from vlcp_ray.monitoring.progress import log_line
from vlcp_ray.scale import Pool, Scale
from vlcp_ray.settings import ConfigError
from vlcp_ray.stages.stage import Stage

_POLL_INTERVAL: Final = 2.0  # seconds
_WIDTH: Final = 100  # characters of a log line
_NO_BREAK_SPACE: Final = "\N{NO-BREAK SPACE}"
_LOG_INTERVAL: Final = 60.0  # seconds between log lines while it waits
_PLAN_POLL_INTERVAL: Final = 10.0  # seconds
#: Seconds in which at least one block of a plan is done: LLaVA of 7B parameters needs hours for one on CPUs.
_SLOWEST_BLOCK: Final = 4 * 3600.0
_LIMIT: Final = "vlcp_ray.resource_limit"  # in the context of Ray Data

Bundle = dict[str, float]


def log_resources(scale: Scale, pools: Sequence[str]) -> None:
    """Log the workers of each pool, and, where a cluster was joined, its devices."""
    shares = [f"{name} {getattr(scale, name)}" for name in dict.fromkeys(pools)]
    if joined_address():
        log_line("scale", _format(ray.cluster_resources()))
    text = "; ".join(share.replace(" ", _NO_BREAK_SPACE) for share in shares)  # no line break within a pool
    for line in textwrap.wrap(text, _WIDTH, break_on_hyphens=False):
        log_line("scale", line.replace(_NO_BREAK_SPACE, " "))


def format_workers(scale: Scale, pools: Sequence[str]) -> str:
    """Format the workers of some pools: `caption 2 x 1 CPU 1 GPU + encode 1 x 1 CPU`."""
    return " + ".join(f"{name} {str(getattr(scale, name)).partition(',')[0]}" for name in pools)


def check_room(scale: Scale, stages: Sequence[Stage]) -> None:
    """Refuse stages for which a local Ray has no room: unlike a cluster it does not grow.

    Raises:
        ConfigError: names the stage, what it needs and what there is.
    """
    if joined_address():
        return
    for stage in stages:
        if not _fits(list(_bundles(scale, stage))):
            needs = ", ".join(f"{name} {getattr(scale, name)}" for name in stage.pools)
            has = _format(ray.cluster_resources()).partition(" on ")[0]
            raise ConfigError(
                f"{stage.name}: this machine has {has}, and the stage needs {needs}; lower the pools in the scale "
                "file, leave --scale out, or run the job on a cluster"
            )


def wait_for_resources(scale: Scale, stage: Stage) -> None:
    """Wait until the cluster has room for one worker of each pool of a stage, and request it from the autoscaler.

    Pools grow to their maximum while the stage runs. A gang-scheduled stage waits for all workers that it requires.

    Raises:
        ValueError: the cluster did not grow within `scale.resource_timeout`. On a local Ray it is raised at once.
    """
    wanted = list(_bundles(scale, stage))
    timeout = scale.resource_timeout if joined_address() else 0.0
    needs = ", ".join(f"{name} {getattr(scale, name)}" for name in stage.pools)
    limit_waits_of_plans(stage.name, wanted, needs, timeout)
    if _fits(wanted):
        return
    request_resources(bundles=wanted)
    start, logged = time.monotonic(), -_LOG_INTERVAL
    try:
        while not _fits(wanted):
            waited = time.monotonic() - start
            if waited >= timeout:
                raise _missing(stage.name, needs, waited if timeout else 0.0)
            if waited - logged >= _LOG_INTERVAL:
                logged = waited
                has = _format(ray.cluster_resources())
                log_line(stage.name, f"waiting for {needs}; the cluster has {has} ({waited:.0f} of {timeout:.0f} s)")
            time.sleep(_POLL_INTERVAL)
    finally:
        request_resources(bundles=[])


def limit_waits_of_plans(stage: str, wanted: Sequence[Bundle], needs: str, timeout: float) -> None:
    """Let the plans of a stage wait for lost machines as long as its start does.

    By default Ray Data ends a plan after 30 minutes in which no block has moved, for whatever reason.

    Args:
        wanted: a worker of each pool.
        timeout: seconds without the devices for them.
    """
    context = ray.data.DataContext.get_current()
    context.execution_no_progress_timeout_s = timeout + _SLOWEST_BLOCK
    context.set_config(_LIMIT, (stage, list(wanted), needs, timeout))
    context.custom_execution_callback_classes = [ResourceLimit]


class ResourceLimit(ExecutionCallback):  # type: ignore[misc] # Ray has no types here
    """End a plan whose cluster has had no devices for it during `scale.resource_timeout`."""

    def __init__(self) -> None:
        self.stage, self.wanted, self.needs, self.timeout = ray.data.DataContext.get_current().get_config(_LIMIT)
        self.present = self.checked = time.monotonic()

    def on_execution_step(self, executor: Any) -> None:
        now = time.monotonic()
        if now - self.checked < _PLAN_POLL_INTERVAL:
            return
        self.checked = now
        if _fits(self.wanted):
            self.present = now
        elif now - self.present > self.timeout:
            raise _missing(self.stage, self.needs, now - self.present)


def _missing(stage: str, needs: str, waited: float) -> ValueError:
    return ValueError(
        f"{stage}: the cluster has {_format(ray.cluster_resources())}, and the stage needs {needs}"
        f"{f'; the cluster did not grow enough in {waited:.0f} s' if waited else ''}. Add machines, raise "
        "resource_timeout or reduce the pools in the scale file (--scale FILE), and re-run the same command to resume"
    )


def _bundles(scale: Scale, stage: Stage) -> Iterator[Bundle]:
    """Return the resources of each worker that a stage requires before it starts."""
    for name in stage.pools:
        pool: Pool = getattr(scale, name)
        for _ in range(pool.required_workers if stage.gang_scheduled else 1):
            yield {"CPU": pool.num_cpus, "GPU": pool.num_gpus} if pool.num_gpus else {"CPU": pool.num_cpus}


def _fits(wanted: Sequence[Bundle]) -> bool:
    """Return whether the live nodes, if idle, could hold all bundles at once; the largest are placed first."""
    nodes = [dict(node["Resources"]) for node in ray.nodes() if node["Alive"]]
    for bundle in sorted(wanted, key=lambda bundle: (-bundle.get("GPU", 0.0), -bundle["CPU"])):
        node = next((n for n in nodes if all(n.get(kind, 0.0) >= count for kind, count in bundle.items())), None)
        if node is None:
            return False
        for kind, count in bundle.items():
            node[kind] -= count
    return True


def _format(resources: Bundle) -> str:
    nodes = sum(node["Alive"] for node in ray.nodes())
    machines = f"on {nodes} machines" if nodes > 1 else "on one machine"
    return f"{resources.get('CPU', 0):g} CPU, {resources.get('GPU', 0):g} GPU {machines}"
