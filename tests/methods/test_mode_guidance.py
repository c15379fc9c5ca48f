"""Tests of the sampling that is led towards prototypes."""

from pathlib import Path

import numpy as np
import pyarrow as pa
import pytest
import torch

from tests.methods.test_centroid import N, make_prototypes, pixels
from vlcp_ray import schemas
from vlcp_ray.config import Job
from vlcp_ray.engine.context import Context
from vlcp_ray.engine.synthetic_sets import make_sets
from vlcp_ray.methods import METHODS
from vlcp_ray.methods.mode_guidance import Guide, GuideUnderTexts
from vlcp_ray.models import stable_diffusion
from vlcp_ray.models.batches import Batches
from vlcp_ray.models.mode_guidance import ModeGuidedScheduler
from vlcp_ray.scale import Pool, Scale
from vlcp_ray.schemas import SYNTHETIC
from vlcp_ray.settings import build
from vlcp_ray.store.artifact import Step, Store

pytestmark = pytest.mark.filterwarnings("ignore:__array__ implementation:DeprecationWarning")


def job(model: str, **guidance: float) -> Job:
    settings = {"num_inference_steps": 6, "guidance_scale": 2.0} | guidance
    compare = {"methods": ["mgd3"], "mgd3": settings}
    return build(Job, {"name": "x", "base_model": model, "generate": {"image_size": 32}, "compare": compare}, "x")


def test_step_goes_towards_the_mode_as_far_as_the_scale_says_for_noise_and_velocity() -> None:
    """The image that the guided output predicts lies on the line from the predicted image to the mode."""
    noisy, output, mode = torch.randn(3, 2, 4, 4, 4, generator=torch.Generator().manual_seed(0))
    for prediction in ("epsilon", "v_prediction"):
        config = {"beta_schedule": "scaled_linear", "prediction_type": prediction}
        guided, plain = (ModeGuidedScheduler.of(config, scale, 0.5, clip_sample=False) for scale in (0.25, 0.0))
        for scheduler in (guided, plain):
            scheduler.modes = mode
            scheduler.set_timesteps(10)
        for number, timestep in enumerate(guided.timesteps):
            results = [one.step(output, timestep, noisy) for one in (guided, plain)]
            before = results[1].pred_original_sample
            expected = before + 0.25 * (mode - before) if number < 5 else before
            torch.testing.assert_close(results[0].pred_original_sample, expected, atol=1e-3, rtol=1e-3)


def test_full_guidance_gives_the_prototype_and_none_gives_diffusers_ddim(tiny_stable_diffusion: str) -> None:
    prototypes = make_prototypes()
    whole = Guide(job(tiny_stable_diffusion, scale=1.0, stop=1.0), 4)
    latents = torch.from_numpy(schemas.tensors(prototypes["latent"]).astype(np.float32))
    decoded = stable_diffusion.decode(whole.pipeline.vae, latents, Batches(4, "x")).pixels
    assert np.abs(pixels(whole(prototypes)) - decoded).mean() < 2

    free = Guide(job(tiny_stable_diffusion, scale=0.0), 1)
    one = prototypes.slice(0, 1)
    made = free(one)
    stock = stable_diffusion.load_pipeline(tiny_stable_diffusion, "cpu")
    stock.scheduler = type(free.scheduler).__mro__[1].from_config(stock.scheduler.config, clip_sample=False)
    by_hand = stock(
        "zero",
        image=torch.zeros(1, 4, 4, 4),
        strength=1.0,
        guidance_scale=2.0,
        num_inference_steps=6,
        generator=torch.Generator().manual_seed(made["seed"].to_pylist()[0]),
        output_type="np",
    ).images
    assert np.abs(pixels(made) - (by_hand * 255).round()).max() <= 1


def test_guided_images_of_every_family_do_not_depend_on_the_batch(tiny_family: str) -> None:
    tables = [Guide(job(tiny_family), size)(make_prototypes()) for size in (4, 1)]
    assert schemas.conform(tables[0], schemas.SYNTHETIC).num_rows == N
    assert tables[0]["image_id"].to_pylist()[1] == "guided-0-1"
    assert np.abs(pixels(tables[0]) - pixels(tables[1])).max() <= 2
    backwards = Guide(job(tiny_family), 4)(make_prototypes().take(list(range(N))[::-1]))
    np.testing.assert_array_equal(pixels(backwards)[::-1], pixels(tables[0]))


def test_texts_are_class_names_or_text_prototypes(tiny_stable_diffusion: str) -> None:
    settings = job(tiny_stable_diffusion)
    tables = [guide(settings, 4)(make_prototypes()) for guide in (Guide, GuideUnderTexts)]
    assert [set(table["text"].to_pylist()) for table in tables] == [{"zero"}, {"a dog"}]
    names = [METHODS[name].settings(settings, "hash")["text"] for name in ("mgd3", "mgd3-text")]
    assert names == ["class_name", "text"]


def test_settings_of_a_set_have_all_that_its_sampler_is_made_with(tiny_stable_diffusion: str) -> None:
    settings = job(tiny_stable_diffusion)
    hashed, guide = METHODS["mgd3"].settings(settings, "hash"), Guide(settings, 4)
    assert hashed["sampler"] == "DDIM"
    for name in ("clip_sample", "set_alpha_to_one"):
        assert guide.scheduler.config[name] == hashed[name]
    for name in ("strength", "negative_prompt", "guidance_scale", "num_inference_steps", "image_size"):
        assert getattr(guide.settings, name) == hashed[name]


def test_released_stop_guides_the_first_24_of_50_steps() -> None:
    """The released code guides while its timestep, which counts down from 49, is above 25."""
    mode, noisy = torch.ones(2, 1, 4, 4, 4)
    guided, plain = (
        ModeGuidedScheduler.of({"beta_schedule": "linear"}, scale, 0.48, clip_sample=False) for scale in (0.5, 0.0)
    )
    for scheduler in (guided, plain):
        scheduler.modes = mode
        scheduler.set_timesteps(50)
    steps = [[one.step(noisy, time, noisy)[0] for one in (guided, plain)] for time in guided.timesteps]
    assert [not torch.equal(*pair) for pair in steps] == [True] * 24 + [False] * 26


def make(root: Path, job: Job, workers: int) -> list[pa.Table]:
    """Make, or resume, the sets of two seeds in one plan with so many workers; returns them sorted."""
    pool = Pool(num_workers=workers, num_cpus=1 / workers, batch_size=2)
    context, steps = Context(job, Scale(generate=pool), Store.at(str(root))), []
    for seed in (0, 1):
        prototypes = Step("prototype", 1, {}, {"seed": seed})
        if context.artifact(prototypes).manifest() is None:
            rows = make_prototypes().drop_columns("seed")
            for number in range(N):
                context.artifact(prototypes).write_table(f"prototypes/{number}.parquet", rows.slice(number, 1))
            context.complete(prototypes, rows_in=N, rows=N, seconds=1.0)
        settings = METHODS["mgd3"].settings(job, "hash")
        key = {"method": "mgd3", "seed": seed, "ipc": N}
        steps.append(Step("select", 2, settings, key, {"prototypes": prototypes}))
    make_sets(context, steps, METHODS["mgd3"].code, {"job": job})
    return [context.artifact(step).table("synthetic", SYNTHETIC).sort_by("image_id") for step in steps]


@pytest.mark.faults  # a minute on idle cores; the other methods are compared in stages/select/test_run.py
@pytest.mark.usefixtures("ray_session")
@pytest.mark.filterwarnings("default")
def test_sets_of_one_and_of_two_workers_and_of_a_resumed_run_are_equal(
    tiny_stable_diffusion: str, tmp_path: Path
) -> None:
    settings = job(tiny_stable_diffusion)
    one, two = (make(tmp_path / str(workers), settings, workers) for workers in (1, 2))
    assert [len(table) for table in one] == [N, N]
    assert not one[0]["image"].equals(one[1]["image"])  # another seed, another noise
    assert two == one
    (manifest, *_) = tmp_path.glob("2/select-*/manifest.json")
    parts = sorted(manifest.parent.glob("synthetic/*.parquet"))
    assert len(parts) > 1
    manifest.unlink()
    parts[0].unlink()
    kept = {part: part.stat().st_mtime_ns for part in parts[1:]}
    assert make(tmp_path / "2", settings, 1) == one
    assert {part: part.stat().st_mtime_ns for part in kept} == kept
