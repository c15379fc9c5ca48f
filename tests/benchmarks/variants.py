"""Measure which changes make the models faster: `python -m tests.benchmarks.variants --size real --folder FOLDER`.

The models have random weights of the paper's sizes, or tiny ones without a GPU, so that neither data nor downloads are
needed. Each change is measured alone, and some together, at batch sizes that double until memory ends or the gain is
less than a tenth. Each line has images/s, the share of the peak of a large matrix product, and memory.
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

from vlcp_ray.bench.measure import peak_gib
from vlcp_ray.bench.random_models import Size, llava, stable_diffusion
from vlcp_ray.bench.run import peak
from vlcp_ray.config import Caption, Encode, Finetune, Generate, Job
from vlcp_ray.cost.flops import ModelFlops, model_flops
from vlcp_ray.models import stable_diffusion as diffusion
from vlcp_ray.models.batches import Batches
from vlcp_ray.models.captioners import load_captioner
from vlcp_ray.models.pretrained import latent_shape
from vlcp_ray.scale import FinetunePool
from vlcp_ray.schemas import tensor_array
from vlcp_ray.stages.finetune import training_flops
from vlcp_ray.stages.finetune.batches import Schedule
from vlcp_ray.stages.finetune.trainer import Trainer
from vlcp_ray.stages.generate import image_flops

Change = Callable[[Any], None]
Call = Callable[[], object]
MakeCall = Callable[[int], Call]  # for a batch size

SIDE: Final[Mapping[str, int]] = {"real": 512, "tiny": 32}
_GAIN: Final = 1.1  # the least speed-up for which the batch is doubled again
_MAX_BATCH: Final[Mapping[str, int]] = {"cuda": 256, "cpu": 8}
_SECONDS: Final[Mapping[str, float]] = {"cuda": 3.0, "cpu": 0.2}
_ANSWER_TOKENS: Final[Mapping[str, int]] = {"real": 128, "tiny": 8}
TEXT: Final = "a photograph of a tench, a fish with a long green body"


@dataclass(frozen=True)
class Measurement:
    """One variant at one batch size; the figures are None where memory ended."""

    work: str
    variant: str
    batch: int
    images_per_second: float | None
    peak_share: float | None
    gib: float | None


def channels_last(model: Any) -> None:
    """Store convolutions in the memory format that matrix units are fastest with."""
    model.to(memory_format=torch.channels_last)


def eager_attention(model: Any) -> None:
    """Compute attention by matrix products instead of torch's fused kernel, the default of diffusers."""
    model.set_attn_processor(AttnProcessor())


def bf16(model: Any) -> None:
    """Convert to bfloat16 instead of float16."""
    model.to(torch.bfloat16)


def compiled(model: Any) -> None:
    """Compile the forward pass to fused kernels, in place."""
    model.compile()


def graphed(model: Any) -> None:
    """Compile the forward pass to fused kernels that are launched as CUDA graphs."""
    model.compile(mode="reduce-overhead")


def all_of(*changes: Change) -> Change:
    """Combine changes, in this order."""

    def apply(model: Any) -> None:
        for change in changes:
            change(model)

    return apply


#: By name. In a combination a change of precision comes first and compilation last.
CHANGES: Final[Mapping[str, Change]] = {
    "as it is": lambda model: None,
    "bf16": bf16,
    "channels-last": channels_last,
    "eager attention": eager_attention,
    "compile": compiled,
    "CUDA graphs": graphed,
    "channels-last, compile": all_of(channels_last, compiled),
}
_COMPILED: Final = {
    "compile",
    "CUDA graphs",
    "channels-last, compile",
}  # take minutes each; without a GPU they are left out


def encode(model: str, side: int, change: Change, device: str) -> tuple[MakeCall, float]:
    """Encode images to moments.

    Returns:
        A function that makes the call for a batch size, and the operations of one image; so do the functions below.
    """
    vae = diffusion.load_vae(model, device)
    change(vae.encoder)
    vae.to(next(vae.encoder.parameters()).dtype)

    def make_call(batch: int) -> Call:
        pixels = np.random.default_rng(0).integers(0, 256, (batch, side, side, 3), dtype=np.uint8)
        return lambda: diffusion.encode(vae, pixels).cpu()

    return make_call, _flops(model).encode(latent_shape(model, side)[1])


def train(model: str, side: int, change: Change, device: str) -> tuple[MakeCall, float]:
    """Take fine-tuning steps with Adam and the moving average (EMA); the change bf16 sets the precision of autocast."""
    half = "fp16" if device == "cuda" else "no"
    settings = Finetune(mixed_precision="bf16" if change is bf16 else half)
    channels, height, width = latent_shape(model, side)

    def make_call(batch: int) -> Call:
        trainer = Trainer(settings, model, 0, side, FinetunePool(batch_size=batch), device)
        if change is not bf16:
            change(trainer.unet)
        moments = np.random.default_rng(0).normal(size=(batch, 2, 2 * channels, height, width)).astype(np.float16)
        columns = {"image_id": [str(n) for n in range(batch)], "caption": [TEXT] * batch}
        table = pa.table({**columns, "train_moments": tensor_array(moments)})
        rank_batch = Schedule(batch, 1, batch, 0).rank_batch(0)
        return lambda: trainer.step(trainer.prepare(table, rank_batch)).item()

    job = Job(name="bench", base_model=model, finetune=settings, encode=Encode(resolution=side, train_resolution=side))
    return make_call, training_flops(job, _flops(model), gradient_checkpointing=True)


def generate(model: str, side: int, change: Change, device: str) -> tuple[MakeCall, float]:
    """Generate images from prototypes by the paper's 36 calls of the UNet with guidance."""
    pipeline, settings = diffusion.load_pipeline(model, device), Generate()
    change(pipeline.unet)
    if change is bf16:
        pipeline.to(torch.bfloat16)
    shape = latent_shape(model, side)

    def make_call(batch: int) -> Call:
        latents = np.random.default_rng(0).normal(size=(batch, *shape)).astype(np.float32)
        return lambda: diffusion.img2img(
            pipeline, settings, latents, [TEXT] * batch, list(range(batch)), Batches(batch, "")
        )

    return make_call, image_flops(settings, _flops(model), shape[1])


def caption(model: str, answer_tokens: int, device: str) -> tuple[MakeCall, float]:
    """Caption images of a photograph's size through transformers, in a fixed number of tokens."""
    settings = Caption(engine="transformers", model=model, max_tokens=answer_tokens)
    captioner = load_captioner(settings)
    photo = Image.fromarray(np.random.default_rng(0).integers(0, 256, (375, 500, 3)).astype(np.uint8))

    def make_call(batch: int) -> Call:
        return lambda: captioner.caption([photo] * batch, [settings.prompt] * batch, list(range(batch)))

    job = Job(name="bench", caption=settings)
    return make_call, model_flops(job).caption(settings.prompt, answer_tokens)


def sweep(
    work: str, variant: str, make: Callable[[], tuple[MakeCall, float]], device: str, peak_flops: float
) -> Iterator[Measurement]:
    """Measure one variant at batch sizes that double as long as the gain is a tenth or more."""
    make_call, flops = make()
    batch, before = 1, 0.0
    while batch <= _MAX_BATCH[device]:
        try:
            speed = batch / seconds_per_call(make_call(batch), device)
        except torch.cuda.OutOfMemoryError:
            yield Measurement(work, variant, batch, None, None, None)
            return
        yield Measurement(work, variant, batch, speed, speed * flops / peak_flops, peak_memory(device))
        if speed < _GAIN * before:
            return
        batch, before = 2 * batch, speed
        free_memory(device)


def variants(size: Size, folder: Path, works: Sequence[str], names: Sequence[str]) -> Iterator[Measurement]:
    """Measure all kinds of work under all changes, one after the other."""
    device = diffusion.pick_device()
    peak_flops, side = peak("cpu" if device == "cpu" else torch.cuda.get_device_name()), SIDE[size]
    wanted = [name for name in names or CHANGES if names or device == "cuda" or name not in _COMPILED]
    model = stable_diffusion(size, folder)
    for work, make in {"encode": encode, "train": train, "generate": generate}.items():
        for name in wanted if work in works else ():
            change = CHANGES[name]
            yield from sweep(work, name, partial(make, model, side, change, device), device, peak_flops)
            free_memory(device)
    if "caption" in works:
        captioner = llava(size, folder, device=device)
        make = partial(caption, captioner, _ANSWER_TOKENS[size], device)
        yield from sweep("caption", "transformers", make, device, peak_flops)


def _flops(model: str) -> ModelFlops:
    return model_flops(Job(name="bench", base_model=model))


def seconds_per_call(call: Call, device: str) -> float:
    """Measure the seconds of one call, after one call to warm up."""
    call()
    wait(device)
    start, calls = time.perf_counter(), 0
    while time.perf_counter() - start < _SECONDS[device] or not calls:
        call()
        wait(device)
        calls += 1
    return (time.perf_counter() - start) / calls


def wait(device: str) -> None:
    if device == "cuda":
        torch.cuda.synchronize()


def peak_memory(device: str) -> float:
    return torch.cuda.max_memory_allocated() / 2**30 if device == "cuda" else peak_gib()


def free_memory(device: str) -> None:
    gc.collect()
    if device == "cuda":
        torch.cuda.empty_cache()
        torch.cuda.reset_peak_memory_stats()


def main(argv: Sequence[str] | None = None) -> int:
    """Run the command line above, and return its exit code."""
    works = ("encode", "train", "generate", "caption")
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0] if __doc__ else "")
    parser.add_argument("--size", choices=("real", "tiny"), default="real" if torch.cuda.is_available() else "tiny")
    parser.add_argument(
        "--folder", type=Path, required=True, help="where the random weights are written, and found again"
    )
    parser.add_argument("--only", choices=works, action="append", help="one kind of work, or several")
    parser.add_argument("--variant", choices=tuple(CHANGES), action="append", help="one change, or several")
    arguments = parser.parse_args(argv)
    size: Size = "real" if arguments.size == "real" else "tiny"
    for measurement in variants(size, arguments.folder, arguments.only or works, arguments.variant or ()):
        print(json.dumps(asdict(measurement)), flush=True)
    return 0


if __name__ == "__main__":
    sys.exit(main())
