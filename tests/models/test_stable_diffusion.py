"""Tests of encoding, embedding and generation, against diffusers' own Stable Diffusion pipeline."""

import json
import shutil
from pathlib import Path

import numpy as np
import pytest
import torch
from diffusers import StableDiffusionImg2ImgPipeline
from safetensors.torch import load_file

from tests.hostile import Payload
from vlcp_ray.models import stable_diffusion
from vlcp_ray.models.batches import Batches
from vlcp_ray.stages.generate import Generate

SETTINGS = Generate(num_inference_steps=4, guidance_scale=3, image_size=32)


@pytest.fixture(scope="module")
def pipeline(tiny_stable_diffusion: str) -> StableDiffusionImg2ImgPipeline:
    return stable_diffusion.load_pipeline(tiny_stable_diffusion, "cpu")


def of(size: int) -> Batches:
    return Batches(size, "generate.batch_size")


def as_floats(pixels: np.ndarray) -> torch.Tensor:
    """Convert (n, h, w, 3) uint8 to (n, 3, h, w) in [-1, 1]."""
    return torch.from_numpy(pixels.transpose(0, 3, 1, 2).astype(np.float32) / 127.5 - 1)


def test_sample_of_encoded_moments_equals_diffusers(tiny_stable_diffusion: str) -> None:
    vae = stable_diffusion.load_vae(tiny_stable_diffusion, "cpu")
    pixels = np.random.default_rng(0).integers(0, 256, (3, 32, 32, 3), dtype=np.uint8)
    moments = stable_diffusion.encode(vae, pixels)  # (3, 8, 4, 4)
    generator = torch.Generator().manual_seed(5)
    noise = torch.randn(3, 4, 4, 4, generator=torch.Generator().manual_seed(5))
    with torch.no_grad():
        expected = vae.encode(as_floats(pixels)).latent_dist.sample(generator)
    torch.testing.assert_close(stable_diffusion.sample(moments, noise), expected)


def test_img2img_of_short_text_equals_diffusers_pipeline(pipeline: StableDiffusionImg2ImgPipeline) -> None:
    latents = np.random.default_rng(0).normal(size=(1, 4, 4, 4)).astype(np.float32)
    generated = stable_diffusion.img2img(pipeline, SETTINGS, latents, ["a dog"], [3], of(1)).pixels
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
    generated = stable_diffusion.img2img(pipeline, SETTINGS, latents, ["a" * 90, "a" * 90], [1, 1], of(2)).pixels
    assert np.abs(generated[0].astype(int) - generated[1]).max() <= 1


def test_decode_divides_by_scaling_factor(pipeline: StableDiffusionImg2ImgPipeline) -> None:
    latents = torch.randn(3, 4, 4, 4, generator=torch.Generator().manual_seed(0))
    with torch.no_grad():
        expected = pipeline.vae.decode(latents / 0.5).sample
    levels = ((expected / 2 + 0.5).clamp(0, 1) * 255).permute(0, 2, 3, 1).numpy()
    assert (
        np.abs(stable_diffusion.decode(pipeline.vae, latents, of(2)).pixels - levels).max() <= 0.51
    )  # rounding to a level


def test_load_noise_schedule_of_v_prediction_is_refused(tmp_path: Path) -> None:
    (tmp_path / "scheduler").mkdir()
    settings = {"_class_name": "PNDMScheduler", "prediction_type": "v_prediction"}
    (tmp_path / "scheduler" / "scheduler_config.json").write_text(json.dumps(settings))
    with pytest.raises(ValueError, match=r"base_model.*'v_prediction'"):
        stable_diffusion.load_noise_schedule(str(tmp_path))


def test_img2img_of_row_does_not_depend_on_other_rows(pipeline: StableDiffusionImg2ImgPipeline) -> None:
    latents = np.random.default_rng(0).normal(size=(5, 4, 4, 4)).astype(np.float32)
    texts, seeds = [f"a text of number {i}" for i in range(5)], list(range(5))
    batched = stable_diffusion.img2img(pipeline, SETTINGS, latents, texts, seeds, of(4)).pixels
    single = stable_diffusion.img2img(pipeline, SETTINGS, latents[3:4], texts[3:4], seeds[3:4], of(4)).pixels
    # To the last bit: every batch is padded to the same size.
    np.testing.assert_array_equal(batched[3:4], single)


def test_load_part_of_pickled_weights_with_a_payload_runs_nothing(tiny_stable_diffusion: str, tmp_path: Path) -> None:
    model = Path(shutil.copytree(tiny_stable_diffusion, tmp_path / "model"))
    (weights,) = model.glob("unet/*.safetensors")
    pickled = weights.with_suffix(".bin")
    torch.save(load_file(weights), pickled)
    weights.unlink()
    stable_diffusion.load_unet(str(model), "cpu")  # plain pickled weights are read
    torch.save({"conv_in.weight": Payload(tmp_path / "EXECUTED", 1)}, pickled)
    with pytest.raises(Exception, match=r"(?i)weights.only|unpickl|unable to load"):
        stable_diffusion.load_unet(str(model), "cpu")
    assert not (tmp_path / "EXECUTED").exists()


def test_loaded_parts_are_frozen_and_in_eval_mode(tiny_stable_diffusion: str) -> None:
    _, text_encoder = stable_diffusion.load_text(tiny_stable_diffusion, "cpu", torch.bfloat16)
    vae, unet = (load(tiny_stable_diffusion, "cpu") for load in (stable_diffusion.load_vae, stable_diffusion.load_unet))
    for part, dtype in ((vae, torch.float32), (unet, torch.float32), (text_encoder, torch.bfloat16)):
        assert not part.training
        assert {(weight.requires_grad, weight.dtype) for weight in part.parameters()} == {(False, dtype)}


def test_inference_is_in_half_precision_on_a_gpu_only() -> None:
    assert stable_diffusion.inference_dtype("cuda:1") == torch.float16
    assert stable_diffusion.inference_dtype("cpu") == torch.float32
    assert stable_diffusion.pick_device() == ("cuda" if torch.cuda.is_available() else "cpu")


def test_encode_gives_mean_and_logvar_of_the_posterior(tiny_stable_diffusion: str) -> None:
    vae = stable_diffusion.load_vae(tiny_stable_diffusion, "cpu")
    pixels = np.random.default_rng(0).integers(0, 256, (2, 32, 32, 3), dtype=np.uint8)
    with torch.no_grad():
        posterior = vae.encode(as_floats(pixels)).latent_dist
    moments = stable_diffusion.encode(vae, pixels)
    assert not moments.requires_grad
    torch.testing.assert_close(
        stable_diffusion.encode(vae, pixels, flip=True), stable_diffusion.encode(vae, pixels[:, :, ::-1].copy())
    )
    torch.testing.assert_close(moments, torch.cat([posterior.mean, posterior.logvar], 1))
    noise = torch.full((2, 4, 4, 4), 2.0)
    expected = posterior.mean + 2 * torch.sqrt(posterior.logvar.exp())
    torch.testing.assert_close(stable_diffusion.sample(moments, noise), expected)


def test_padded_repeats_the_last_row() -> None:
    assert stable_diffusion.padded([4, 7], 5) == [4, 7, 7, 7, 7]
    assert stable_diffusion.padded(range(3), 3) == [0, 1, 2]


def test_slice_ids_start_and_end_once(pipeline: StableDiffusionImg2ImgPipeline) -> None:
    tokenizer = pipeline.tokenizer
    (short, exact, longer) = stable_diffusion._slice_ids(tokenizer, ["ab", "a" * 75, "a" * 76])
    start, end = tokenizer.bos_token_id, tokenizer.eos_token_id
    assert [len(part) for part in short] == [4]
    assert (short[0][0], short[0][-1]) == (start, end)
    assert [len(part) for part in exact] == [77]
    assert [len(part) for part in longer] == [77, 1]
    assert (longer[0][0], longer[1]) == (start, [end])


def test_embed_captions_are_padded_and_cut_to_77_ids(pipeline: StableDiffusionImg2ImgPipeline) -> None:
    ids = stable_diffusion.tokenize_captions(pipeline.tokenizer, ["a dog", "a" * 90, "a" * 95])
    hidden = stable_diffusion.embed_tokens(pipeline.text_encoder, ids)
    assert hidden.shape == (3, 77, pipeline.text_encoder.config.hidden_size)
    assert not hidden.requires_grad
    torch.testing.assert_close(hidden[1], hidden[2])
    slices = stable_diffusion._slice_ids(pipeline.tokenizer, ["a dog"])
    with torch.no_grad():
        torch.testing.assert_close(
            hidden[:1], stable_diffusion._embed_slices(pipeline, slices, 1), atol=1e-5, rtol=1e-5
        )


def test_save_pipeline_writes_the_given_unet(tiny_stable_diffusion: str, tmp_path: Path) -> None:
    unet = stable_diffusion.load_unet(tiny_stable_diffusion, "cpu")
    with torch.no_grad():
        next(unet.parameters()).fill_(0.25)
    stable_diffusion.save_pipeline(tiny_stable_diffusion, unet, tmp_path / "model")
    again = stable_diffusion.load_pipeline(str(tmp_path / "model"), "cpu")
    assert (next(again.unet.parameters()) == 0.25).all()
    assert (again.safety_checker, again.feature_extractor) == (None, None)
    for part in ("vae", "unet"):
        config = json.loads((tmp_path / "model" / part / "config.json").read_text())
        assert config["_name_or_path"] == tiny_stable_diffusion
    index = json.loads((tmp_path / "model" / "model_index.json").read_text())
    assert (index["_class_name"], index["requires_safety_checker"]) == ("StableDiffusionPipeline", False)


def test_img2img_of_texts_of_all_lengths_is_in_the_order_of_the_rows(pipeline: StableDiffusionImg2ImgPipeline) -> None:
    """Rows are batched by the length of their texts; the results return to their places."""
    latents = np.random.default_rng(0).normal(size=(4, 4, 4, 4)).astype(np.float32)
    texts, seeds = ["a" * 90, "b", "c" * 160, "d"], [5, 6, 7, 8]
    together = stable_diffusion.img2img(pipeline, SETTINGS, latents, texts, seeds, of(2)).pixels
    for row in range(4):
        one = slice(row, row + 1)
        alone = stable_diffusion.img2img(pipeline, SETTINGS, latents[one], texts[one], seeds[one], of(2)).pixels
        np.testing.assert_array_equal(together[one], alone)
