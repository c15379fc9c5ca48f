"""Knows Stable Diffusion's parts: pixels to latents and back, text to embeddings, latents drawn anew under a text."""

from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import Any, Final

import diffusers
import numpy as np
import numpy.typing as npt
import torch
import transformers
from diffusers import (
    AutoencoderKL,
    DDPMScheduler,
    StableDiffusionImg2ImgPipeline,
    StableDiffusionPipeline,
    UNet2DConditionModel,
)
from diffusers.training_utils import EMAModel
from transformers import CLIPTextModel, CLIPTokenizer

from vlcp_ray.config import Generate
from vlcp_ray.models.folders import folder

Pixels = npt.NDArray[np.uint8]

# accelerate is not among the dependencies, and without it diffusers warns at every load unless this is said
_LOAD: Final = {"low_cpu_mem_usage": False}


def pick_device() -> str:
    """`cuda` where there is a GPU, else `cpu`."""
    return "cuda" if torch.cuda.is_available() else "cpu"


def inference_dtype(device: str) -> torch.dtype:
    """float16 on a GPU, float32 on a CPU, which has no fast float16."""
    return torch.float16 if torch.device(device).type == "cuda" else torch.float32


def load_vae(base_model: str, device: str) -> AutoencoderKL:
    """The frozen VAE in the precision of inference."""
    return _load(AutoencoderKL, base_model, "vae", device, inference_dtype(device))


def load_unet(base_model: str, device: str) -> UNet2DConditionModel:
    """The UNet in float32, frozen: who trains it says so."""
    return _load(UNet2DConditionModel, base_model, "unet", device, torch.float32)


def load_text(base_model: str, device: str, dtype: torch.dtype) -> tuple[CLIPTokenizer, CLIPTextModel]:
    """The tokenizer and the frozen text encoder."""
    tokenizer = CLIPTokenizer.from_pretrained(folder(base_model), subfolder="tokenizer")
    return tokenizer, _load(CLIPTextModel, base_model, "text_encoder", device, dtype)


def load_pipeline(
    model: str, device: str, dtype: torch.dtype | None = None, unet: Any = None
) -> StableDiffusionImg2ImgPipeline:
    """diffusers' own img2img pipeline, silent and without a safety checker.

    Args:
        model: hub id, folder or demo/stable_diffusion.
        device: where its parts go.
        dtype: precision of its parts, that of inference by default.
        unet: a UNet to use instead of the model's.
    """
    _without_bars()
    parts = {} if unet is None else {"unet": unet}
    pipeline = StableDiffusionImg2ImgPipeline.from_pretrained(
        folder(model),
        dtype=dtype or inference_dtype(device),
        safety_checker=None,
        feature_extractor=None,
        requires_safety_checker=False,
        **_LOAD,
        **parts,
    )
    pipeline.set_progress_bar_config(disable=True)
    return pipeline.to(device)


def load_noise_schedule(base_model: str) -> DDPMScheduler:
    """The forward process that the model was trained with.

    Raises:
        ValueError: the model does not predict the noise.
    """
    scheduler = DDPMScheduler.from_pretrained(folder(base_model), subfolder="scheduler")
    target = scheduler.config.prediction_type
    if target != "epsilon":
        raise ValueError(
            f"base_model: {base_model} predicts {target!r}; take one that predicts 'epsilon', as Stable Diffusion v1-5"
        )
    return scheduler


def save_pipeline(base_model: str, unet: Any, target: str | Path) -> None:
    """Write `base_model` with another float32 UNet as a diffusers folder of safetensors files."""
    loaded = load_pipeline(base_model, str(unet.device), torch.float32, unet)
    for part in (loaded.vae, loaded.unet):
        part.register_to_config(_name_or_path=base_model)  # else the path it was loaded from, of this machine
    StableDiffusionPipeline(**loaded.components, requires_safety_checker=False).save_pretrained(target)


@contextmanager
def averaged(unet: Any, ema: EMAModel) -> Iterator[None]:
    """The UNet with the weights of its moving average, for a while."""
    ema.store(unet.parameters())
    ema.copy_to(unet.parameters())
    try:
        yield
    finally:
        ema.restore(unet.parameters())


@torch.no_grad()
def encode(vae: AutoencoderKL, pixels: npt.NDArray[np.float32]) -> torch.Tensor:
    """Posterior moments of images.

    Args:
        vae: from `load_vae`.
        pixels: (n, 3, height, width) in [-1, 1].

    Returns:
        (n, 2c, h, w) float32 on the CPU, unscaled: mean, then logvar clamped to [-30, 20]
        (diffusers' DiagonalGaussianDistribution).
    """
    batch = torch.from_numpy(pixels).to(vae.device, vae.dtype)
    posterior = vae.encode(batch).latent_dist
    return torch.cat([posterior.mean, posterior.logvar], dim=1).float().cpu()


def filled(rows: Sequence[int], batch_size: int) -> list[int]:
    """The rows, and the last of them again until the batch is full.

    Kernels round by the shape of a batch: where every batch has the same one, a row comes out the same to the last
    bit whichever rows a resumed run or another worker has put beside it.
    """
    return [*rows, *[rows[-1]] * (batch_size - len(rows))]


def sample(moments: torch.Tensor, noise: torch.Tensor) -> torch.Tensor:
    """A draw (n, c, h, w) from the posteriors whose moments are (n, 2c, h, w), unscaled: mean + std x noise."""
    mean, logvar = moments.chunk(2, dim=1)
    return mean + torch.exp(0.5 * logvar) * noise


@torch.no_grad()
def decode(vae: AutoencoderKL, latents: torch.Tensor, batch_size: int) -> Pixels:
    """Images (n, height, width, 3) of scaled latents (n, c, h, w), `batch_size` at a time."""
    decoded = []
    for start in range(0, len(latents), batch_size):
        rows = range(start, min(start + batch_size, len(latents)))
        part = latents[filled(rows, batch_size)]
        values = vae.decode(part.to(vae.device, vae.dtype) / vae.config.scaling_factor).sample.float()
        levels = ((values / 2 + 0.5).clamp(0, 1) * 255).round().byte()
        decoded.append(levels[: len(rows)].permute(0, 2, 3, 1).cpu().numpy())
    return np.concatenate(decoded)


@torch.no_grad()
def draw(
    pipeline: StableDiffusionImg2ImgPipeline,
    settings: Generate,
    latents: npt.NDArray[np.float32],
    texts: Sequence[str],
    seeds: Sequence[int],
    batch_size: int,
) -> Pixels:
    """Noise latents to the strength step, denoise them under their texts, decode (METHOD 2.6).

    Texts are encoded in slices of 77 ids, each alone, and concatenated. The last slice is filled up with padding, as
    captions are in fine-tuning, so that texts with equal numbers of slices make a batch; texts with different numbers
    never meet in one, so an image does not depend on its neighbours (up to the rounding of a batched matrix product).

    Args:
        pipeline: from `load_pipeline`.
        settings: strength, guidance and steps; `image_size` is not used here.
        latents: (n, 4, h, w), scaled. The pipeline takes 4 channels for latents and does not scale them again.
        texts: n descriptions of any length.
        seeds: n seeds, of a generator each.
        batch_size: images at a time; with guidance the UNet sees twice as many.

    Returns:
        (n, height, width, 3) uint8, in the order given.
    """
    prompts = _slices(pipeline.tokenizer, texts)
    negative = _slices(pipeline.tokenizer, [settings.negative_prompt])[0]
    drawn = torch.empty(latents.shape, dtype=torch.float32)
    for count, rows in _alike([max(len(prompt), len(negative)) for prompt in prompts], batch_size):
        batch = filled(rows, batch_size)
        made = pipeline(
            image=torch.from_numpy(latents[batch]),
            prompt_embeds=_embed(pipeline, [prompts[row] for row in batch], count),
            negative_prompt_embeds=_embed(pipeline, [negative], count).expand(len(batch), -1, -1),
            generator=[torch.Generator().manual_seed(seeds[row]) for row in batch],  # CPU: the same noise on a GPU
            strength=settings.strength,
            guidance_scale=settings.guidance_scale,
            num_inference_steps=settings.num_inference_steps,
            output_type="latent",
        ).images
        drawn[rows] = made[: len(rows)].to("cpu", torch.float32)
    return decode(pipeline.vae, drawn, batch_size)


@torch.no_grad()
def embed_captions(tokenizer: Any, text_encoder: Any, captions: Sequence[str]) -> torch.Tensor:
    """(n, 77, d) embeddings of captions for fine-tuning, which cuts the longer ones (METHOD 2.2)."""
    length = tokenizer.model_max_length
    batch = tokenizer(list(captions), padding="max_length", max_length=length, truncation=True, return_tensors="pt")
    hidden: torch.Tensor = text_encoder(batch.input_ids.to(text_encoder.device))[0]
    return hidden


def _slices(tokenizer: Any, texts: Sequence[str]) -> list[list[list[int]]]:
    """The ids of each text, cut into slices of 77 at most: start mark in the first, end mark in the last."""
    length = tokenizer.model_max_length
    rows = tokenizer(list(texts), truncation=False, verbose=False)["input_ids"]
    return [[ids[start : start + length] for start in range(0, len(ids), length)] for ids in rows]


def _embed(pipeline: StableDiffusionImg2ImgPipeline, prompts: list[list[list[int]]], count: int) -> torch.Tensor:
    """(n, 77 x count, d) embeddings of n sliced texts, each filled up to `count` whole slices."""
    tokenizer, encoder = pipeline.tokenizer, pipeline.text_encoder
    ids = torch.full((len(prompts), count, tokenizer.model_max_length), tokenizer.pad_token_id)
    for row, slices in enumerate(prompts):
        for number, part in enumerate(slices):
            ids[row, number, : len(part)] = torch.tensor(part)
    hidden: torch.Tensor = encoder(ids.flatten(0, 1).to(encoder.device))[0]  # (n * count, 77, d)
    return hidden.reshape(len(prompts), -1, hidden.shape[-1])


def _alike(counts: Sequence[int], batch_size: int) -> Iterator[tuple[int, list[int]]]:
    """Rows with equal counts, `batch_size` at most at a time."""
    for count in sorted(set(counts)):
        rows = [row for row, other in enumerate(counts) if other == count]
        for start in range(0, len(rows), batch_size):
            yield count, rows[start : start + batch_size]


def _load(kind: Any, base_model: str, name: str, device: str, dtype: torch.dtype) -> Any:
    _without_bars()
    extra = _LOAD if issubclass(kind, diffusers.ModelMixin) else {}
    part = kind.from_pretrained(folder(base_model), subfolder=name, dtype=dtype, **extra)
    return part.to(device).eval().requires_grad_(False)


def _without_bars() -> None:
    """A bar per loaded file is noise in the log of every worker."""
    diffusers.utils.logging.disable_progress_bar()
    transformers.utils.logging.disable_progress_bar()
