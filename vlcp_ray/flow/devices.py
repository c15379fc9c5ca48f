"""Knows which devices a stage needs to begin, says what each will take, and waits for what is still to come."""

import os
import textwrap
import time
from collections.abc import Iterator, Sequence
from typing import Final

import ray
from ray.autoscaler.sdk import request_resources

from vlcp_ray.progress import say
from vlcp_ray.scale import Pool, Scale

_LOOK: Final = 2.0  # seconds between looks at the cluster
_WIDTH: Final = 100
_UNBROKEN: Final = "\N{NO-BREAK SPACE}"
_TELL: Final = 60.0  # seconds between words about the waiting

Bundle = dict[str, float]


def tell(scale: Scale, pools: Sequence[str]) -> None:
    """Print what the cluster has and what each pool takes of it; on this machine alone in one line."""
    shares = [f"{name} {getattr(scale, name)}" for name in dict.fromkeys(pools)]
    if os.environ.get("RAY_ADDRESS"):
        say("scale", _shown(ray.cluster_resources()))
    whole = "; ".join(share.replace(" ", _UNBROKEN) for share in shares)
    for line in textwrap.wrap(whole, _WIDTH, break_on_hyphens=False):
        say("scale", line.replace(_UNBROKEN, " "))


def taken(scale: Scale, pools: Sequence[str]) -> str:
    """What a stage's workers hold of the cluster: `caption 2 x 1 CPU 1 GPU + encode 1 x 1 CPU`."""
    return " + ".join(f"{name} {str(getattr(scale, name)).partition(',')[0]}" for name in pools)


def wait_for(scale: Scale, pools: Sequence[str], title: str) -> None:
    """Return once the cluster can hold a worker of each pool, and of fine-tuning as many as it needs to begin.

    An autoscaler is asked for them. More workers than that are no condition: pools grow while the work goes on.

    Raises:
        ValueError: they did not come within `scale.patience`; of a Ray on this machine alone, nothing will.
    """
    wanted = list(_bundles(scale, pools))
    if _fits(wanted):
        return
    patience = scale.patience if os.environ.get("RAY_ADDRESS") else 0.0
    needs = ", ".join(f"{name} {getattr(scale, name)}" for name in pools)
    request_resources(bundles=wanted)
    start, told = time.monotonic(), -_TELL
    try:
        while not _fits(wanted):
            waited = time.monotonic() - start
            if waited >= patience:
                raise ValueError(
                    f"{title}: the cluster has {_shown(ray.cluster_resources())}, and the stage needs {needs}"
                    f"{f'; nothing came in {waited:.0f} s' if patience else ''}. Add machines, raise patience in the "
                    "scale file, or ask for less there (--scale FILE); the same command then goes on from here"
                )
            if waited - told >= _TELL:
                told = waited
                has = _shown(ray.cluster_resources())
                say(title, f"waits for {needs}; there are {has} ({waited:.0f} of {patience:.0f} s)")
            time.sleep(_LOOK)
    finally:
        request_resources(bundles=[])


def _bundles(scale: Scale, pools: Sequence[str]) -> Iterator[Bundle]:
    for name in pools:
        pool: Pool = getattr(scale, name)
        for _ in range(pool.fewest if name == "finetune" else 1):
            yield {"CPU": pool.num_cpus, "GPU": pool.num_gpus} if pool.num_gpus else {"CPU": pool.num_cpus}


def _fits(wanted: Sequence[Bundle]) -> bool:
    """Whether the nodes hold all bundles at once, were they idle; the largest are placed first."""
    nodes = [dict(node["Resources"]) for node in ray.nodes() if node["Alive"]]
    for bundle in sorted(wanted, key=lambda bundle: (-bundle.get("GPU", 0.0), -bundle["CPU"])):
        place = next((n for n in nodes if all(n.get(what, 0.0) >= count for what, count in bundle.items())), None)
        if place is None:
            return False
        for what, count in bundle.items():
            place[what] -= count
    return True


def _shown(resources: Bundle) -> str:
    nodes = sum(node["Alive"] for node in ray.nodes())
    machines = f"on {nodes} machines" if nodes > 1 else "on one machine"
    return f"{resources.get('CPU', 0):g} CPU, {resources.get('GPU', 0):g} GPU {machines}"
