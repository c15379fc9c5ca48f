"""A short training of the job's first network, measured by `vlcp-ray bench`."""

from typing import Final

import numpy as np

from vlcp_ray.config import Job
from vlcp_ray.cost.flops import classifier_flops
from vlcp_ray.methods.random_images import METHOD
from vlcp_ray.monitoring.allocator import memory_retained
from vlcp_ray.protocols import PROTOCOLS
from vlcp_ray.protocols.labelled_images import LabelledImages
from vlcp_ray.scale import Pool
from vlcp_ray.stages.evaluate import Precision, Trial
from vlcp_ray.stages.evaluate.trial import run_trial
from vlcp_ray.stages.stage import TRAINING_PASSES, Batch, BatchDone

_EPOCHS: Final = 4
_IMAGES: Final = 64
_CLASSES: Final = 10


def evaluate(job: Job, pool: Pool) -> Batch:
    """Return a function that trains on 64 images of noise for four epochs in float32, with hard labels."""
    return _make_batch(job, pool, "float32")


def evaluate_bf16(job: Job, pool: Pool) -> Batch:
    """Return the same function in bfloat16."""
    return _make_batch(job, pool, "bf16")


def _make_batch(job: Job, pool: Pool, precision: Precision) -> Batch:
    size, network = job.evaluate.input_size, job.evaluate.networks[0]
    random = np.random.default_rng(0)

    def noise() -> LabelledImages:
        pixels = random.integers(0, 256, (_IMAGES, 3, size, size)).astype(np.uint8)
        return LabelledImages(pixels, np.arange(_IMAGES) % _CLASSES)

    train, val = noise(), noise()
    settings = job.evaluate.model_copy(update={"epochs": _EPOCHS, "validations": 1, "precision": precision})
    protocol = next(protocol for protocol in PROTOCOLS.values() if not protocol.needs_teacher)
    trial = Trial(METHOD.name, protocol.name, network, 1, 0, 0)
    class_names, device = [str(number) for number in range(_CLASSES)], "cuda" if pool.num_gpus else "cpu"
    each = classifier_flops(network, size, job.evaluate.width, _CLASSES, protocol.norm)

    def batch() -> BatchDone:
        with memory_retained():
            run_trial(train, val, class_names, settings, trial, device)
        return BatchDone(_IMAGES * _EPOCHS, each * (TRAINING_PASSES * _IMAGES * _EPOCHS + _IMAGES))

    return batch
