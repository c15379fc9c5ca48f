"""Estimate the GPU memory of a job's models, and refuse a job whose models do not fit, before anything starts.

The coefficients in memory.json were counted by `count_memory.py`. A model is recognised by its number of parameters.
"""

import json
import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from functools import cache
from pathlib import Path
from typing import Any, Final

from vlcp_ray.config import Job
from vlcp_ray.cost.captioners import Count, count_model
from vlcp_ray.cost.gpus import GPUS
from vlcp_ray.models.families import XL
from vlcp_ray.models.networks import NETWORKS, OWN, Norm
from vlcp_ray.models.pretrained import count_parameters, expected_family
from vlcp_ray.scale import CONTEXT_GIB, USABLE, FinetunePool, Pool, Scale
from vlcp_ray.settings import ConfigError
from vlcp_ray.stages import STAGES
from vlcp_ray.stages.pair import VLLM_SHARE
from vlcp_ray.stages.stage import Memory

GIB: Final = 2**30
_HALF, _FULL = 2, 4  # bytes of a number
#: Channels of the ConvNets that were counted.
CONV_WIDTH: Final = 128
_PARTS: Final = ("unet", "vae", *XL.text_encoders)


_NOT_COUNTED: Final = {"recomputed": (math.nan, math.nan), "kept": (math.nan, math.nan)}
#: The counts of a model that was never counted.
_UNKNOWN: Final[Mapping[str, Any]] = {
    **dict.fromkeys(("denoise", "weights", "encode", "decode", "linear", "token"), math.nan),
    **_NOT_COUNTED,
    "lora": {"width": math.nan, **_NOT_COUNTED},
}


@dataclass(frozen=True)
class ModelMemory:
    """GiB that the models of a job need; NaN for a model that was never counted.

    Args:
        parameters: by part: unet, vae, text_encoder, text_encoder_2 (0 but for XL), llava, transformer (the DiT),
            dit_vae; None where unknown.
    """

    parameters: Mapping[str, int | None]
    #: Of a captioner that is counted from its config.
    captioner: Count | None = None

    @property
    def _vae_factor(self) -> int:
        """How many times the bytes of half precision the VAE needs: that of XL computes in float32."""
        return 1 if self.parameters[XL.text_encoders[1]] == 0 else 2

    @classmethod
    def for_job(cls, job: Job) -> "ModelMemory":
        """Look up the models of a job."""
        used = ("unet", "vae", *expected_family(job.base_model).text_encoders)
        parts = {part: count_parameters(job.base_model, part) if part in used else 0 for part in _PARTS}
        dit = job.compare.minimax.model
        parts |= {"transformer": count_parameters(dit, "transformer"), "dit_vae": count_parameters(dit, "vae")}
        captioner = count_model(job.caption.model, job.caption.max_pixels)
        return cls(parts | {"llava": count_parameters(job.caption.model, "")}, captioner)

    def encode(self, images: int, side: int) -> float:
        """GiB of the VAE when it encodes images to latents of side x side."""
        return float(self._vae_factor * (self._weights("vae") + images * side**2 * self._count("vae", "encode") / GIB))

    def generate(self, images: int, side: int, guided: bool) -> float:
        """GiB of the pipeline when it generates images from latents of side x side."""
        denoise = (1 + guided) * self._count("unet", "denoise")
        image = max(denoise, self._vae_factor * self._count("vae", "decode"))
        weights = sum(map(self._weights, _PARTS)) + (self._vae_factor - 1) * self._weights("vae")
        return float(weights + images * side**2 * image / GIB)

    def train(self, pool: FinetunePool, images: int, side: int, precision: str = "fp16", rank: int = 0) -> float:
        """GiB of a rank that takes training steps on images with latents of side x side; in float32 these double.

        Args:
            pool: what saves memory.
            images: in one forward pass.
            side: of the latents.
            precision: of the forward pass: fp16, bf16 or no.
            rank: of LoRA's matrices; 0: all weights of the UNet are trained.
        """
        counts = self._count("unet", "lora") if rank else self._find("unet")
        fixed, image = counts["recomputed" if pool.gradient_checkpointing else "kept"]
        factor = 2 if precision == "no" else 1
        return self._trained(pool, precision, rank) + float(fixed + factor * images * side**2 * image) / GIB

    def validate(self, pool: FinetunePool, side: int, guided: bool, precision: str = "fp16", rank: int = 0) -> float:
        """GiB of a rank that generates a validation image, beside what it trains; one of several keeps its gradients.

        Args:
            guided: whether with classifier-free guidance.
            pool, side, precision, rank: as in `train`.
        """
        factor = 2 if precision == "no" else 1
        decoding = max(factor, self._vae_factor)
        image = max(factor * (1 + guided) * self._count("unet", "denoise"), decoding * self._count("vae", "decode"))
        gradients = _FULL * self._trained_weights(rank) if pool.num_workers > 1 else 0.0
        return float(
            self._trained(pool, precision, rank) + decoding * self._weights("vae") + (gradients + side**2 * image) / GIB
        )

    def _trained_weights(self, rank: int) -> float:
        return float(rank * self._count("unet", "lora")["width"] if rank else self._size("unet"))

    def _trained(self, pool: FinetunePool, precision: str, rank: int) -> float:
        """GiB of what a rank holds all the time: UNet, moments, moving average and text encoders."""
        factor = 2 if precision == "no" else 1
        frozen = factor * _HALF * self._size("unet") if rank else 0.0
        moments = 2 * _FULL if pool.optimizer == "adamw" else 2
        state = self._trained_weights(rank) * (_FULL + moments + (_FULL if pool.average_on == "gpu" else 0))
        return float(factor * sum(map(self._weights, XL.text_encoders)) + (frozen + state) / GIB)

    def generate_by_dit(self, images: int, side: int, guided: bool) -> float:
        """GiB of the DiT, in float32, and its VAE when they generate images from latents of side x side."""
        fixed = self._count("transformer", "weights") + _HALF * self._size("dit_vae")
        image = max((1 + guided) * self._count("transformer", "denoise"), self._count("vae", "decode", "dit_vae"))
        return float(fixed + images * side**2 * image) / GIB

    def train_dit(self, recomputes: bool, images: int, side: int) -> float:
        """GiB of a rank that trains DiffFit's weights of the DiT on images with latents of side x side."""
        fixed, image = self._count("transformer", "recomputed" if recomputes else "kept")
        return float(fixed + images * side**2 * image) / GIB

    def caption(self, eight_bit: bool, tokens: int) -> float:
        """GiB of the captioner and of the keys and values of one image with `tokens` tokens in all."""
        if self.captioner:
            linear, half, token = self.captioner.linear, self.captioner.parameters, self.captioner.token_bytes
        else:
            linear, half, token = self._count("llava", "linear"), self._size("llava"), self._count("llava", "token")
        weights = linear + _HALF * (half - linear) if eight_bit else _HALF * half
        return float(weights + tokens * token) / GIB

    def recover(self, network: str, width: int, side: int, images: int) -> float:
        """GiB of a step of sre2l on images of side x side pixels, through a network with batch norm."""
        return float(images * side**2 * self._classifier(network, width, side, "batch", "recover") / GIB)

    def match(self, network: str, width: int, side: int, real: int, made: int) -> float:
        """GiB of a step of idc on real, then on synthetic images of side x side pixels, through a network."""
        one, other = (self._classifier(network, width, side, "instance", "match", place) for place in (0, 1))
        return float(max(real * one, made * other) * side**2 / GIB)

    def _classifier(self, name: str, width: int, side: int, norm: Norm, use: str, place: int | None = None) -> float:
        """Return the bytes of an image and pixel, NaN for a network of torchvision; a ConvNet's grow with its width."""
        if name not in OWN:
            return math.nan
        network = NETWORKS[name]
        by_stem = next(count for count in _counts()["classifiers"] if count["name"] == name)[use]
        count = by_stem["any" if network.poolings else network.stem(side, norm)]
        return float((count if place is None else count[place]) * (width / CONV_WIDTH if network.poolings else 1.0))

    def _size(self, part: str) -> float:
        size = self.parameters[part]
        return math.nan if size is None else size

    def _weights(self, part: str) -> float:
        return _HALF * self._size(part) / GIB

    def _find(self, part: str, of: str = "") -> Mapping[str, Any]:
        """Look up the counts of a part, for the model that is the part `of`, by default the same; else NaN of all."""
        found = (count for count in _counts()[part] if count["parameters"] == self.parameters[of or part])
        return next(found, _UNKNOWN)

    def _count(self, part: str, name: str, of: str = "") -> Any:
        return self._find(part, of).get(name, _UNKNOWN[name])


def memory_needs(job: Job, stages: Sequence[str], scale: Scale) -> list[Memory]:
    """List what the models of these stages need on a GPU, in the order of the stages."""
    models = ModelMemory.for_job(job)
    needs = [need for name in STAGES if name in stages for need in STAGES[name].memory(job, models, scale)]
    return [need for need in needs if _pool(scale, need).num_gpus]


def check_memory(job: Job, stages: Sequence[str], scale: Scale, gib: float | None = None) -> None:
    """Refuse a job whose models do not fit, even with one image at a time.

    Args:
        stages: their names.
        gib: memory of the smallest GPU, where the scale says neither it nor a known kind; None: nothing is refused.

    Raises:
        ConfigError: names the setting, what it needs and what helps.
    """
    size = scale.memory_of_gpu or (GPUS[scale.gpu].gib if scale.gpu in GPUS else gib)
    if size is None:
        return
    models = ModelMemory.for_job(job)
    for name in stages:
        needs = [need for need in STAGES[name].memory(job, models, scale) if _pool(scale, need).num_gpus]
        shared = sum(need.least + CONTEXT_GIB for need in needs if _pool(scale, need).num_gpus < 1)
        for need in needs:
            share = min(1.0, _pool(scale, need).num_gpus)
            available = VLLM_SHARE * share * size if need.is_limited else USABLE * share * size - CONTEXT_GIB
            if need.least > available and (need.is_limited or share == 1 or shared > USABLE * size):
                raise ConfigError(
                    f"{need.setting} needs {need.least:.1f} GiB of GPU memory, and has {max(0.0, available):.1f} of "
                    f"{share:.0%} of a GPU of {size:.0f} GiB; {need.fix}"
                )


def _pool(scale: Scale, need: Memory) -> Pool:
    pool: Pool = getattr(scale, need.pool)
    return pool


@cache
def _counts() -> dict[str, Any]:
    counts: dict[str, Any] = json.loads(Path(__file__).with_name("memory.json").read_text(encoding="utf-8"))
    return counts
