"""Check real models against the forecast of `plan`: `python -m tests.benchmarks.prove --size real --folder FOLDER`.

One image is encoded, one training step is taken with its moving average (EMA), and one image is generated in a few
steps. Each uses the stage's own class with random weights, in a process of its own whose peak memory is read at its
end.
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

from vlcp_ray.bench.measure import peak_gib
from vlcp_ray.config import Encode, Finetune, Generate, Job
from vlcp_ray.cost.requirements import requirements
from vlcp_ray.pipeline import graph
from vlcp_ray.scale import FinetunePool

_GIB: Final = 2**30
_STEPS: Final = 3  # of denoising
_SIDE: Final[Mapping[str, int]] = {"real": 512, "tiny": 32}
_PROMPT: Final = "a photograph of a tench"


def encode(model: str, side: int) -> dict[str, Any]:
    """Encode one image to its latent and moments."""
    from vlcp_ray import images, schemas
    from vlcp_ray.stages.pair.encode import EncodeRows

    encode_rows = EncodeRows(Encode(resolution=side, train_resolution=side), model, 1)
    pixels = np.random.default_rng(0).integers(0, 256, (side * 3 // 4, side, 3)).astype(np.uint8)
    table = pa.table({"image_id": ["one"], "image": [images.encode_png(pixels)]})
    start = time.perf_counter()
    encoded = encode_rows(table)
    seconds = time.perf_counter() - start
    shapes = {name: list(schemas.tensors(encoded[name]).shape) for name in ("latent", "train_moments")}
    finite = bool(np.isfinite(schemas.tensors(encoded["latent"]).astype(np.float32)).all())
    return {"seconds": seconds, **shapes, "dtype": str(encode_rows.vae.dtype), "finite": finite}


def finetune(model: str, side: int) -> dict[str, Any]:
    """Take one optimiser step on one image, with gradient checkpointing, Adam and the moving average (EMA)."""
    from vlcp_ray import schemas
    from vlcp_ray.models.pretrained import latent_shape
    from vlcp_ray.models.stable_diffusion import pick_device
    from vlcp_ray.stages.finetune.batches import Schedule
    from vlcp_ray.stages.finetune.trainer import Trainer

    device = pick_device()
    settings = Finetune(mixed_precision="fp16" if device == "cuda" else "no", batch_size=1, epochs=1)
    trainer = Trainer(settings, model, 0, side, FinetunePool(batch_size=1), device)
    channels, height, width = latent_shape(model, side)
    moments = np.random.default_rng(0).normal(size=(1, 2, 2 * channels, height, width)).astype(np.float16)
    columns = {"image_id": ["one"], "caption": [_PROMPT], "train_moments": schemas.tensor_array(moments)}
    weight = next(iter(trainer.unet.parameters()))
    before = weight.detach().clone()
    start = time.perf_counter()
    inputs = trainer.prepare(pa.table(columns), Schedule(1, 1, 1, 0).rank_batch(0))
    loss = trainer.step(inputs).item()
    seconds = time.perf_counter() - start
    moved = float((weight.detach() - before).abs().max())
    dtypes = {"weight": trainer.unet.dtype, "moving average": trainer.ema.weights[0].dtype}
    dtypes |= {name: value.dtype for name, value in trainer.optimizer.state[weight].items() if value.ndim}
    return {"seconds": seconds, "loss": loss, "moved": moved, "dtypes": {n: str(d) for n, d in dtypes.items()}}


def generate(model: str, side: int) -> dict[str, Any]:
    """Generate one image from one prototype, in three denoising steps with guidance."""
    from vlcp_ray import images, schemas
    from vlcp_ray.models.pretrained import latent_shape
    from vlcp_ray.stages.generate.img2img import Img2Img

    # PNDM calls the UNet once more than there are steps.
    settings = Generate(num_inference_steps=_STEPS - 1, strength=1.0, image_size=side)
    img2img = Img2Img(settings, model, 1)
    latents = np.random.default_rng(0).normal(size=(1, *latent_shape(model, side))).astype(np.float32)
    columns = {"prototype_id": ["0000-0000"], "label": [0], "class_name": ["tench"], "seed": [0], "text": [_PROMPT]}
    start = time.perf_counter()
    synthetic = img2img(pa.table({**columns, "latent": schemas.tensor_array(latents)}))
    seconds = time.perf_counter() - start
    image = images.decode(synthetic["image"][0].as_py())
    dtype = str(img2img.pipeline.unet.dtype)
    return {"seconds": seconds, "image": [*image.size, len(image.getbands())], "dtype": dtype}


_WORKS: Final[Mapping[str, Callable[[str, int], dict[str, Any]]]] = {
    "encode": encode,
    "finetune": finetune,
    "generate": generate,
}
_FORECASTS: Final[Mapping[str, str]] = {"finetune": "fine-tune", "generate": "generate"}


def prove(size: str, folder: Path, works: list[str]) -> Iterator[dict[str, Any]]:
    """Do each kind of work in a process of its own, one after the other, and yield its results.

    Args:
        size: real or tiny.
        folder: where the random weights are written, and found again by a later call.

    Raises:
        RuntimeError: a process failed; the message ends with its error.
    """
    from vlcp_ray.bench.random_models import stable_diffusion

    model = stable_diffusion("real" if size == "real" else "tiny", folder)
    job = Job(name="proof", base_model=model)
    forecast = requirements(job, graph(job)).memory
    for work in works:
        command = [sys.executable, "-m", "tests.benchmarks.prove", "--one", work, "--model", model, "--size", size]
        process = subprocess.run(command, capture_output=True, text=True, check=False)
        if process.returncode:
            raise RuntimeError(f"{work} failed: {process.stderr.strip()[-2000:]}")
        result = json.loads(process.stdout.strip().rpartition("\n")[2])
        yield {"work": work, **result, "forecast_gib": forecast.get(_FORECASTS.get(work, ""))}


def _prove_one(work: str, model: str, size: str) -> dict[str, Any]:
    import torch

    result = _WORKS[work](model, _SIDE[size])
    if torch.cuda.is_available():
        return result | {"gpu_gib": torch.cuda.max_memory_allocated() / _GIB}
    return result | {"process_gib": peak_gib()}


def main() -> int:
    """Run the command line above, and return its exit code."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0] if __doc__ else "")
    parser.add_argument("--size", choices=("real", "tiny"), default="tiny")
    parser.add_argument("--folder", type=Path, help="where the random weights are written, and found again")
    parser.add_argument("--only", choices=tuple(_WORKS), action="append", help="one kind of work, or several")
    parser.add_argument("--one", choices=tuple(_WORKS), help=argparse.SUPPRESS)
    parser.add_argument("--model", help=argparse.SUPPRESS)
    arguments = parser.parse_args()
    if arguments.one:
        print(json.dumps(_prove_one(arguments.one, arguments.model, arguments.size)))
        return 0
    if not arguments.folder:
        parser.error("--folder is missing: name a folder for the random weights")
    for result in prove(arguments.size, arguments.folder, arguments.only or list(_WORKS)):
        print(json.dumps(result), flush=True)
    return 0


if __name__ == "__main__":
    sys.exit(main())
