"""Whether time, hours and money follow from work, rates and workers, and what is known is told from what is assumed."""

from pathlib import Path

import pytest

from vlcp_ray.config import Expect, load_job
from vlcp_ray.cost.estimate import estimate, model_of, seconds_by_stage
from vlcp_ray.cost.rates import CPU, Overheads, Rate, Rates, kind_of, load_rates, published, save_rates
from vlcp_ray.cost.table import cost_lines
from vlcp_ray.pipeline import graph
from vlcp_ray.scale import Scale, derive, load_scale
from vlcp_ray.store import Store

ROOT = Path(__file__).parents[2]
IMAGENET = load_job(ROOT / "jobs" / "imagenet1k.toml")
DIGITS = load_job(ROOT / "jobs" / "digits.toml")
IMAGES = Expect(train=1_281_167, val=50_000, classes=1000, gib=144)
AWS = load_scale(str(ROOT / "clusters" / "aws.toml"))


def test_twice_the_gpus_take_half_the_time_and_the_same_money() -> None:
    small, large = (
        AWS.model_copy(update={"generate": AWS.generate.model_copy(update={"num_workers": n})}) for n in (8, 16)
    )
    before, after = (
        next(c for c in estimate(IMAGENET, graph(IMAGENET), scale, IMAGES, published("L40S")) if c.stage == "generate")
        for scale in (small, large)
    )
    assert before.seconds is not None
    assert after.seconds == pytest.approx(before.seconds / 2, rel=0.02)
    assert after.gpu_hours == pytest.approx(before.gpu_hours, rel=0.05)
    assert after.money == pytest.approx(before.money, rel=0.05)


def test_gpu_hours_are_operations_over_the_rate_and_cost_the_price() -> None:
    costs = estimate(IMAGENET, graph(IMAGENET), AWS, IMAGES, published("L40S"))
    tuned = next(cost for cost in costs if cost.stage == "finetune")
    assert tuned.flops is not None
    assert tuned.gpu_hours == pytest.approx(tuned.flops / (0.16 * 362e12) / 3600, rel=0.05)
    assert AWS.prices is not None
    assert AWS.prices.gpu_hour_on_demand is not None
    assert tuned.money == pytest.approx(tuned.gpu_hours * AWS.prices.gpu_hour_on_demand, rel=0.01)
    assert not tuned.measured


def test_streaming_pools_take_as_long_as_the_slower_one_or_as_both_on_one_gpu() -> None:
    apart = estimate(IMAGENET, graph(IMAGENET), AWS, IMAGES, published("L40S"))
    alone = estimate(IMAGENET, graph(IMAGENET), derive(8, 1), IMAGES, published("L40S"))
    (many,), (one,) = ([c for c in costs if c.stage == "pair"] for costs in (apart, alone))
    assert many.seconds is not None
    assert one.seconds is not None
    assert one.seconds / 3600 == pytest.approx(one.gpu_hours, rel=0.01)
    assert many.seconds < one.seconds / 12


def test_estimate_counts_the_images_of_every_method() -> None:
    compare = load_job(ROOT / "jobs" / "digits-compare.toml")
    images = Expect(train=1297, val=500, classes=10, gib=0.01)
    costs = {cost.stage: cost.images for cost in estimate(compare, graph(compare), derive(2, 0), images)}
    assert costs["generate"] == 5 * 3 * 16 * 10
    assert costs["select"] == 5 * 3 * 16 * 10
    assert costs["pair"] == 1297
    assert costs["finetune"] == 3 * 4 * 1297


def test_estimate_pair_with_saved_captions_counts_the_images() -> None:
    images = Expect(train=1297, val=500, classes=10, gib=0.01)
    job = DIGITS.model_copy(update={"caption": DIGITS.caption.model_copy(update={"source": "s3://bucket/captions"})})
    costs = {cost.stage: cost.images for cost in estimate(job, graph(job), derive(2, 0), images)}
    assert costs["pair"] == 1297


def measured() -> Rates:
    works = ("ingest", "caption", "encode", "finetune", "prototype", "generate", "decode", "evaluate")
    rates = {work: Rate(per_second=1e9, start=2.0, model=model_of(DIGITS, work)) for work in works}
    return Rates(device=CPU, source="measured: here", peak=1e11, rates=rates, overheads=Overheads(plan=1.0))


def test_rates_count_for_the_models_that_they_were_measured_on(tmp_path: Path) -> None:
    images = Expect(train=1297, val=500, classes=10, gib=0.01)
    costs = estimate(DIGITS, graph(DIGITS), derive(2, 0), images, None, measured())
    assert all(cost.measured for cost in costs)
    other = DIGITS.model_copy(update={"base_model": IMAGENET.base_model})
    told = {cost.stage: cost.measured for cost in estimate(other, graph(other), derive(2, 0), images, None, measured())}
    assert not told["finetune"]
    assert told["evaluate"]
    assert seconds_by_stage(costs).keys() >= {"ingest", "pair", "finetune", "generate", "evaluate"}


def test_the_plan_counts_with_what_bench_has_left(tmp_path: Path) -> None:
    store = Store.at(str(tmp_path))
    assert load_rates(store, CPU) is None
    before = list(cost_lines(DIGITS, store, graph(DIGITS), derive(2, 0)))
    assert "~" in before[2]
    save_rates(store, measured())
    assert load_rates(store, CPU) == measured()
    after = list(cost_lines(DIGITS, store, graph(DIGITS), derive(2, 0)))
    assert not any("~" in line for line in after)
    assert after[-1] == "rates       measured: here"


def test_what_was_measured_stands_beside_what_was_estimated(tmp_path: Path) -> None:
    store, steps = Store.at(str(tmp_path)), graph(DIGITS)
    for step in steps:
        facts = {"seconds": 30.0, "splits": {"train": 1297, "val": 500}, "class_names": list("0123456789")}
        if step.stage in ("ingest", "generate"):
            store.artifact(step).seal(facts)
    told = list(cost_lines(DIGITS, store, steps, derive(2, 0)))
    rows = {line.split()[0]: line.split() for line in told[1:] if line}
    assert rows["stage"][-1] == "measured"
    assert rows["ingest"][-1] == "0:30"
    assert rows["generate"][-1] == "1:00"  # two sets, each with its share
    assert len(rows["pair"]) < len(rows["generate"])


def test_a_scale_with_gpus_says_which(tmp_path: Path) -> None:
    store = Store.at(str(tmp_path))
    for gpu, sentence in (("", "say which kind"), ("GTX 9", "no rate is known of the GPU 'GTX 9'; known: T4")):
        (told,) = cost_lines(IMAGENET, store, graph(IMAGENET), AWS.model_copy(update={"gpu": gpu}))
        assert told.startswith("cost        unknown: gpu: ")
        assert sentence in told
    with pytest.raises(ValueError, match="no pool has num_gpus"):
        Scale(gpu="L4")


@pytest.mark.parametrize(
    ("name", "kind"),
    [("NVIDIA A100-SXM4-80GB", "A100"), ("NVIDIA L4", "L4"), ("NVIDIA L40S", "L40S"), ("Tesla T4", "T4"), ("X", "X")],
)
def test_a_gpu_is_known_by_the_name_that_it_gives_itself(name: str, kind: str) -> None:
    assert kind_of(name) == kind
