"""Train the UNet and the text encoder of the tiny Stable Diffusion together, on latents of printed glyphs."""

import random
from pathlib import Path
from typing import TYPE_CHECKING

import numpy as np
import torch
from numpy.typing import NDArray
from torch.nn import functional

from vlcp_ray.demo import digits
from vlcp_ray.demo.train import denoising, properties, tokens
from vlcp_ray.demo.train.vae import moments

if TYPE_CHECKING:
    from diffusers import AutoencoderKL, PNDMScheduler, UNet2DConditionModel
    from transformers import CLIPTextModel, CLIPTokenizer

EMA_DECAY = 0.995
TEXT_WIDTH = 64


def build_unet() -> "UNet2DConditionModel":
    """Build an untrained UNet of 1.4 M parameters for 4 x 4 latents, with the block types of Stable Diffusion."""
    from diffusers import UNet2DConditionModel

    return UNet2DConditionModel(
        sample_size=digits.RESOLUTION // 8,
        down_block_types=("CrossAttnDownBlock2D", "DownBlock2D"),
        up_block_types=("UpBlock2D", "CrossAttnUpBlock2D"),
        block_out_channels=(64, 64),
        layers_per_block=1,
        cross_attention_dim=TEXT_WIDTH,
        attention_head_dim=4,
        norm_num_groups=16,
    )


def build_text_encoder(tokenizer: "CLIPTokenizer") -> "CLIPTextModel":
    """Build an untrained CLIP text encoder of two layers for texts of 77 tokens."""
    from transformers import CLIPTextConfig, CLIPTextModel

    return CLIPTextModel(
        CLIPTextConfig(
            vocab_size=len(tokenizer),
            hidden_size=TEXT_WIDTH,
            intermediate_size=4 * TEXT_WIDTH,
            projection_dim=TEXT_WIDTH,
            num_hidden_layers=2,
            num_attention_heads=2,
            max_position_embeddings=77,
            bos_token_id=tokenizer.bos_token_id,
            eos_token_id=tokenizer.eos_token_id,
            pad_token_id=tokenizer.pad_token_id,
        )
    )


def build_scheduler() -> "PNDMScheduler":
    """Build a scheduler with all settings of that of Stable Diffusion v1-5."""
    from diffusers import PNDMScheduler

    return PNDMScheduler(
        beta_start=0.00085,
        beta_end=0.012,
        beta_schedule="scaled_linear",
        num_train_timesteps=denoising.TIMESTEPS,
        skip_prk_steps=True,
        set_alpha_to_one=False,
        steps_offset=1,
        prediction_type="epsilon",
    )


def prompt(words: dict[str, str], class_name: str, rng: random.Random) -> str:
    """Choose a training prompt: caption 40 %, class name 25 %, short sentence 20 %, empty or unrelated text 15 %."""
    kind = rng.random()
    if kind < 0.4:
        return properties.phrase(words, class_name, rng)
    if kind < 0.65:
        return class_name
    if kind < 0.85:
        return rng.choice(tokens.SENTENCES).format(name=class_name)
    return rng.choice(("", rng.choice(tokens.UNRELATED)))


def train(
    vae: "AutoencoderKL",
    tokenizer: "CLIPTokenizer",
    images: NDArray[np.uint8],
    names: list[str],
    steps: int = denoising.STEPS,
    seed: int = 0,
) -> "tuple[UNet2DConditionModel, CLIPTextModel]":
    """Train UNet and text encoder, and return their moving averages (EMA).

    Each of the `steps` has 64 latents. As in diffusers' recipe, timesteps are uniform, the target is the noise, and the
    loss is the mean squared error.

    Args:
        vae: trained.
        tokenizer: of the prompts.
        images: (n, 32, 32, 3) uint8.
        names: of what each image shows, for its prompts.
        steps: of the optimizer.
        seed: of weights, batches, noise and prompts.
    """
    torch.manual_seed(seed)
    words = [properties.words(image) for image in images]
    modules = torch.nn.ModuleList([build_unet(), build_text_encoder(tokenizer)])
    scheduler = build_scheduler()
    rng = random.Random(seed)  # noqa: S311

    def loss(chosen: torch.Tensor, clean: torch.Tensor, noise: torch.Tensor, timesteps: torch.Tensor) -> torch.Tensor:
        texts = [prompt(words[i], names[i], rng) for i in chosen.tolist()]
        noisy = scheduler.add_noise(clean, noise, timesteps)
        predicted = modules[0](noisy, timesteps, _embed(modules[1], tokenizer, texts)).sample
        return functional.mse_loss(predicted, noise)

    averaged = denoising.train(
        "unet",
        modules,
        moments(vae, images),
        loss,
        torch.Generator().manual_seed(seed),
        steps=steps,
        weight_decay=0.01,
        ema_decay=EMA_DECAY,
    )
    unet, text_encoder = averaged.eval()
    return unet, text_encoder


def _embed(text_encoder: "CLIPTextModel", tokenizer: "CLIPTokenizer", texts: list[str]) -> torch.Tensor:
    # Class names and sentences repeat within a batch: each distinct text is embedded once.
    distinct = list(dict.fromkeys(texts))
    ids = tokenizer(distinct, padding="max_length", truncation=True, return_tensors="pt").input_ids
    index = {text: number for number, text in enumerate(distinct)}
    return text_encoder(ids)[0][[index[text] for text in texts]]  # type: ignore[no-any-return]


def save(
    folder: Path,
    vae: "AutoencoderKL",
    unet: "UNet2DConditionModel",
    text_encoder: "CLIPTextModel",
    tokenizer: "CLIPTokenizer",
) -> None:
    """Write a diffusers folder in the format of Stable Diffusion v1-5, in float16, without a safety checker."""
    from diffusers import StableDiffusionPipeline

    pipeline = StableDiffusionPipeline(
        vae=vae.half(),
        unet=unet.half(),
        text_encoder=text_encoder.half(),
        tokenizer=tokenizer,
        scheduler=build_scheduler(),
        safety_checker=None,
        feature_extractor=None,
        requires_safety_checker=False,
    )
    pipeline.save_pretrained(folder)
