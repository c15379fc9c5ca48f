"""THE page: the stages as a table, the artifacts of a job as a graph, and the loop that runs, resumes or skips them."""

import importlib
import json
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence, Set
from contextlib import AbstractContextManager, closing, nullcontext
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Final

from vlcp_ray.config import Job
from vlcp_ray.flow.context import Context, versions
from vlcp_ray.lease import held
from vlcp_ray.logs import logged
from vlcp_ray.models.folders import check, identity
from vlcp_ray.progress import View
from vlcp_ray.scale import Scale
from vlcp_ray.settings import ConfigError
from vlcp_ray.sources import layouts
from vlcp_ray.store import Step, Store
from vlcp_ray.trackers import Tracker, opened


@dataclass(frozen=True)
class Stage:
    """A row of the table: its version rises when its results change without a setting having changed.

    `pools` are those of the scale whose workers it holds at the same time.
    """

    name: str
    version: int
    work: str
    pools: tuple[str, ...]
    does: str


STAGES: Final = (
    Stage("ingest", 2, "vlcp_ray.flow.ingest", ("ingest",), "an image set -> IMAGES + REJECTED"),
    Stage(
        "pair", 1, "vlcp_ray.flow.rows", ("caption", "encode"), "IMAGES -> PAIRS + REJECTED: descriptions and latents"
    ),
    Stage("finetune", 1, "vlcp_ray.flow.train", ("finetune",), "PAIRS -> a Stable Diffusion that knows them"),
    Stage("prototype", 2, "vlcp_ray.flow.groups", ("prototype",), "PAIRS -> PROTOTYPES + MEMBERS, a class at a time"),
    Stage("generate", 2, "vlcp_ray.flow.rows", ("generate",), "PROTOTYPES + model -> SYNTHETIC"),
    Stage(
        "teach", 1, "vlcp_ray.flow.teach", ("evaluate",), "IMAGES -> the network that labels softly and sees features"
    ),
    Stage("select", 1, "vlcp_ray.flow.rows", ("generate",), "the compared sets -> SYNTHETIC"),
    Stage("evaluate", 2, "vlcp_ray.flow.trials", ("evaluate",), "SYNTHETIC + IMAGES(val) -> SCORES"),
    Stage("report", 3, "vlcp_ray.flow.page", (), "everything -> one HTML page"),
)
STAGE_NAMES: Final = tuple(stage.name for stage in STAGES)
_VERSIONS: Final = {stage.name: stage.version for stage in STAGES}


#: How a set is drawn: by the fine-tuned model or the base, guided by this column of PROTOTYPES. Without the last two
#: the method is ablated; D4M (METHOD 4) is the ablation of both with clusters of all images and its own guidance.
_DRAWN: Final = {
    "vlcp": ("tuned", "text"),
    "vlcp-name": ("tuned", "class_name"),
    "base-text": ("base", "text"),
    "base-name": ("base", "class_name"),
    "d4m": ("base", "class_name"),
}
_D4M_GUIDANCE: Final = 8.0
_THROUGH_A_TEACHER: Final = ("herding", "k-center", "rded")


def graph(job: Job) -> tuple[Step, ...]:
    """Every artifact that a job's sets need, inputs before what is made of them. Nothing is read but small folders."""
    base = identity(job.base_model)
    images = _step("ingest", layouts.science(job.ingest))
    pairs = _step("pair", _pair_science(job, base), images=images)
    teacher = _step("teach", _teach_science(job), images=images)
    sets: list[Step] = []
    for seed in job.seeds:
        model = _step("finetune", job.finetune.model_dump() | {"base_model": base}, {"seed": seed}, pairs=pairs)
        for ipc in job.ipc:
            key = {"seed": seed, "ipc": ipc}
            sets += _drawn(job, base, key, pairs, model)
            prototypes = _step("prototype", job.prototype.model_dump(), key, pairs=pairs)
            sets += _selected(job, base, key, images, prototypes, teacher)
    told_by = {"teacher": teacher} if "rded" in job.evaluate.protocols else {}
    science = job.evaluate.model_dump()
    scores = [_step("evaluate", science, step.key, set=step, images=images, **told_by) for step in sets]
    if "full" in job.compare.methods and "minimax" in job.evaluate.protocols:
        science = {name: value for name, value in science.items() if name not in _NOT_OF_FULL}
        scores.append(_step("evaluate", science, {"method": "full"}, images=images))
    steps = list(_with_inputs(scores, set()))
    steps.append(_step("report", {"name": job.name}, **{f"{s.stage}-{s.fingerprint}": s for s in steps}))
    return tuple(steps)


#: The full train split is trained on once, under minimax.
_NOT_OF_FULL: Final = {"protocols", "repeats", "epochs", "factor", "temperature", "rded_epochs", "rded_batch_size"}


def _teach_science(job: Job) -> dict[str, Any]:
    """What decides a teacher: how it is trained, or which file it is loaded from."""
    if not job.teach.checkpoint:
        return job.teach.model_dump()
    loaded = job.teach.model_dump(include={"network", "width", "input_size"})
    return loaded | {"checkpoint": identity(job.teach.checkpoint)}


def _with_inputs(steps: Iterable[Step], seen: set[str]) -> Iterator[Step]:
    """The steps and all that they are made from, each once, after its inputs."""
    for step in steps:
        if step.fingerprint not in seen:
            yield from _with_inputs(step.inputs.values(), seen)
            seen.add(step.fingerprint)
            yield step


def _drawn(job: Job, base: str, key: Mapping[str, Any], pairs: Step, model: Step) -> Iterator[Step]:
    """The sets that are drawn from prototypes."""
    for method, (weights, text) in _DRAWN.items():
        if method not in job.compare.methods:
            continue
        science, clusters = job.generate.model_dump() | {"text": text}, job.prototype.model_dump()
        if method == "d4m":
            science["guidance_scale"], clusters["contamination"] = _D4M_GUIDANCE, 0.0
        prototypes = _step("prototype", clusters, key, pairs=pairs)
        tuned = {"model": model} if weights == "tuned" else {}
        science |= {} if tuned else {"base_model": base}
        yield _step("generate", science, {**key, "method": method}, prototypes=prototypes, **tuned)


def _selected(
    job: Job, base: str, key: Mapping[str, Any], images: Step, prototypes: Step, teacher: Step
) -> Iterator[Step]:
    """The sets that no diffusion model draws."""
    size = job.generate.image_size
    for method in job.compare.methods:
        mine = {**key, "method": method}
        if method == "random":
            yield _step("select", {}, mine, images=images)
        elif method == "centroid":
            yield _step("select", {"image_size": size, "base_model": base}, mine, prototypes=prototypes)
        elif method in _THROUGH_A_TEACHER:
            science = {"image_size": size, "factor": job.evaluate.factor} if method == "rded" else {}
            yield _step("select", science, mine, images=images, teacher=teacher)


def _step(stage: str, science: dict[str, Any], key: Mapping[str, Any] | None = None, /, **inputs: Step) -> Step:
    return Step(stage, _VERSIONS[stage], science, key or {}, inputs)


def _pair_science(job: Job, base: str) -> dict[str, Any]:
    caption = job.caption.model_dump()
    if job.caption.source:
        caption = {"source": identity(job.caption.source)}
    else:
        caption["model"] = identity(job.caption.model)
    return {"caption": caption, "encode": job.encode.model_dump(), "flip": job.finetune.random_flip, "base_model": base}


def preflight(job: Job) -> None:
    """Refuse what cannot work before anything starts. The image set is looked at by `run`, where it is read.

    Raises:
        ConfigError: a model's folder or a table is missing.
    """
    try:
        check(job.base_model, "base_model")
        if not job.caption.source:
            check(job.caption.model, "caption.model")
        elif "://" not in job.caption.source and not Path(job.caption.source).exists():
            raise ValueError(f"caption.source: there is no table {job.caption.source!r}; give its folder or file")
    except ValueError as error:
        raise ConfigError(str(error)) from error


def state(store: Store, step: Step) -> str:
    """done (sealed), started (resumes) or new."""
    artifact = store.artifact(step)
    if artifact.manifest() is not None:
        return "done"
    return "started" if artifact.exists() else "new"


def run(
    job: Job,
    store: Store,
    to: str,
    scale: Scale | None,
    command: str = "",
    *,
    view: View | None = None,
    track: str = "",
    ray_logs: bool = False,
) -> Iterator[Step]:
    """Run, resume or skip every stage up to `to`; yield the steps as their stages end.

    Args:
        command: what makes the same again, for the report.
        view: is told how the work goes on; by default lines on the output.
        track: the tracker to which curves and pictures are mirrored.
        ray_logs: Ray's own words are let through.
    """
    todo = STAGES[: STAGE_NAMES.index(to) + 1]
    steps = [step for step in graph(job) if step.stage in {stage.name for stage in todo}]
    left = {step.fingerprint for step in steps if store.artifact(step).manifest() is None}
    if not left:  # Ray is not even started
        yield from steps
        return
    _look(job, {step.stage for step in steps if step.fingerprint in left})
    from vlcp_ray.flow import cluster, devices

    view = view or View()
    with (
        held(store, [step for step in steps if step.fingerprint in left], view.reading),
        _tracked(track, job) as tracker,
        cluster.joined(ray_logs) as derived,
    ):
        context = Context(job, scale or derived, store, view, tracker, command)
        _check_precision(context, {step.stage for step in steps if step.fingerprint in left})
        at_work = [stage for stage in todo if any(s.stage == stage.name and s.fingerprint in left for s in steps)]
        view.plan(
            {s.name: "waiting" if s in at_work else "skipped" for s in todo if s.name in {t.stage for t in steps}}
        )
        devices.tell(context.scale, [name for stage in at_work for name in stage.pools])
        for stage in todo:
            mine = [step for step in steps if step.stage == stage.name]
            if open_steps := [step for step in mine if step.fingerprint in left]:
                view.enter(stage.name, devices.taken(context.scale, stage.pools))
                with logged(store, job.name, stage.name, _facts(context, open_steps)):
                    devices.wait_for(context.scale, stage.pools, stage.name)
                    _work(stage)(context, open_steps)
                view.leave(stage.name)
            yield from mine


def _tracked(track: str, job: Job) -> AbstractContextManager[Tracker | None]:
    tracker = opened(track, job.name, graph(job)[-1].fingerprint)
    return closing(tracker) if tracker else nullcontext()


def _facts(context: Context, steps: Sequence[Step]) -> str:
    """What a stage's log begins with: what is made, with what, and how much of the cluster it takes."""
    makes = [f"{step.title} {step.fingerprint}" for step in steps]
    facts = {"makes": makes, "versions": versions(), "scale": context.scale.model_dump(exclude_none=True)}
    return json.dumps(facts)


def _look(job: Job, stages: Set[str]) -> None:
    """Refuse what the stages that are left to do would read and could not."""
    if "ingest" in stages:
        layouts.open_source(job.ingest)
    if "pair" in stages and job.caption.source:
        from vlcp_ray.flow.feeds import captions_at  # here, as it loads Ray

        captions_at(job.caption.source)
    checkpoint = job.teach.checkpoint
    if "teach" in stages and checkpoint and "://" not in checkpoint and not Path(checkpoint).is_file():
        raise ConfigError(
            f"teach.checkpoint: there is no file {checkpoint!r}; give a .pth or leave it out to train one"
        )


def _check_precision(context: Context, stages: Set[str]) -> None:
    """Refuse here what fine-tuning would refuse, hours later, once the images are described."""
    fp16 = context.job.finetune.mixed_precision == "fp16"
    if "finetune" in stages and fp16 and not context.scale.finetune.num_gpus:
        raise ConfigError(
            "finetune.mixed_precision: fp16 needs a GPU, and fine-tuning has none here; set it to no or bf16, or give "
            "it one in the scale file (--scale FILE)"
        )


def _work(stage: Stage) -> Callable[[Context, Sequence[Step]], None]:
    work: Callable[[Context, Sequence[Step]], None] = getattr(importlib.import_module(stage.work), stage.name)
    return work
