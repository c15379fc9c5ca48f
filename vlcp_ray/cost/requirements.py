"""Estimate from settings and graph what a job needs: images, disk at the root, and GPU memory."""

import math
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass

from vlcp_ray.config import Job
from vlcp_ray.cost.inputs import CostInputs
from vlcp_ray.cost.memory import memory_needs
from vlcp_ray.demo import digits
from vlcp_ray.scale import CONTEXT_GIB, Scale, count_cores, derive, pools
from vlcp_ray.sources import LAYOUTS
from vlcp_ray.stages import STAGES
from vlcp_ray.stages.generate import count_images
from vlcp_ray.stages.ingest import Expect, Ingest, format_sample
from vlcp_ray.stages.stage import Memory
from vlcp_ray.store.artifact import Step

_DIGITS_BYTES = 900  # mean size of an embedded image
_USUAL_GIB = 24.0  # of a GPU


@dataclass(frozen=True)
class Requirements:
    """The requirements of a job.

    Args:
        images: size of the image set; None where it is unknown before ingest.
        sets: number of distilled sets.
        distilled: number of images in them.
        disk: GiB at the root, by what is written.
        memory: what the models need of a GPU (see `Stage.memory`).
        gpu_gib: the memory of that GPU, where it is known.
        sample: which images are read, "" for all.
    """

    images: Expect | None
    sets: int
    distilled: int
    disk: Mapping[str, float]
    memory: Sequence[Memory]
    gpu_gib: float | None = None
    sample: str = ""

    def lines(self) -> Iterator[str]:
        """Yield a line for each requirement."""
        if self.sample:
            yield f"sample      {self.sample}"
        if self.images is None:
            yield "images      known after ingest"
        else:
            n = self.images
            yield f"images      {n.train:,} train + {n.val:,} val, {n.classes:,} classes, {format_gib(n.gib)}"
            yield f"distilled   {self.distilled:,} images in {self.sets} sets"
            parts = ", ".join(f"{name} {format_gib(gib)}" for name, gib in self.disk.items())
            yield f"disk        {format_gib(sum(self.disk.values()))} at the root: {parts}"
        memory = [f"{need.use} {'unknown' if math.isnan(need.gib) else format_gib(need.gib)}" for need in self.memory]
        if memory:
            size = f" on a GPU of {self.gpu_gib:.0f} GiB" if self.gpu_gib else ""
            yield f"GPU memory  {', '.join(memory)}; {format_gib(CONTEXT_GIB)} more for CUDA{size}"


def requirements(job: Job, steps: Sequence[Step], scale: Scale) -> Requirements:
    """Add up the requirements of the steps of a job's graph.

    Args:
        scale: pools of workers; where none has a GPU, the memory is that of a scale for one GPU of 24 GiB.
    """
    on_gpus = scale if any(pool.num_gpus for pool in pools(scale).values()) else derive(count_cores(), 1, _USUAL_GIB)
    images = expected_images(job)
    by_stage = {name: [step for step in steps if step.stage == name] for name in STAGES}
    used = {STAGES[name]: own for name, own in by_stage.items() if own}
    sets = set_steps(steps)
    disk: dict[str, float] = {}
    if images:
        inputs = CostInputs.for_job(job, images, scale=scale)
        for stage, own in used.items():
            gib = stage.disk(inputs, own)
            if stage.output and not math.isnan(gib):
                disk[stage.output] = disk.get(stage.output, 0.0) + gib
    return Requirements(
        images,
        len(sets),
        count_images(CostInputs.for_job(job, images), sets) if images else 0,
        disk,
        memory_needs(job, [stage.name for stage in used], on_gpus),
        on_gpus.memory_of_gpu,
        format_sample(job.ingest),
    )


def set_steps(steps: Sequence[Step]) -> list[Step]:
    """Select the steps that make distilled sets."""
    return [step for step in steps if "synthetic" in STAGES[step.stage].tables]


def expected_images(job: Job) -> Expect | None:
    """Return the size of the image set: of `ingest.expect`, or of the embedded set; None for any other set."""
    expect = job.ingest.expect
    if expect is None and job.ingest.source in LAYOUTS and LAYOUTS[job.ingest.source].embedded:
        train, val = digits.TRAIN_IMAGES, digits.VAL_IMAGES
        gib = (train + val) * _DIGITS_BYTES / 2**30
        expect = Expect(classes=len(digits.CLASS_NAMES), train=train, val=val, gib=gib)
    return expect and _sampled(expect, job.ingest)


def _sampled(images: Expect, settings: Ingest) -> Expect:
    """Return the size of what is read of an image set: all of it, or some images of each class."""
    train = min(images.train, images.classes * (settings.max_per_class or images.train))
    val = min(images.val, images.classes * (settings.max_val_per_class or images.val))
    share = (train + val) / (images.train + images.val)
    return Expect(classes=images.classes, train=train, val=val, gib=images.gib * share)


def format_gib(gib: float) -> str:
    """Format GiB with one decimal; less than a tenth is shown in MiB."""
    return f"{gib:,.1f} GiB" if gib >= 0.1 else f"{gib * 2**10:,.1f} MiB"
