"""Tests of encoding, embedding and generation, against diffusers' own Stable Diffusion pipeline."""

import json
import shutil
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from diffusers import AutoencoderKL, StableDiffusionImg2ImgPipeline
from safetensors.torch import load_file

from tests.hostile import Payload
from vlcp_ray.models import stable_diffusion
from vlcp_ray.models.batches import Batches
from vlcp_ray.stages.generate import Generate

# Of XL's scheduler in diffusers.
pytestmark = pytest.mark.filterwarnings("ignore:__array__ implementation:DeprecationWarning")

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


def of_diffusers(pipeline: Any, latents: np.ndarray) -> Any:
    """The levels of an image that a pipeline of diffusers makes by itself."""
    images = pipeline(
        "a dog",
        image=torch.from_numpy(latents),
        strength=SETTINGS.strength,
        guidance_scale=SETTINGS.guidance_scale,
        num_inference_steps=SETTINGS.num_inference_steps,
        negative_prompt=SETTINGS.negative_prompt,
        generator=torch.Generator().manual_seed(3),
        output_type="np",
    ).images
    return (images * 255).round()


def test_img2img_of_short_text_equals_diffusers_pipeline(pipeline: StableDiffusionImg2ImgPipeline) -> None:
    latents = np.random.default_rng(0).normal(size=(1, 4, 4, 4)).astype(np.float32)
    generated = stable_diffusion.img2img(pipeline, SETTINGS, latents, ["a dog"], [3], of(1)).pixels
    assert np.array_equal(generated, of_diffusers(pipeline, latents).astype(np.uint8))


def test_embed_slices_of_long_text_encodes_each_slice_alone(pipeline: StableDiffusionImg2ImgPipeline) -> None:
    text = "ab" * 50  # 100 letters + start and end mark: 77 + 25 ids
    encoders = stable_diffusion.TextEncoders.of(pipeline)
    slices = encoders.slice([text])
    (ids,) = slices[0].ids
    assert [len(part) for part in ids] == [77, 25]
    with torch.no_grad():
        whole = encoders.embed_slices(slices, 2).hidden
        first = pipeline.text_encoder(torch.tensor([ids[0]]))[0]
        padded = [*ids[1], *[pipeline.tokenizer.pad_token_id] * 52]
        second = pipeline.text_encoder(torch.tensor([padded]))[0]
    torch.testing.assert_close(whole, torch.cat([first, second], dim=1))


def test_embed_slices_depends_on_end_of_long_text(pipeline: StableDiffusionImg2ImgPipeline) -> None:
    latents = np.zeros((2, 4, 4, 4), np.float32)
    encoders = stable_diffusion.TextEncoders.of(pipeline)
    one, other = (encoders.embed_slices(encoders.slice(["a" * 90 + end]), 2).hidden for end in "bc")
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


def test_load_noise_schedule_of_another_prediction_is_refused(tmp_path: Path) -> None:
    (tmp_path / "scheduler").mkdir()
    settings = {"_class_name": "PNDMScheduler", "prediction_type": "sample"}
    (tmp_path / "scheduler" / "scheduler_config.json").write_text(json.dumps(settings))
    with pytest.raises(
        ValueError, match=r"base_model.* predicts 'sample'; give one that predicts epsilon or v_prediction"
    ):
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
    (text_encoder,) = stable_diffusion.load_text(tiny_stable_diffusion, "cpu", torch.bfloat16).encoders
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
    encoders = stable_diffusion.TextEncoders.of(pipeline)
    embedded = encoders.embed_slices(encoders.slice(["a dog"]), 1).hidden
    torch.testing.assert_close(hidden[:1], embedded, atol=1e-5, rtol=1e-5)


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


def test_img2img_of_every_family_equals_diffusers_called_by_hand(tiny_family: str) -> None:
    pipeline = stable_diffusion.load_pipeline(tiny_family, "cpu")
    latents = np.random.default_rng(0).normal(size=(1, 4, 4, 4)).astype(np.float32)
    generated = stable_diffusion.img2img(pipeline, SETTINGS, latents, ["a dog"], [3], of(1)).pixels
    by_hand = of_diffusers(type(pipeline).from_pretrained(tiny_family), latents)
    assert np.abs(generated.astype(int) - by_hand).max() <= 1


def test_img2img_without_a_negative_prompt_equals_diffusers_without_one(
    tiny_stable_diffusion: str, tiny_family: str, tmp_path: Path
) -> None:
    """XL gets zeros in its place, unless its model_index.json denies it; the others the empty text."""
    encoding = Path(shutil.copytree(tiny_family, tmp_path / "model"))
    index = json.loads((encoding / "model_index.json").read_text())
    is_zero = index.pop("force_zeros_for_empty_prompt", None)
    if is_zero is not None:
        index["force_zeros_for_empty_prompt"] = False
    (encoding / "model_index.json").write_text(json.dumps(index))
    latents, settings = np.ones((1, 4, 4, 4), np.float32), SETTINGS.model_copy(update={"negative_prompt": ""})
    made = []
    for model in (tiny_stable_diffusion, tiny_family, str(encoding)):
        pipeline = stable_diffusion.load_pipeline(model, "cpu")
        made.append(stable_diffusion.img2img(pipeline, settings, latents, ["a dog"], [3], of(1)).pixels.astype(int))
        by_hand = (
            type(pipeline)
            .from_pretrained(model)(
                "a dog",
                image=torch.from_numpy(latents),
                strength=settings.strength,
                guidance_scale=settings.guidance_scale,
                num_inference_steps=settings.num_inference_steps,
                generator=torch.Generator().manual_seed(3),
                output_type="np",
            )
            .images
        )
        assert np.abs(made[-1] - (by_hand * 255).round()).max() <= 1
    assert np.array_equal(made[1], made[2]) is (is_zero is None)


def test_img2img_of_a_long_text_of_every_family_depends_on_its_end_and_not_on_other_rows(tiny_family: str) -> None:
    pipeline = stable_diffusion.load_pipeline(tiny_family, "cpu")
    latents = np.random.default_rng(0).normal(size=(3, 4, 4, 4)).astype(np.float32)
    latents[1] = latents[0]
    texts, seeds = ["a" * 90 + "b", "a" * 90 + "c", "d"], [5, 5, 6]
    together = stable_diffusion.img2img(pipeline, SETTINGS, latents, texts, seeds, of(2))
    assert not np.array_equal(together.pixels[0], together.pixels[1])
    for row in range(3):
        one = slice(row, row + 1)
        alone = stable_diffusion.img2img(pipeline, SETTINGS, latents[one], texts[one], seeds[one], of(2)).pixels
        np.testing.assert_array_equal(together.pixels[one], alone)


def test_embed_of_captions_of_every_family_equals_encode_prompt_of_diffusers(tiny_family: str) -> None:
    pipeline = stable_diffusion.load_pipeline(tiny_family, "cpu")
    text = stable_diffusion.load_text(tiny_family, "cpu", torch.float32)
    embedded = text.embed(text.tokenize(["a dog", "b" * 90]))
    expected = pipeline.encode_prompt(["a dog", "b" * 90], "cpu", 1, False) if embedded.pooled is None else None
    if expected is None:
        expected = pipeline.encode_prompt(["a dog", "b" * 90], device="cpu", do_classifier_free_guidance=False)
        torch.testing.assert_close(embedded.pooled, expected[2])
        sizes = embedded.conditions(32)["time_ids"]
        assert sizes.tolist() == [[32, 32, 0, 0, 32, 32]] * 2
    torch.testing.assert_close(embedded.hidden, expected[0])


def test_prediction_target_is_what_the_model_predicts(tiny_stable_diffusion: str, tiny_family: str) -> None:
    latents, noise = torch.randn(2, 3, 4, 4, 4, generator=torch.Generator().manual_seed(0))
    timesteps = torch.tensor([0, 500, 999])
    for model in (tiny_stable_diffusion, tiny_family):
        scheduler = stable_diffusion.load_noise_schedule(model)
        noisy = scheduler.add_noise(latents, noise, timesteps)
        target = stable_diffusion.prediction_target(scheduler, latents, noise, timesteps)
        if scheduler.config.prediction_type == "epsilon":
            assert torch.equal(target, noise)
            continue
        share = scheduler.alphas_cumprod[timesteps].view(-1, 1, 1, 1)
        torch.testing.assert_close(share.sqrt() * noisy - (1 - share).sqrt() * target, latents, atol=1e-5, rtol=1e-5)


def test_in_float32_returns_every_part_to_its_own_precision(tiny_family: str) -> None:
    pipeline = stable_diffusion.load_pipeline(tiny_family, "cpu", torch.bfloat16)
    before = {name: part.dtype for name, part in pipeline.components.items() if isinstance(part, torch.nn.Module)}
    assert before["unet"] == torch.bfloat16
    assert before["vae"] == (torch.float32 if "text_encoder_2" in before else torch.bfloat16)
    with stable_diffusion.in_float32(pipeline):
        assert {pipeline.components[name].dtype for name in before} == {torch.float32}
    assert {name: pipeline.components[name].dtype for name in before} == before


def test_load_pipeline_takes_text_encoders_as_they_are(tiny_family: str) -> None:
    text = stable_diffusion.load_text(tiny_family, "cpu", torch.bfloat16)
    pipeline = stable_diffusion.load_pipeline(tiny_family, "cpu", torch.float32, text=text)
    taken = stable_diffusion.TextEncoders.of(pipeline)
    assert all(one is other for one, other in zip(taken.encoders, text.encoders, strict=True))
    assert all(one is other for one, other in zip(taken.tokenizers, text.tokenizers, strict=True))
    assert pipeline.unet.dtype == torch.float32


def test_decode_under_autocast_is_in_the_precision_of_the_vae(tiny_family: str) -> None:
    vae = stable_diffusion.load_vae(tiny_family, "cpu")
    latents = torch.randn(3, 4, 4, 4, generator=torch.Generator().manual_seed(0))
    plain = stable_diffusion.decode(vae, latents, of(2))
    with torch.autocast("cpu", torch.bfloat16):
        mixed = stable_diffusion.decode(vae, latents, of(2))
    np.testing.assert_array_equal(plain.pixels, mixed.pixels)


def test_decode_without_computing_again_leaves_what_is_not_finite_black(tiny_stable_diffusion: str) -> None:
    vae = stable_diffusion.load_part(AutoencoderKL, tiny_stable_diffusion, "vae", "cpu", torch.float16)
    latents = torch.randn(3, 4, 4, 4, generator=torch.Generator().manual_seed(0))
    latents[1] *= 60_000  # infinite in half precision, when it is unscaled
    again, once = (stable_diffusion.decode(vae, latents, of(2), recomputes) for recomputes in (True, False))
    assert (again.not_finite, once.not_finite) == ([], [1])
    assert not once.pixels[1].any()
    assert again.pixels[1].any()
    np.testing.assert_array_equal(again.pixels[[0, 2]], once.pixels[[0, 2]])


def test_save_pipeline_of_every_family_is_read_like_the_original(tiny_family: str, tmp_path: Path) -> None:
    unet = stable_diffusion.load_unet(tiny_family, "cpu")
    stable_diffusion.save_pipeline(tiny_family, unet, tmp_path / "model")
    latents = np.random.default_rng(0).normal(size=(1, 4, 4, 4)).astype(np.float32)
    one, other = (
        stable_diffusion.img2img(
            stable_diffusion.load_pipeline(model, "cpu"), SETTINGS, latents, ["a dog"], [3], of(1)
        ).pixels
        for model in (tiny_family, str(tmp_path / "model"))
    )
    np.testing.assert_array_equal(one, other)
    indices = [json.loads(Path(model, "model_index.json").read_text()) for model in (tiny_family, tmp_path / "model")]
    assert indices[0]["_class_name"] == indices[1]["_class_name"]


def test_min_snr_weights_are_those_of_the_paper(tiny_stable_diffusion: str) -> None:
    timesteps = torch.arange(0, 1000, 37)
    scheduler = stable_diffusion.load_noise_schedule(tiny_stable_diffusion)
    share = scheduler.alphas_cumprod[timesteps]
    snr = share / (1 - share)
    weights = stable_diffusion.min_snr_weights(scheduler, timesteps, 5.0)
    torch.testing.assert_close(weights, torch.minimum(snr, torch.tensor(5.0)) / snr)
    assert (weights[snr < 5] == 1).all()
    assert weights.min() < 0.01
    scheduler.register_to_config(prediction_type="v_prediction")
    weights = stable_diffusion.min_snr_weights(scheduler, timesteps, 5.0)
    torch.testing.assert_close(weights, torch.minimum(snr, torch.tensor(5.0)) / (snr + 1))
