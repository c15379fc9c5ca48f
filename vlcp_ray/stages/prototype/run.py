"""prototype: one task per class clusters its latents for all seeds and ipc at once."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Final

import pyarrow as pa
import pyarrow.compute as pc

from vlcp_ray.engine.by_class import ClassRows, class_file, run_classes
from vlcp_ray.engine.context import Context
from vlcp_ray.engine.tasks import run_remote
from vlcp_ray.models.pretrained import latent_shape
from vlcp_ray.schemas import conform
from vlcp_ray.stages.prototype import MEMBERS, MiniBatches, Prototype, group_by_settings, prototypes_schema
from vlcp_ray.stages.prototype.cluster import prototype
from vlcp_ray.store.artifact import Artifact, Step

_COLUMNS: Final = ("image_id", "label", "class_name", "caption", "latent")


def run(context: Context, steps: Sequence[Step]) -> None:
    """Turn PAIRS into PROTOTYPES and MEMBERS, with one pass over the latents for all seeds and ipc."""
    job, seconds = context.job, dict[str, float]()
    schema = prototypes_schema(latent_shape(job.base_model, job.encode.resolution))
    rows, n_rows = ClassRows(context.input(steps[0], "pairs"), "pairs", _COLUMNS), context.rows(steps[0], "pairs")
    for settings, mini_batches, group in group_by_settings(steps):
        runs = {(step.key["seed"], step.key["ipc"]): context.artifact(step) for step in group}
        task = PrototypeTask(settings, mini_batches, runs, schema)
        seconds |= run_classes(context, group, "prototypes", rows, n_rows, task, context.scale.prototype)
    for step in steps:
        members, outliers, prototypes = run_remote(_count, context.artifact(step), schema)
        if members != n_rows:
            raise RuntimeError(f"{step.title}: {n_rows} rows of PAIRS, but {members} rows of MEMBERS")
        counts = {"members": members, "outliers": outliers}
        context.complete(step, rows_in=prototypes, rows=prototypes, seconds=seconds[step.fingerprint], **counts)


@dataclass
class PrototypeTask:
    """Group-wise: compute all runs of one class from one read of its latents, and write the files of each run."""

    settings: Prototype
    mini_batches: MiniBatches | None
    runs: Mapping[tuple[int, int], Artifact]  # by seed and ipc
    schema: pa.Schema

    def __call__(self, rows: pa.Table) -> dict[str, float]:
        """Write MEMBERS and PROTOTYPES of the class of `rows`, which are all of its rows of PAIRS.

        Returns the seconds of each run, by the path of its artifact.
        """
        name = class_file(rows)
        made = prototype(rows, self.settings, list(self.runs), self.mini_batches)
        for run, tables in made.items():
            self.runs[run].write_table(f"members/{name}", conform(tables.members, MEMBERS))
            # The second file marks the class as done.
            self.runs[run].write_table(f"prototypes/{name}", conform(tables.prototypes, self.schema))
        return {self.runs[run].path: tables.seconds for run, tables in made.items()}


def _count(artifact: Artifact, schema: pa.Schema) -> tuple[int, int, int]:
    """Count the members, the outliers among them, and the prototypes."""
    members = artifact.table("members", MEMBERS, ["cluster"])["cluster"]
    outliers = int(pc.sum(pc.equal(members, -1)).as_py() or 0)
    return len(members), outliers, len(artifact.table("prototypes", schema, ["prototype_id"]))
