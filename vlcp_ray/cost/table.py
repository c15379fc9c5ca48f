"""Knows how the cost of a job is told: a line a stage, beside what was measured, and what the figures come from."""

import os
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any

from vlcp_ray.config import Expect, Job
from vlcp_ray.cost.estimate import StageCost, estimate, seconds_by_stage
from vlcp_ray.cost.rates import CPU, PEAKS, Rates, kind_of, load_rates, published
from vlcp_ray.needs import distilled_gib, distilled_images, needs
from vlcp_ray.scale import Prices, Scale, derive, pools
from vlcp_ray.settings import ConfigError
from vlcp_ray.store import Step, Store

_GPUS = Path("/proc/driver/nvidia/gpus")  # a folder a GPU, as the driver has it; torch takes seconds to ask


def cost_lines(job: Job, store: Store, steps: Sequence[Step], scale: Scale | None) -> Iterator[str]:
    """What the job costs on the hardware of a scale, by default this machine; why not, where its GPUs are unknown.

    Nothing where the job's images are unknown.
    """
    images = counted_images(job, store, steps)
    if images is None:
        return
    scale, kind = (scale, scale.gpu) if scale else this_machine()
    cpu = load_rates(store, CPU) or published(CPU)
    try:
        gpu = _gpu_rates(store, scale, kind)
    except ConfigError as error:
        yield f"cost        unknown: {error}"
        return
    costs = estimate(job, steps, scale, images, gpu, cpu)
    yield ""
    yield from table(costs, _written(job, steps, images), _measured(store, steps), scale.prices)
    sources = {
        rates.source for rates in (gpu, cpu if any(not p.num_gpus for p in pools(scale).values()) else None) if rates
    }
    yield from (f"rates       {source}" for source in sorted(sources))
    if not all(cost.measured for cost in costs):
        yield "            ~ not measured with these models and on this hardware: vlcp-ray bench JOB does"


def expected_seconds(job: Job, store: Store, steps: Sequence[Step], scale: Scale) -> dict[str, float]:
    """Seconds by stage that a run of this scale was to take; none where nobody has rated the kind of its GPUs."""
    images, kind = counted_images(job, store, steps), scale.gpu or this_machine()[1]
    used = any(pool.num_gpus for pool in pools(scale).values())
    gpu = load_rates(store, kind) if used and kind else None
    if images is None or (used and gpu is None and kind not in PEAKS):
        return {}
    gpu = gpu or (published(kind) if used else None)
    return seconds_by_stage(estimate(job, steps, scale, images, gpu, load_rates(store, CPU)))


def this_machine() -> tuple[Scale, str]:
    """The scale that `run` derives here, and the kind of the GPUs."""
    found = sorted(_GPUS.glob("*/information"))
    names = [line.partition(":")[2].strip() for file in found for line in file.read_text().splitlines()[:1]]
    return derive(cores(), len(found)), kind_of(names[0]) if names else ""


def cores() -> int:
    """Cores that this process may use."""
    return len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1


def counted_images(job: Job, store: Store, steps: Sequence[Step]) -> Expect | None:
    """The images that ingest has counted, else those that the settings expect."""
    ingest = next(step for step in steps if step.stage == "ingest")
    manifest = store.artifact(ingest).manifest()
    expected = needs(job, steps).images
    if manifest is None:
        return expected
    splits, classes = manifest["splits"], len(manifest["class_names"])
    counts = {"train": splits.get("train", 1), "val": splits.get("val", 1), "classes": classes}
    return Expect(**counts, gib=expected.gib if expected else 1.0)


def _gpu_rates(store: Store, scale: Scale, kind: str) -> Rates | None:
    if not any(pool.num_gpus for pool in pools(scale).values()):
        return None
    if not kind:
        raise ConfigError('gpu: the scale file has pools with GPUs; say which kind, e.g. gpu = "L4"')
    try:
        return load_rates(store, kind) or published(kind)
    except ValueError as error:
        raise ConfigError(f"gpu: {error}") from error


def _measured(store: Store, steps: Sequence[Step]) -> dict[str, float]:
    """Seconds of the stages whose artifacts are all sealed."""
    found: dict[str, list[dict[str, Any] | None]] = {}
    for step in steps:
        found.setdefault(step.stage, []).append(store.artifact(step).manifest())
    return {
        stage: sum(manifest["seconds"] for manifest in manifests if manifest)
        for stage, manifests in found.items()
        if all(manifests)
    }


def _written(job: Job, steps: Sequence[Step], images: Expect) -> dict[str, float]:
    """GiB by stage."""
    disk = needs(job.model_copy(update={"ingest": job.ingest.model_copy(update={"expect": images})}), steps).disk
    sets = {stage: [step for step in steps if step.stage == stage] for stage in ("generate", "select")}
    drawn = {stage: distilled_gib(job, distilled_images(mine, images.classes)) for stage, mine in sets.items()}
    return {"ingest": disk["images"], "pair": disk.get("pairs", 0.0), "finetune": disk.get("models", 0.0), **drawn}


def table(
    costs: Sequence[StageCost], disk: Mapping[str, float], measured: Mapping[str, float], prices: Prices | None
) -> Iterator[str]:
    """The table for people.

    Args:
        disk: GiB that a stage writes.
        measured: seconds that sealed stages took.
    """
    has_gpus = any(cost.gpu_hours for cost in costs)
    hours = "GPU-hours" if has_gpus else "CPU-hours"
    money = prices.currency if prices else ""
    done = f"{'measured':>10}" if measured else ""
    yield f"{'stage':<11}{'images':>12}{'written':>11}{'work':>13}{hours:>11}{'time':>10}{done}{money:>10}".rstrip()
    for cost in costs:
        used = cost.gpu_hours if has_gpus else cost.cpu_hours
        yield _line(cost.stage, f"{cost.images:,}", disk.get(cost.stage), cost.flops, used, cost, measured, prices)
    total = _total(costs)
    used = total.gpu_hours if has_gpus else total.cpu_hours
    known = {"all": sum(measured.values())} if measured and measured.keys() >= {c.stage for c in costs} else {}
    yield _line("all", "", sum(disk.values()), total.flops, used, total, known, prices)


def _total(costs: Sequence[StageCost]) -> StageCost:
    known = [cost for cost in costs if cost.seconds is not None]
    whole = len(known) == len(costs)
    return StageCost(
        "all",
        0,
        sum(cost.flops or 0.0 for cost in known) if whole else None,
        sum(cost.seconds or 0.0 for cost in known) if whole else None,
        sum(cost.gpu_hours for cost in known),
        sum(cost.cpu_hours for cost in known),
        sum(cost.money for cost in known),
        all(cost.measured for cost in costs),
    )


def _line(
    name: str,
    images: str,
    gib: float | None,
    flops: float | None,
    hours: float,
    cost: StageCost,
    measured: Mapping[str, float],
    prices: Prices | None,
) -> str:
    mark = "" if cost.measured or cost.seconds is None else "~"
    time = "unknown" if cost.seconds is None else mark + clock(cost.seconds)
    taken = clock(measured[cost.stage]) if cost.stage in measured else ""
    money = f"{cost.money:,.2f}" if prices and cost.seconds is not None else ""
    spent = "" if cost.seconds is None else f"{hours:,.2f}"
    column = f"{taken:>10}" if measured else ""
    return (
        f"{name:<11}{images:>12}{_bytes(gib):>11}{_flops(flops):>13}{spent:>11}{time:>10}{column}{money:>10}".rstrip()
    )


def clock(seconds: float) -> str:
    """Seconds as a clock shows them, 2:05 or 3:20:00; a tenth matters below ten."""
    if seconds < 10:
        return f"{seconds:.1f} s"
    minutes, rest = divmod(round(seconds), 60)
    return f"{minutes}:{rest:02d}" if minutes < 60 else f"{minutes // 60}:{minutes % 60:02d}:{rest:02d}"


def _bytes(gib: float | None) -> str:
    if not gib:
        return ""
    return f"{gib:,.1f} GiB" if gib >= 0.1 else f"{gib * 2**10:,.1f} MiB"


def _flops(flops: float | None) -> str:
    if not flops:
        return "" if flops is not None else "unknown"
    for size, unit in ((1e18, "EFLOP"), (1e15, "PFLOP"), (1e12, "TFLOP")):
        if flops >= size:
            return f"{flops / size:,.1f} {unit}"
    return f"{flops / 1e9:,.1f} GFLOP"
