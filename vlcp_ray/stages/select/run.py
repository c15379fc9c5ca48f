"""select: make the sets of the compared methods that generate does not make, by the form of the method."""

import time
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from functools import lru_cache
from pkgutil import resolve_name
from typing import Any, Final

import pyarrow as pa
import pyarrow.compute as pc
import ray

from vlcp_ray.config import Job
from vlcp_ray.engine.by_class import ClassRows, class_file, run_classes
from vlcp_ray.engine.by_part import PartFiles, run_parts
from vlcp_ray.engine.context import Context
from vlcp_ray.engine.streaming import read, run_rows
from vlcp_ray.engine.synthetic_sets import make_labelled_sets, make_sets
from vlcp_ray.engine.tasks import run_remote
from vlcp_ray.engine.writing import TARGET, WriteRows, complete_rows
from vlcp_ray.methods import METHODS
from vlcp_ray.methods.method import Part, Run
from vlcp_ray.methods.synthetic_rows import as_synthetic
from vlcp_ray.monitoring.allocator import memory_retained
from vlcp_ray.schemas import IMAGES, SYNTHETIC, with_column
from vlcp_ray.stages.rank import DIFFICULTY
from vlcp_ray.stages.select import STAGE
from vlcp_ray.stages.teach import WEIGHTS, Teach
from vlcp_ray.store.artifact import Artifact, Step

_COLUMNS: Final = ("image_id", "label", "class_name", "split", "image", "source")


def run(context: Context, steps: Sequence[Step]) -> None:
    """Make SYNTHETIC by the form of each method: prototypes, ids, labels, single classes, or partitions of classes."""
    by_class, by_partition = [], []
    for name in dict.fromkeys(step.key["method"] for step in steps):
        method, method_steps = METHODS[name], [step for step in steps if step.key["method"] == name]
        if method.form == "prototypes":
            make_sets(context, method_steps, method.code, {"job": context.job})
        elif method.form == "ids":
            _select_ids(context, method_steps, method.code)
        elif method.form == "labels":
            groups = method.groups(context.job, _labels(context, method_steps[0]))
            make_labelled_sets(context, method_steps, method.code, groups)
        elif method.form == "partition":
            by_partition += method_steps
        else:
            by_class += method_steps
    if by_class:
        _select_by_class(context, by_class)
    if by_partition:
        _make_by_partition(context, by_partition)


def _select_ids(context: Context, steps: Sequence[Step], code: str) -> None:
    """Make the sets of a method that returns ids: select those images from IMAGES in one plan for all sets."""
    images = context.input(steps[0], "images")
    runs = {step.fingerprint: (step.key["seed"], step.key["ipc"]) for step in steps}
    difficulty = context.input(steps[0], "difficulty") if "difficulty" in steps[0].inputs else None
    ids: dict[str, list[str]] = run_remote(_ids_of_sets, images, difficulty, code, runs)
    totals = {target: len(image_ids) for target, image_ids in ids.items()}
    write = WriteRows({step.fingerprint: context.artifact(step) for step in steps}, STAGE.name, "synthetic", SYNTHETIC)
    for target, artifact in write.targets.items():
        done = set(write.done(artifact).to_pylist())
        ids[target] = [image_id for image_id in ids[target] if image_id not in done]
    rows = read(images, "images").map_batches(SelectRows(ids), batch_size=None, batch_format="pyarrow")
    seconds = run_rows(context, steps, rows, [], write, totals)
    used = {STAGE.pools[0]: context.scale.ingest}  # plain tasks that read images, as those of ingest
    for step in steps:
        facts = {"seconds": seconds[step.fingerprint], "pools": used}
        complete_rows(context, step, write, totals[step.fingerprint], facts)


def _ids_of_sets(
    images: Artifact, difficulty: Artifact | None, code: str, runs: Mapping[str, Run]
) -> dict[str, list[str]]:
    """Return the ids of every set, by its fingerprint."""
    if difficulty is None:
        index = images.rows("images", IMAGES, ["image_id", "class_name"], "split", pa.array(["train"]))
    else:
        index = difficulty.table("difficulty", DIFFICULTY)
    return {target: resolve_name(code)(index, seed, ipc) for target, (seed, ipc) in runs.items()}


@dataclass
class SelectRows:
    """Row-wise: turn the selected rows of IMAGES into SYNTHETIC; a row of several sets is returned once for each."""

    ids: Mapping[str, Sequence[str]]  # by the fingerprint of the set

    def __call__(self, block: pa.Table) -> pa.Table:
        """Return the rows of all sets, with the column `target`."""
        parts = []
        for target, image_ids in self.ids.items():
            part = block.filter(pc.is_in(block["image_id"], value_set=pa.array(image_ids, pa.string())))
            parts.append(with_column(as_synthetic(part), TARGET, pa.array([target] * len(part), pa.string())))
        return pa.concat_tables(parts)


def _select_by_class(context: Context, steps: Sequence[Step]) -> None:
    """Make the sets of the methods that need all images of a class: read each class once for all of them."""
    images, pool = steps[0].inputs["images"], context.scale.evaluate
    runs: dict[str, dict[Run, Artifact]] = {}
    for step in steps:
        method = METHODS[step.key["method"]]
        runs.setdefault(method.code, {})[step.key["seed"], step.key["ipc"]] = context.artifact(step)
    work = SelectionTask(context.job, _teacher_weights(context, steps), runs, "cuda" if pool.num_gpus else "cpu")
    rows = ClassRows(context.artifact(images), "images", _COLUMNS, {"split": "train"})
    manifest = context.manifest(images)
    seconds = run_classes(context, steps, "synthetic", rows, int(manifest["rows"]), work, pool)
    _complete(context, steps, seconds)


def _complete(context: Context, steps: Sequence[Step], seconds: Mapping[str, float]) -> None:
    """Complete sets that were made on the pool of evaluate, with `ipc` images of every class that has any."""
    for step in steps:
        written = len(context.artifact(step).table("synthetic", SYNTHETIC, ["image_id"]))
        each = METHODS[step.key["method"]].rows_per_image(context.job)
        expected = step.key["ipc"] * each * len(_labels(context, step))
        used = {STAGE.pools[0]: context.scale.evaluate}
        context.complete(step, rows_in=expected, rows=written, seconds=seconds[step.fingerprint], pools=used)


def _labels(context: Context, step: Step) -> list[int]:
    """List the labels of the classes that have training images, sorted."""
    train: Sequence[int] = context.manifest(step.inputs["images"])["train"]
    return [label for label, count in enumerate(train) if count]


def _teacher_weights(context: Context, steps: Sequence[Step]) -> Any:
    """Share the weights of the teacher, if a step uses it, and return the reference to them."""
    teachers = [context.artifact(step.inputs["teacher"]) for step in steps if "teacher" in step.inputs]
    return ray.put(teachers[0].read_bytes(WEIGHTS)) if teachers else None


def _make_by_partition(context: Context, steps: Sequence[Step]) -> None:
    """Make the sets of the methods that make images of several classes together, part by part."""
    images, pool = context.input(steps[0], "images"), context.scale.evaluate
    parts, targets = [], {}
    for name in dict.fromkeys(step.key["method"] for step in steps):
        sets = {(step.key["seed"], step.key["ipc"]): step for step in steps if step.key["method"] == name}
        targets[name] = {run: context.artifact(step) for run, step in sets.items()}
        for part in METHODS[name].parts(context.job, _labels(context, steps[0]), list(sets)):
            files = {sets[run].fingerprint: part.file for run in part.runs}
            parts.append(PartFiles((name, part), files))
    device, weights = "cuda" if pool.num_gpus else "cpu", _teacher_weights(context, steps)
    work = PartitionTask(context.job, weights, images, targets, device)
    _complete(context, steps, run_parts(context, steps, "synthetic", parts, "partitions", work, pool))


@dataclass(frozen=True)
class PartitionTask:
    """Make one part of the sets of a method, and write its file in each set.

    Args:
        teacher: as in `SelectionTask`.
        images: IMAGES.
        targets: the sets, by the method's name, then by seed and ipc.
    """

    job: Job
    teacher: Any
    images: Artifact
    targets: Mapping[str, Mapping[Run, Artifact]]
    device: str

    def __call__(self, named: tuple[str, Part]) -> dict[str, float]:
        """Write the rows of a part, and return the seconds of each set, equal parts, by its path.

        Args:
            named: the name of the method, and the part.

        Raises:
            ValueError: the method refuses the classes or the job.
        """
        start, (name, part) = time.perf_counter(), named
        method = METHODS[name]
        columns = list(dict.fromkeys((*method.columns, "image_id", "label", "split")))
        rows = self.images.rows("images", IMAGES, columns, "label", pa.array(part.labels, pa.int32()))
        rows = rows.filter(pc.equal(rows["split"], "train")).sort_by(
            [("label", "ascending"), ("image_id", "ascending")]
        )
        needs_teacher = "teacher" in method.inputs
        teacher = _load_teacher(self.teacher, self.job.teach, self.device) if needs_teacher else None
        with memory_retained():
            sets = resolve_name(method.code)(rows, part, teacher, self.job, self.device)
        for run, table in sets.items():
            self.targets[name][run].write_table(f"synthetic/{part.file}", table)
        each = (time.perf_counter() - start) / len(part.runs)
        return {self.targets[name][run].path: each for run in part.runs}


@dataclass(frozen=True)
class SelectionTask:
    """Make all sets of one class from one read of its images, and write a file of each set."""

    job: Job
    teacher: Any  # a reference to the teacher's weights, which are copied once to each node; None without a teacher
    runs: Mapping[str, Mapping[Run, Artifact]]  # by the code of the method, then by seed and ipc
    device: str

    def __call__(self, rows: pa.Table) -> dict[str, float]:
        """Write the rows of every set.

        Args:
            rows: all training images of one class, in any order.

        Returns the seconds of each set, by the path of its artifact: an equal part of those of its method, whose sets
        share features or crops.

        Raises:
            ValueError: a method refuses the class, which the error names.
        """
        rows = rows.sort_by("image_id")
        teacher = _load_teacher(self.teacher, self.job.teach, self.device) if self.teacher is not None else None
        seconds: dict[str, float] = {}
        for code, runs in self.runs.items():
            start = time.perf_counter()
            try:
                sets = resolve_name(code)(rows, list(runs), teacher, self.job, self.device)
            except ValueError as error:
                raise ValueError(f"class {rows['class_name'][0].as_py()!r}: {error}") from error
            for run, table in sets.items():
                runs[run].write_table(f"synthetic/{class_file(rows)}", table)
            each = (time.perf_counter() - start) / len(runs)
            seconds |= {artifact.path: each for artifact in runs.values()}
        return seconds


@lru_cache(maxsize=1)
def _load_teacher(weights: ray.ObjectRef, settings: Teach, device: str) -> Any:
    """Load the first teacher, the one that selects, once per process."""
    from safetensors.torch import load

    from vlcp_ray.models.teacher import load_teacher

    return load_teacher(settings.teachers()[0], load(ray.get(weights))).to(device)
