"""Knows which changes make the models faster: `python -m vlcp_ray.bench.variants --size real --folder FOLDER`.

Random weights of the paper's sizes (tiny ones without a GPU), each change alone and together, at batches that double
until memory ends or a larger batch gains less than a tenth. A line each: images/s, share of the peak of a large matrix
product, memory. It needs neither data nor downloads.
"""

import argparse
import gc
import json
import sys
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import asdict, dataclass
from functools import partial
from pathlib import Path
from typing import Any, Final

import numpy as np
import pyarrow as pa
import torch
from diffusers.models.attention_processor import AttnProcessor
from PIL import Image

from vlcp_ray import config
from vlcp_ray.bench.prove import most_memory
from vlcp_ray.bench.random_models import Size, llava, stable_diffusion
from vlcp_ray.bench.run import peak
from vlcp_ray.config import Job
from vlcp_ray.cost.loads import TRAINED_PASSES
from vlcp_ray.cost.work import models
from vlcp_ray.models import diffusion
from vlcp_ray.models.captioner import load_captioner
from vlcp_ray.models.shapes import latent_shape
from vlcp_ray.schedule import Schedule
from vlcp_ray.schemas import tensor_array
from vlcp_ray.stages.finetune import Finetune

Change = Callable[[Any], None]
Call = Callable[[], object]

_SIDE: Final[Mapping[str, int]] = {"real": 512, "tiny": 32}
_GAIN: Final = 1.1  # what doubling the batch must bring
_MOST: Final[Mapping[str, int]] = {"cuda": 256, "cpu": 8}
_SECONDS: Final[Mapping[str, float]] = {"cuda": 3.0, "cpu": 0.2}
_ANSWER: Final[Mapping[str, int]] = {"real": 128, "tiny": 8}
_TEXT: Final = "a photograph of a tench, a fish with a long green body"


@dataclass(frozen=True)
class Found:
    """What one variant does at one batch; images/s is None where memory ended."""

    work: str
    variant: str
    batch: int
    images_per_second: float | None
    peak_share: float | None
    gib: float | None


def channels_last(model: Any) -> None:
    """Convolutions as the matrix units like them."""
    model.to(memory_format=torch.channels_last)


def eager_attention(model: Any) -> None:
    """Attention as matrix products, without torch's fused kernel, which diffusers takes by itself."""
    model.set_attn_processor(AttnProcessor())


def bf16(model: Any) -> None:
    """The other half precision."""
    model.to(torch.bfloat16)


def compiled(model: Any) -> None:
    """Fused kernels; the forward pass is replaced in place."""
    model.compile()


def graphed(model: Any) -> None:
    """Fused kernels, launched as CUDA graphs."""
    model.compile(mode="reduce-overhead")


def all_of(*changes: Change) -> Change:
    """One change after the other."""

    def apply(model: Any) -> None:
        for change in changes:
            change(model)

    return apply


#: By name; a change of the precision comes first, compiling last.
CHANGES: Final[Mapping[str, Change]] = {
    "as it is": lambda model: None,
    "bf16": bf16,
    "channels-last": channels_last,
    "eager attention": eager_attention,
    "compile": compiled,
    "CUDA graphs": graphed,
    "channels-last, compile": all_of(channels_last, compiled),
}
_COMPILED: Final = {"compile", "CUDA graphs", "channels-last, compile"}  # minutes each, without a GPU left out


def encode(model: str, side: int, change: Change, device: str) -> tuple[Callable[[int], Call], float]:
    """Pixels to moments: for a batch what to call, and the operations of an image."""
    vae = diffusion.load_vae(model, device)
    change(vae.encoder)
    vae.to(next(vae.encoder.parameters()).dtype)

    def of(batch: int) -> Call:
        pixels = np.random.default_rng(0).uniform(-1, 1, (batch, 3, side, side)).astype(np.float32)
        return lambda: diffusion.encode(vae, pixels)

    return of, _counted(model).encode(latent_shape(model, side)[1]) or 0.0


def train(model: str, side: int, change: Change, device: str) -> tuple[Callable[[int], Call], float]:
    """Steps of fine-tuning with Adam and the moving average; bf16 is autocast's, the weights stay as they are."""
    half = "fp16" if device == "cuda" else "no"
    settings = config.Finetune(mixed_precision="bf16" if change is bf16 else half)
    channels, height, width = latent_shape(model, side)

    def of(batch: int) -> Call:
        learner = Finetune(settings, model, 0, side, batch, device)
        if change is not bf16:
            change(learner.unet)
        drawn = np.random.default_rng(0).normal(size=(batch, 2, 2 * channels, height, width)).astype(np.float16)
        columns = {"image_id": [str(n) for n in range(batch)], "caption": [_TEXT] * batch}
        table = pa.table({**columns, "train_moments": tensor_array(drawn)})
        return lambda: learner.step(table, Schedule(batch, 1, batch, 0).part(0))

    counted = _counted(model)
    passes = TRAINED_PASSES + settings.gradient_checkpointing
    return of, passes * (counted.denoise(height) or 0.0) + (counted.embed() or 0.0)


def draw(model: str, side: int, change: Change, device: str) -> tuple[Callable[[int], Call], float]:
    """Prototypes to images by the paper's 36 calls of the UNet with guidance."""
    pipeline, settings = diffusion.load_pipeline(model, device), config.Generate()
    change(pipeline.unet)
    if change is bf16:
        pipeline.to(torch.bfloat16)
    shape = latent_shape(model, side)

    def of(batch: int) -> Call:
        latents = np.random.default_rng(0).normal(size=(batch, *shape)).astype(np.float32)
        return lambda: diffusion.draw(pipeline, settings, latents, [_TEXT] * batch, list(range(batch)), batch)

    calls = 2 * (int(settings.num_inference_steps * settings.strength) + 1)
    counted = _counted(model)
    return of, calls * (counted.denoise(shape[1]) or 0.0) + (counted.decode(shape[1]) or 0.0)


def describe(model: str, answer: int, device: str) -> tuple[Callable[[int], Call], float]:
    """Photographs to answers of a fixed length, through transformers."""
    settings = config.Caption(engine="transformers", model=model, max_tokens=answer)
    captioner = load_captioner(settings)
    photo = Image.fromarray(np.random.default_rng(0).integers(0, 256, (375, 500, 3)).astype(np.uint8))

    def of(batch: int) -> Call:
        return lambda: captioner.describe([photo] * batch, [config.PROMPT] * batch, list(range(batch)))

    job = Job(name="bench", caption=settings)
    return of, models(job).describe(config.PROMPT, answer) or 0.0


def sweep(
    work: str, variant: str, make: Callable[[], tuple[Callable[[int], Call], float]], device: str, top: float
) -> Iterator[Found]:
    """One variant at batches that double, as long as that pays."""
    of, each = make()
    batch, before = 1, 0.0
    while batch <= _MOST[device]:
        try:
            speed = batch / _seconds(of(batch), device)
        except torch.cuda.OutOfMemoryError:
            yield Found(work, variant, batch, None, None, None)
            return
        yield Found(work, variant, batch, speed, speed * each / top, _memory(device))
        if speed < _GAIN * before:
            return
        batch, before = 2 * batch, speed
        _forget(device)


def variants(size: Size, place: Path, works: Sequence[str], names: Sequence[str]) -> Iterator[Found]:
    """All of them, one after the other."""
    device = diffusion.pick_device()
    top, side = peak("cpu" if device == "cpu" else torch.cuda.get_device_name()), _SIDE[size]
    wanted = [name for name in names or CHANGES if names or device == "cuda" or name not in _COMPILED]
    model = stable_diffusion(size, place)
    for work, make in {"encode": encode, "train": train, "draw": draw}.items():
        for name in wanted if work in works else ():
            change = CHANGES[name]
            yield from sweep(work, name, partial(make, model, side, change, device), device, top)
            _forget(device)
    if "describe" in works:
        told = llava(size, place, device=device)
        yield from sweep("describe", "transformers", partial(describe, told, _ANSWER[size], device), device, top)


def _counted(model: str) -> Any:
    return models(Job(name="bench", base_model=model))


def _seconds(call: Call, device: str) -> float:
    """Of one call, after one that warms up."""
    call()
    _wait(device)
    start, calls = time.perf_counter(), 0
    while time.perf_counter() - start < _SECONDS[device] or not calls:
        call()
        _wait(device)
        calls += 1
    return (time.perf_counter() - start) / calls


def _wait(device: str) -> None:
    if device == "cuda":
        torch.cuda.synchronize()


def _memory(device: str) -> float:
    return torch.cuda.max_memory_allocated() / 2**30 if device == "cuda" else most_memory()


def _forget(device: str) -> None:
    gc.collect()
    if device == "cuda":
        torch.cuda.empty_cache()
        torch.cuda.reset_peak_memory_stats()


def main(argv: Sequence[str] | None = None) -> int:
    """The command line above."""
    works = ("encode", "train", "draw", "describe")
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0] if __doc__ else "")
    parser.add_argument("--size", choices=("real", "tiny"), default="real" if torch.cuda.is_available() else "tiny")
    parser.add_argument("--folder", type=Path, required=True, help="where random weights are written and found again")
    parser.add_argument("--only", choices=works, action="append", help="one kind of work, or several")
    parser.add_argument("--variant", choices=tuple(CHANGES), action="append", help="one change, or several")
    arguments = parser.parse_args(argv)
    size: Size = "real" if arguments.size == "real" else "tiny"
    for found in variants(size, arguments.folder, arguments.only or works, arguments.variant or ()):
        print(json.dumps(asdict(found)), flush=True)
    return 0


if __name__ == "__main__":
    sys.exit(main())
