"""Compute the operations of a job's models for one image at any size, without loading a library.

The coefficients in counts.json were counted by `count_flops.py`: the operations are polynomials in the latent's side
and the text's length. A multiplication and an addition are two operations. A model is recognised by its number of
parameters, not by its folder or hub id.
"""

import json
import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from functools import cache
from pathlib import Path
from typing import Any, Final

from vlcp_ray.config import Job
from vlcp_ray.cost.captioners import PHOTO, count_model
from vlcp_ray.models.families import XL
from vlcp_ray.models.networks import NETWORKS, Norm
from vlcp_ray.models.pretrained import count_parameters, expected_family

TEXT_TOKENS: Final = 77  # ids in a slice of text for CLIP
_TOKENS_PER_WORD: Final = 1.4  # of a prompt, an assumption
_CAPTION_TOKENS: Final = 256  # more than a usual caption has
_CHAT_TOKENS: Final = 10  # of the chat format around a prompt, an assumption

Count = Mapping[str, Any]


def unet_terms(side: int, tokens: int) -> tuple[float, ...]:
    """Return the terms of a UNet's operations: constant, pixels, pairs of pixels, pixels x text tokens, text tokens."""
    return 1.0, side**2, side**4, side**2 * tokens, tokens


def side_terms(side: int) -> tuple[float, ...]:
    """Return the terms of a VAE's operations for a latent of side x side."""
    return 1.0, side**2, side**4


def token_terms(tokens: int) -> tuple[float, ...]:
    """Return the terms of a language model's operations: tokens, and pairs of tokens, which attention compares."""
    return tokens, tokens**2


@dataclass(frozen=True)
class ModelFlops:
    """The counts of a job's models; None for a model that was never counted, whose operations are NaN."""

    unet: Count | None
    vae: Count | None
    text: Count | None
    llava: Count | None
    dit: Count | None = None
    dit_vae: Count | None = None
    text_2: Count | None = None  # the second text encoder of XL

    def denoise(self, side: int, slices: int = 1) -> float:
        """Count a forward pass of the UNet over a latent of side x side.

        Args:
            side: height and width of the latent.
            slices: slices of 77 ids in the text.
        """
        if self.unet is None:
            return math.nan
        return _weighted_sum(self.unet["forward"], unet_terms(side, slices * TEXT_TOKENS))

    def encode(self, side: int) -> float:
        """Count the operations of encoding an image to the moments of a side x side latent."""
        return math.nan if self.vae is None else _weighted_sum(self.vae["encode"], side_terms(side))

    def decode(self, side: int) -> float:
        """Count the decoding of a latent of side x side to an image."""
        return math.nan if self.vae is None else _weighted_sum(self.vae["decode"], side_terms(side))

    def denoise_dit(self, side: int) -> float:
        """Count a forward pass of the DiT over a latent of side x side."""
        return math.nan if self.dit is None else _weighted_sum(self.dit["forward"], side_terms(side))

    def dit_trained(self) -> float:
        """Count the weights of the DiT that DiffFit trains."""
        return math.nan if self.dit is None else float(self.dit["trained"])

    def encode_for_dit(self, side: int) -> float:
        """Count the encoding of an image to the moments of a side x side latent by the VAE of the DiT."""
        return math.nan if self.dit_vae is None else _weighted_sum(self.dit_vae["encode"], side_terms(side))

    def decode_dit(self, side: int) -> float:
        """Count the decoding of a latent of side x side to an image by the VAE of the DiT."""
        return math.nan if self.dit_vae is None else _weighted_sum(self.dit_vae["decode"], side_terms(side))

    def embed_text(self, slices: int = 1) -> float:
        """Count the embedding of a text of `slices` slices of 77 ids."""
        second = 0.0 if self.text_2 is None else float(self.text_2["slice"])
        return math.nan if self.text is None else slices * (float(self.text["slice"]) + second)

    def lora_width(self) -> float:
        """Count the weights that LoRA of rank 1 trains."""
        return math.nan if self.unet is None else float(self.unet["lora"])

    def caption(self, prompt: str, tokens: float) -> float:
        """Count the operations of captioning an image in `tokens` tokens, each attending to all before it."""
        if self.llava is None:
            return math.nan
        count, read = self.llava, self.llava["image_tokens"] + prompt_tokens(prompt)
        token_pairs = read**2 + tokens * (read + tokens / 2)
        language = (read + tokens) * count["token"] + token_pairs * count["token_pair"]
        return float(count["image"] + language + tokens * count["head"])

    def classify(self, network: str, size: int, width: int, classes: int, norm: Norm) -> float:
        """Count a forward pass of a classifier over an image of size x size pixels."""
        return classifier_flops(network, size, width, classes, norm)


def classifier_flops(network: str, size: int, width: int, classes: int, norm: Norm) -> float:
    """Count a forward pass of a classifier: by formula, or of a network of torchvision on the network itself."""
    if NETWORKS[network].is_of_torchvision:
        from vlcp_ray.cost.classifiers import forward_flops  # here, as it loads torch

        return forward_flops(network, size, classes)
    return NETWORKS[network].forward_flops(size, width, classes, norm)


def model_flops(job: Job) -> ModelFlops:
    """Look up the counts of a job's models: those of counts.json, and captioners whose config is known."""

    def find(part: str, model: str, folder: str) -> Count | None:
        size = count_parameters(model, folder)
        return next((count for count in _counts()[part] if count["parameters"] == size), None)

    base = job.base_model
    captioner = count_model(job.caption.model, job.caption.max_pixels)
    return ModelFlops(
        find("unet", base, "unet"),
        find("vae", base, "vae"),
        find("text_encoder", base, "text_encoder"),
        captioner._asdict() if captioner else find("llava", job.caption.model, ""),
        find("transformer", job.compare.minimax.model, "transformer"),
        find("vae", job.compare.minimax.model, "vae"),
        find(XL.text_encoders[1], base, XL.text_encoders[1]) if expected_family(base).is_xl else None,
    )


def too_long_note(job: Job) -> str:
    """Return a sentence where the captioner would reject usual images for their number of tokens; else "".

    These are photographs, or images of the size of the job's own views where that is smaller.
    """
    settings, side = job.caption, min(job.encode.resolution, job.encode.train_resolution)
    sizes = [(side, side)] if side < min(PHOTO) else [PHOTO, PHOTO[::-1], (max(PHOTO), max(PHOTO))]
    tokens: dict[float, tuple[int, int]] = {}
    for size in sizes if settings.uses_model else ():
        if found := count_model(settings.model, settings.max_pixels, size):
            tokens.setdefault(found.image_tokens + prompt_tokens(settings.prompt), size)
    most = max(tokens, default=0.0)
    if not most >= settings.max_model_len:  # also where it is not known
        return ""
    enough = math.ceil((most + min(settings.max_tokens, _CAPTION_TOKENS)) / 1024) * 1024
    width, height = tokens[most]
    return (
        f"an image of {width} x {height} pixels has about {most:,.0f} tokens for {settings.model}, with the prompt, "
        f"and caption.max_model_len is {settings.max_model_len:,}: such images will be rejected (too_many_tokens); set "
        f"caption.max_model_len={enough} or more"
    )


def prompt_tokens(prompt: str) -> float:
    """Estimate the number of tokens of a prompt, without those of its image."""
    return _CHAT_TOKENS + _TOKENS_PER_WORD * len(prompt.split())


def _weighted_sum(coefficients: Sequence[float], terms: Sequence[float]) -> float:
    return float(sum(c * t for c, t in zip(coefficients, terms, strict=True)))


@cache
def _counts() -> dict[str, Any]:
    counts: dict[str, Any] = json.loads(Path(__file__).with_name("counts.json").read_text(encoding="utf-8"))
    return counts
