"""Whether what a job has to do grows as its settings say."""

from pathlib import Path
from typing import Any

import pytest

from vlcp_ray.config import Expect, Job, load_job
from vlcp_ray.cost.loads import Load, loads
from vlcp_ray.cost.work import models
from vlcp_ray.pipeline import graph
from vlcp_ray.settings import build

JOBS = Path(__file__).parents[2] / "jobs"
IMAGES = Expect(train=1000, val=100, classes=10, gib=1)


def of(job: Job) -> dict[str, Load]:
    return {f"{load.stage} {load.rate}": load for load in loads(job, graph(job), IMAGES, models(job), 60)}


def changed(name: str, **settings: Any) -> float:
    base = {"name": "x", "base_model": "demo/stable_diffusion", "caption": {"model": "demo/llava"}}
    base |= {"encode": {"resolution": 32, "train_resolution": 32}}
    before, after = of(build(Job, base, "x"))[name], of(build(Job, base | settings, "x"))[name]
    assert before.amount
    assert after.amount is not None
    return after.amount / before.amount


def test_seeds_and_epochs_multiply_the_training() -> None:
    assert changed("finetune finetune", seeds=[0, 1, 2]) == pytest.approx(3)
    assert changed("finetune finetune", finetune={"epochs": 16}) == pytest.approx(2)
    assert 0.7 < changed("finetune finetune", finetune={"gradient_checkpointing": False}) < 0.8


def test_images_per_class_multiply_the_drawing_and_not_the_describing() -> None:
    assert changed("generate generate", ipc=[30]) == pytest.approx(3)
    assert changed("pair caption", ipc=[30]) == 1


def test_without_guidance_a_step_is_half_as_much() -> None:
    assert 0.45 < changed("generate generate", generate={"guidance_scale": 1}) < 0.55


def test_descriptions_from_a_table_cost_no_operations() -> None:
    job = load_job(JOBS / "digits.toml", ["caption.source=table.parquet"])
    job = job.model_copy(update={"caption": job.caption.model_copy(update={"source": str(JOBS / "digits.toml")})})
    assert "pair caption" not in of(job)


def test_a_model_that_was_never_counted_is_unknown_and_not_free() -> None:
    job = build(Job, {"name": "x", "base_model": "some/model"}, "x")
    found = of(job)
    assert found["finetune finetune"].amount is None
    assert found["generate generate"].amount is None
    assert found["pair caption"].amount


@pytest.mark.parametrize("file", sorted(JOBS.glob("*.toml")), ids=lambda file: file.stem)
def test_every_job_that_ships_is_counted(file: Path) -> None:
    job = load_job(file)
    found = of(job)
    assert all(load.amount for load in found.values())
    assert {load.stage for load in found.values()} >= {step.stage for step in graph(job)} - {"report"}
