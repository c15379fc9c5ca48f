"""Estimate seconds, GPU-hours and money of each stage of a job on given hardware."""

import math
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from typing import Final

from vlcp_ray.config import Job
from vlcp_ray.cost.inputs import CostInputs
from vlcp_ray.cost.rates import CPU, Basis, Rate, Rates, published
from vlcp_ray.scale import Pool, Prices, Scale, pools
from vlcp_ray.stages import STAGES
from vlcp_ray.stages.ingest import Expect
from vlcp_ray.stages.stage import Load, Stage
from vlcp_ray.store.artifact import Step

_HOUR: Final = 3600.0


#: From the surest to the least sure.
BASES: Final[tuple[Basis, ...]] = ("measured", "published", "assumed")


@dataclass(frozen=True)
class StageCost:
    """The estimated cost of one stage.

    Args:
        images: images that it reads or generates.
        flops: operations of its models; NaN, as are the seconds, where a model was never counted.
        seconds: from its start to its manifest.
        gpu_hours, cpu_hours: hours for which it holds GPUs, busy or not, and cores in pools without GPUs.
        money: in the currency of the scale's prices; 0 without prices.
        basis: of the least sure of its rates.
    """

    stage: str
    images: int
    flops: float
    seconds: float
    gpu_hours: float
    cpu_hours: float
    money: float
    basis: Basis

    @property
    def is_known(self) -> bool:
        return not math.isnan(self.seconds)


@dataclass(frozen=True)
class LoadCost:
    """The cost of one load on its pool.

    Args:
        start: seconds until its workers have started.
        work: seconds of its work.
        devices: GPUs, or cores of a pool without GPUs, that it holds.
        basis: where its rate is from.
    """

    load: Load
    pool: Pool
    start: float
    work: float
    devices: float
    basis: Basis


def loads(inputs: CostInputs, steps: Sequence[Step]) -> Iterator[tuple[Stage, Load]]:
    """Yield the loads of all stages in the graph, in the order of the stages."""
    for stage in STAGES.values():
        if own := [step for step in steps if step.stage == stage.name]:
            for load in stage.loads(inputs, own):
                yield stage, load


def estimate(
    job: Job, steps: Sequence[Step], scale: Scale, images: Expect, gpu: Rates | None = None, cpu: Rates | None = None
) -> list[StageCost]:
    """Estimate the stages of a job's graph, in the order of the pipeline; stages without any load are left out.

    Args:
        job: its models and settings.
        steps: its graph, from `pipeline.graph`.
        scale: pools of workers, and prices.
        images: size of the image set.
        gpu: measured or published rates of the GPUs of the scale; needed where a pool has GPUs.
        cpu: rates of a core; published ones by default.
    """
    cpu = cpu or published(CPU)
    inputs = CostInputs.for_job(job, images, min((gpu or cpu).answer_tokens, job.caption.max_tokens), scale)
    by_stage: dict[Stage, list[LoadCost]] = {}
    for stage, load in loads(inputs, steps):
        pool: Pool = getattr(scale, load.pool_name)
        rates = gpu if pool.num_gpus and gpu else cpu
        cost = _load_cost(load, pool, rates, load.work.model(job), scale.gpu_link * 1e9)
        by_stage.setdefault(stage, []).append(cost)
    return [_stage_cost(stage, costs, scale) for stage, costs in by_stage.items()]


def seconds_by_stage(costs: Sequence[StageCost]) -> dict[str, float]:
    """Return the seconds of the stages where they are known, by the name of the stage."""
    return {cost.stage: cost.seconds for cost in costs if cost.is_known}


def _load_cost(load: Load, pool: Pool, rates: Rates, model: int | None, link: float) -> LoadCost:
    """Estimate one load.

    Args:
        model: number that identifies the job's model.
        link: bytes per second from a worker to the next.
    """
    rate = rates.rate(load.work, model)
    start = load.starts * (getattr(rates.overheads, load.work.overhead) + rate.start)
    worker_rate = _worker_rate(rate, pool, rates)
    workers = min(_count_devices(pool), load.units)
    work = load.amount / worker_rate / workers
    if pool.num_gpus and rate.basis != "measured":
        processes = min(pool.num_workers, load.units)
        work = max(work, load.batches * load.work.launch / processes)
    sending = max(0.0, load.traffic.link / link - load.traffic.hidden * work)
    work += load.largest / worker_rate * (1 - 1 / workers) / 2  # until the last worker has ended: half a piece
    # A measured rate includes what the optimiser reads and writes, for as many images as a measured step had.
    included = load.traffic.images / rate.images if rate.basis == "measured" and rate.images else 0.0
    work += sending + (1 - included) * load.traffic.memory / rates.bandwidth
    held = _count_devices(pool) if load.holds_pool else workers
    per_worker = max(1.0, pool.num_gpus) if pool.num_gpus else pool.num_cpus
    return LoadCost(load, pool, start, work * (1 + load.paused), held * per_worker, rate.basis)


def _worker_rate(rate: Rate, pool: Pool, rates: Rates) -> float:
    """Return the rate of a worker: a measured one is that of a worker, an assumed one on a CPU that of a core."""
    return rate.per_second * (1.0 if rate.basis == "measured" or rates.device != CPU else max(1.0, pool.num_cpus))


def _count_devices(pool: Pool) -> float:
    """Count the GPUs of a pool: shared ones once, a worker with several as one; without GPUs its workers."""
    if not pool.num_gpus:
        return pool.num_workers
    return max(1.0, pool.num_workers * min(1.0, pool.num_gpus))


def _stage_cost(stage: Stage, costs: Sequence[LoadCost], scale: Scale) -> StageCost:
    if len(stage.pools) > 1:  # rows stream from pool to pool, and all are held until the last row
        seconds = _overlapped_seconds(costs, scale)
        gpu_seconds = _count_gpus(costs) * seconds
        cpu_seconds = sum(cost.devices for cost in costs if not cost.pool.num_gpus) * seconds
    else:
        seconds = sum(cost.start + cost.work for cost in costs)
        on_gpus, on_cpus = (
            sum(cost.devices * (cost.start + cost.work) for cost in costs if bool(cost.pool.num_gpus) == has_gpus)
            for has_gpus in (True, False)
        )
        gpu_seconds, cpu_seconds = on_gpus, on_cpus
    gpu_hours, cpu_hours = gpu_seconds / _HOUR, cpu_seconds / _HOUR
    return StageCost(
        stage.name,
        sum(cost.load.images for cost in costs),
        sum(cost.load.amount for cost in costs if cost.load.work.unit == "operations"),
        seconds,
        gpu_hours,
        cpu_hours,
        _money(stage, gpu_hours, cpu_hours, seconds, scale.prices),
        max((cost.basis for cost in costs), key=BASES.index),
    )


def _overlapped_seconds(costs: Sequence[LoadCost], scale: Scale) -> float:
    """Estimate the seconds of loads that run at the same time.

    They are the seconds of the slowest load, or more where the loads share GPUs or cores.
    """
    if any(math.isnan(cost.work) for cost in costs):
        return math.nan
    gpus = _count_gpus(costs)
    on_gpus = sum(cost.work * _count_devices(cost.pool) for cost in costs if cost.pool.num_gpus)
    cores = max(pool.num_workers * pool.num_cpus for pool in pools(scale).values())
    on_cores = sum(cost.work * cost.pool.num_workers * cost.pool.num_cpus for cost in costs if not cost.pool.num_gpus)
    shared = max(on_gpus / gpus if gpus else 0.0, on_cores / cores)
    return max(cost.start for cost in costs) + max(shared, *(cost.work for cost in costs))


def _count_gpus(costs: Sequence[LoadCost]) -> float:
    """Count the GPUs of the pools of a stage, which may share some."""
    gpus = sum(cost.pool.num_workers * cost.pool.num_gpus for cost in costs)
    return max(1.0, gpus) if gpus else 0.0


def _money(stage: Stage, gpu_hours: float, cpu_hours: float, seconds: float, prices: Prices | None) -> float:
    if prices is None:
        return 0.0
    gpu = prices.gpu_hour
    if stage.gang_scheduled and prices.gpu_hour_on_demand is not None:
        gpu = prices.gpu_hour_on_demand
    return gpu_hours * gpu + cpu_hours * prices.cpu_hour + seconds / _HOUR * prices.head_hour
