"""Knows what a job takes on given hardware: seconds, GPU-hours and money by stage, from its loads and the rates."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Final

from vlcp_ray.config import Expect, Job
from vlcp_ray.cost.loads import Load, loads
from vlcp_ray.cost.rates import CPU, Rate, Rates, published
from vlcp_ray.cost.work import classify, models
from vlcp_ray.needs import parameters
from vlcp_ray.scale import Pool, Prices, Scale, pools
from vlcp_ray.store import Step

_HOUR: Final = 3600.0
#: Which part of which model a rate was measured on.
_PARTS: Final[Mapping[str, str]] = {"finetune": "unet", "generate": "unet", "encode": "vae", "decode": "vae"}
_OVERHEAD: Final[Mapping[str, str]] = {"finetune": "train", "evaluate": "task"}  # else of a plan


@dataclass(frozen=True)
class StageCost:
    """What one stage takes; None where a model was never counted.

    Args:
        flops: operations of its models.
        seconds: from its start to its seal.
        measured: whether every rate behind it was measured on the job's own models.
    """

    stage: str
    images: int
    flops: float | None
    seconds: float | None
    gpu_hours: float
    cpu_hours: float
    money: float
    measured: bool


@dataclass(frozen=True)
class _Took:
    """One load on its pool: seconds of its start and of its work, and how long each device is held."""

    load: Load
    pool: Pool
    start: float
    work: float
    held: float  # GPU-seconds, or of a pool without GPUs CPU-seconds
    measured: bool


def estimate(
    job: Job, steps: Sequence[Step], scale: Scale, images: Expect, gpu: Rates | None = None, cpu: Rates | None = None
) -> list[StageCost]:
    """What every stage of a job's graph takes, in the order of the pipeline; stages that compute nothing are left out.

    Args:
        steps: the graph, of `pipeline.graph`.
        images: how many there are: `needs(...).images`, or what ingest has counted.
        gpu: rates of the GPUs of the scale, measured or published; needed where a pool has GPUs.
        cpu: rates of a core; published ones by default.
    """
    cpu = cpu or published(CPU)
    main = gpu or cpu
    counted = models(job)
    by_stage: dict[str, list[_Took]] = {}
    for load in loads(job, steps, images, counted, min(main.answer_tokens, job.caption.max_tokens)):
        pool: Pool = getattr(scale, load.pool)
        rates = gpu if pool.num_gpus and gpu else cpu
        by_stage.setdefault(load.stage, []).append(_took(load, pool, rates, model_of(job, load.rate)))
    return [_cost(stage, took, scale) for stage, took in by_stage.items()]


def seconds_by_stage(costs: Sequence[StageCost]) -> dict[str, float]:
    """Seconds by the name of the stage, where they are known."""
    return {cost.stage: cost.seconds for cost in costs if cost.seconds is not None}


def model_of(job: Job, rate: str) -> int | None:
    """What a rate is of: the parameters of the job's model, or the operations of the first network that judges."""
    if rate == "caption":
        return parameters(job.caption.model, "")
    if rate in _PARTS:
        return parameters(job.base_model, _PARTS[rate])
    if rate == "evaluate":
        settings = job.evaluate
        return int(classify(settings.networks[0], settings.input_size, settings.width, 1))
    return None


def _took(load: Load, pool: Pool, rates: Rates, model: int | None) -> _Took:
    rate, measured = rates.rate(load.rate, model)
    over = getattr(rates.overheads, _OVERHEAD.get(load.pool, "plan"))
    start = load.starts * (over + rate.start)
    done = (load.amount or 0.0) / _speed(rate, pool, rates, measured)  # seconds of one worker, or of one whole GPU
    workers = min(_devices(pool), load.units) if load.wide else 1
    width = pool.num_workers if load.wide else 1
    each = min(1.0, pool.num_gpus) or pool.num_cpus  # devices of a worker
    worked = done if pool.num_gpus else done * pool.num_cpus
    held = worked + min(width, load.units) * start * each if load.wide else pool.num_workers * each * (done + start)
    return _Took(load, pool, start, done / workers, held, measured)


def _speed(rate: Rate, pool: Pool, rates: Rates, measured: bool) -> float:
    """Of a worker: measured as the pool has it, or of a core and times its cores."""
    return rate.per_second * (1.0 if measured or rates.device != CPU else max(1.0, pool.num_cpus))


def _devices(pool: Pool) -> float:
    """Whole GPUs at work, of which several workers may share one; else workers."""
    if not pool.num_gpus:
        return pool.num_workers
    return max(1.0, pool.num_workers * min(1.0, pool.num_gpus))


def _cost(stage: str, took: Sequence[_Took], scale: Scale) -> StageCost:
    unknown = any(part.load.amount is None for part in took)
    flops = None if unknown else sum(part.load.amount or 0.0 for part in took if part.load.rate != "ingest")
    gpu_hours = sum(part.held for part in took if part.pool.num_gpus) / _HOUR
    cpu_hours = sum(part.held for part in took if not part.pool.num_gpus) / _HOUR
    seconds = _together(took, scale) if stage == "pair" else sum(part.start + part.work for part in took)
    return StageCost(
        stage,
        sum(part.load.images for part in took),
        flops,
        None if unknown else seconds,
        gpu_hours,
        cpu_hours,
        _money(stage, gpu_hours, cpu_hours, seconds, scale.prices),
        all(part.measured for part in took),
    )


def _together(took: Sequence[_Took], scale: Scale) -> float:
    """Seconds of loads that stream beside each other: those of the slowest, or of all where they share devices."""
    devices = sum(_devices(part.pool) * min(1.0, part.pool.num_gpus) for part in took if part.pool.num_gpus)
    on_gpus = sum(part.work * _devices(part.pool) for part in took if part.pool.num_gpus)
    cores = max(pool.num_workers * pool.num_cpus for pool in pools(scale).values())
    on_cores = sum(part.work * part.pool.num_workers * part.pool.num_cpus for part in took if not part.pool.num_gpus)
    shared = max(on_gpus / devices if devices else 0.0, on_cores / cores)
    return max(part.start for part in took) + max(shared, *(part.work for part in took))


def _money(stage: str, gpu_hours: float, cpu_hours: float, seconds: float, prices: Prices | None) -> float:
    if prices is None:
        return 0.0
    gpu = prices.gpu_hour
    if stage == "finetune" and prices.gpu_hour_on_demand is not None:
        gpu = prices.gpu_hour_on_demand
    return gpu_hours * gpu + cpu_hours * prices.cpu_hour + seconds / _HOUR * prices.head_hour
