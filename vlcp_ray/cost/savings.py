"""Find the changes of a job or of its scale that save most."""

from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from typing import Any, Final

from vlcp_ray.config import Job
from vlcp_ray.cost.estimate import StageCost, estimate
from vlcp_ray.cost.memory import check_memory
from vlcp_ray.cost.rates import Rates
from vlcp_ray.models.networks import NETWORKS
from vlcp_ray.scale import Scale
from vlcp_ray.settings import ConfigError
from vlcp_ray.stages import finetune
from vlcp_ray.stages.ingest import Expect
from vlcp_ray.stages.teach import TORCHVISION
from vlcp_ray.store.artifact import Step

_IMAGENET_CLASSES: Final = 1000
_POOL: Final = finetune.TRAIN.pool
_WORTH: Final = 0.02  # a change that saves less of the hours, and of the time, is not listed


@dataclass(frozen=True)
class Change:
    """A change of a job or of its scale, and what it does besides saving."""

    text: str
    job: Job
    scale: Scale


@dataclass(frozen=True)
class Saving:
    """What a change saves: GPU-hours, or CPU-hours where there are no GPUs, and seconds, which may be negative."""

    text: str
    hours: float
    seconds: float


def best_savings(
    job: Job,
    graph: Callable[[Job], Sequence[Step]],
    scale: Scale,
    images: Expect,
    gpu: Rates | None = None,
    cpu: Rates | None = None,
    count: int = 3,
) -> list[Saving]:
    """Estimate a job with each change, and return those that save most hours, one for each kind of change.

    Args:
        graph: `pipeline.graph`.
        scale, images, gpu, cpu: as for `estimate`.
        count: of changes.
    """
    before = _total(estimate(job, graph(job), scale, images, gpu, cpu))
    best: dict[str, Saving] = {}
    for change in _changes(job, scale, images):
        after = _total(estimate(change.job, graph(change.job), change.scale, images, gpu, cpu))
        saving = Saving(change.text, before[0] - after[0], before[1] - after[1])
        kind = change.text.partition("=")[0]
        is_worth = saving.hours > _WORTH * before[0] or (saving.hours > 0 and saving.seconds > _WORTH * before[1])
        if is_worth and saving.hours >= best.get(kind, saving).hours:
            best[kind] = saving
    return sorted(best.values(), key=lambda saving: -saving.hours)[:count]


def _total(costs: Sequence[StageCost]) -> tuple[float, float]:
    """Add up the hours and the seconds of the stages that are known."""
    known = [cost for cost in costs if cost.is_known]
    gpu_hours = sum(cost.gpu_hours for cost in known)
    return gpu_hours or sum(cost.cpu_hours for cost in known), sum(cost.seconds for cost in known)


def _changes(job: Job, scale: Scale, images: Expect) -> Iterator[Change]:
    names = " and ".join(job.teach.network)
    source, note = "FILE", f"a trained {names}"
    is_published = all(NETWORKS[name].published for name in job.teach.network)
    if is_published and images.classes == _IMAGENET_CLASSES:
        source, note = TORCHVISION, f"the {names} that torchvision publishes"
    can_load = len(job.teach.network) == 1 or source == TORCHVISION  # a file is of one network
    epochs, steps = job.finetune.epochs // 2, job.generate.num_inference_steps // 2
    options: tuple[tuple[bool, str, str, Any, str], ...] = (
        (can_load and not job.teach.checkpoint, "teach.checkpoint", source, TORCHVISION, note),
        (len(job.seeds) > 1, "seeds", "[0]", job.seeds[:1], "no spread between distilled sets"),
        (job.evaluate.repeats > 1, "evaluate.repeats", "1", 1, "no spread between trainings"),
        ("vlcp" in job.compare.methods, "compare.methods", "[vlcp]", ("vlcp",), "nothing to compare with"),
        (epochs > 0, "finetune.epochs", str(epochs), epochs, "half the fine-tuning"),
        (steps > 0, "generate.num_inference_steps", str(steps), steps, "half the denoising steps"),
    )
    for can_change, field, text, value, effect in options:
        if can_change:
            section, _, name = field.rpartition(".")
            update = {section: getattr(job, section).model_copy(update={name: value})} if section else {name: value}
            yield Change(f"--set {field}={text} ({effect})", job.model_copy(update=update), scale)
    yield from _changes_of_scale(job, scale)


def _changes_of_scale(job: Job, scale: Scale) -> Iterator[Change]:
    pool = scale.finetune

    def changed(text: str, **values: Any) -> Change:
        tuned = pool.model_copy(update=values)
        return Change(f"scale: {_POOL}.{text}", job, scale.model_copy(update={_POOL: tuned}))

    if pool.gradient_checkpointing:
        change = changed("gradient_checkpointing=false (more memory, the same result)", gradient_checkpointing=False)
        try:
            check_memory(job, [finetune.STAGE.name], change.scale)
            yield change
        except ConfigError:
            pass
    for workers in range(1, pool.num_workers):
        yield changed(f"num_workers={workers} (less to add up between them)", num_workers=workers, min_workers=None)
