"""Knows how many operations a job's models take for an image, at any size, from counts made once; loads no library.

`counts.py` counts; here the counts are polynomials in the latent's side and the text's length. A multiplication and an
addition are two operations. A model is known by its number of parameters, whatever folder or hub id it comes from.
"""

import json
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from functools import cache
from pathlib import Path
from typing import Any, Final

from vlcp_ray.config import Job, Network
from vlcp_ray.needs import parameters

TEXT_TOKENS: Final = 77  # of a slice of CLIP's
_DEPTHS: Final[Mapping[Network, int]] = {"ConvNet-3": 3, "ConvNet-4": 4, "ConvNet-5": 5, "ConvNet-6": 6}
_FEATURES: Final = 512  # before the last layer of every ResNet here
_TOKENS_PER_WORD: Final = 1.4  # of a prompt; the chat form around it is some ten more
_CHAT_TOKENS: Final = 10

Count = Mapping[str, Any]


def unet_terms(side: int, tokens: int) -> tuple[float, ...]:
    """What a UNet's operations are a sum of: a step, its pixels, their pairs, pixels by text tokens, text tokens."""
    return 1.0, side**2, side**4, side**2 * tokens, tokens


def side_terms(side: int) -> tuple[float, ...]:
    """What a VAE's operations are a sum of, for a latent of side x side."""
    return 1.0, side**2, side**4


def pair_terms(tokens: int) -> tuple[float, ...]:
    """What a language model's operations are a sum of: tokens, and the pairs that attention looks at."""
    return tokens, tokens**2


@dataclass(frozen=True)
class Models:
    """The counts of a job's models; one that was never counted is None, and so is what it does."""

    unet: Count | None
    vae: Count | None
    text: Count | None
    llava: Count | None

    def denoise(self, side: int, slices: int = 1) -> float | None:
        """One forward pass of the UNet over a latent of side x side under a text of so many slices of 77 ids."""
        return None if self.unet is None else _sum(self.unet["forward"], unet_terms(side, slices * TEXT_TOKENS))

    def encode(self, side: int) -> float | None:
        """An image to the moments of its latent of side x side."""
        return None if self.vae is None else _sum(self.vae["encode"], side_terms(side))

    def decode(self, side: int) -> float | None:
        """A latent of side x side to an image."""
        return None if self.vae is None else _sum(self.vae["decode"], side_terms(side))

    def embed(self, slices: int = 1) -> float | None:
        """A text of so many slices."""
        return None if self.text is None else slices * float(self.text["slice"])

    def describe(self, prompt: str, answer: float) -> float | None:
        """An image and a prompt to an answer of so many tokens; each of them looks back at all before it."""
        if self.llava is None:
            return None
        count, read = self.llava, self.llava["image_tokens"] + prompt_tokens(prompt)
        looked = read**2 + answer * (read + answer / 2)
        return float(
            count["image"] + (read + answer) * count["token"] + looked * count["pair"] + answer * count["head"]
        )


def models(job: Job) -> Models:
    """The counts of a job's models, of the paper's and the demo's."""

    def find(part: str, model: str, folder: str) -> Count | None:
        size = parameters(model, folder)
        return next((count for count in _counts()[part] if count["parameters"] == size), None)

    base = job.base_model
    return Models(
        find("unet", base, "unet"),
        find("vae", base, "vae"),
        find("text_encoder", base, "text_encoder"),
        find("llava", job.caption.model, ""),
    )


def prompt_tokens(prompt: str) -> float:
    """About how many tokens a prompt has beside its image."""
    return _CHAT_TOKENS + _TOKENS_PER_WORD * len(prompt.split())


def classify(network: Network, size: int, width: int, classes: int) -> float:
    """One forward pass over an image of size x size pixels."""
    if network not in _DEPTHS:
        return float(_counts()["networks"][network]) * size**2 + 2 * _FEATURES * classes
    depth = _DEPTHS[network]
    sides = [size // 2**level for level in range(depth + 1)]
    channels = [3] + [width] * depth
    convolutions = sum(2 * 9 * channels[n] * width * sides[n] ** 2 for n in range(depth))
    return float(convolutions + 2 * width * sides[depth] ** 2 * classes)


def _sum(coefficients: Sequence[float], terms: Sequence[float]) -> float:
    return float(sum(c * t for c, t in zip(coefficients, terms, strict=True)))


@cache
def _counts() -> dict[str, Any]:
    found: dict[str, Any] = json.loads(Path(__file__).with_name("counts.json").read_text(encoding="utf-8"))
    return found
