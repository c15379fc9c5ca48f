"""Tests of encoding, embedding and generation, against diffusers' own Stable Diffusion pipeline."""

import json
import shutil
from pathlib import Path

import numpy as np
import pytest
import torch
from diffusers import StableDiffusionImg2ImgPipeline

from tests.hostile import Payload
from vlcp_ray.models import stable_diffusion
from vlcp_ray.stages.generate import Generate

SETTINGS = Generate(num_inference_steps=4, guidance_scale=3, image_size=32)


@pytest.fixture(scope="module")
def pipeline(tiny_stable_diffusion: str) -> StableDiffusionImg2ImgPipeline:
    return stable_diffusion.load_pipeline(tiny_stable_diffusion, "cpu")


def test_sample_of_encoded_moments_equals_diffusers(tiny_stable_diffusion: str) -> None:
    vae = stable_diffusion.load_vae(tiny_stable_diffusion, "cpu")
    pixels = np.random.default_rng(0).uniform(-1, 1, (3, 3, 32, 32)).astype(np.float32)
    moments = stable_diffusion.encode(vae, pixels)  # (3, 8, 4, 4)
    generator = torch.Generator().manual_seed(5)
    noise = torch.randn(3, 4, 4, 4, generator=torch.Generator().manual_seed(5))
    with torch.no_grad():
        expected = vae.encode(torch.from_numpy(pixels)).latent_dist.sample(generator)
    torch.testing.assert_close(stable_diffusion.sample(moments, noise), expected)


def test_img2img_of_short_text_equals_diffusers_pipeline(pipeline: StableDiffusionImg2ImgPipeline) -> None:
    latents = np.random.default_rng(0).normal(size=(1, 4, 4, 4)).astype(np.float32)
    generated = stable_diffusion.img2img(pipeline, SETTINGS, latents, ["a dog"], [3], 1)
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
    assert np.array_equal(generated, (stock * 255).round().astype(np.uint8))


def test_embed_slices_of_long_text_encodes_each_slice_alone(pipeline: StableDiffusionImg2ImgPipeline) -> None:
    text = "ab" * 50  # 100 letters + start and end mark: 77 + 25 ids
    slices = stable_diffusion._slice_ids(pipeline.tokenizer, [text])
    assert [len(part) for part in slices[0]] == [77, 25]
    with torch.no_grad():
        whole = stable_diffusion._embed_slices(pipeline, slices, 2)
        first = pipeline.text_encoder(torch.tensor([slices[0][0]]))[0]
        padded = [*slices[0][1], *[pipeline.tokenizer.pad_token_id] * 52]
        second = pipeline.text_encoder(torch.tensor([padded]))[0]
    torch.testing.assert_close(whole, torch.cat([first, second], dim=1))


def test_embed_slices_depends_on_end_of_long_text(pipeline: StableDiffusionImg2ImgPipeline) -> None:
    latents = np.zeros((2, 4, 4, 4), np.float32)
    slices = [stable_diffusion._slice_ids(pipeline.tokenizer, ["a" * 90 + end]) for end in "bc"]
    with torch.no_grad():
        one, other = (stable_diffusion._embed_slices(pipeline, ids, 2) for ids in slices)
    assert not torch.equal(one, other)
    generated = stable_diffusion.img2img(pipeline, SETTINGS, latents, ["a" * 90, "a" * 90], [1, 1], 2)
    assert np.abs(generated[0].astype(int) - generated[1]).max() <= 1


def test_decode_divides_by_scaling_factor(pipeline: StableDiffusionImg2ImgPipeline) -> None:
    latents = torch.randn(3, 4, 4, 4, generator=torch.Generator().manual_seed(0))
    with torch.no_grad():
        expected = pipeline.vae.decode(latents / 0.5).sample
    levels = ((expected / 2 + 0.5).clamp(0, 1) * 255).permute(0, 2, 3, 1).numpy()
    assert np.abs(stable_diffusion.decode(pipeline.vae, latents, 2) - levels).max() <= 0.51  # rounding to a level


def test_load_noise_schedule_of_v_prediction_is_refused(tmp_path: Path) -> None:
    (tmp_path / "scheduler").mkdir()
    settings = {"_class_name": "PNDMScheduler", "prediction_type": "v_prediction"}
    (tmp_path / "scheduler" / "scheduler_config.json").write_text(json.dumps(settings))
    with pytest.raises(ValueError, match=r"base_model.*'v_prediction'"):
        stable_diffusion.load_noise_schedule(str(tmp_path))


def test_img2img_of_row_does_not_depend_on_other_rows(pipeline: StableDiffusionImg2ImgPipeline) -> None:
    latents = np.random.default_rng(0).normal(size=(5, 4, 4, 4)).astype(np.float32)
    texts, seeds = [f"a text of number {i}" for i in range(5)], list(range(5))
    batched = stable_diffusion.img2img(pipeline, SETTINGS, latents, texts, seeds, 4)
    single = stable_diffusion.img2img(pipeline, SETTINGS, latents[3:4], texts[3:4], seeds[3:4], 4)
    # To the last bit: every batch is padded to the same size.
    np.testing.assert_array_equal(batched[3:4], single)


def test_load_part_of_pickled_weights_with_a_payload_runs_nothing(tiny_stable_diffusion: str, tmp_path: Path) -> None:
    model = Path(shutil.copytree(tiny_stable_diffusion, tmp_path / "model"))
    for file in model.glob("unet/*.safetensors"):
        file.unlink()
    torch.save({"conv_in.weight": Payload(tmp_path / "EXECUTED", 1)}, model / "unet" / "diffusion_pytorch_model.bin")
    with pytest.raises(Exception, match=r"(?i)weights.only|unsupported|pickle|bin"):
        stable_diffusion.load_unet(str(model), "cpu")
    assert not (tmp_path / "EXECUTED").exists()
