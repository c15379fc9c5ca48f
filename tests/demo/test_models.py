"""The shipped tiny models: small, in the real formats, and good enough for a whole run to mean something."""

from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch

import vlcp_ray.demo
from vlcp_ray.demo import digits, tokens, train_llava, train_vae

DEMO = Path(vlcp_ray.demo.__file__).parent
LLAVA = DEMO / "llava"
STABLE_DIFFUSION = DEMO / "stable_diffusion"
# How far above the commonest word's share each property must be described.
MARGINS = {"stroke": 0.3, "colour": 0.2, "slant": 0.2, "width": 0.3, "balance": 0.3, "position": 0.3, "loops": 0.15}

pytestmark = pytest.mark.filterwarnings("ignore")


def test_both_models_together_stay_small() -> None:
    files = [path for folder in (LLAVA, STABLE_DIFFUSION) for path in folder.rglob("*") if path.is_file()]
    assert sum(path.stat().st_size for path in files) <= 8_000_000
    assert not [path for path in files if path.suffix in {".bin", ".pt", ".pkl"}]


def test_the_llava_describes_what_it_sees() -> None:
    from transformers import AutoProcessor, LlavaForConditionalGeneration

    model, info = LlavaForConditionalGeneration.from_pretrained(LLAVA, dtype=torch.float32, output_loading_info=True)
    assert not info["missing_keys"]
    assert not info["unexpected_keys"]
    processor = AutoProcessor.from_pretrained(LLAVA)
    images, labels = digits.load("val")
    images, names = images[:100], [digits.CLASS_NAMES[label] for label in labels[:100]]
    descriptions = train_llava.answers(model, processor, images, names)
    reached, guessed = train_llava.agreement(descriptions, images), train_llava.chance(images)
    for name, margin in MARGINS.items():
        assert reached[name] >= guessed[name] + margin, (name, reached[name], guessed[name])
    assert np.mean([name in text for name, text in zip(names, descriptions, strict=True)]) > 0.9


def test_the_tokenizers_encode_any_text() -> None:
    from transformers import AutoTokenizer, CLIPTokenizer

    text = "garçon, 漢字 \N{GRINNING FACE}"
    llava = AutoTokenizer.from_pretrained(LLAVA)
    assert llava.decode(llava(text).input_ids, skip_special_tokens=True) == text
    assert llava.convert_tokens_to_ids("<image>") in llava(tokens.ask("digit one")).input_ids
    clip = CLIPTokenizer.from_pretrained(STABLE_DIFFUSION, subfolder="tokenizer")
    ids = clip(text).input_ids
    assert ids.count(clip.eos_token_id) == 1
    assert clip.decode(ids, skip_special_tokens=True).replace(" ", "") == text.replace(" ", "")
    assert clip.model_max_length == 77


def test_the_autoencoder_reconstructs_unseen_digits() -> None:
    from diffusers import AutoencoderKL

    vae = AutoencoderKL.from_pretrained(STABLE_DIFFUSION, subfolder="vae", torch_dtype=torch.float32)
    assert train_vae.val_mse(vae) <= 0.003
    latents = train_vae.encode(vae, digits.load("val")[0], seed=0)
    assert latents.shape == (500, 4, 4, 4)
    assert float(latents.std()) == pytest.approx(1, abs=0.1)


@pytest.fixture(scope="module")
def pipeline() -> Any:
    from diffusers import StableDiffusionPipeline

    loaded = StableDiffusionPipeline.from_pretrained(STABLE_DIFFUSION, torch_dtype=torch.float32)
    loaded.set_progress_bar_config(disable=True)
    return loaded


def test_stable_diffusion_draws_from_a_prompt(pipeline: Any) -> None:
    assert {parameter.dtype for parameter in pipeline.unet.parameters()} == {torch.float32}
    drawn = pipeline("digit three", height=32, width=32, num_inference_steps=10, output_type="np").images
    assert drawn.shape == (1, 32, 32, 3)
    assert drawn.std() > 0.1


def test_stable_diffusion_goes_on_from_latents(pipeline: Any) -> None:
    from diffusers import StableDiffusionImg2ImgPipeline

    image_to_image = StableDiffusionImg2ImgPipeline(**pipeline.components, requires_safety_checker=False)
    image_to_image.set_progress_bar_config(disable=True)
    images, labels = digits.load("train")
    three = images[labels == 3][:20]
    centre = train_vae.encode(pipeline.vae, three).mean(dim=0, keepdim=True)
    drawn = image_to_image(
        "digit three",
        image=centre,
        strength=0.5,
        guidance_scale=3.0,
        negative_prompt="cartoon, anime, painting",
        generator=torch.Generator().manual_seed(0),
        output_type="np",
    ).images[0]
    distances = [np.mean((images[labels == label] / 255 - drawn).mean(axis=0) ** 2) for label in range(10)]
    assert int(np.argmin(distances)) == 3


def test_stable_diffusion_runs_at_512_pixels(pipeline: Any) -> None:
    latents = torch.zeros(1, 4, 64, 64)
    with torch.no_grad():
        text = pipeline.text_encoder(pipeline.tokenizer("a digit", return_tensors="pt").input_ids)[0]
        assert pipeline.unet(latents, 10, text).sample.shape == latents.shape
        assert pipeline.vae.decode(latents).sample.shape == (1, 3, 512, 512)
