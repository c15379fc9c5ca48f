"""Log the devices that stages use, and wait for devices that the cluster does not have yet."""

import os
import textwrap
import time
from collections.abc import Iterator, Sequence
from typing import Final

import ray
from ray.autoscaler.sdk import request_resources

from vlcp_ray.monitoring.progress import log_line
from vlcp_ray.scale import Pool, Scale
from vlcp_ray.stages.stage import Stage

_POLL_INTERVAL: Final = 2.0  # seconds
_WIDTH: Final = 100  # characters of a log line
_NO_BREAK_SPACE: Final = "\N{NO-BREAK SPACE}"
_LOG_INTERVAL: Final = 60.0  # seconds between log lines while it waits

Bundle = dict[str, float]


def log_resources(scale: Scale, pools: Sequence[str]) -> None:
    """Log the workers of each pool, and, where a cluster was joined, its devices."""
    shares = [f"{name} {getattr(scale, name)}" for name in dict.fromkeys(pools)]
    if os.environ.get("RAY_ADDRESS"):
        log_line("scale", _format(ray.cluster_resources()))
    text = "; ".join(share.replace(" ", _NO_BREAK_SPACE) for share in shares)  # no line break within a pool
    for line in textwrap.wrap(text, _WIDTH, break_on_hyphens=False):
        log_line("scale", line.replace(_NO_BREAK_SPACE, " "))


def format_workers(scale: Scale, pools: Sequence[str]) -> str:
    """Format the workers of some pools: `caption 2 x 1 CPU 1 GPU + encode 1 x 1 CPU`."""
    return " + ".join(f"{name} {str(getattr(scale, name)).partition(',')[0]}" for name in pools)


def wait_for_resources(scale: Scale, stage: Stage) -> None:
    """Wait until the cluster has room for one worker of each pool of a stage, and request it from the autoscaler.

    Pools grow to their maximum while the stage runs. A gang-scheduled stage waits for all workers that it requires.

    Raises:
        ValueError: the cluster did not grow within `scale.resource_timeout`. On a local Ray it is raised at once.
    """
    wanted = list(_bundles(scale, stage))
    if _fits(wanted):
        return
    timeout = scale.resource_timeout if os.environ.get("RAY_ADDRESS") else 0.0
    needs = ", ".join(f"{name} {getattr(scale, name)}" for name in stage.pools)
    request_resources(bundles=wanted)
    start, logged = time.monotonic(), -_LOG_INTERVAL
    try:
        while not _fits(wanted):
            waited = time.monotonic() - start
            if waited >= timeout:
                raise ValueError(
                    f"{stage.name}: the cluster has {_format(ray.cluster_resources())}, and the stage needs {needs}"
                    f"{f'; the cluster did not grow enough in {waited:.0f} s' if timeout else ''}. Add machines, raise "
                    "resource_timeout or reduce the pools in the scale file (--scale FILE), and re-run the same "
                    "command to resume"
                )
            if waited - logged >= _LOG_INTERVAL:
                logged = waited
                has = _format(ray.cluster_resources())
                log_line(stage.name, f"waiting for {needs}; the cluster has {has} ({waited:.0f} of {timeout:.0f} s)")
            time.sleep(_POLL_INTERVAL)
    finally:
        request_resources(bundles=[])


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
