"""Tests of the specification of generate: its settings, its groups of steps and its costs."""

import pytest

from vlcp_ray.config import Job
from vlcp_ray.cost.flops import model_flops
from vlcp_ray.cost.inputs import CostInputs
from vlcp_ray.pipeline import graph
from vlcp_ray.settings import build
from vlcp_ray.stages.generate import STAGE, Generate, count_images, disk, group_by_model, image_flops
from vlcp_ray.stages.ingest import Expect
from vlcp_ray.store.artifact import Step

IMAGES = Expect(train=1000, val=100, classes=4, gib=1)


def make_job(**settings: object) -> Job:
    size = {"resolution": 32, "train_resolution": 32}
    demo = {"base_model": "demo/stable_diffusion", "encode": size, "caption": {"model": "demo/llava"}}
    return build(Job, {"name": "x", "seeds": [0, 1], "ipc": [1, 5], **demo, **settings}, "x")


def generate_steps(job: Job) -> list[Step]:
    return [step for step in graph(job) if step.stage == STAGE.name]


def test_generate_settings_without_denoising_step_are_refused() -> None:
    with pytest.raises(ValueError, match="raise strength or num_inference_steps"):
        Generate(strength=0.1, num_inference_steps=9)
    assert Generate(strength=0.1, num_inference_steps=10).num_inference_steps == 10


def test_group_by_model_separates_seeds_of_tuned_model_only() -> None:
    tuned = group_by_model(generate_steps(make_job()))
    assert [{step.key["seed"] for step in group} for group in tuned] == [{0}, {1}]
    assert all(len({step.inputs["model"].fingerprint for step in group}) == 1 for group in tuned)
    (base,) = group_by_model(generate_steps(make_job(compare={"methods": ["base-text"]})))
    assert {(step.key["seed"], step.key["ipc"]) for step in base} == {(0, 1), (0, 5), (1, 1), (1, 5)}


def test_image_flops_with_guidance_has_twice_the_denoising() -> None:
    flops = model_flops(make_job())
    guided, plain = (image_flops(Generate(guidance_scale=scale), flops, 4) for scale in (10.0, 1.0))
    passes = 36  # 0.7 x 50 steps, the first of which PNDM evaluates twice
    assert guided - plain == pytest.approx(passes * flops.denoise(4))
    assert plain == pytest.approx(passes * flops.denoise(4) + flops.decode(4) + flops.embed_text())


def test_generate_loads_count_images_of_all_sets() -> None:
    job = make_job()
    inputs, steps = CostInputs.for_job(job, IMAGES), generate_steps(job)
    (load,) = STAGE.loads(inputs, steps)
    assert load.images == load.units == count_images(inputs, steps) == 2 * (1 + 5) * 4
    assert load.amount == pytest.approx(load.images * image_flops(job.generate, inputs.models, 4))
    assert load.starts == 2  # a fine-tuned model for each seed


def test_disk_grows_with_area_of_images() -> None:
    sizes = []
    for side in (32, 64):
        job = make_job(generate={"image_size": side})
        sizes.append(disk(CostInputs.for_job(job, IMAGES), generate_steps(job)))
    assert sizes[1] == pytest.approx(4 * sizes[0])
    assert sizes[0] < 48 * 32 * 32 * 3 / 2**30  # less than the raw pixels
