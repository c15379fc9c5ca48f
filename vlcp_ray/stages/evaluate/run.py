"""evaluate: run the trials of all sets in one queue, and record each of them on its own."""

import hashlib
import json
import math
import time
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, field, replace
from functools import partial
from typing import Any

import pyarrow as pa
import ray
from safetensors.torch import load

from vlcp_ray.engine.context import Context, share_seconds
from vlcp_ray.engine.tasks import call_on_machines, in_flight, task
from vlcp_ray.models.teacher import load_teacher
from vlcp_ray.monitoring.allocator import memory_retained
from vlcp_ray.monitoring.memory import Peaks, measure_peaks, reset_peaks
from vlcp_ray.monitoring.progress import log_line
from vlcp_ray.monitoring.tensorboard import Record
from vlcp_ray.protocols import PROTOCOLS
from vlcp_ray.protocols.labelled_images import LabelledImages, SharedSplit, delete_shared, load_split, share_split
from vlcp_ray.scale import count_cores
from vlcp_ray.schemas import conform
from vlcp_ray.stages.evaluate import SCORES, STAGE, Evaluate, Trial, list_trials
from vlcp_ray.stages.evaluate.trial import run_trial
from vlcp_ray.stages.select import SOFT, SOFT_LABELS
from vlcp_ray.stages.teach import WEIGHTS, Teach
from vlcp_ray.store.artifact import Artifact, Step


def run(context: Context, steps: Sequence[Step]) -> None:
    """Turn sets of images into SCORES: run the trials of all sets in one queue, the largest sets first.

    The seconds of a set are its share of the wall-clock time, by the seconds of its trials. Those of trials that an
    interrupted run has recorded are added, divided by the number of workers, each of which had a trial of its own.
    """
    start, settings, workers = time.monotonic(), context.job.evaluate, context.scale.evaluate.num_workers
    trials = [(step, trial) for step in steps for trial in list_trials(step, settings)]
    trials.sort(key=lambda pair: -(pair[1].ipc or 2**31))
    step_of = {context.artifact(step).path: step for step in steps}
    recorded = {step.fingerprint: _recorded_seconds(context.artifact(step)) for step in steps}
    left = []
    for step, trial in trials:
        if trial.trial_id in recorded[step.fingerprint]:
            _log_curve(context, step, trial.trial_id)
        else:
            left.append((step, trial))
    inputs, measured = SharedInputs(context), dict.fromkeys(recorded, 0.0)
    with context.progress(steps, len(trials), "trials", len(trials) - len(left)) as progress:
        for path, trial_id, top1, outcome, seconds, peaks in in_flight(_calls(context, left, inputs), workers):
            step = step_of[path]
            name = f"{trial_id} {step.words}".rstrip()  # trials that differ in the teacher only have the same id
            progress.add(1, f"{name} {top1:.1%}", peaks=peaks)
            if outcome:
                log_line(name, f"{outcome.replace('_', ' ')}: its score of {top1:.1%} is not counted")
            measured[step.fingerprint] += seconds
            _log_curve(context, step, trial_id)
    call_on_machines(delete_shared, list(inputs.splits.values()))  # after an interruption the next run uses them
    shares = share_seconds(time.monotonic() - start, measured)
    for step in steps:
        rows = len(context.artifact(step).parts("scores"))
        seconds = shares[step.fingerprint] + sum(recorded[step.fingerprint].values()) / workers
        context.complete(step, rows_in=len(list_trials(step, settings)), rows=rows, seconds=seconds)


def _calls(
    context: Context, trials: Sequence[tuple[Step, Trial]], inputs: "SharedInputs"
) -> Iterator[Callable[[], ray.ObjectRef]]:
    """Yield a function for each trial that starts it on a worker."""
    settings, pool = context.job.evaluate, context.scale.evaluate
    device = "cuda" if pool.num_gpus else "cpu"
    remote = task(_trial, pool).remote
    previous = ""
    for step, trial in trials:
        images = step.inputs["images"]
        source = step.inputs.get("set", images)
        if previous not in ("", source.fingerprint):
            inputs.drop_train_splits()  # the trials of a set follow each other, so the set before is not needed again
        previous, train = source.fingerprint, inputs.train(source)
        val = inputs.val(images, trial.protocol)
        class_names = context.manifest(images)["class_names"]
        teacher = inputs.teacher(step) if PROTOCOLS[trial.protocol].needs_teacher else None
        yield partial(remote, train, val, class_names, settings, trial, context.artifact(step), device, teacher)


@dataclass
class SharedInputs:
    """What trials share: the images of sets and the teacher through Ray's object store, val through files."""

    context: Context
    splits: dict[str, SharedSplit] = field(default_factory=dict)  # by name
    references: dict[str, ray.ObjectRef] = field(default_factory=dict)

    def train(self, step: Step) -> ray.ObjectRef:
        """Load the train split of IMAGES, or SYNTHETIC, on a worker."""
        size, key = self.context.job.evaluate.input_size, f"{step.fingerprint} train"
        if key not in self.references:
            remote = ray.remote(_load_train).remote
            self.references[key] = remote(self.context.artifact(step), size)
        return self.references[key]

    def val(self, step: Step, protocol: str) -> SharedSplit:
        """Name the val split of IMAGES, resized as the protocol requires; a worker decodes it where no other has."""
        size = self.context.job.evaluate.input_size
        content = json.dumps(self.context.manifest(step), sort_keys=True)
        key = f"{step.fingerprint}-{hashlib.sha256(content.encode()).hexdigest()[:12]}"
        split = SharedSplit(self.context.artifact(step), key, "val", size, PROTOCOLS[protocol].resize(size))
        return self.splits.setdefault(split.name, split)

    def drop_train_splits(self) -> None:
        """Release all train splits; Ray keeps those of running trials until the trials end."""
        self.references = {key: value for key, value in self.references.items() if not key.endswith(" train")}

    def teacher(self, step: Step) -> ray.ObjectRef:
        """Load the settings and the weights of the teacher of a set's trials."""
        teacher = step.inputs["teacher"]
        key = teacher.fingerprint
        if key not in self.references:
            weights = self.context.input(step, "teacher").read_bytes(WEIGHTS)
            self.references[key] = ray.put((self.context.job.teach.of(teacher.settings["network"]), weights))
        return self.references[key]


def _load_train(artifact: Artifact, size: int) -> LabelledImages:
    """Load the train split, with the soft labels that a set from elsewhere may have brought."""
    split, own = load_split(artifact, "train", size, size, count_cores()), artifact.table(SOFT, SOFT_LABELS)
    if not len(own):
        return split
    soft = own.sort_by("image_id")["soft_label"].combine_chunks()
    return replace(split, soft=soft.flatten().to_numpy().reshape(len(own), -1))


def _trial(
    train: LabelledImages,
    val: SharedSplit,
    class_names: Sequence[str],
    settings: Evaluate,
    trial: Trial,
    artifact: Artifact,
    device: str,
    teacher: tuple[Teach, bytes] | None,
) -> tuple[str, str, float, str, float, Peaks]:
    """Run a trial on a worker and write its row of SCORES.

    Returns the path of the artifact, the trial's id, last top-1, outcome, seconds and peaks.

    Ray shows this name as that of the process, and tests/faults ends processes by it.
    """
    reset_peaks(STAGE.name)
    network = load_teacher(teacher[0], load(teacher[1])) if teacher else None
    name = teacher[0].describe() if teacher else ""
    with memory_retained():
        tested = share_split(val, count_cores())
        row: dict[str, Any] = run_trial(train, tested, class_names, settings, trial, device, network, name)
    artifact.write_table(f"scores/{trial.trial_id}.parquet", conform(pa.Table.from_pylist([row]), SCORES))
    return artifact.path, trial.trial_id, row["top1_last"], row["outcome"], row["seconds"], measure_peaks()


def _recorded_seconds(artifact: Artifact) -> dict[str, float]:
    """Read the seconds of the trials whose row of SCORES is written, by trial_id."""
    rows = artifact.table("scores", SCORES, ["trial_id", "seconds"])
    return dict(zip(rows["trial_id"].to_pylist(), rows["seconds"].to_pylist(), strict=True))


def _log_curve(context: Context, step: Step, trial_id: str) -> None:
    """Log the curve of a trial to TensorBoard and the tracker, if it is not there already."""
    series = f"{STAGE.name}/{trial_id}-{step.fingerprint}"
    if "trial" in context.records.names(series):
        return
    (row,) = context.artifact(step).read_part(f"scores/{trial_id}.parquet").to_pylist()
    epochs = PROTOCOLS[row["protocol"]].validated_epochs(row["epochs"], context.job.evaluate.validations)
    curve = [(epoch, {"top1": top1}) for epoch, top1 in zip(epochs, row["curve"], strict=True)]
    names = ("top1_last", "top1_best", "top5_last", "train_top1", "train_loss", "seconds")
    end = {name: row[name] for name in names if math.isfinite(row[name])}
    context.records.add(series, Record("trial", [*curve, (row["epochs"], end)]))
