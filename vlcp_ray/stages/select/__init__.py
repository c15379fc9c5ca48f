"""select: IMAGES, PROTOTYPES, DIFFICULTY, models -> SYNTHETIC of the methods that generate does not make."""

from collections.abc import Iterator, Sequence
from dataclasses import replace
from typing import TYPE_CHECKING, Final

import pyarrow as pa

from vlcp_ray.models import families, pretrained
from vlcp_ray.schemas import SYNTHETIC, column
from vlcp_ray.stages import generate
from vlcp_ray.stages.stage import Load, Memory, Stage, Work

if TYPE_CHECKING:
    from vlcp_ray.config import Job
    from vlcp_ray.cost.inputs import CostInputs
    from vlcp_ray.cost.memory import ModelMemory
    from vlcp_ray.scale import Scale
    from vlcp_ray.store.artifact import Step

#: The folder of a set's own soft labels, which some of the sets have that were made elsewhere.
SOFT: Final = "soft_labels"
SOFT_LABELS: Final = pa.schema(
    [
        column("image_id", pa.string(), "the image, as in SYNTHETIC"),
        column("soft_label", pa.list_(pa.float32()), "probabilities of all classes, in the order of the labels"),
    ]
)


DECODE: Final[Work] = Work(
    "decode",
    generate.DENOISE.pool,
    "vlcp_ray.stages.select.bench:decode",
    on_cpu=(0.5, 5.0),
    on_gpu=(0.16, 30.0),  # assumed equal to the denoising of `generate`
    retains_memory=True,
    model=lambda job: pretrained.identify(job.base_model, "vae"),
    wanted=lambda job: generate.is_work_of_methods(DECODE, job),
)
SAMPLE: Final[Work] = Work(
    "sample",
    generate.DENOISE.pool,
    "vlcp_ray.stages.select.bench:sample",
    on_cpu=(0.5, 6.0),
    on_gpu=(0.08, 40.0),  # assumed: half of the denoising of `generate`, which computes in half precision
    retains_memory=True,
    model=lambda job: pretrained.identify(job.compare.minimax.model, "transformer"),
    wanted=lambda job: generate.is_work_of_methods(SAMPLE, job),
)


def _loads(inputs: "CostInputs", steps: Sequence["Step"]) -> Iterator[Load]:
    """Yield the loads of the methods; those of one kind of work with equally many pieces are added up.

    The workers of a kind of work start once for all methods.
    """
    from vlcp_ray.methods import METHODS  # imported here, because the methods import the works of these stages

    added: dict[tuple[Work, float], Load] = {}
    for method in METHODS.values():
        method_steps = [step for step in steps if step.key["method"] == method.name]
        for load in method.loads(inputs, method_steps) if method_steps else ():
            key = load.work, load.units
            total = added.get(key, replace(load, images=0, amount=0.0, batches=0.0))
            sums = {name: getattr(load, name) + getattr(total, name) for name in ("images", "amount", "batches")}
            added[key] = replace(load, **sums, largest=max(load.largest, total.largest))
    started: set[Work] = set()
    for (work, _), load in added.items():
        yield replace(load, starts=0 if work in started else load.starts)
        started.add(work)


def _memory(job: "Job", models: "ModelMemory", scale: "Scale") -> Iterator[Memory]:
    """Yield what the methods need of a GPU."""
    from vlcp_ray.methods import METHODS

    for name in job.compare.methods:
        yield from METHODS[name].memory(job, models, scale)


def _check(job: "Job") -> None:
    from vlcp_ray.methods import METHODS

    for name in job.compare.methods:
        METHODS[name].check(job)


def _models(job: "Job") -> Iterator[pretrained.Use]:
    from vlcp_ray.methods import METHODS

    if any(METHODS[name].form == "prototypes" for name in job.compare.methods):
        yield pretrained.Use("base_model", job.base_model, families.STABLE_DIFFUSION)
    if SAMPLE.wanted(job):
        yield pretrained.Use("compare.minimax.model", job.compare.minimax.model, families.DIT)


STAGE: Final = Stage(
    "select",
    version=2,
    summary="IMAGES, PROTOTYPES, DIFFICULTY, models -> SYNTHETIC of the methods that generate does not make",
    tables={"synthetic": SYNTHETIC, SOFT: SOFT_LABELS},
    files=("rejected",),
    pools=generate.STAGE.pools,
    row_wise=True,
    output="distilled",
    works=(generate.DENOISE, DECODE, SAMPLE),
    loads=_loads,
    disk=generate.disk,
    memory=_memory,
    models=_models,
    check=_check,
)
