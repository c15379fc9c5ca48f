"""Tests of the packaged tiny models: small, in the real formats, and good enough for a meaningful run."""

from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch

import vlcp_ray.demo
from vlcp_ray.demo import digits
from vlcp_ray.demo.train import llava, tokens, vae

DEMO = Path(vlcp_ray.demo.__file__).parent
LLAVA = DEMO / "llava"
STABLE_DIFFUSION = DEMO / "stable_diffusion"
DIT = DEMO / "dit"
# How much the share of captions with the right word must exceed that of the commonest word.
MARGINS = {"stroke": 0.3, "colour": 0.2, "slant": 0.2, "width": 0.3, "balance": 0.3, "position": 0.3, "loops": 0.15}

pytestmark = pytest.mark.filterwarnings("ignore")


def test_packaged_models_are_small_and_safetensors_only() -> None:
    files = [path for folder in (LLAVA, STABLE_DIFFUSION, DIT) for path in folder.rglob("*") if path.is_file()]
    assert sum(path.stat().st_size for path in files) <= 12_000_000
    assert not [path for path in files if path.suffix in {".bin", ".pt", ".pkl"}]


def test_no_json_file_of_the_package_names_the_path_that_a_model_was_read_from() -> None:
    files = sorted(DEMO.parent.rglob("*.json"))
    assert {DEMO / "dit" / "vae" / "config.json", STABLE_DIFFUSION / "unet" / "config.json"} <= set(files)
    assert not [path for path in files if "_name_or_path" in path.read_text()]


def test_llava_captions_agree_with_the_measured_properties() -> None:
    from transformers import AutoProcessor, LlavaForConditionalGeneration

    model, info = LlavaForConditionalGeneration.from_pretrained(LLAVA, dtype=torch.float32, output_loading_info=True)
    assert not info["missing_keys"]
    assert not info["unexpected_keys"]
    processor = AutoProcessor.from_pretrained(LLAVA)
    images, labels = digits.load("val")
    images, names = images[:100], [digits.CLASS_NAMES[label] for label in labels[:100]]
    captions = llava.answers(model, processor, images, names)
    reached, chance = llava.agreement(captions, images), llava.chance(images)
    for name, margin in MARGINS.items():
        assert reached[name] >= chance[name] + margin, (name, reached[name], chance[name])
    assert np.mean([name in text for name, text in zip(names, captions, strict=True)]) > 0.9


def test_tokenizers_encode_any_text() -> None:
    from transformers import AutoTokenizer, CLIPTokenizer

    text = "garçon, 漢字 \N{GRINNING FACE}"
    llava_tokenizer = AutoTokenizer.from_pretrained(LLAVA)
    assert llava_tokenizer.decode(llava_tokenizer(text).input_ids, skip_special_tokens=True) == text
    assert llava_tokenizer.convert_tokens_to_ids("<image>") in llava_tokenizer(tokens.ask("digit one")).input_ids
    clip = CLIPTokenizer.from_pretrained(STABLE_DIFFUSION, subfolder="tokenizer")
    ids = clip(text).input_ids
    assert ids.count(clip.eos_token_id) == 1
    assert clip.decode(ids, skip_special_tokens=True).replace(" ", "") == text.replace(" ", "")
    assert clip.model_max_length == 77


def test_vae_of_printed_glyphs_reconstructs_digits() -> None:
    from diffusers import AutoencoderKL

    autoencoder = AutoencoderKL.from_pretrained(STABLE_DIFFUSION, subfolder="vae", torch_dtype=torch.float32)
    assert vae.mean_squared_error(autoencoder, digits.load("val")[0]) <= 0.003
    latents = vae.encode(autoencoder, digits.load("val")[0], seed=0)
    assert latents.shape == (500, 4, 4, 4)
    assert float(latents.std()) == pytest.approx(1, abs=0.1)


@pytest.fixture(scope="module")
def pipeline() -> Any:
    from diffusers import StableDiffusionPipeline

    loaded = StableDiffusionPipeline.from_pretrained(STABLE_DIFFUSION, torch_dtype=torch.float32)
    loaded.set_progress_bar_config(disable=True)
    return loaded


def test_stable_diffusion_generates_from_a_prompt(pipeline: Any) -> None:
    assert {parameter.dtype for parameter in pipeline.unet.parameters()} == {torch.float32}
    generated = pipeline("digit three", height=32, width=32, num_inference_steps=10, output_type="np").images
    assert generated.shape == (1, 32, 32, 3)
    assert generated.std() > 0.1


def test_stable_diffusion_img2img_from_a_mean_latent_gives_its_class(pipeline: Any) -> None:
    from diffusers import StableDiffusionImg2ImgPipeline

    image_to_image = StableDiffusionImg2ImgPipeline(**pipeline.components, requires_safety_checker=False)
    image_to_image.set_progress_bar_config(disable=True)
    images, labels = digits.load("train")
    three = images[labels == 3][:20]
    centre = vae.encode(pipeline.vae, three).mean(dim=0, keepdim=True)
    generated = image_to_image(
        "digit three",
        image=centre,
        strength=0.5,
        guidance_scale=3.0,
        negative_prompt="cartoon, anime, painting",
        generator=torch.Generator().manual_seed(0),
        output_type="np",
    ).images[0]
    distances = [np.mean((images[labels == label] / 255 - generated).mean(axis=0) ** 2) for label in range(10)]
    assert int(np.argmin(distances)) == 3


def test_stable_diffusion_runs_at_512_pixels(pipeline: Any) -> None:
    latents = torch.zeros(1, 4, 64, 64)
    with torch.no_grad():
        text = pipeline.text_encoder(pipeline.tokenizer("a digit", return_tensors="pt").input_ids)[0]
        assert pipeline.unet(latents, 10, text).sample.shape == latents.shape
        assert pipeline.vae.decode(latents).sample.shape == (1, 3, 512, 512)


def test_dit_makes_printed_digits_that_a_nearest_glyph_tells_apart() -> None:
    """Four images of each digit: most are nearest to a printed glyph of their own class."""
    from vlcp_ray.demo.train import glyphs
    from vlcp_ray.models.dit import Sampler

    labels = [label for label in range(10) for _ in range(4)]
    sampler = Sampler("demo/dit", "cpu", 40, steps=20, guidance_scale=2.0, guided_channels=3)
    made = sampler(labels, list(range(40))).pixels[..., 0].reshape(40, -1).astype(float)
    bank, names = glyphs.bank(1000, seed=5)
    known = bank[..., 0].reshape(len(bank), -1).astype(float)
    is_digit = np.array([name.startswith("digit") for name in names])
    distances = ((made[:, None] - known[None, is_digit]) ** 2).sum(axis=2)
    nearest = np.array(names)[is_digit][distances.argmin(axis=1)]
    right = np.mean([name == digits.CLASS_NAMES[label] for name, label in zip(nearest, labels, strict=True)])
    assert right > 0.7


def test_dit_has_the_vae_of_the_stable_diffusion_and_a_name_for_each_class() -> None:
    from vlcp_ray.models.dit_classes import find
    from vlcp_ray.models.pretrained import check_dit, dit_resolution

    check_dit("demo/dit", "compare.minimax.model")
    assert dit_resolution("demo/dit") == digits.RESOLUTION
    assert find(digits.CLASS_NAMES, "demo/dit") == list(range(10))
    name = Path("vae", "diffusion_pytorch_model.safetensors")
    assert (DIT / name).read_bytes() == (STABLE_DIFFUSION / name).read_bytes()
