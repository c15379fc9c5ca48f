"""The pipeline: the artifacts of a job from its images to its report, and the loop that runs, resumes or skips them."""

import json
import textwrap
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from contextlib import AbstractContextManager, closing, nullcontext
from dataclasses import dataclass, replace
from typing import Any

from vlcp_ray import sources
from vlcp_ray.config import Job
from vlcp_ray.cost.flops import too_long_note
from vlcp_ray.cost.memory import check_memory
from vlcp_ray.doctor.checks import check_run
from vlcp_ray.engine.context import Context, versions
from vlcp_ray.inspection.inspect import format_images, inspect_names, inspect_without_reading
from vlcp_ray.methods import METHODS
from vlcp_ray.models import dit_classes, families, pretrained
from vlcp_ray.models.pretrained import content_hash
from vlcp_ray.monitoring.logfiles import logged
from vlcp_ray.monitoring.progress import View, log_line
from vlcp_ray.monitoring.trackers import Tracker, open_tracker
from vlcp_ray.protocols import PROTOCOLS
from vlcp_ray.scale import Scale
from vlcp_ray.settings import ConfigError
from vlcp_ray.stages import STAGES, evaluate, finetune, ingest, pair, rank, report, teach
from vlcp_ray.stages.stage import Stage
from vlcp_ray.store.artifact import Manifests, Step, Store
from vlcp_ray.store.lease import acquire_lease
from vlcp_ray.store.uris import public
from vlcp_ray.store.verify import check_sizes

_WIDTH = 100  # characters of a line of the log


@dataclass(frozen=True, eq=False)
class Given:
    """A distilled set that was made elsewhere, and is evaluated like those of the job.

    Args:
        step: of its artifact.
        stream: the name that the random numbers of its trainings follow from.
        write: makes the artifact in a store.
    """

    step: Step
    stream: str
    write: Callable[[Store], None]


def graph(job: Job, given: Sequence[Given] = ()) -> tuple[Step, ...]:
    """List the steps of a job, each after its inputs; local models and tables that it names are read for hashes.

    Args:
        given: sets that were made elsewhere.
    """
    base_model = content_hash(job.base_model)

    # Shared by all seeds: images, captions and latents, how difficult the images are, and the teachers, of which the
    # first selects images.
    images = _step("ingest", sources.hashed_settings(job.ingest))
    pairs = _step("pair", pair.hashed_settings(job, base_model), images=images)
    teachers = [_step("teach", teach.hashed_settings(one), images=images) for one in job.teach.teachers()]
    if len(teachers) > 1:
        teachers = [replace(step, words=step.settings["network"]) for step in teachers]
    difficulty = _step("rank", rank.hashed_settings(job), images=images)

    # A distilled set for each seed, number of images per class and method.
    compared = [METHODS[name] for name in job.compare.methods]
    tunings = {method.name: method.tuning(job) for method in compared if method.tuning}
    shared = {"images": images, "pairs": pairs, "teacher": teachers[0], "difficulty": difficulty}
    sets = [made for seed in job.seeds for made in _sets(job, base_model, seed, shared, tunings)]

    # Scores of every set, with the labels of each teacher, and of the full train split where a protocol trains on it.
    protocols = [PROTOCOLS[name] for name in job.evaluate.protocols]
    labelled_by = teachers if any(protocol.needs_teacher for protocol in protocols) else []
    scores = [step for made in sets for step in _evaluations(job, made, images, labelled_by)]
    for one in given:
        scores += _evaluations(job, one.step, images, labelled_by, {evaluate.STREAM: one.stream})
    for method in compared:
        if method.form == "train split" and any(protocol.trains_full for protocol in protocols):
            settings = evaluate.hashed_settings(job.evaluate, full=True)
            scores.append(_step("evaluate", settings, {"method": method.name}, images=images))

    # One report over everything.
    steps = list(_with_inputs(scores, set()))
    settings = {"name": job.name, **report.COMPARED_AT}
    page = _step("report", settings, **{step.folder: step for step in steps})
    return (*steps, page)


def _sets(
    job: Job, base_model: str, seed: int, shared: Mapping[str, Step], tunings: Mapping[str, dict[str, Any]]
) -> Iterator[Step]:
    """Yield the distilled sets of a seed.

    Args:
        shared: what sets of all seeds are made from, by the names in `Method.inputs`, and the pairs.
        tunings: the settings of methods that have a fine-tuned model of their own, by method.
    """
    pairs, images = shared["pairs"], shared["images"]
    tuned = _step("finetune", finetune.hashed_settings(job, base_model), {"seed": seed}, pairs=pairs)
    for ipc in job.ipc:
        for method in (METHODS[name] for name in job.compare.methods):
            if method.form == "train split":
                continue
            key, model = {"seed": seed, "ipc": ipc}, tuned
            prototypes = _step("prototype", method.clustering(job), key, pairs=pairs)
            if method.name in tunings:
                model = _step("finetune", tunings[method.name], {"seed": seed, "method": method.name}, images=images)
            inputs = {**shared, "prototypes": prototypes, "model": model}
            stage = "generate" if method.form == "generation" else "select"
            used = {name: inputs[name] for name in method.inputs}
            yield _step(stage, method.settings(job, base_model), key | {"method": method.name}, **used)


def _evaluations(
    job: Job, made: Step, images: Step, teachers: Sequence[Step], more: dict[str, Any] | None = None
) -> Iterator[Step]:
    """Yield the evaluations of a set: one, or one for each teacher, of which the first has the hard labels, too.

    Args:
        more: settings of the evaluations beside those of the job.
    """
    step = _step("evaluate", evaluate.hashed_settings(job.evaluate) | (more or {}), made.key, set=made, images=images)
    soft = evaluate.hashed_settings(evaluate.with_soft_labels(job.evaluate)) | (more or {})
    for number, teacher in enumerate(teachers):
        settings, inputs = soft if number else step.settings, {**step.inputs, "teacher": teacher}
        yield replace(step, settings=settings, inputs=inputs, words=teacher.words)
    if not teachers:
        yield step


def _step(stage: str, settings: dict[str, Any], key: Mapping[str, Any] | None = None, /, **inputs: Step) -> Step:
    return Step(stage, STAGES[stage].version, settings, key or {}, inputs)


def _with_inputs(steps: Iterable[Step], seen: set[str]) -> Iterator[Step]:
    """Yield the steps and all their inputs, each once and after its own inputs."""
    for step in steps:
        if step.fingerprint not in seen:
            yield from _with_inputs(step.inputs.values(), seen)
            seen.add(step.fingerprint)
            yield step


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
    given: Sequence[Given] = (),
) -> Iterator[Step]:
    """Run, resume or skip every stage up to `to`, and yield the steps as their stages end.

    Args:
        command: the command line that repeats this run, for the report.
        view: shows the progress; by default as lines on the output.
        track: the tracker to which curves and images are mirrored.
        ray_logs: whether messages of Ray are shown.
        given: sets that were made elsewhere, whose artifacts are written first.
    """
    names = list(STAGES)
    stages = [STAGES[name] for name in names[: names.index(to) + 1]]
    all_steps = graph(job, given)
    steps = [step for step in all_steps if step.stage in {stage.name for stage in stages}]
    manifests = store.manifests(steps)
    check_sizes(store, steps, manifests)
    left = {step.fingerprint: step for step in steps if not manifests.get(step.fingerprint)}
    if not left:  # everything is complete: do not start Ray
        yield from steps
        return
    stages_left = [stage for stage in stages if any(step.stage == stage.name for step in left.values())]
    _check_start(job, steps, manifests, stages_left)
    store.check_writable()
    from vlcp_ray.engine import cluster, resources

    view = view or View()
    with (
        acquire_lease(
            store, list(left.values()), view.snapshot, [step for step in steps if step.fingerprint not in left]
        ),
        _open_tracker(track, job, all_steps[-1]) as tracker,
        cluster.connect(ray_logs) as derived,
    ):
        known = {fingerprint: manifest for fingerprint, manifest in manifests.items() if manifest}
        context = Context(job, scale or derived, store, view, tracker, command, known)
        for stage in stages_left:
            stage.check_scale(job, context.scale)
        resources.check_room(context.scale, stages_left)
        check_memory(job, [stage.name for stage in stages_left], context.scale, derived.memory_of_gpu)
        used = {step.stage for step in steps}
        view.set_stages(
            {stage.name: "waiting" if stage in stages_left else "skipped" for stage in stages if stage.name in used}
        )
        resources.log_resources(context.scale, [pool for stage in stages_left for pool in stage.pools])
        for stage in stages:
            mine = [step for step in steps if step.stage == stage.name]
            if to_make := [step for step in mine if step.fingerprint in left]:
                workers = max((getattr(context.scale, name).num_workers for name in stage.pools), default=1)
                view.start_stage(stage.name, resources.format_workers(context.scale, stage.pools), workers)
                with logged(store, job.name, stage.name, _log_header(context, to_make)):
                    resources.wait_for_resources(context.scale, stage)
                    _make(context, stage, to_make, {one.step.fingerprint: one for one in given})
                    if stage.name in (ingest.STAGE.name, pair.STAGE.name):
                        check_image_set(job, steps, context.manifests, [stage.name for stage in stages_left])
                view.end_stage(stage.name)
            yield from mine


def _make(context: Context, stage: Stage, steps: Sequence[Step], given: Mapping[str, Given]) -> None:
    """Make the artifacts of some steps of a stage, those of given sets by their own functions."""
    for step in steps:
        if step.fingerprint in given:
            given[step.fingerprint].write(context.store)
    if own := [step for step in steps if step.fingerprint not in given]:
        stage.run(context, own)


def _check_start(job: Job, steps: Sequence[Step], manifests: Manifests, stages: Sequence[Stage]) -> None:
    """Refuse what the stages that are to run would stop at: packages, models, settings, the image set.

    Raises:
        ConfigError: it names what is missing, and the fix.
    """
    for line in check_run(_packages(job, stages)):
        log_line("environment", line)
    for stage in stages:
        for use in stage.models(job):
            pretrained.check_hub(use)
        stage.check(job)
    check_image_set(job, steps, manifests, [stage.name for stage in stages])
    notes = [job.model_note()]
    if pair.STAGE in stages:
        job.check_resolution()
        notes.append(too_long_note(job))
    for line in (line for note in notes for line in textwrap.wrap(note, _WIDTH)):
        log_line("models", line)


def _packages(job: Job, stages: Sequence[Stage]) -> list[str]:
    """List the large packages that a run imports in its workers."""
    uses_vllm = pair.STAGE in stages and job.caption.uses_model and job.caption.engine == "vllm"
    return ["ray", "torch", "torchvision", "transformers", "diffusers", *(["vllm"] if uses_vllm else [])]


def check_image_set(job: Job, steps: Sequence[Step], manifests: Manifests, stages: Sequence[str]) -> None:
    """Refuse an image set that some stages cannot use: by its manifest, or by its files, and then say what it is.

    Args:
        steps: of the run.
        manifests: of those artifacts that are complete.
        stages: that are to run.

    Raises:
        ConfigError: it names the class or the split that is missing.
    """
    step = next(step for step in steps if step.stage == ingest.STAGE.name)
    needs_val = evaluate.STAGE.name in stages or teach.STAGE.name in stages
    ipc = largest_ipc(job) if set(stages) - {ingest.STAGE.name, report.STAGE.name} else 0
    if manifest := manifests.get(step.fingerprint):
        if ipc:
            ingest.check_images(manifest, ipc, needs_val)
            _check_class_names(job, manifest["class_names"])
        pairs = next((manifests.get(step.fingerprint) for step in steps if step.stage == pair.STAGE.name), None)
        if pairs and set(stages) - {ingest.STAGE.name, pair.STAGE.name, report.STAGE.name}:
            pair.check_pairs(pairs, manifest, ipc)
        return
    found = inspect_names(job.ingest, ipc, needs_val)
    if found.is_refused:
        raise ConfigError(found.problems[0])
    if ipc:
        _check_class_names(job, [one.name for one in found.classes])
    for line in found.short_lines():
        log_line("image set", line)


def _check_class_names(job: Job, class_names: Sequence[str]) -> None:
    """Refuse classes that a compared method's own model does not know.

    Raises:
        ConfigError: it names them, and the fix.
    """
    if any(METHODS[name].tuning for name in job.compare.methods):
        dit_classes.find(class_names, job.compare.minimax.model)


def image_set_lines(job: Job, steps: Sequence[Step], manifests: Manifests) -> Iterator[str]:
    """Yield what the image set is, by its manifest or by its files, or why it cannot be opened from here."""
    step = next(step for step in steps if step.stage == ingest.STAGE.name)
    if manifest := manifests.get(step.fingerprint):
        counts = format_images(*(manifest.get("splits", {}).get(split, 0) for split in ("train", "val")))
        yield f"{public(job.ingest.source)}: {counts} in {len(manifest['class_names'])} classes"
        return
    yield from inspect_without_reading(job.ingest, largest_ipc(job)).short_lines()


def largest_ipc(job: Job) -> int:
    """Return the images per class of the largest set that a job makes; 1 if it makes none."""
    return max(job.ipc) if any(METHODS[name].form != "train split" for name in job.compare.methods) else 1


def check_inputs(job: Job) -> None:
    """Refuse missing models and tables, and folders that are none, before anything starts or is hashed.

    The image set is checked by `run`, where it is read.

    Raises:
        ConfigError: a model's folder, a table or a checkpoint is missing, or is something else.
    """
    try:
        pretrained.check(job.base_model, "base_model", families.STABLE_DIFFUSION)
        if job.caption.uses_model:
            pretrained.check(job.caption.model, "caption.model", families.CAPTIONER)
        if any(METHODS[name].tuning for name in job.compare.methods):
            pretrained.check_dit(job.compare.minimax.model, "compare.minimax.model")
    except ValueError as error:
        raise ConfigError(str(error)) from error
    pair.check_source(job.caption.source)
    teach.check_checkpoint(job.teach.checkpoint)


def state(step: Step, manifests: Manifests) -> str:
    """Return whether an artifact is done (complete), started (it will be resumed) or new."""
    if step.fingerprint not in manifests:
        return "new"
    return "done" if manifests[step.fingerprint] else "started"


def _open_tracker(track: str, job: Job, page: Step) -> AbstractContextManager[Tracker | None]:
    tracker = open_tracker(track, job.name, page.fingerprint)
    return closing(tracker) if tracker else nullcontext()


def _log_header(context: Context, steps: Sequence[Step]) -> str:
    """Return the first line of a stage's log: what is made, with which packages, by which workers."""
    makes = [f"{step.title} {step.fingerprint}" for step in steps]
    return json.dumps({"makes": makes, "versions": versions(), "scale": context.scale.model_dump(exclude_none=True)})
