"""Whether pixels, latents and texts go through Stable Diffusion as its own pipeline takes them."""

import json
from pathlib import Path

import numpy as np
import pytest
import torch
from diffusers import StableDiffusionImg2ImgPipeline

from vlcp_ray.config import Generate
from vlcp_ray.models import diffusion

SETTINGS = Generate(num_inference_steps=4, guidance_scale=3, image_size=32)


@pytest.fixture(scope="module")
def pipeline(tiny_stable_diffusion: str) -> StableDiffusionImg2ImgPipeline:
    return diffusion.load_pipeline(tiny_stable_diffusion, "cpu")


def test_posterior_is_that_of_diffusers(tiny_stable_diffusion: str) -> None:
    vae = diffusion.load_vae(tiny_stable_diffusion, "cpu")
    pixels = np.random.default_rng(0).uniform(-1, 1, (3, 3, 32, 32)).astype(np.float32)
    moments = diffusion.encode(vae, pixels)  # (3, 8, 4, 4)
    generator = torch.Generator().manual_seed(5)
    noise = torch.randn(3, 4, 4, 4, generator=torch.Generator().manual_seed(5))
    with torch.no_grad():
        expected = vae.encode(torch.from_numpy(pixels)).latent_dist.sample(generator)
    torch.testing.assert_close(diffusion.sample(moments, noise), expected)


def test_short_texts_are_drawn_as_the_stock_pipeline_draws_prompts(pipeline: StableDiffusionImg2ImgPipeline) -> None:
    latents = np.random.default_rng(0).normal(size=(1, 4, 4, 4)).astype(np.float32)
    drawn = diffusion.draw(pipeline, SETTINGS, latents, ["a dog"], [3], 1)
    stock = pipeline(
        "a dog",
        image=torch.from_numpy(latents),
        strength=SETTINGS.strength,
        guidance_scale=SETTINGS.guidance_scale,
        num_inference_steps=SETTINGS.num_inference_steps,
        negative_prompt=SETTINGS.negative_prompt,
        generator=torch.Generator().manual_seed(3),
        output_type="np",
    ).images
    assert np.array_equal(drawn, (stock * 255).round().astype(np.uint8))


def test_long_texts_are_encoded_in_slices_each_alone(pipeline: StableDiffusionImg2ImgPipeline) -> None:
    text = "ab" * 50  # 100 letters + start and end mark: 77 + 25 ids
    slices = diffusion._slices(pipeline.tokenizer, [text])
    assert [len(part) for part in slices[0]] == [77, 25]
    with torch.no_grad():
        whole = diffusion._embed(pipeline, slices, 2)
        first = pipeline.text_encoder(torch.tensor([slices[0][0]]))[0]
        padded = [*slices[0][1], *[pipeline.tokenizer.pad_token_id] * 52]
        second = pipeline.text_encoder(torch.tensor([padded]))[0]
    torch.testing.assert_close(whole, torch.cat([first, second], dim=1))


def test_the_end_of_a_long_text_counts(pipeline: StableDiffusionImg2ImgPipeline) -> None:
    latents = np.zeros((2, 4, 4, 4), np.float32)
    with torch.no_grad():
        one, other = (
            diffusion._embed(pipeline, diffusion._slices(pipeline.tokenizer, ["a" * 90 + end]), 2) for end in "bc"
        )
    assert not torch.equal(one, other)
    drawn = diffusion.draw(pipeline, SETTINGS, latents, ["a" * 90, "a" * 90], [1, 1], 2)
    assert np.abs(drawn[0].astype(int) - drawn[1]).max() <= 1


def test_decode_is_the_inverse_scale(pipeline: StableDiffusionImg2ImgPipeline) -> None:
    latents = torch.randn(3, 4, 4, 4, generator=torch.Generator().manual_seed(0))
    with torch.no_grad():
        expected = pipeline.vae.decode(latents / 0.5).sample
    levels = ((expected / 2 + 0.5).clamp(0, 1) * 255).permute(0, 2, 3, 1).numpy()
    assert np.abs(diffusion.decode(pipeline.vae, latents, 2) - levels).max() <= 0.51  # rounding to a level


def test_a_model_that_does_not_predict_noise_is_refused(tmp_path: Path) -> None:
    (tmp_path / "scheduler").mkdir()
    settings = {"_class_name": "PNDMScheduler", "prediction_type": "v_prediction"}
    (tmp_path / "scheduler" / "scheduler_config.json").write_text(json.dumps(settings))
    with pytest.raises(ValueError, match=r"base_model.*'v_prediction'"):
        diffusion.load_noise_schedule(str(tmp_path))


def test_a_row_does_not_feel_its_neighbours(pipeline: StableDiffusionImg2ImgPipeline) -> None:
    latents = np.random.default_rng(0).normal(size=(5, 4, 4, 4)).astype(np.float32)
    texts, seeds = [f"a text of number {i}" for i in range(5)], list(range(5))
    together = diffusion.draw(pipeline, SETTINGS, latents, texts, seeds, 4)
    alone = diffusion.draw(pipeline, SETTINGS, latents[3:4], texts[3:4], seeds[3:4], 4)
    np.testing.assert_array_equal(together[3:4], alone)  # to the last bit: every batch is filled up
