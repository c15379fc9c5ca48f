"""Tests of the estimate: the loads of the stages, and seconds, hours and money from loads, rates and workers."""

import dataclasses
import math
from pathlib import Path
from typing import Any

import pytest

from vlcp_ray.config import Job, load_job
from vlcp_ray.cost.estimate import (
    LoadCost,
    StageCost,
    _load_cost,
    _stage_cost,
    estimate,
    loads,
    seconds_by_stage,
)
from vlcp_ray.cost.inputs import CostInputs
from vlcp_ray.cost.rates import CPU, Overheads, Rate, Rates, published
from vlcp_ray.pipeline import graph
from vlcp_ray.scale import FinetunePool, Pool, Prices, Scale, derive, load_scale
from vlcp_ray.settings import build
from vlcp_ray.stages import works
from vlcp_ray.stages.ingest import Expect
from vlcp_ray.stages.stage import Load, Stage, Traffic, Work

ROOT = Path(__file__).parents[2]
JOBS = ROOT / "jobs"
IMAGENET = load_job(JOBS / "imagenet1k.toml")
DIGITS = load_job(JOBS / "digits.toml")
IMAGENET_IMAGES = Expect(train=1_281_167, val=50_000, classes=1000, gib=144)
DIGITS_IMAGES = Expect(train=1297, val=500, classes=10, gib=0.01)
IMAGES = Expect(train=1000, val=100, classes=10, gib=1)
AWS = load_scale(str(ROOT / "clusters" / "aws.toml"))


def loads_of(job: Job) -> dict[str, Load]:
    """The loads by `stage work`."""
    inputs = CostInputs.for_job(job, IMAGES, 60)
    return {f"{stage.name} {load.work.name}": load for stage, load in loads(inputs, graph(job))}


def growth(name: str, **settings: Any) -> float:
    """Factor by which settings change the amount of a load."""
    base = {"name": "x", "base_model": "demo/stable_diffusion", "caption": {"model": "demo/llava"}}
    base |= {"encode": {"resolution": 32, "train_resolution": 32}}
    before, after = loads_of(build(Job, base, "x"))[name], loads_of(build(Job, base | settings, "x"))[name]
    assert before.amount > 0
    return after.amount / before.amount


def costs_by_stage(
    job: Job, scale: Scale, images: Expect, gpu: Rates | None = None, cpu: Rates | None = None
) -> dict[str, StageCost]:
    return {cost.stage: cost for cost in estimate(job, graph(job), scale, images, gpu, cpu)}


def measured_rates() -> Rates:
    names = ("ingest", "caption", "encode", "finetune", "prototype", "generate", "decode", "evaluate")
    rates = {name: Rate(per_second=1e9, start=2.0, model=works()[name].model(DIGITS)) for name in names}
    return Rates(device=CPU, source="measured: here", peak=1e11, rates=rates, overheads=Overheads(plan=1.0))


def test_loads_of_training_grow_with_seeds_and_epochs() -> None:
    assert growth("finetune finetune", seeds=[0, 1, 2]) == pytest.approx(3)
    assert growth("finetune finetune", finetune={"epochs": 16}) == pytest.approx(2)


def test_loads_of_training_without_gradient_checkpointing_are_three_quarters() -> None:
    amounts = []
    for checkpointing in (True, False):
        scale = Scale(finetune=FinetunePool(gradient_checkpointing=checkpointing))
        inputs = CostInputs.for_job(DIGITS, IMAGES, 60, scale)
        amounts += [load.amount for stage, load in loads(inputs, graph(DIGITS)) if load.work.name == "finetune"]
    assert 0.7 < amounts[1] / amounts[0] < 0.8


def test_loads_of_generation_grow_with_ipc_and_those_of_captioning_do_not() -> None:
    assert growth("generate generate", ipc=[30]) == pytest.approx(3)
    assert growth("pair caption", ipc=[30]) == 1


def test_loads_of_generation_without_guidance_are_half() -> None:
    assert 0.45 < growth("generate generate", generate={"guidance_scale": 1}) < 0.55


def test_loads_with_saved_captions_have_no_captioning() -> None:
    job = load_job(JOBS / "digits.toml", ["caption.source=table.parquet"])
    job = job.model_copy(update={"caption": job.caption.model_copy(update={"source": str(JOBS / "digits.toml")})})
    assert "pair caption" not in loads_of(job)


def test_loads_of_an_uncounted_model_are_nan_and_not_zero() -> None:
    found = loads_of(build(Job, {"name": "x", "base_model": "some/model"}, "x"))
    assert math.isnan(found["finetune finetune"].amount)
    assert math.isnan(found["generate generate"].amount)
    assert found["pair caption"].amount > 0


@pytest.mark.parametrize("file", sorted(JOBS.glob("*.toml")), ids=lambda file: file.stem)
def test_loads_of_every_shipped_job_are_known(file: Path) -> None:
    job = load_job(file)
    found = loads_of(job)
    assert all(load.amount > 0 for load in found.values())
    assert {name.split()[0] for name in found} >= {step.stage for step in graph(job)} - {"report"}


def test_estimate_with_twice_the_gpus_takes_half_the_time_and_the_same_money() -> None:
    small, large = (
        AWS.model_copy(update={"generate": AWS.generate.model_copy(update={"num_workers": n})}) for n in (8, 16)
    )
    before, after = (
        costs_by_stage(IMAGENET, scale, IMAGENET_IMAGES, published("L40S"))["generate"] for scale in (small, large)
    )
    assert before.is_known
    assert after.seconds == pytest.approx(before.seconds / 2, rel=0.02)
    assert after.gpu_hours == pytest.approx(before.gpu_hours, rel=0.05)
    assert after.money == pytest.approx(before.money, rel=0.05)


def test_estimate_of_a_training_adds_optimiser_and_communication_on_all_gpus_that_are_held() -> None:
    scale = AWS.model_copy(update={"gpu_link": 12.0})
    cost = costs_by_stage(IMAGENET, scale, IMAGENET_IMAGES, published("L40S"))["finetune"]
    assert cost.is_known
    # On 8 GPUs three seeds train side by side on two each: 16 of 32 images a step, 320,296 steps.
    steps, parameters, image = 8 * math.ceil(1_281_167 / 32), 859_520_964, 2.42e12
    computing = 16 * image / (0.16 * 362e12)
    sending = max(0.0, parameters * 4 / 12e9 - 0.6 * computing / 2)  # hidden by the backward pass of the last 8 images
    adding = 62 * parameters / (0.8 * 864e9)
    expected = steps * (computing + sending + adding) * 1.012  # for checkpoints
    assert cost.seconds == pytest.approx(expected, rel=0.01)
    assert cost.gpu_hours == pytest.approx(8 * cost.seconds / 3600)
    slow = scale.model_copy(update={"gpu_link": 1.2})
    assert costs_by_stage(IMAGENET, slow, IMAGENET_IMAGES, published("L40S"))["finetune"].seconds > 2 * cost.seconds
    assert AWS.prices is not None
    assert AWS.prices.gpu_hour_on_demand is not None
    assert cost.money == pytest.approx(cost.gpu_hours * AWS.prices.gpu_hour_on_demand, rel=0.01)
    assert cost.basis == "assumed"


def test_estimate_of_streaming_pools_is_the_slower_one_or_the_sum_on_one_gpu() -> None:
    many, one = (
        costs_by_stage(IMAGENET, scale, IMAGENET_IMAGES, published("L40S"))["pair"] for scale in (AWS, derive(8, 1))
    )
    assert many.is_known
    assert one.is_known
    assert one.seconds / 3600 == pytest.approx(one.gpu_hours)
    assert many.gpu_hours == pytest.approx(16 * many.seconds / 3600)
    assert many.seconds < one.seconds / 12


def test_estimate_counts_the_images_of_every_method() -> None:
    costs = costs_by_stage(load_job(JOBS / "digits-compare.toml"), derive(2, 0), DIGITS_IMAGES)
    assert costs["generate"].images == 5 * 3 * 16 * 10
    assert costs["select"].images == 13 * 3 * 16 * 10
    assert costs["pair"].images == 1297
    assert costs["finetune"].images == 3 * (4 + 8) * 1297  # of the UNet and of the DiT


def test_estimate_with_saved_captions_counts_the_images_once() -> None:
    job = DIGITS.model_copy(update={"caption": DIGITS.caption.model_copy(update={"source": "s3://bucket/captions"})})
    assert costs_by_stage(job, derive(2, 0), DIGITS_IMAGES)["pair"].images == 1297


def test_estimate_of_an_uncounted_model_is_unknown() -> None:
    costs = costs_by_stage(DIGITS.model_copy(update={"base_model": "some/model"}), derive(2, 0), DIGITS_IMAGES)
    assert not costs["generate"].is_known
    assert costs["evaluate"].is_known
    assert "generate" not in seconds_by_stage(list(costs.values()))


def test_estimate_uses_measured_rates_for_the_same_models_only() -> None:
    costs = costs_by_stage(DIGITS, derive(2, 0), DIGITS_IMAGES, cpu=measured_rates())
    assert {cost.basis for cost in costs.values()} == {"measured"}
    other_model = DIGITS.model_copy(update={"base_model": IMAGENET.base_model})
    other = costs_by_stage(other_model, derive(2, 0), DIGITS_IMAGES, cpu=measured_rates())
    assert other["finetune"].basis == "assumed"
    assert other["evaluate"].basis == "measured"
    assert seconds_by_stage(list(costs.values())).keys() >= {"ingest", "pair", "finetune", "generate", "evaluate"}


WORK = Work("w", "generate", "", on_cpu=(0.5, 4.0), on_gpu=(0.25, 5.0))
CORE = Rates(device=CPU, source="x", peak=1e9, overheads=Overheads(plan=3.0, train=10.0, task=1.0))
GPU = CORE.model_copy(update={"device": "L4"})
MEASURED = CORE.model_copy(update={"rates": {"w": Rate(per_second=2e9, start=1.0, model=7, images=4)}})


@pytest.mark.parametrize(
    ("load", "pool", "rates", "start", "work", "devices"),
    [
        # A worker does 0.5e9 operations per second on each of its two cores, and starts twice in 3 + 4 seconds.
        ({"units": 10, "starts": 2}, {"num_workers": 3, "num_cpus": 2}, CORE, 14, 6 / 3, 3 * 2),
        ({"units": 2}, {"num_workers": 3, "num_cpus": 2}, CORE, 7, 6 / 2, 2 * 2),
        ({"units": 1}, {"num_workers": 3, "num_cpus": 2}, CORE, 7, 6, 1 * 2),
        ({"units": 1, "holds_pool": True}, {"num_workers": 3, "num_cpus": 2}, CORE, 7, 6, 3 * 2),
        ({"units": 2}, {"num_workers": 1, "num_cpus": 0.5}, CORE, 7, 12, 0.5),
        # Until the worker with the largest piece has ended, the others wait: two thirds of half a piece of 1 second.
        ({"units": 9, "largest": 1e9}, {"num_workers": 3, "num_cpus": 2}, CORE, 7, 2 + 1 / 3, 3 * 2),
        ({"units": 9, "largest": 1e9}, {"num_workers": 1, "num_cpus": 2}, CORE, 7, 6, 2),
        # A second for each ten of work.
        ({"units": 2, "paused": 0.1}, {"num_workers": 3, "num_cpus": 2}, CORE, 7, 3.3, 2 * 2),
        # 20e9 bytes of memory at 10e9 per second, and 5e9 over a link of 1e9, of which a third of the work hides some.
        ({"units": 2, "traffic": Traffic(memory=20e9)}, {"num_workers": 3, "num_cpus": 2}, CORE, 7, 3 + 2, 4),
        (
            {"units": 2, "traffic": Traffic(link=5e9, hidden=1 / 3)},
            {"num_workers": 3, "num_cpus": 2},
            CORE,
            7,
            3 + 4,
            4,
        ),
        ({"units": 2, "traffic": Traffic(link=5e9, hidden=3)}, {"num_workers": 3, "num_cpus": 2}, CORE, 7, 3, 4),
        # A measured rate is that of a worker, and includes what it reads and writes in a step of four images.
        ({"units": 9}, {"num_workers": 3, "num_cpus": 2}, MEASURED, 4, 3 / 3, 3 * 2),
        ({"units": 9, "traffic": Traffic(20e9, 4)}, {"num_workers": 3, "num_cpus": 2}, MEASURED, 4, 1, 3 * 2),
        ({"units": 9, "traffic": Traffic(20e9, 1)}, {"num_workers": 3, "num_cpus": 2}, MEASURED, 4, 1 + 1.5, 3 * 2),
        # 0.25e9 per second of a GPU, which several workers share; one that has a part of a GPU holds all of it.
        ({"units": 9}, {"num_workers": 4, "num_gpus": 0.5, "num_cpus": 2}, GPU, 8, 24 / 2, 2),
        ({"units": 9}, {"num_workers": 1, "num_gpus": 0.5, "num_cpus": 2}, GPU, 8, 24, 1),
        ({"units": 9}, {"num_workers": 3, "num_gpus": 2, "num_cpus": 2}, GPU, 8, 24 / 3, 3 * 2),
    ],
)
def test_load_cost_equals_hand_computation(
    load: dict[str, Any], pool: dict[str, float], rates: Rates, start: float, work: float, devices: float
) -> None:
    cost = _load_cost(Load(WORK, 5, 6e9, **load), build(Pool, pool, "x"), rates, 7, 1e9)
    assert (cost.start, cost.work, cost.devices) == pytest.approx((start, work, devices))
    assert cost.basis == ("measured" if rates is MEASURED else "assumed")
    assert _load_cost(cost.load, cost.pool, MEASURED, 8, 1e9).basis == "assumed"


@pytest.mark.parametrize(
    ("pool", "rates", "work"),
    [
        ({"num_workers": 1, "num_gpus": 1}, GPU, 50.0),  # 100 batches of half a second; the operations take 24 s
        ({"num_workers": 4, "num_gpus": 0.5}, GPU, 12.5),  # in four processes
        ({"num_workers": 9, "num_gpus": 1}, GPU, 10.0),  # in five: there are no more pieces
        ({"num_workers": 1}, CORE, 12.0),  # a core computes in the process
        ({"num_workers": 1, "num_gpus": 1}, MEASURED, 3.0),  # included
    ],
)
def test_load_cost_is_at_least_the_launches_of_its_batches(pool: dict[str, float], rates: Rates, work: float) -> None:
    load = Load(dataclasses.replace(WORK, launch=0.5), 5, 6e9, units=5, batches=100)
    assert _load_cost(load, build(Pool, pool, "x"), rates, 7, 1e9).work == pytest.approx(work)


def test_loads_count_the_batches_of_trainings() -> None:
    found = loads_of(build(Job, {"name": "x", "evaluate": {"epochs": 3, "repeats": 2}, "ipc": [10]}, "x"))
    # 3 methods, ipc 10 of 10 classes in batches of 64: two steps an epoch. The full split: 1,000 images, 300 epochs.
    sets = found["evaluate evaluate"].batches - 300 * math.ceil(1000 / 64)
    assert sets == 3 * 2 * 3 * 2


def test_load_cost_starts_with_the_overhead_of_its_work() -> None:
    for overhead, seconds in (("plan", 3), ("train", 10), ("task", 1)):
        work = Work("v", "generate", "", on_cpu=(0.5, 4.0), overhead=overhead)
        assert _load_cost(Load(work, 0, 1.0, 1), Pool(), CORE, None, 1e9).start == seconds + 4


def test_load_cost_is_published_where_the_share_of_a_gpu_is() -> None:
    load = Load(dataclasses.replace(WORK, is_published=True), 0, 1.0, 1)
    assert _load_cost(load, Pool(num_gpus=1), GPU, None, 1e9).basis == "published"
    assert _load_cost(load, Pool(), CORE, None, 1e9).basis == "assumed"


def load_cost(
    work: float, start: float, devices: float, images: int = 5, unit: Any = "operations", **pool: Any
) -> LoadCost:
    load = Load(Work("w", "generate", "", unit=unit), images, 100.0, 1)
    return LoadCost(load, build(Pool, pool, "x"), start, work, devices, "measured")


def test_stage_cost_of_one_pool_is_the_sum_of_its_loads() -> None:
    on_gpu = load_cost(3598, 2, 2, num_gpus=1)
    on_cpu = load_cost(1796, 4, 3, images=3, unit="images")
    stage = Stage("x", 1, "", pools=("generate",))
    assert _stage_cost(stage, [on_gpu, on_cpu], Scale()) == StageCost("x", 8, 100.0, 5400, 2.0, 1.5, 0.0, "measured")
    for basis in ("published", "assumed"):
        least = dataclasses.replace(on_cpu, basis=basis)
        assert _stage_cost(stage, [on_gpu, least], Scale()).basis == basis


def test_stage_cost_of_streaming_pools_counts_what_they_hold_while_they_wait() -> None:
    slow, fast = load_cost(3600, 0, 3, num_workers=3, num_gpus=1), load_cost(100, 0, 1, num_gpus=1)
    on_cpus = load_cost(10, 0, 2)
    cost = _stage_cost(Stage("x", 1, "", pools=("caption", "encode")), [slow, fast, on_cpus], Scale())
    assert (cost.gpu_hours, cost.cpu_hours) == (4.0, 2.0)


@pytest.mark.parametrize(
    ("costs", "cores", "seconds"),
    [
        # On GPUs of their own the slower load counts, and the later start.
        ([load_cost(10, 2, 0, num_gpus=1), load_cost(30, 1, 0, num_gpus=1, num_workers=2)], 8, 2 + 30),
        # On one shared GPU both loads wait for each other.
        ([load_cost(10, 2, 0, num_gpus=0.5), load_cost(30, 1, 0, num_gpus=0.5)], 8, 2 + 40),
        # Three half GPUs, and a tenth of one, which computes as long as a whole one: 1.6 GPUs in all.
        ([load_cost(20, 2, 0, num_gpus=0.5, num_workers=3), load_cost(20, 1, 0, num_gpus=0.1)], 8, 2 + 50 / 1.6),
        # Three loads of two cores for 10 seconds each on four cores.
        ([load_cost(10, 1, 0, num_cpus=2)] * 3, 4, 1 + 60 / 4),
        ([load_cost(10, 1, 0, num_cpus=2, num_workers=2), load_cost(20, 3, 0)], 2, 3 + 60 / 2),
        ([load_cost(math.nan, 1, 0), load_cost(20, 3, 0)], 2, math.nan),
    ],
)
def test_stage_cost_of_streaming_pools_is_the_slowest_or_what_they_share(
    costs: list[LoadCost], cores: int, seconds: float
) -> None:
    scale = Scale(ingest=Pool(num_workers=cores))
    stage = Stage("x", 1, "", pools=("caption", "encode"))
    assert _stage_cost(stage, costs, scale).seconds == pytest.approx(seconds, nan_ok=True)


def test_stage_cost_money_is_hours_times_prices() -> None:
    prices = Prices(gpu_hour=2.0, cpu_hour=0.5, head_hour=0.1, gpu_hour_on_demand=3.0)
    on_both = [load_cost(3600, 0, 2, num_gpus=1), load_cost(3600, 0, 4)]

    def money(prices: Prices, *, gang_scheduled: bool = False) -> float:
        stage = Stage("x", 1, "", pools=("generate",), gang_scheduled=gang_scheduled)
        return _stage_cost(stage, on_both, Scale(generate=Pool(num_gpus=1), prices=prices)).money

    assert money(prices) == pytest.approx(2 * 2.0 + 4 * 0.5 + 2 * 0.1)
    assert money(prices, gang_scheduled=True) == pytest.approx(2 * 3.0 + 4 * 0.5 + 2 * 0.1)
    without = prices.model_copy(update={"gpu_hour_on_demand": None})
    assert money(without, gang_scheduled=True) == money(prices)


def test_estimate_captions_have_the_tokens_of_the_rates_up_to_the_limit_of_the_job() -> None:
    def flops(gpu: float | None, cpu: float) -> float:
        on_gpu, on_cpu = (measured_rates().model_copy(update={"answer_tokens": n}) for n in (gpu, cpu))
        return costs_by_stage(DIGITS, derive(2, 0), DIGITS_IMAGES, on_gpu if gpu else None, on_cpu)["pair"].flops

    assert flops(None, 200) == flops(None, DIGITS.caption.max_tokens)
    assert flops(None, 10) < flops(None, 11) < flops(None, DIGITS.caption.max_tokens)
    assert flops(10, 20) == flops(None, 10)
