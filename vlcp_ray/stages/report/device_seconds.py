"""The GPU-seconds and CPU-seconds of distilled sets, from the manifests of all that they are made from."""

from collections.abc import Iterator, Mapping, Sequence
from typing import Any, Final

from vlcp_ray.scale import Pool
from vlcp_ray.stages import STAGES, ingest
from vlcp_ray.store.artifact import Manifest, Manifests, Step

NAMES: Final = ("gpu_seconds", "cpu_seconds")
_KEY: Final = ("method", "ipc", "seed")


def recorded_pools(step: Step, manifest: Manifest) -> list[Pool]:
    """Return the pools whose workers have made an artifact; the settings of fine-tuning alone are left out."""
    return [pool for pool, _ in _recorded(step, manifest)]


def _recorded(step: Step, manifest: Manifest) -> list[tuple[Pool, float]]:
    """Return the pools whose workers have made an artifact, each with the seconds in which they did."""
    whole = dict.fromkeys(STAGES[step.stage].pools, float(manifest["seconds"]))
    seconds: Mapping[str, float] = manifest.get("seconds_by_pool", whole)
    recorded = [(manifest["scale"][name], amount) for name, amount in seconds.items() if name in manifest["scale"]]
    return [(Pool(**{name: pool[name] for name in Pool.model_fields if name in pool}), n) for pool, n in recorded]


def device_seconds(step: Step, manifests: Manifests) -> dict[str, float | None]:
    """Add up what making a set alone takes, from the images on: its own step, and in full all that it is made from.

    Args:
        manifests: by fingerprint.

    Returns `gpu_seconds`, the seconds of every artifact times the GPUs of its workers, and `cpu_seconds`, the same with
    the CPUs of workers that have no GPU; both None where an artifact is not complete, or was made elsewhere.
    """
    gpu_seconds = cpu_seconds = 0.0
    for made in {one.fingerprint: one for one in _with_inputs(step)}.values():
        manifest = manifests.get(made.fingerprint)
        if manifest is None or "origin" in manifest:
            return dict.fromkeys(NAMES)
        for pool, seconds in _recorded(made, manifest):
            worked = seconds * pool.num_workers
            gpu_seconds += worked * pool.num_gpus
            cpu_seconds += 0.0 if pool.num_gpus else worked * pool.num_cpus
    return dict(zip(NAMES, (gpu_seconds, cpu_seconds), strict=True))


def _with_inputs(step: Step) -> Iterator[Step]:
    """Yield a step and all that it is made from but the images, one that is needed twice also twice."""
    if step.stage != ingest.STAGE.name:
        yield step
        for made_from in step.inputs.values():
            yield from _with_inputs(made_from)


def with_device_seconds(
    sets: Sequence[Mapping[str, Any]], steps: Sequence[Step], manifests: Manifests
) -> list[dict[str, Any]]:
    """Add the device-seconds of each distilled set to its measures.

    Args:
        sets: rows with `method`, `ipc` and `seed`, as those of `coverage.summarise`.
        steps: of the job.
        manifests: by fingerprint.
    """
    step_of = {
        tuple(step.key[name] for name in _KEY): step for step in steps if "synthetic" in STAGES[step.stage].tables
    }
    return [{**row, **device_seconds(step_of[tuple(row[name] for name in _KEY)], manifests)} for row in sets]
