"""Make several synthetic sets from their prototypes in one plan, so that the model is loaded once."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import pyarrow as pa
import pyarrow.compute as pc

from vlcp_ray.engine.context import Context
from vlcp_ray.engine.streaming import RowWork, read_all, run_rows
from vlcp_ray.engine.writing import TARGET, WriteRows, complete_rows
from vlcp_ray.schemas import SYNTHETIC, with_column
from vlcp_ray.store.artifact import Step


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
