"""Knows how trials run: as many at once as fit, each recorded on its own, all over the same images in memory."""

import time
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, field
from functools import partial
from typing import Any

import pyarrow as pa
import ray
from pyarrow import parquet
from safetensors.torch import load

from vlcp_ray import config
from vlcp_ray.flow.context import Context
from vlcp_ray.flow.labelled import check_val, load_split
from vlcp_ray.flow.tasks import in_flight, task
from vlcp_ray.memory import Peaks, begin, kept_memory, peaks
from vlcp_ray.protocols.images import LabelledImages, val_resize
from vlcp_ray.protocols.teacher import load_teacher
from vlcp_ray.records import Record
from vlcp_ray.schemas import SCORES, TEACHER, conform
from vlcp_ray.stages.evaluate import Trial, checked_epochs, run_trial
from vlcp_ray.store import Artifact, Step


@dataclass
class Sets:
    """The images of every set, decoded once and shared by all trials through the object store."""

    context: Context
    references: dict[str, ray.ObjectRef] = field(default_factory=dict)

    def get(self, step: Step, split: str, protocol: config.Protocol) -> ray.ObjectRef:
        """The images of one split of IMAGES or SYNTHETIC; those of val as the protocol looks at them."""
        size = self.context.job.evaluate.input_size
        resize = val_resize(protocol, size) if split == "val" else size
        key = f"{step.fingerprint} {split} {resize}"
        if key not in self.references:
            load = ray.remote(load_split)
            self.references[key] = load.remote(self.context.artifact(step), split, size, resize)
        return self.references[key]

    def forget(self) -> None:
        """Let go of all train splits; those that trials are still using stay until they end."""
        self.references = {key: value for key, value in self.references.items() if " train " not in key}

    def teacher(self, step: Step) -> ray.ObjectRef:
        """The settings and the weights of the teacher of a set's trials."""
        key = step.inputs["teacher"].fingerprint
        if key not in self.references:
            weights = self.context.input(step, "teacher").read_bytes(TEACHER)
            self.references[key] = ray.put((self.context.job.teach, weights))
        return self.references[key]


def evaluate(context: Context, steps: Sequence[Step]) -> None:
    """Sets of images as SCORES: the trials of all sets in one queue, the longest first."""
    pool, start = context.scale.evaluate, time.monotonic()
    check_val(context.manifest(steps[0].inputs["images"]), "evaluate")
    recorded = {step.fingerprint: _recorded(context.artifact(step)) for step in steps}
    trials = [(step, trial) for step in steps for trial in trials_of(step, context.job.evaluate)]
    trials.sort(key=lambda pair: -(pair[1].ipc or 2**31))
    left = [(step, trial) for step, trial in trials if trial.trial_id not in recorded[step.fingerprint]]
    made = {trial.trial_id: step for step, trial in trials}
    for step, trial in trials:
        if trial.trial_id in recorded[step.fingerprint]:
            _keep(context, step, trial.trial_id)
    with context.progress(steps, len(trials), "trials", len(trials) - len(left)) as progress:
        for trial_id, top1, most in in_flight(_submissions(context, left), pool.num_workers):
            progress.add(1, f"{trial_id} {top1:.1%}", peaks=most)
            _keep(context, made[trial_id], trial_id)
    seconds = (time.monotonic() - start) / len(steps)
    for step in steps:
        rows_in = len(trials_of(step, context.job.evaluate))
        context.seal(step, rows_in=rows_in, rows=len(_recorded(context.artifact(step))), seconds=seconds)


def _keep(context: Context, step: Step, trial_id: str) -> None:
    """Hand the curve of a trial on, unless that was done before."""
    series = f"evaluate/{trial_id}-{step.fingerprint}"
    if "trial" in context.records.kept(series):
        return
    content = context.artifact(step).read_bytes(f"scores/{trial_id}.parquet")
    (row,) = parquet.read_table(pa.BufferReader(content)).to_pylist()
    epochs = checked_epochs(row["protocol"], row["epochs"], context.job.evaluate.checks)
    curve = [(epoch, {"top1": top1}) for epoch, top1 in zip(epochs, row["curve"], strict=True)]
    end = {name: row[name] for name in ("top1_last", "top1_best", "top5_last", "seconds")}
    context.records.keep(series, Record("trial", [*curve, (row["epochs"], end)]))


def trials_of(step: Step, settings: config.Evaluate) -> list[Trial]:
    """The trials of one set: every protocol, every network, every repeat. The full train split is trained on once."""
    key = step.key
    is_full = key["method"] == "full"  # under rded that is the teacher itself
    repeats, protocols = (1, ("minimax",)) if is_full else (settings.repeats, settings.protocols)
    return [
        Trial(key["method"], protocol, network, key.get("ipc", 0), key.get("seed", 0), repeat)
        for protocol in protocols
        for network in settings.networks
        for repeat in range(repeats)
    ]


def _submissions(context: Context, left: Sequence[tuple[Step, Trial]]) -> Iterator[Callable[[], ray.ObjectRef]]:
    settings, pool, sets = context.job.evaluate, context.scale.evaluate, Sets(context)
    device = "cuda" if pool.num_gpus else "cpu"
    run = task(_trial, pool)
    before = ""
    for step, trial in left:
        if before not in ("", step.fingerprint):
            sets.forget()  # the trials of a set follow each other, so its images can go
        before, images = step.fingerprint, step.inputs["images"]
        train = sets.get(step.inputs.get("set", images), "train", trial.protocol)
        val = sets.get(images, "val", trial.protocol)
        names = context.manifest(images)["class_names"]
        taught = sets.teacher(step) if trial.protocol == "rded" else None
        yield partial(run.remote, train, val, names, settings, trial, context.artifact(step), device, taught)


def _trial(
    train: LabelledImages,
    val: LabelledImages,
    class_names: Sequence[str],
    settings: config.Evaluate,
    trial: Trial,
    artifact: Artifact,
    device: str,
    taught: tuple[config.Teach, bytes] | None,
) -> tuple[str, float, Peaks]:
    begin("evaluate")
    teacher = load_teacher(taught[0], load(taught[1])) if taught else None
    with kept_memory():
        row: dict[str, Any] = run_trial(train, val, class_names, settings, trial, device, teacher)
    artifact.write_table(f"scores/{trial.trial_id}.parquet", conform(pa.Table.from_pylist([row]), SCORES))
    return trial.trial_id, row["top1_last"], peaks()


def _recorded(artifact: Artifact) -> set[str]:
    return {path.rpartition("/")[2].removesuffix(".parquet") for path in artifact.files("scores")}
