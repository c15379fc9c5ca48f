"""Make several synthetic sets in one plan, from their prototypes or labels, so that the model is loaded once."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pkgutil import resolve_name
from typing import Any, Final

import pyarrow as pa
import pyarrow.compute as pc
import ray

from vlcp_ray.engine.context import Context
from vlcp_ray.engine.streaming import RowWork, read_all, run_rows
from vlcp_ray.engine.writing import TARGET, WriteRows, complete_rows
from vlcp_ray.schemas import SYNTHETIC, with_column
from vlcp_ray.store.artifact import Step

#: The column with the fingerprints of the sets that have an image.
_TARGETS: Final = "targets"
_LABELLED: Final = pa.schema(
    [
        ("image_id", pa.string()),
        ("label", pa.int32()),
        ("class_name", pa.string()),
        ("number", pa.int32()),
        ("seed", pa.int64()),
        ("model", pa.string()),
        ("group", pa.int32()),
        (_TARGETS, pa.list_(pa.string())),
        ("source", pa.string()),
        ("prototype_id", pa.string()),
    ]
)


@dataclass(frozen=True)
class Assignment:
    """The set to make from one artifact's prototypes: fingerprint, seed and the prototype_ids already written."""

    target: str
    seed: int
    done: pa.Array


@dataclass
class AssignToSets:
    """Row-wise: add `target` and `seed` to prototypes, by the artifact in their `path`; drop those that are done."""

    assignments: Mapping[str, Assignment]

    def __call__(self, block: pa.Table) -> pa.Table:
        origins = pa.array([path.rsplit("/", 2)[0] for path in block["path"].to_pylist()], pa.string())
        parts = []
        for origin, assignment in self.assignments.items():
            part = block.filter(pc.equal(origins, origin))
            part = part.filter(pc.invert(pc.is_in(part["prototype_id"], value_set=assignment.done)))
            part = with_column(part, TARGET, pa.array([assignment.target] * len(part), pa.string()))
            parts.append(with_column(part, "seed", pa.array([assignment.seed] * len(part), pa.int64())))
        return pa.concat_tables(parts)


def make_sets(context: Context, steps: Sequence[Step], work: str, arguments: Mapping[str, Any]) -> None:
    """Make the sets of these steps from their prototypes, and complete their artifacts.

    Args:
        work: a row-wise class as `module:class`: takes PROTOTYPES with the seed of the set, returns SYNTHETIC.
        arguments: of its constructor, without `batch_size`.
    """
    pool = context.scale.generate
    artifacts = {step.fingerprint: context.artifact(step) for step in steps}
    write = WriteRows(artifacts, steps[0].stage, "synthetic", SYNTHETIC, "prototype_id")
    prototypes = [context.input(step, "prototypes") for step in steps]
    assignments = {
        origin.path: Assignment(step.fingerprint, step.key["seed"], write.done(artifacts[step.fingerprint]))
        for origin, step in zip(prototypes, steps, strict=True)
    }
    rows = read_all(prototypes, "prototypes").map_batches(
        AssignToSets(assignments), batch_size=None, batch_format="pyarrow"
    )
    totals = {step.fingerprint: context.rows(step, "prototypes") for step in steps}
    row_work = RowWork(work, {**arguments, "batch_size": pool.batch_size}, pool)
    seconds = run_rows(context, steps, rows, [row_work], write, totals)
    for step in steps:
        complete_rows(context, step, write, totals[step.fingerprint], {"seconds": seconds[step.fingerprint]})


def make_labelled_sets(context: Context, steps: Sequence[Step], work: str, groups: Sequence[Sequence[int]]) -> None:
    """Make the sets of these steps from the labels of the image set, and complete their artifacts.

    The sets of a seed are the first images of its largest, so that each image is made once.

    Args:
        work: a row-wise class as `module:class`, constructed with (job, models, batch_size): see the form `labels`.
        groups: the labels of the classes that share a model.
    """
    pool, job = context.scale.generate, context.job
    artifacts = {step.fingerprint: context.artifact(step) for step in steps}
    write = WriteRows(artifacts, steps[0].stage, "synthetic", SYNTHETIC)
    class_names = context.manifest(steps[0].inputs["images"])["class_names"]
    group_of = {label: number for number, labels in enumerate(groups) for label in labels}
    done = {step.fingerprint: set(write.done(artifacts[step.fingerprint]).to_pylist()) for step in steps}
    rows = []
    for seed in dict.fromkeys(step.key["seed"] for step in steps):
        own = [step for step in steps if step.key["seed"] == seed]
        for label, group in group_of.items():
            for number in range(max(step.key["ipc"] for step in own)):
                image_id = f"{steps[0].key['method']}-{label:04d}-{number:04d}"
                wanted = [step.fingerprint for step in own if number < step.key["ipc"]]
                targets = [target for target in wanted if image_id not in done[target]]
                name, model = class_names[label], own[0].inputs["model"].fingerprint
                row = {"image_id": image_id, "label": label, "class_name": name, "number": number, "seed": seed}
                row |= {"model": model, "group": group, _TARGETS: targets, "source": name, "prototype_id": ""}
                rows += [row] if targets else []
    totals = {step.fingerprint: step.key["ipc"] * len(group_of) for step in steps}
    models = {step.inputs["model"].fingerprint: context.input(step, "model") for step in steps}
    seconds = dict.fromkeys(totals, 0.0)
    if rows:
        arguments = {"work": work, "job": job, "models": models, "batch_size": pool.batch_size}
        spread = RowWork(f"{__name__}:SpreadToSets", arguments, pool)
        table = pa.Table.from_pylist(rows, _LABELLED)
        seconds = run_rows(context, steps, ray.data.from_arrow(table), [spread], write, totals)
    for step in steps:
        complete_rows(context, step, write, totals[step.fingerprint], {"seconds": seconds[step.fingerprint]})


class SpreadToSets:
    """Row-wise: make the images of rows once, and return each of them for every set that has it."""

    def __init__(self, work: str, **arguments: Any) -> None:
        """Construct the class that makes images, with its arguments."""
        self.work = resolve_name(work)(**arguments)

    def __call__(self, table: pa.Table) -> pa.Table:
        """Return a row for each set in `targets`, with the column `target` in its place."""
        made = self.work(table)
        targets = made[_TARGETS].combine_chunks()
        positions = pc.list_parent_indices(targets)
        return with_column(made.take(positions).drop_columns(_TARGETS), TARGET, pc.list_flatten(targets))
