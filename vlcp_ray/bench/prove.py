"""Knows whether the real models do what `plan` forecasts: `python -m vlcp_ray.bench.prove --size real --folder FOLDER`.

One image is encoded, one training step is taken with its moving average, and a latent is drawn in a few steps, each
through the stage's own class, with random weights, in a process of its own whose most memory is read at its end.
"""

import argparse
import json
import subprocess
import sys
import time
from collections.abc import Callable, Iterator, Mapping
from pathlib import Path
from typing import Any, Final

import numpy as np
import pyarrow as pa

from vlcp_ray import config
from vlcp_ray.config import Job
from vlcp_ray.needs import needs
from vlcp_ray.pipeline import graph

_GIB: Final = 2**30
_STEPS: Final = 3  # of denoising
_SIDE: Final[Mapping[str, int]] = {"real": 512, "tiny": 32}
_PROMPT: Final = "a photograph of a tench"


def encode(model: str, side: int) -> dict[str, Any]:
    """One photograph to its latent and moments, by the stage."""
    from vlcp_ray import images, schemas
    from vlcp_ray.stages.encode import Encode

    stage = Encode(config.Encode(resolution=side, train_resolution=side), model, 1)
    pixels = np.random.default_rng(0).integers(0, 256, (side * 3 // 4, side, 3)).astype(np.uint8)
    table = pa.table({"image_id": ["one"], "image": [images.encode_png(pixels)]})
    start = time.perf_counter()
    made = stage(table)
    seconds = time.perf_counter() - start
    shapes = {name: list(schemas.tensors(made[name]).shape) for name in ("latent", "train_moments")}
    finite = bool(np.isfinite(schemas.tensors(made["latent"]).astype(np.float32)).all())
    return {"seconds": seconds, **shapes, "dtype": str(stage.vae.dtype), "finite": finite}


def finetune(model: str, side: int) -> dict[str, Any]:
    """One optimiser step of one image, with gradient checkpointing, Adam and the moving average, by the stage."""
    from vlcp_ray import schemas
    from vlcp_ray.models.diffusion import pick_device
    from vlcp_ray.models.shapes import latent_shape
    from vlcp_ray.schedule import Schedule
    from vlcp_ray.stages.finetune import Finetune

    device = pick_device()
    settings = config.Finetune(mixed_precision="fp16" if device == "cuda" else "no", batch_size=1, epochs=1)
    learner = Finetune(settings, model, 0, side, 1, device)
    channels, height, width = latent_shape(model, side)
    drawn = np.random.default_rng(0).normal(size=(1, 2, 2 * channels, height, width)).astype(np.float16)
    moments = schemas.tensor_array(drawn)
    table = pa.table({"image_id": ["one"], "caption": [_PROMPT], "train_moments": moments})
    first = next(iter(learner.unet.parameters()))
    before = first.detach().clone()
    start = time.perf_counter()
    loss = learner.step(table, Schedule(1, 1, 1, 0).part(0))
    seconds = time.perf_counter() - start
    moved = float((first.detach() - before).abs().max())
    kept = {"weight": learner.unet.dtype, "moving average": learner.ema.shadow_params[0].dtype}
    kept |= {name: value.dtype for name, value in learner.optimizer.state[first].items() if value.ndim}
    return {"seconds": seconds, "loss": loss, "moved": moved, "dtypes": {n: str(d) for n, d in kept.items()}}


def generate(model: str, side: int) -> dict[str, Any]:
    """One prototype to an image, in three denoising steps with guidance, by the stage."""
    from vlcp_ray import images, schemas
    from vlcp_ray.models.shapes import latent_shape
    from vlcp_ray.stages.generate import Generate

    # PNDM calls the UNet once more than there are steps.
    settings = config.Generate(num_inference_steps=_STEPS - 1, strength=1.0, image_size=side)
    stage = Generate(settings, model, 1)
    latents = np.random.default_rng(0).normal(size=(1, *latent_shape(model, side))).astype(np.float32)
    row = {"prototype_id": ["0000-0000"], "seed": [0], "text": [_PROMPT], "latent": schemas.tensor_array(latents)}
    start = time.perf_counter()
    made = stage(pa.table(row))
    seconds = time.perf_counter() - start
    drawn = images.decode(made["image"][0].as_py())
    return {"seconds": seconds, "image": [*drawn.size, len(drawn.getbands())], "dtype": str(stage.pipeline.unet.dtype)}


_WORKS: Final[Mapping[str, Callable[[str, int], dict[str, Any]]]] = {
    "encode": encode,
    "finetune": finetune,
    "generate": generate,
}
_FORECASTS: Final[Mapping[str, str]] = {"finetune": "fine-tune", "generate": "generate"}


def prove(size: str, place: Path, works: list[str]) -> Iterator[dict[str, Any]]:
    """What came out of each kind of work, one process after the other."""
    from vlcp_ray.bench.random_models import stable_diffusion

    model = stable_diffusion("real" if size == "real" else "tiny", place)
    job = Job(name="proof", base_model=model)
    forecast = needs(job, graph(job)).gpu
    for work in works:
        command = [sys.executable, "-m", __spec__.name if __spec__ else "", "--one", work, "--model", model]
        done = subprocess.run([*command, "--size", size], capture_output=True, text=True, check=False)  # noqa: S603
        if done.returncode:
            raise RuntimeError(f"{work}: {done.stderr.strip()[-2000:]}")
        found = json.loads(done.stdout.strip().rpartition("\n")[2])
        yield {"work": work, **found, "forecast_gib": forecast.get(_FORECASTS.get(work, ""))}


def _one(work: str, model: str, size: str) -> dict[str, Any]:
    import torch

    found = _WORKS[work](model, _SIDE[size])
    if torch.cuda.is_available():
        return found | {"gpu_gib": torch.cuda.max_memory_allocated() / _GIB}
    return found | {"process_gib": most_memory()}


def most_memory() -> float:
    """GiB that this process held at its most (VmHWM of Linux)."""
    status = Path("/proc/self/status").read_text(encoding="ascii")
    return next(int(line.split()[1]) for line in status.splitlines() if line.startswith("VmHWM")) / 2**20


def main() -> int:
    """The command line above."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0] if __doc__ else "")
    parser.add_argument("--size", choices=("real", "tiny"), default="tiny")
    parser.add_argument("--folder", type=Path, help="where the random weights are written and found again")
    parser.add_argument("--only", choices=tuple(_WORKS), action="append", help="one kind of work, or several")
    parser.add_argument("--one", choices=tuple(_WORKS), help=argparse.SUPPRESS)
    parser.add_argument("--model", help=argparse.SUPPRESS)
    arguments = parser.parse_args()
    if arguments.one:
        print(json.dumps(_one(arguments.one, arguments.model, arguments.size)))
        return 0
    for found in prove(arguments.size, arguments.folder, arguments.only or list(_WORKS)):
        print(json.dumps(found), flush=True)
    return 0


if __name__ == "__main__":
    sys.exit(main())
