"""prototype: one task per class clusters its latents for all seeds and ipc at once."""

import time
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Final

import pyarrow as pa
import pyarrow.compute as pc

from vlcp_ray.engine.by_class import ClassRows, class_file, classes_done, each_class
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
    job, start = context.job, time.monotonic()
    schema = prototypes_schema(latent_shape(job.base_model, job.encode.resolution))
    rows, n_rows = ClassRows(context.input(steps[0], "pairs"), "pairs", _COLUMNS), context.rows(steps[0], "pairs")
    for settings, mini_batches, group in group_by_settings(steps):
        runs = {(step.key["seed"], step.key["ipc"]): context.artifact(step) for step in group}
        labels, done = rows.labels(), classes_done(list(runs.values()), "prototypes")
        remaining = [label for label in labels if label not in done]
        task = PrototypeTask(settings, mini_batches, runs, schema)
        with context.progress(group, len(labels), "classes", len(labels) - len(remaining)) as progress:
            for peaks in each_class(rows, n_rows, remaining, task, context.scale.prototype):
                progress.add(1, peaks=peaks)
    seconds = (time.monotonic() - start) / len(steps)
    for step in steps:
        members, outliers, prototypes = run_remote(_count, context.artifact(step), schema)
        if members != n_rows:
            raise RuntimeError(f"{step.title}: {n_rows} rows of PAIRS, but {members} rows of MEMBERS")
        context.complete(step, rows_in=prototypes, rows=prototypes, seconds=seconds, members=members, outliers=outliers)


@dataclass
class PrototypeTask:
    """Group-wise: compute all runs of one class from one read of its latents, and write the files of each run."""

    settings: Prototype
    mini_batches: MiniBatches | None
    runs: Mapping[tuple[int, int], Artifact]  # by seed and ipc
    schema: pa.Schema

    def __call__(self, rows: pa.Table) -> None:
        """Write MEMBERS and PROTOTYPES of the class of `rows`, which are all of its rows of PAIRS."""
        name = class_file(rows)
        made = prototype(rows, self.settings, list(self.runs), self.mini_batches)
        for run, (prototypes, members) in made.items():
            self.runs[run].write_table(f"members/{name}", conform(members, MEMBERS))
            # The second file marks the class as done.
            self.runs[run].write_table(f"prototypes/{name}", conform(prototypes, self.schema))


def _count(artifact: Artifact, schema: pa.Schema) -> tuple[int, int, int]:
    """Count the members, the outliers among them, and the prototypes."""
    members = artifact.table("members", MEMBERS, ["cluster"])["cluster"]
    outliers = int(pc.sum(pc.equal(members, -1)).as_py() or 0)
    return len(members), outliers, len(artifact.table("prototypes", schema, ["prototype_id"]))
