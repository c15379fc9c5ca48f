"""Stable Diffusion: load its parts, encode and decode images, embed texts, generate images from latents and texts."""

from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from functools import partial
from pathlib import Path
from typing import Any, Final, NamedTuple

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
from transformers import CLIPTextModel, CLIPTokenizer

from vlcp_ray.models.batches import Batches
from vlcp_ray.models.clip_tokens import load_tokenizer
from vlcp_ray.models.pretrained import folder, pinned
from vlcp_ray.stages.generate import Generate

Pixels = npt.NDArray[np.uint8]

# accelerate is not among the dependencies, and without it diffusers warns at every load unless this is set
_LOAD_OPTIONS: Final = {"low_cpu_mem_usage": False}


def pick_device() -> str:
    """Return `cuda` where there is a GPU, else `cpu`."""
    return "cuda" if torch.cuda.is_available() else "cpu"


def inference_dtype(device: str) -> torch.dtype:
    """Return float16 for a GPU, float32 for a CPU, which has no fast float16."""
    return torch.float16 if torch.device(device).type == "cuda" else torch.float32


def load_vae(base_model: str, device: str) -> AutoencoderKL:
    """Load the frozen VAE in the precision of inference."""
    return load_part(AutoencoderKL, base_model, "vae", device, inference_dtype(device))


def load_unet(base_model: str, device: str) -> UNet2DConditionModel:
    """Load the UNet in float32, frozen; the caller makes it trainable."""
    return load_part(UNet2DConditionModel, base_model, "unet", device, torch.float32)


def load_text(base_model: str, device: str, dtype: torch.dtype) -> tuple[CLIPTokenizer, CLIPTextModel]:
    """Load the tokenizer and the frozen text encoder."""
    return load_tokenizer(base_model), load_part(CLIPTextModel, base_model, "text_encoder", device, dtype)


def load_pipeline(
    model: str, device: str, dtype: torch.dtype | None = None, unet: Any = None
) -> StableDiffusionImg2ImgPipeline:
    """Load diffusers' own img2img pipeline, without progress bars and without a safety checker.

    Args:
        model: hub id, folder or demo/stable_diffusion.
        device: torch device of its parts.
        dtype: precision of its parts, that of inference by default.
        unet: a UNet to use instead of the model's.
    """
    _hide_progress_bars()
    parts = {} if unet is None else {"unet": unet}
    pipeline = StableDiffusionImg2ImgPipeline.from_pretrained(
        folder(model),
        **pinned(model),
        dtype=dtype or inference_dtype(device),
        safety_checker=None,
        feature_extractor=None,
        requires_safety_checker=False,
        **_LOAD_OPTIONS,
        **parts,
    )
    pipeline.set_progress_bar_config(disable=True)
    return pipeline.to(device)


def load_noise_schedule(base_model: str) -> DDPMScheduler:
    """Load the noise schedule that the model was trained with.

    Raises:
        ValueError: the model does not predict the noise.
    """
    scheduler = DDPMScheduler.from_pretrained(folder(base_model), **pinned(base_model), subfolder="scheduler")
    target = scheduler.config.prediction_type
    if target != "epsilon":
        raise ValueError(
            f"base_model: {base_model} predicts {target!r}; use one that predicts 'epsilon', as Stable Diffusion v1-5"
        )
    return scheduler


def save_pipeline(base_model: str, unet: Any, target: str | Path) -> None:
    """Write `base_model` with another float32 UNet as a diffusers folder of safetensors files."""
    pipeline = load_pipeline(base_model, str(unet.device), torch.float32, unet)
    for part in (pipeline.vae, pipeline.unet):
        part.register_to_config(_name_or_path=base_model)  # otherwise the path on this machine is written
    StableDiffusionPipeline(**pipeline.components, requires_safety_checker=False).save_pretrained(target)


@torch.no_grad()
def encode(vae: AutoencoderKL, pixels: Pixels, flip: bool = False) -> torch.Tensor:
    """Encode images to the moments of their latents' posterior.

    Args:
        vae: from `load_vae`.
        pixels: (n, height, width, 3).
        flip: encode their mirrored views.

    Returns:
        (n, 2c, h, w) float32 on the device of the VAE, which is not waited for; unscaled: mean, then logvar clamped to
        [-30, 20] (diffusers' DiagonalGaussianDistribution).
    """
    images = torch.from_numpy(pixels)
    if vae.device.type == "cuda":
        images = images.pin_memory().to(vae.device, non_blocking=True)
    batch = images.permute(0, 3, 1, 2).float() / 127.5 - 1.0  # [-1, 1], the range diffusion models use
    batch = (batch.flip(3) if flip else batch.contiguous()).to(vae.dtype)
    posterior = vae.encode(batch).latent_dist
    return torch.cat([posterior.mean, posterior.logvar], dim=1).float()


@contextmanager
def in_float32(model: Any) -> Iterator[None]:
    """Compute in float32 inside the `with` block: values that are too large for float16 stay finite."""
    dtype = model.dtype
    model.to(torch.float32)
    try:
        with torch.autocast(model.device.type, enabled=False):
            yield
    finally:
        model.to(dtype)


def padded(rows: Sequence[int], batch_size: int) -> list[int]:
    """Repeat the last row until the batch is full.

    Rounding depends on the shape of a batch. Where every batch has the same shape, a row's result is the same to the
    last bit, whichever other rows are in its batch after a resume or on another worker.
    """
    return [*rows, *[rows[-1]] * (batch_size - len(rows))]


def sample(moments: torch.Tensor, noise: torch.Tensor) -> torch.Tensor:
    """Sample latents (n, c, h, w), unscaled, from posteriors with moments (n, 2c, h, w): mean + std x noise."""
    mean, logvar = moments.chunk(2, dim=1)
    return mean + torch.exp(0.5 * logvar) * noise


class Pictures(NamedTuple):
    """Decoded images, and the numbers of those that are not finite, also in float32, which are black.

    Args:
        pixels: (n, height, width, 3).
    """

    pixels: Pixels
    not_finite: list[int]


@torch.no_grad()
def decode(vae: AutoencoderKL, latents: torch.Tensor, batches: Batches) -> Pictures:
    """Decode scaled latents (n, c, h, w) to images. Those that are not finite are decoded again in float32."""
    parts = list(
        batches.run(len(latents), lambda rows, size: _decode_batch(vae, latents[padded(rows, size)], len(rows)))
    )
    pixels = np.concatenate([levels.cpu().numpy() for levels, _ in parts])
    not_finite = []
    for row in np.flatnonzero(~np.concatenate([finite.cpu().numpy() for _, finite in parts])).tolist():
        with in_float32(vae):
            levels, finite = _decode_batch(vae, latents[row : row + 1], 1)
        pixels[row] = levels[0].cpu().numpy()
        not_finite += [] if finite[0] else [row]
    return Pictures(pixels, not_finite)


def _decode_batch(vae: AutoencoderKL, latents: torch.Tensor, count: int) -> tuple[torch.Tensor, torch.Tensor]:
    """Decode a batch, and return the first `count` images, (n, height, width, 3) uint8, and whether each is finite."""
    values = vae.decode(latents.to(vae.device, vae.dtype) / vae.config.scaling_factor).sample[:count].float()
    finite = torch.isfinite(values).flatten(1).all(dim=1)
    levels = ((values.nan_to_num(-1, -1, -1) / 2 + 0.5).clamp(0, 1) * 255).round().byte()
    return levels.permute(0, 2, 3, 1), finite


@torch.no_grad()
def img2img(
    pipeline: StableDiffusionImg2ImgPipeline,
    settings: Generate,
    latents: npt.NDArray[np.float32],
    texts: Sequence[str],
    seeds: Sequence[int],
    batches: Batches,
) -> Pictures:
    """Generate images: add noise to latents up to the strength step, denoise under texts, decode.

    Texts are encoded in slices of 77 ids, each alone, and concatenated. The last slice is padded, as captions are in
    fine-tuning. Only texts with the same number of slices are batched together, so an image does not depend on the
    other images (up to the rounding of a batched matrix product). Where the numbers of an image are not finite, it is
    generated again in float32.

    Args:
        pipeline: from `load_pipeline`.
        settings: strength, guidance scale, steps and negative prompt; `image_size` is not used here.
        latents: (n, 4, h, w), scaled. The pipeline recognises latents by their 4 channels and does not scale them.
        texts: n texts of any length.
        seeds: n seeds, one for each image's noise.
        batches: images at a time; with guidance the UNet's batch is twice as large.

    Returns the images in the order of the latents.
    """
    prompts = _slice_ids(pipeline.tokenizer, texts)
    negative = _slice_ids(pipeline.tokenizer, [settings.negative_prompt])[0]

    def denoise(batch: Sequence[int], count: int) -> torch.Tensor:
        images: torch.Tensor = pipeline(
            image=torch.from_numpy(latents[batch]),
            prompt_embeds=_embed_slices(pipeline, [prompts[row] for row in batch], count),
            negative_prompt_embeds=_embed_slices(pipeline, [negative], count).expand(len(batch), -1, -1),
            # Generators of the CPU: the same noise on a GPU.
            generator=[torch.Generator().manual_seed(seeds[row]) for row in batch],
            strength=settings.strength,
            guidance_scale=settings.guidance_scale,
            num_inference_steps=settings.num_inference_steps,
            output_type="latent",
        ).images
        return images.to("cpu", torch.float32)

    denoised = torch.empty(latents.shape, dtype=torch.float32)
    counts = [max(len(prompt), len(negative)) for prompt in prompts]
    for count in sorted(set(counts)):
        same = [row for row, other in enumerate(counts) if other == count]
        for rows, images in batches.run(len(same), partial(_denoise_batch, denoise, same, count)):
            denoised[rows] = images
    for row in torch.nonzero(~torch.isfinite(denoised).flatten(1).all(dim=1)).flatten().tolist():
        with in_float32(pipeline):
            denoised[row] = denoise([row], counts[row])[0]
    return decode(pipeline.vae, denoised, batches)


def _denoise_batch(
    denoise: Callable[[Sequence[int], int], torch.Tensor], same: Sequence[int], count: int, rows: range, size: int
) -> tuple[list[int], torch.Tensor]:
    """Denoise some of the rows whose texts have the same number of slices; return these rows and their latents."""
    wanted = list(same[rows.start : rows.stop])
    return wanted, denoise(padded(wanted, size), count)[: len(wanted)]


def tokenize_captions(tokenizer: Any, captions: Sequence[str]) -> torch.Tensor:
    """Tokenize captions for fine-tuning, cut or padded to 77 ids: (n, 77)."""
    length = tokenizer.model_max_length
    ids: torch.Tensor = tokenizer(
        list(captions), padding="max_length", max_length=length, truncation=True, return_tensors="pt"
    ).input_ids
    return ids


@torch.no_grad()
def embed_tokens(text_encoder: Any, token_ids: torch.Tensor) -> torch.Tensor:
    """Embed (n, 77) ids on the device of the text encoder: (n, 77, d)."""
    hidden: torch.Tensor = text_encoder(token_ids)[0]
    return hidden


def _slice_ids(tokenizer: Any, texts: Sequence[str]) -> list[list[list[int]]]:
    """Tokenize texts into slices of at most 77 ids: start mark in a text's first slice, end mark in its last."""
    length = tokenizer.model_max_length
    rows = tokenizer(list(texts), truncation=False, verbose=False)["input_ids"]
    return [[ids[start : start + length] for start in range(0, len(ids), length)] for ids in rows]


def _embed_slices(pipeline: StableDiffusionImg2ImgPipeline, prompts: list[list[list[int]]], count: int) -> torch.Tensor:
    """Embed n texts in slices of ids, each text padded to `count` full slices: (n, 77 x count, d)."""
    tokenizer, encoder = pipeline.tokenizer, pipeline.text_encoder
    ids = torch.full((len(prompts), count, tokenizer.model_max_length), tokenizer.pad_token_id)
    for row, slices in enumerate(prompts):
        for number, slice_ids in enumerate(slices):
            ids[row, number, : len(slice_ids)] = torch.tensor(slice_ids)
    hidden: torch.Tensor = encoder(ids.flatten(0, 1).to(encoder.device))[0]  # (n * count, 77, d)
    return hidden.reshape(len(prompts), -1, hidden.shape[-1])


def load_part(kind: Any, base_model: str, name: str, device: str, dtype: torch.dtype) -> Any:
    """Load a frozen part of a pipeline, a class of diffusers or transformers, from its subfolder `name`."""
    _hide_progress_bars()
    extra = _LOAD_OPTIONS if issubclass(kind, diffusers.ModelMixin) else {}
    part = kind.from_pretrained(folder(base_model), **pinned(base_model), subfolder=name, dtype=dtype, **extra)
    return part.to(device).eval().requires_grad_(False)


def _hide_progress_bars() -> None:
    """Hide the progress bar of each loaded file, which would fill the log of every worker."""
    diffusers.utils.logging.disable_progress_bar()
    transformers.utils.logging.disable_progress_bar()
