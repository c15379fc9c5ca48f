"""Knows how each kind of work is measured, in a process that has just begun: `python -m vlcp_ray.bench.works`.

It reads a JSON of the job, the scale and when it was started on its standard input, does some batches through the
stage's own class, and prints what they took.
"""

import json
import sys
import time
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import Any, Final, TypeAlias

import numpy as np
import pyarrow as pa

from vlcp_ray.config import Job
from vlcp_ray.cost.loads import TRAINED_PASSES
from vlcp_ray.cost.work import classify, models
from vlcp_ray.demo import digits
from vlcp_ray.scale import Pool, Scale
from vlcp_ray.settings import Settings

#: What is repeated: it does some images and says how many operations (of ingest, images) they were.
Batch: TypeAlias = Callable[[], tuple[int, float]]

_SECONDS: Final = 6.0  # that the batches after the first one take together, at least
_PHOTO: Final = (375, 500, 3)
_EPOCHS: Final = 4


class Task(Settings):
    """What a measuring process is told."""

    work: str
    job: Job
    scale: Scale
    started: float
    cpus: float


@dataclass(frozen=True)
class Sample:
    """Rows to work on: the job's own digits, or noise of a photograph's size, which is the harder to decode."""

    job: Job

    def images(self, count: int) -> pa.Table:
        if self.job.ingest.source == "digits":
            rows = [row for row, _ in zip(_cycle(), range(count), strict=False)]
        else:
            rows = [self._noise(number) for number in range(count)]
        for number, row in enumerate(rows):
            row["image_id"] = f"{number:06d}"
        return pa.Table.from_pylist(rows)

    def _noise(self, number: int) -> dict[str, Any]:
        from vlcp_ray.images import encode_png

        pixels = np.random.default_rng(number).integers(0, 256, _PHOTO).astype(np.uint8)
        return {"image_id": "", "label": 0, "class_name": "tench", "split": "train", "image": encode_png(pixels)}

    def pairs(self, count: int) -> pa.Table:
        from vlcp_ray.models.shapes import latent_shape
        from vlcp_ray.schemas import tensor_array

        channels, height, width = latent_shape(self.job.base_model, self.job.encode.train_resolution)
        drawn = np.random.default_rng(0).normal(size=(count, 2, 2 * channels, height, width)).astype(np.float16)
        ids = [f"{number:06d}" for number in range(count)]
        return pa.table({"image_id": ids, "caption": [_said(self.job)] * count, "train_moments": tensor_array(drawn)})

    def prototypes(self, count: int) -> pa.Table:
        from vlcp_ray.models.shapes import latent_shape
        from vlcp_ray.schemas import tensor_array

        shape = latent_shape(self.job.base_model, self.job.encode.resolution)
        latents = np.random.default_rng(0).normal(size=(count, *shape)).astype(np.float32)
        ids = [f"0000-{number:04d}" for number in range(count)]
        columns = {"prototype_id": ids, "seed": [0] * count, "text": [_said(self.job)] * count}
        return pa.table({**columns, "class_name": ["tench"] * count, "latent": tensor_array(latents)})


def _cycle() -> Any:
    while True:
        yield from digits.rows("train")


def _said(job: Job) -> str:
    """A description of a usual length, which fills one slice."""
    return "a thin upright shape " * (8 if job.ingest.source == "digits" else 15)


def ingest(job: Job, _: Pool) -> Batch:
    from vlcp_ray import images

    content = Sample(job).images(64)["image"].to_pylist()

    def batch() -> tuple[int, float]:
        for data in content:
            images.check(data, job.ingest.max_pixels)
        return len(content), len(content)

    return batch


def caption(job: Job, pool: Pool) -> Batch:
    from transformers import AutoTokenizer

    from vlcp_ray.models.folders import folder
    from vlcp_ray.stages.caption import Caption

    stage, table = Caption(job.caption), Sample(job).images(pool.batch_size)
    words = AutoTokenizer.from_pretrained(folder(job.caption.model))

    def batch() -> tuple[int, float]:
        said = stage(table)["caption"].to_pylist()
        TOLD["answer_tokens"] = float(np.mean([len(words(text)["input_ids"]) for text in said]))
        each = models(job).describe(job.caption.prompt, TOLD["answer_tokens"])
        return len(table), (each or 0.0) * len(table)

    return batch


def encode(job: Job, pool: Pool) -> Batch:
    from vlcp_ray.models.shapes import latent_shape
    from vlcp_ray.stages.encode import Encode

    flip, table = job.finetune.random_flip, Sample(job).images(pool.batch_size)
    stage = Encode(job.encode, job.base_model, pool.batch_size, flip)
    counted = models(job)
    square, crop = (
        counted.encode(latent_shape(job.base_model, side)[1])
        for side in (job.encode.resolution, job.encode.train_resolution)
    )
    again = job.ingest.source != "digits" or job.encode.resolution != job.encode.train_resolution
    each = (1 + flip) * (crop or 0.0) + again * (square or 0.0)

    def batch() -> tuple[int, float]:
        stage(table)
        return len(table), each * len(table)

    return batch


def finetune(job: Job, pool: Pool) -> Batch:
    from vlcp_ray.models.diffusion import pick_device
    from vlcp_ray.models.shapes import latent_shape
    from vlcp_ray.schedule import Schedule
    from vlcp_ray.stages.finetune import Finetune

    settings, count = job.finetune, max(1, job.finetune.batch_size // pool.num_workers)
    resolution = job.encode.train_resolution
    learner = Finetune(settings, job.base_model, 0, resolution, pool.batch_size, pick_device())
    table, part = Sample(job).pairs(count), Schedule(count, 1, count, 0).part(0)
    counted, side = models(job), latent_shape(job.base_model, resolution)[1]
    passes = TRAINED_PASSES + settings.gradient_checkpointing
    each = passes * (counted.denoise(side) or 0.0) + (counted.embed() or 0.0)

    def batch() -> tuple[int, float]:
        learner.step(table, part)
        return count, each * count

    return batch


def generate(job: Job, pool: Pool) -> Batch:
    from vlcp_ray.models.shapes import latent_shape
    from vlcp_ray.stages.generate import Generate

    settings = job.generate
    stage, table = Generate(settings, job.base_model, pool.batch_size), Sample(job).prototypes(pool.batch_size)
    counted, side = models(job), latent_shape(job.base_model, job.encode.resolution)[1]
    calls = (int(settings.num_inference_steps * settings.strength) + 1) * (1 + (settings.guidance_scale > 1))
    each = calls * (counted.denoise(side) or 0.0) + (counted.decode(side) or 0.0) + (counted.embed() or 0.0)

    def batch() -> tuple[int, float]:
        stage(table)
        return len(table), each * len(table)

    return batch


def decode(job: Job, pool: Pool) -> Batch:
    from vlcp_ray.models.shapes import latent_shape
    from vlcp_ray.stages.generate import Decode

    stage, table = Decode(job.generate, job.base_model, pool.batch_size), Sample(job).prototypes(pool.batch_size)
    each = models(job).decode(latent_shape(job.base_model, job.encode.resolution)[1]) or 0.0

    def batch() -> tuple[int, float]:
        stage(table)
        return len(table), each * len(table)

    return batch


def prototype(job: Job, _: Pool) -> Batch:
    from vlcp_ray.models.shapes import latent_shape
    from vlcp_ray.schemas import tensor_array
    from vlcp_ray.stages.prototype import prototype as prototypes_of

    expected = job.ingest.expect
    count = min(1300, expected.train // expected.classes if expected else 130)
    shape, ipc = latent_shape(job.base_model, job.encode.resolution), min(max(job.ipc), count // 2)
    latents = np.random.default_rng(0).normal(size=(count, *shape)).astype(np.float16)
    ids, said = [f"{number:06d}" for number in range(count)], [f"{_said(job)} {n % 7}" for n in range(count)]
    columns = {"image_id": ids, "label": [0] * count, "class_name": ["tench"] * count, "caption": said}
    table = pa.table({**columns, "latent": tensor_array(latents)})
    work = 2.0 * count * latents[0].size * (ipc * 20 * job.prototype.n_init)

    def batch() -> tuple[int, float]:
        prototypes_of(table, job.prototype, [(0, ipc)])
        return count, work

    return batch


def evaluate(job: Job, pool: Pool) -> Batch:
    from vlcp_ray.memory import kept_memory
    from vlcp_ray.protocols.images import LabelledImages
    from vlcp_ray.stages.evaluate import Trial, run_trial

    size, network = job.evaluate.input_size, job.evaluate.networks[0]
    random, classes = np.random.default_rng(0), 10

    def made(count: int) -> LabelledImages:
        pixels = random.integers(0, 256, (count, 3, size, size)).astype(np.uint8)
        return LabelledImages(pixels, np.arange(count) % classes)

    train, val = made(64), made(64)
    settings = job.evaluate.model_copy(update={"epochs": _EPOCHS, "checks": 1})
    trial = Trial("random", "minimax", network, 1, 0, 0)
    names, device = [str(number) for number in range(classes)], "cuda" if pool.num_gpus else "cpu"
    each = classify(network, size, job.evaluate.width, classes)

    def batch() -> tuple[int, float]:
        with kept_memory():
            run_trial(train, val, names, settings, trial, device)
        return 64 * _EPOCHS, each * (TRAINED_PASSES * 64 * _EPOCHS + 64)

    return batch


WORKS: Final[Mapping[str, Callable[[Job, Pool], Batch]]] = {
    "ingest": ingest,
    "caption": caption,
    "encode": encode,
    "finetune": finetune,
    "prototype": prototype,
    "generate": generate,
    "decode": decode,
    "evaluate": evaluate,
}
_ROW_WISE: Final = ("caption", "encode", "generate", "decode")
POOLS: Final[Mapping[str, str]] = {"decode": "generate"}
TOLD: Final[dict[str, float]] = {}


def measure(task: Task) -> dict[str, float]:
    """Seconds until the first batch is done, less one batch, and what batches then do in a second."""
    from vlcp_ray.bench.prove import most_memory
    from vlcp_ray.memory import keep_memory

    if task.work in _ROW_WISE:
        keep_memory()  # as flow/data.py does in its actors
    batch = WORKS[task.work](task.job, getattr(task.scale, POOLS.get(task.work, task.work)))
    batch()
    ready = time.time()
    images, amount, batches = 0, 0.0, 0
    while time.time() - ready < _SECONDS or batches < 2:
        more, operations = batch()
        images, amount, batches = images + more, amount + operations, batches + 1
    seconds = time.time() - ready
    start = max(0.0, ready - task.started - seconds / batches)
    return {"start": start, "per_second": amount / seconds, "images": images / seconds, "gib": most_memory(), **TOLD}


def main() -> int:
    """Measure what standard input asks for."""
    task = Task.model_validate_json(sys.stdin.read())
    found = measure(task)
    print(json.dumps(found), flush=True)
    return 0


if __name__ == "__main__":
    sys.exit(main())
