"""Stable Diffusion: load its parts, encode and decode images, embed texts, generate images from latents and texts.

Of 1.x, 2.x and XL: see `families.BASE_MODELS`. What differs is read from the model's own files.
"""

from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import Any, Final, NamedTuple, TypeAlias

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
    StableDiffusionXLImg2ImgPipeline,
    StableDiffusionXLPipeline,
    UNet2DConditionModel,
)
from diffusers.training_utils import compute_snr
from transformers import CLIPTextModel, CLIPTextModelWithProjection

from vlcp_ray.models.batches import Batches
from vlcp_ray.models.clip_tokens import load_tokenizer
from vlcp_ray.models.families import PREDICTIONS, SD, XL
from vlcp_ray.models.pretrained import family, folder, needs_float32, pinned
from vlcp_ray.stages.generate import Generate

Pixels = npt.NDArray[np.uint8]
Img2ImgPipeline: TypeAlias = "StableDiffusionImg2ImgPipeline | StableDiffusionXLImg2ImgPipeline"

# accelerate is not among the dependencies, and without it diffusers warns at every load unless this is set
_LOAD_OPTIONS: Final = {"low_cpu_mem_usage": False}
#: The parts of a pipeline of Stable Diffusion 1.x and 2.x, and of XL, that generation from latents does not use.
_EXTRAS: Final[Mapping[str, Any]] = {
    "safety_checker": None,
    "feature_extractor": None,
    "requires_safety_checker": False,
}
_XL_EXTRAS: Final[Mapping[str, Any]] = {"feature_extractor": None, "image_encoder": None, "add_watermarker": False}


def pick_device() -> str:
    """Return `cuda` where there is a GPU, else `cpu`."""
    return "cuda" if torch.cuda.is_available() else "cpu"


def inference_dtype(device: str) -> torch.dtype:
    """Return float16 for a GPU, float32 for a CPU, which has no fast float16."""
    return torch.float16 if torch.device(device).type == "cuda" else torch.float32


def load_vae(base_model: str, device: str) -> AutoencoderKL:
    """Load the frozen VAE in the precision of inference, or in float32 where its numbers are too large for float16."""
    dtype = torch.float32 if needs_float32(base_model) else inference_dtype(device)
    return load_part(AutoencoderKL, base_model, "vae", device, dtype)


def load_unet(base_model: str, device: str) -> UNet2DConditionModel:
    """Load the UNet in float32, frozen; the caller makes it trainable."""
    return load_part(UNet2DConditionModel, base_model, "unet", device, torch.float32)


@dataclass(frozen=True)
class Embedded:
    """What the UNet gets of n texts.

    Args:
        hidden: (n, tokens, d).
        pooled: (n, p) of XL; None of other models.
    """

    hidden: torch.Tensor
    pooled: torch.Tensor | None = None

    def zeros(self) -> "Embedded":
        """Return zeros of the same shapes."""
        return Embedded(torch.zeros_like(self.hidden), None if self.pooled is None else torch.zeros_like(self.pooled))

    def conditions(self, side: int) -> dict[str, torch.Tensor]:
        """Return the conditions that the UNet of XL gets in addition; none for other models.

        The size of the image before and after it was cropped is `side` x `side` pixels, cut at (0, 0): the values that
        diffusers' pipeline takes for an image of this size.
        """
        if self.pooled is None:
            return {}
        sizes = torch.tensor([side, side, 0, 0, side, side], dtype=self.pooled.dtype, device=self.pooled.device)
        return {"text_embeds": self.pooled, "time_ids": sizes.expand(len(self.pooled), -1)}


@dataclass(frozen=True)
class TextEncoders:
    """The tokenizers and frozen text encoders of a model: one of each, or the two of XL."""

    tokenizers: Sequence[Any]
    encoders: Sequence[Any]

    @classmethod
    def of(cls, pipeline: Img2ImgPipeline) -> "TextEncoders":
        """Take those of a pipeline."""
        parts = pipeline.components
        of = XL if XL.text_encoders[-1] in parts else SD
        return cls([parts[name] for name in of.tokenizers], [parts[name] for name in of.text_encoders])

    def components(self) -> dict[str, Any]:
        """Return them by the names that a pipeline of the family has for them."""
        of = XL if len(self.encoders) > 1 else SD
        names, parts = (*of.tokenizers, *of.text_encoders), (*self.tokenizers, *self.encoders)
        return dict(zip(names, parts, strict=True))

    def tokenize(self, captions: Sequence[str]) -> torch.Tensor:
        """Tokenize captions for fine-tuning, cut or padded to 77 ids, by each tokenizer: (n, tokenizers, 77)."""
        return torch.stack([tokenize_captions(tokenizer, captions) for tokenizer in self.tokenizers], dim=1)

    @torch.no_grad()
    def embed(self, token_ids: torch.Tensor) -> Embedded:
        """Embed ids (n, encoders, 77) on the device of the encoders."""
        outputs = [self._call(number, token_ids[:, number]) for number in range(len(self.encoders))]
        return Embedded(torch.cat([hidden for hidden, _ in outputs], dim=-1), outputs[-1][1])

    def slice(self, texts: Sequence[str]) -> list["Slices"]:
        """Tokenize texts of any length for `embed_slices`."""
        by_tokenizer = [_slice_ids(tokenizer, texts) for tokenizer in self.tokenizers]
        return [Slices(text, *parts) for text, *parts in zip(texts, zip(*by_tokenizer, strict=True), strict=True)]

    @torch.no_grad()
    def embed_slices(self, texts: Sequence["Slices"], count: int) -> Embedded:
        """Embed n texts, each padded to `count` full slices, of which each is encoded alone: (n, 77 x count, d).

        A pooled text is that of its first 77 ids, as in fine-tuning.
        """
        hidden = []
        for number, (tokenizer, encoder) in enumerate(zip(self.tokenizers, self.encoders, strict=True)):
            ids = torch.full((len(texts), count, tokenizer.model_max_length), tokenizer.pad_token_id)
            for row, text in enumerate(texts):
                for place, slice_ids in enumerate(text.ids[number]):
                    ids[row, place, : len(slice_ids)] = torch.tensor(slice_ids)
            states, _ = self._call(number, ids.flatten(0, 1).to(encoder.device))  # (n * count, 77, d)
            hidden.append(states.reshape(len(texts), -1, states.shape[-1]))
        pooled = None
        if len(self.encoders) > 1:
            cut = tokenize_captions(self.tokenizers[-1], [text.text for text in texts])
            pooled = self._call(len(self.encoders) - 1, cut.to(self.encoders[-1].device))[1]
        return Embedded(torch.cat(hidden, dim=-1), pooled)

    def _call(self, number: int, token_ids: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor | None]:
        """Encode ids (n, 77) by one of the encoders: (n, 77, d), in XL of the last layer but one, and pooled (n, p)."""
        encoder = self.encoders[number]
        if len(self.encoders) == 1:
            return embed_tokens(encoder, token_ids), None
        output = encoder(token_ids, output_hidden_states=True)
        return output.hidden_states[-2], output[0]


@dataclass(frozen=True)
class Slices:
    """A text, and its ids by each tokenizer in slices of at most 77."""

    text: str
    ids: Sequence[list[list[int]]]

    @property
    def count(self) -> int:
        """The most slices of a tokenizer."""
        return max(map(len, self.ids))


def load_text(base_model: str, device: str, dtype: torch.dtype) -> TextEncoders:
    """Load the tokenizers and the frozen text encoders."""
    parts, kinds = family(base_model), (CLIPTextModel, CLIPTextModelWithProjection)
    return TextEncoders(
        [load_tokenizer(base_model, name) for name in parts.tokenizers],
        [
            load_part(kind, base_model, name, device, dtype)
            for kind, name in zip(kinds, parts.text_encoders, strict=False)
        ],
    )


def load_pipeline(
    model: str,
    device: str,
    dtype: torch.dtype | None = None,
    unet: Any = None,
    text: TextEncoders | None = None,
) -> Img2ImgPipeline:
    """Load diffusers' own img2img pipeline of the model's family, without progress bars and without a safety checker.

    Args:
        model: hub id, folder or demo/stable_diffusion.
        device: torch device of its parts.
        dtype: precision of the parts that are loaded, that of inference by default; a VAE whose numbers are too large
            for float16 is in float32.
        unet: a UNet to use instead of the model's, as it is.
        text: tokenizers and text encoders to use, as they are, instead of loading the model's.
    """
    _hide_progress_bars()
    is_of_xl, precision = family(model).is_xl, dtype or inference_dtype(device)
    kind: Any = StableDiffusionXLImg2ImgPipeline if is_of_xl else StableDiffusionImg2ImgPipeline
    pipeline: Img2ImgPipeline = kind.from_pretrained(
        folder(model),
        **pinned(model),
        dtype={"vae": torch.float32 if needs_float32(model) else precision, "default": precision},
        **(_XL_EXTRAS if is_of_xl else _EXTRAS),
        **_LOAD_OPTIONS,
        **({} if unet is None else {"unet": unet}),
        **({} if text is None else text.components()),
    )
    pipeline.set_progress_bar_config(disable=True)
    return pipeline.to(device)


def load_noise_schedule(base_model: str) -> DDPMScheduler:
    """Load the noise schedule that the model was trained with.

    Raises:
        ValueError: the model predicts something else than `PREDICTIONS`.
    """
    scheduler = DDPMScheduler.from_pretrained(folder(base_model), **pinned(base_model), subfolder="scheduler")
    if (predicts := scheduler.config.prediction_type) not in PREDICTIONS:
        raise ValueError(
            f"base_model: {base_model} predicts {predicts!r}; give one that predicts " + " or ".join(PREDICTIONS)
        )
    return scheduler


def prediction_target(
    scheduler: DDPMScheduler, latents: torch.Tensor, noise: torch.Tensor, timesteps: torch.Tensor
) -> torch.Tensor:
    """Return what the UNet is to predict: the noise, or the velocity, by the model's own schedule."""
    if scheduler.config.prediction_type == "epsilon":
        return noise
    velocity: torch.Tensor = scheduler.get_velocity(latents, noise, timesteps)
    return velocity


def save_pipeline(base_model: str, unet: Any, target: str | Path) -> None:
    """Write `base_model` with another float32 UNet as a diffusers folder of safetensors files."""
    pipeline = load_pipeline(base_model, str(unet.device), torch.float32, unet)
    for part in (pipeline.vae, pipeline.unet):
        part.register_to_config(_name_or_path=base_model)  # otherwise the path on this machine is written
    if family(base_model).is_xl:
        StableDiffusionXLPipeline(
            **pipeline.components,
            force_zeros_for_empty_prompt=pipeline.config.force_zeros_for_empty_prompt,
            add_watermarker=False,
        ).save_pretrained(target)
    else:
        StableDiffusionPipeline(**pipeline.components, requires_safety_checker=False).save_pretrained(target)


def min_snr_weights(scheduler: DDPMScheduler, timesteps: torch.Tensor, gamma: float) -> torch.Tensor:
    """Weight the losses of rows by their timesteps: min(SNR, gamma) / SNR for the noise (Hang et al. 2023), (n,).

    For the velocity, whose loss counts SNR + 1 times that of the image, the divisor is SNR + 1.
    """
    snr = compute_snr(scheduler, timesteps)
    divisor = snr if scheduler.config.prediction_type == "epsilon" else snr + 1
    weights: torch.Tensor = snr.clamp(max=gamma) / divisor
    return weights


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
    """Compute in float32 inside the `with` block: values that are too large for float16 stay finite.

    Args:
        model: a module, or a pipeline; every tensor of it returns to the precision that it had.
    """
    parts = [model] if isinstance(model, torch.nn.Module) else list(model.components.values())
    modules = [part for part in parts if isinstance(part, torch.nn.Module)]
    tensors = [tensor for module in modules for tensor in (*module.parameters(), *module.buffers())]
    dtypes = [(tensor, tensor.dtype) for tensor in tensors if tensor.is_floating_point()]
    for tensor, _ in dtypes:
        tensor.data = tensor.data.float()
    try:
        with torch.autocast(model.device.type, enabled=False):
            yield
    finally:
        for tensor, dtype in dtypes:
            tensor.data = tensor.data.to(dtype)


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
    """Decoded images, and the numbers of those that are not finite, which are black.

    Args:
        pixels: (n, height, width, 3).
    """

    pixels: Pixels
    not_finite: list[int]


@torch.no_grad()
def decode(vae: AutoencoderKL, latents: torch.Tensor, batches: Batches, recomputes: bool = True) -> Pictures:
    """Decode scaled latents (n, c, h, w) to images, in the precision of the VAE, also where autocast has another.

    Args:
        vae: from `load_vae`, or of a pipeline.
        latents: of the images.
        batches: images at a time.
        recomputes: whether images that are not finite are decoded again in float32.
    """
    parts = list(
        batches.run(len(latents), lambda rows, size: _decode_batch(vae, latents[padded(rows, size)], len(rows)))
    )
    pixels = np.concatenate([levels.cpu().numpy() for levels, _ in parts])
    failed, not_finite = np.flatnonzero(~np.concatenate([finite.cpu().numpy() for _, finite in parts])).tolist(), []
    if not recomputes:
        return Pictures(pixels, failed)
    for row in failed:
        with in_float32(vae):
            levels, finite = _decode_batch(vae, latents[row : row + 1], 1)
        pixels[row] = levels[0].cpu().numpy()
        not_finite += [] if finite[0] else [row]
    return Pictures(pixels, not_finite)


def _decode_batch(vae: AutoencoderKL, latents: torch.Tensor, count: int) -> tuple[torch.Tensor, torch.Tensor]:
    """Decode a batch, and return the first `count` images, (n, height, width, 3) uint8, and whether each is finite."""
    with torch.autocast(vae.device.type, enabled=False):
        values = vae.decode(latents.to(vae.device, vae.dtype) / vae.config.scaling_factor).sample[:count].float()
    finite = torch.isfinite(values).flatten(1).all(dim=1)
    levels = ((values.nan_to_num(-1, -1, -1) / 2 + 0.5).clamp(0, 1) * 255).round().byte()
    return levels.permute(0, 2, 3, 1), finite


@torch.no_grad()
def img2img(
    pipeline: Img2ImgPipeline,
    settings: Generate,
    latents: npt.NDArray[np.float32],
    texts: Sequence[str],
    seeds: Sequence[int],
    batches: Batches,
    begin: Callable[[Sequence[int]], None] = lambda rows: None,
    recomputes: bool = True,
) -> Pictures:
    """Generate images: add noise to latents up to the strength step, denoise under texts, decode.

    Texts are encoded in slices of 77 ids, each alone, and concatenated. The last slice is padded, as captions are in
    fine-tuning. Only texts with the same number of slices are batched together, so an image does not depend on the
    other images (up to the rounding of a batched matrix product). Without a negative prompt guidance leads away from
    what the model was trained with as no text: the empty one, or for XL zeros (force_zeros_for_empty_prompt in its
    model_index.json).

    Args:
        pipeline: from `load_pipeline`.
        settings: strength, guidance scale, steps and negative prompt; `image_size` is not used here.
        latents: (n, 4, h, w), scaled. The pipeline recognises latents by their 4 channels and does not scale them.
        texts: n texts of any length.
        seeds: n seeds, one for each image's noise.
        batches: images at a time; with guidance the UNet's batch is twice as large.
        begin: called with the rows of each batch before it is denoised.
        recomputes: whether an image whose numbers are not finite is generated again in float32.

    Returns the images in the order of the latents.
    """
    encoders = TextEncoders.of(pipeline)
    prompts, (negative,) = encoders.slice(texts), encoders.slice([settings.negative_prompt])
    is_zero = not settings.negative_prompt and pipeline.config.get("force_zeros_for_empty_prompt", False)

    def denoise(batch: Sequence[int], count: int) -> torch.Tensor:
        begin(batch)
        away = encoders.embed_slices([negative], count)
        images: torch.Tensor = pipeline(
            image=torch.from_numpy(latents[batch]),
            **_prompt(encoders.embed_slices([prompts[row] for row in batch], count)),
            **_prompt(away.zeros() if is_zero else away, "negative_", len(batch)),
            # Generators of the CPU: the same noise on a GPU.
            generator=[torch.Generator().manual_seed(seeds[row]) for row in batch],
            strength=settings.strength,
            guidance_scale=settings.guidance_scale,
            num_inference_steps=settings.num_inference_steps,
            output_type="latent",
        ).images
        return images.to("cpu", torch.float32)

    denoised = torch.empty(latents.shape, dtype=torch.float32)
    counts = [max(prompt.count, negative.count) for prompt in prompts]
    for count in sorted(set(counts)):
        same = [row for row, other in enumerate(counts) if other == count]
        for rows, images in batches.run(len(same), partial(_denoise_batch, denoise, same, count)):
            denoised[rows] = images
    failed = torch.nonzero(~torch.isfinite(denoised).flatten(1).all(dim=1)).flatten().tolist()
    for row in failed if recomputes else ():
        with in_float32(pipeline):
            denoised[row] = denoise([row], counts[row])[0]
    return decode(pipeline.vae, denoised, batches, recomputes)


def _prompt(embedded: Embedded, prefix: str = "", repeats: int = 1) -> dict[str, torch.Tensor]:
    """Return the arguments of a pipeline for embedded texts, one text for each row or one for all."""
    arguments = {f"{prefix}prompt_embeds": embedded.hidden.expand(repeats * len(embedded.hidden), -1, -1)}
    if embedded.pooled is not None:
        arguments[f"{prefix}pooled_prompt_embeds"] = embedded.pooled.expand(repeats * len(embedded.pooled), -1)
    return arguments


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
