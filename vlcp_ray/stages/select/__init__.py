"""select: IMAGES, PROTOTYPES, DIFFICULTY, teacher -> SYNTHETIC of the compared methods without denoising."""

from collections.abc import Iterator, Sequence
from dataclasses import replace
from typing import TYPE_CHECKING, Final

from vlcp_ray.models import pretrained
from vlcp_ray.schemas import SYNTHETIC
from vlcp_ray.stages import generate
from vlcp_ray.stages.stage import Load, Memory, Stage, Work

if TYPE_CHECKING:
    from vlcp_ray.config import Job
    from vlcp_ray.cost.inputs import CostInputs
    from vlcp_ray.cost.memory import ModelMemory
    from vlcp_ray.scale import Scale
    from vlcp_ray.store.artifact import Step


def _has_prototype_method(job: "Job") -> bool:
    from vlcp_ray.methods import METHODS

    return any(METHODS[name].form == "prototypes" for name in job.compare.methods)


DECODE: Final = Work(
    "decode",
    generate.DENOISE.pool,
    "vlcp_ray.stages.select.bench:decode",
    on_cpu=(0.5, 5.0),
    on_gpu=(0.16, 30.0),  # assumed equal to the denoising of `generate`
    retains_memory=True,
    model=lambda job: pretrained.count_parameters(job.base_model, "vae"),
    wanted=_has_prototype_method,
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


STAGE: Final = Stage(
    "select",
    version=2,
    summary="IMAGES, PROTOTYPES, DIFFICULTY, teacher -> SYNTHETIC of the methods without denoising",
    tables={"synthetic": SYNTHETIC},
    files=("rejected",),
    pools=generate.STAGE.pools,
    row_wise=True,
    output="distilled",
    works=(DECODE,),
    loads=_loads,
    disk=generate.disk,
    memory=_memory,
    check=_check,
)
