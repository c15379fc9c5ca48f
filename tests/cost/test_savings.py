"""Tests of the changes that save most: the largest first, one of a kind, none that does not fit or saves nothing."""

from typing import Any

import pytest

from tests.cost.test_estimate import AWS, DIGITS, DIGITS_IMAGES, IMAGENET, IMAGENET_IMAGES
from vlcp_ray.config import Job
from vlcp_ray.cost.estimate import estimate
from vlcp_ray.cost.rates import published
from vlcp_ray.cost.savings import Saving, best_savings
from vlcp_ray.pipeline import graph
from vlcp_ray.scale import FinetunePool, Scale, derive


def savings(job: Job, scale: Scale = AWS, count: int = 99) -> list[Saving]:
    return best_savings(job, graph, scale, IMAGENET_IMAGES, published("L40S"), count=count)


def gpu_hours(job: Job, scale: Scale = AWS) -> float:
    return sum(cost.gpu_hours for cost in estimate(job, graph(job), scale, IMAGENET_IMAGES, published("L40S")))


def changed(job: Job, section: str, **values: Any) -> Job:
    return job.model_copy(update={section: getattr(job, section).model_copy(update=values)})


def test_best_savings_are_what_the_changed_jobs_cost_less() -> None:
    thrice = changed(IMAGENET, "evaluate", repeats=3)
    found = {saving.text.partition("=")[0]: saving for saving in savings(thrice)}
    seeds = thrice.model_copy(update={"seeds": (0,)})
    assert found["--set seeds"].hours == pytest.approx(gpu_hours(thrice) - gpu_hours(seeds))
    assert found["--set evaluate.repeats"].hours == pytest.approx(gpu_hours(thrice) - gpu_hours(IMAGENET))
    assert "no spread between trainings" in found["--set evaluate.repeats"].text


def test_best_savings_are_the_three_largest() -> None:
    every = savings(IMAGENET)
    assert [saving.hours for saving in every] == sorted((saving.hours for saving in every), reverse=True)
    assert savings(IMAGENET, count=3) == every[:3]
    assert all(saving.hours > 0.02 * gpu_hours(IMAGENET) for saving in every[:3])
    assert all(saving.hours > 0 for saving in every)


def test_best_savings_name_a_published_teacher_where_one_would_be_trained() -> None:
    trained = changed(IMAGENET, "teach", checkpoint="")
    (saving,) = (saving for saving in savings(trained) if "teach.checkpoint" in saving.text)
    assert saving.text == "--set teach.checkpoint=torchvision (the ResNet-18 that torchvision publishes)"
    assert not any("teach" in saving.text for saving in savings(IMAGENET))
    (saving,) = (
        saving for saving in savings(changed(trained, "teach", network=("ResNetAP-10",))) if "teach" in saving.text
    )
    assert saving.text == "--set teach.checkpoint=FILE (a trained ResNetAP-10)"


def test_best_savings_of_the_scale_fit_the_memory() -> None:
    def texts(memory: float) -> str:
        pool = FinetunePool(num_workers=8, num_cpus=8, num_gpus=1)
        scale = AWS.model_copy(update={"finetune": pool, "memory_of_gpu": memory})
        return " ".join(saving.text for saving in savings(IMAGENET, scale))

    assert "scale: finetune.gradient_checkpointing=false (more memory, the same result)" in texts(48)
    assert "gradient_checkpointing" not in texts(16)
    assert texts(48).count("num_workers=") == 1  # the best number only


def test_best_savings_that_take_longer_say_so() -> None:
    (fewer,) = (saving for saving in savings(IMAGENET) if "num_workers" in saving.text)
    assert fewer.hours > 0
    assert fewer.seconds < 0


def test_best_savings_without_gpus_are_cpu_hours() -> None:
    found = best_savings(DIGITS, graph, derive(2, 0), DIGITS_IMAGES)
    before = sum(cost.cpu_hours for cost in estimate(DIGITS, graph(DIGITS), derive(2, 0), DIGITS_IMAGES))
    assert 0 < found[0].hours < before


def test_best_savings_halve_epochs_and_steps_down_to_one() -> None:
    def halved(epochs: int, steps: int) -> set[str]:
        job = changed(changed(IMAGENET, "finetune", epochs=epochs), "generate", num_inference_steps=steps, strength=1.0)
        texts = [saving.text.split(" (")[0].removeprefix("--set ") for saving in savings(job)]
        return {text for text in texts if text.startswith(("finetune.epochs", "generate.num_inference_steps"))}

    assert halved(8, 200) == {"finetune.epochs=4", "generate.num_inference_steps=100"}
    assert halved(1, 1) == set()
