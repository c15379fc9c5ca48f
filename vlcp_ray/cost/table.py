"""Format the estimated cost of a job: a line for each stage, with measured times and the source of the rates."""

import math
from collections.abc import Callable, Iterator, Mapping, Sequence
from typing import Final

from vlcp_ray.config import Job
from vlcp_ray.cost.estimate import BASES, StageCost, estimate, seconds_by_stage
from vlcp_ray.cost.gpus import GPUS, gpu_kind, query_gpus
from vlcp_ray.cost.inputs import CostInputs
from vlcp_ray.cost.rates import CPU, Rates, load_rates, published
from vlcp_ray.cost.requirements import expected_images, format_gib
from vlcp_ray.cost.savings import best_savings
from vlcp_ray.scale import Prices, Scale, count_cores, derive, pools
from vlcp_ray.settings import ConfigError
from vlcp_ray.stages import STAGES, ingest
from vlcp_ray.stages.ingest import Expect
from vlcp_ray.store.artifact import Manifest, Manifests, Step, Store

#: Seconds of a job without GPUs from which it is said to need one.
_NEEDS_GPU: Final = 3 * 24 * 3600.0


def cost_lines(
    job: Job,
    graph: Callable[[Job], Sequence[Step]],
    store: Store,
    steps: Sequence[Step],
    manifests: Manifests,
    scale: Scale | None,
) -> Iterator[str]:
    """Yield the lines on the cost of a job; none if the number of its images is unknown.

    Args:
        graph: `pipeline.graph`.
        manifests: of the steps, as `Store.manifests` returns them.
        scale: the hardware, by default this machine.
    """
    images = counted_images(job, steps, manifests)
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
    yield from table(costs, _disk(job, steps, images, scale), _measured_seconds(steps, manifests), scale.prices)
    here = sum(seconds_by_stage(costs).values())
    if gpu is None and here > _NEEDS_GPU:
        yield f"needs a GPU: {format_clock(here)} here; for an estimate with GPUs: --scale aws"
    sources = {
        rates.source for rates in (gpu, cpu if any(not p.num_gpus for p in pools(scale).values()) else None) if rates
    }
    yield from (f"rates       {source}" for source in sorted(sources))
    savings = best_savings(job, graph, scale, images, gpu, cpu)
    unit = "GPU-hours" if gpu else "CPU-hours"
    for number, saving in enumerate(savings):
        longer = "" if saving.seconds >= 0 else f", in {format_clock(-saving.seconds)} more"
        yield f"{'to save' if not number else '':<12}{saving.hours:,.2f} {unit}{longer}: {saving.text}"
    if any(cost.basis != "measured" for cost in costs):
        yield "            ~ not measured with these models on this hardware; to measure: vlcp-ray bench JOB"


def expected_seconds(
    job: Job, store: Store, steps: Sequence[Step], manifests: Manifests, scale: Scale
) -> dict[str, float]:
    """Estimate the seconds of each stage on this scale; empty where its images or the rates of its GPUs are unknown."""
    images, kind = counted_images(job, steps, manifests), scale.gpu or this_machine()[1]
    used = any(pool.num_gpus for pool in pools(scale).values())
    gpu = load_rates(store, kind) if used and kind else None
    if images is None or (used and gpu is None and kind not in GPUS):
        return {}
    gpu = gpu or (published(kind) if used else None)
    return seconds_by_stage(estimate(job, steps, scale, images, gpu, load_rates(store, CPU)))


def this_machine() -> tuple[Scale, str]:
    """Return the scale that `run` derives for this machine, and the kind of its GPUs."""
    gpus = query_gpus()
    gib = min((gib for _, gib in gpus), default=None)
    return derive(count_cores(), len(gpus), gib), gpu_kind(gpus[0][0]) if gpus else ""


def counted_images(job: Job, steps: Sequence[Step], manifests: Manifests) -> Expect | None:
    """Return the size of the image set as ingest counted it, otherwise as the settings expect it."""
    step = next(step for step in steps if step.stage == ingest.STAGE.name)
    manifest, expected = manifests.get(step.fingerprint), expected_images(job)
    if manifest is None:
        return expected
    splits, classes = manifest["splits"], len(manifest["class_names"])
    counts = {"train": splits.get("train", 1), "val": splits.get("val", 1), "classes": classes}
    return Expect(**counts, gib=expected.gib if expected else 1.0)


def _gpu_rates(store: Store, scale: Scale, kind: str) -> Rates | None:
    if not any(pool.num_gpus for pool in pools(scale).values()):
        return None
    if not kind:
        raise ConfigError('gpu: the scale file has pools with GPUs; name their kind, e.g. gpu = "L4"')
    try:
        return load_rates(store, kind) or published(kind)
    except ValueError as error:
        raise ConfigError(f"gpu: {error}") from error


def _measured_seconds(steps: Sequence[Step], manifests: Manifests) -> dict[str, float]:
    """Add up the seconds of each stage whose artifacts are all complete."""
    by_stage: dict[str, list[Manifest | None]] = {}
    for step in steps:
        by_stage.setdefault(step.stage, []).append(manifests.get(step.fingerprint))
    return {
        stage: sum(manifest["seconds"] for manifest in complete if manifest)
        for stage, complete in by_stage.items()
        if all(complete)
    }


def _disk(job: Job, steps: Sequence[Step], images: Expect, scale: Scale) -> dict[str, float]:
    """Estimate the GiB that each stage writes, where they are known."""
    inputs = CostInputs.for_job(job, images, scale=scale)
    by_stage = {stage: [step for step in steps if step.stage == stage.name] for stage in STAGES.values()}
    gib = {stage.name: stage.disk(inputs, own) for stage, own in by_stage.items() if own}
    return {name: value for name, value in gib.items() if not math.isnan(value)}


def table(
    costs: Sequence[StageCost], disk: Mapping[str, float], measured: Mapping[str, float], prices: Prices | None
) -> Iterator[str]:
    """Yield the lines of the table.

    Args:
        costs: a line each, and their sum.
        disk: GiB that each stage writes.
        measured: seconds that complete stages took.
        prices: of the scale; without prices there is no column of money.
    """
    has_gpus = any(cost.gpu_hours for cost in costs)
    hours = "GPU-hours" if has_gpus else "CPU-hours"
    measured_column = f"{'measured':>10}" if measured else ""
    header = f"{'stage':<11}{'images':>12}{'written':>11}{'work':>15}{hours:>11}{'time':>12}"
    money_column = f"{prices.currency:>10}" if prices else ""
    yield f"{header}{measured_column}{money_column}  rates"
    for cost in costs:
        used = cost.gpu_hours if has_gpus else cost.cpu_hours
        yield _line(cost.stage, f"{cost.images:,}", disk.get(cost.stage), cost.flops, used, cost, measured, prices)
    total = _total(costs)
    used = total.gpu_hours if has_gpus else total.cpu_hours
    known = {"all": sum(measured.values())} if measured and measured.keys() >= {c.stage for c in costs} else {}
    yield _line("all", "", sum(disk.values()), total.flops, used, total, known, prices)


def _total(costs: Sequence[StageCost]) -> StageCost:
    return StageCost(
        "all",
        0,
        sum(cost.flops for cost in costs),
        sum(cost.seconds for cost in costs),
        sum(cost.gpu_hours for cost in costs),
        sum(cost.cpu_hours for cost in costs),
        sum(cost.money for cost in costs),
        max((cost.basis for cost in costs), key=BASES.index),
    )


def _line(
    name: str,
    images: str,
    gib: float | None,
    flops: float,
    hours: float,
    cost: StageCost,
    measured: Mapping[str, float],
    prices: Prices | None,
) -> str:
    mark = "" if cost.basis == "measured" or not cost.is_known else "~"
    time = mark + format_clock(cost.seconds) if cost.is_known else "unknown"
    measured_time = format_clock(measured[cost.stage]) if cost.stage in measured else ""
    money = f"{cost.money:,.2f}" if prices and cost.is_known else ""
    hours_text = f"{hours:,.{2 if hours < 1000 else 0}f}" if cost.is_known else ""
    measured_column = f"{measured_time:>10}" if measured else ""
    columns = f"{name:<11}{images:>12}{_format_disk(gib):>11}{_format_flops(flops):>15}{hours_text:>11}{time:>12}"
    basis = cost.basis if cost.is_known else ""
    return (
        f"{columns}{measured_column}{money:>10}  {basis}".rstrip()
        if prices
        else f"{columns}{measured_column}  {basis}".rstrip()
    )


def format_clock(seconds: float) -> str:
    """Format seconds as 2:05, 3:20:00, 135 h, 12 days or 3 years, and less than ten with one decimal."""
    if seconds < 10:
        return f"{seconds:.1f} s"
    if seconds >= 1000 * 86400:
        return f"{seconds / 86400 / 365.25:,.0f} years"
    if seconds >= 240 * 3600:
        return f"{seconds / 86400:,.0f} days"
    if seconds >= 100 * 3600:
        return f"{seconds / 3600:,.0f} h"
    minutes, rest = divmod(round(seconds), 60)
    return f"{minutes}:{rest:02d}" if minutes < 60 else f"{minutes // 60}:{minutes % 60:02d}:{rest:02d}"


def _format_disk(gib: float | None) -> str:
    return format_gib(gib) if gib else ""


def _format_flops(flops: float) -> str:
    if math.isnan(flops):
        return "unknown"
    if not flops:
        return ""
    for size, unit in ((1e18, "EFLOP"), (1e15, "PFLOP"), (1e12, "TFLOP")):
        if flops >= size:
            return f"{flops / size:,.1f} {unit}"
    return f"{flops / 1e9:,.1f} GFLOP"
