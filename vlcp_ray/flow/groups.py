"""Knows what the group-wise stage reads and writes: prototype, a class at a time."""

import json
import time
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import Final

import pyarrow as pa
import pyarrow.compute as pc

from vlcp_ray import config
from vlcp_ray.flow.classes import Rows, class_file, classes_done, each_class
from vlcp_ray.flow.context import Context
from vlcp_ray.flow.rowwise import apart
from vlcp_ray.models.shapes import latent_shape
from vlcp_ray.schemas import MEMBERS, conform, prototypes_schema
from vlcp_ray.stages.prototype import prototype as prototypes_of
from vlcp_ray.store import Artifact, Step

_COLUMNS: Final = ("image_id", "label", "class_name", "caption", "latent")


@dataclass
class OneClass:
    """All sets of one class from one look at its latents; each set's file is written by the worker itself."""

    settings: config.Prototype
    runs: Mapping[tuple[int, int], Artifact]
    schema: pa.Schema

    def __call__(self, rows: pa.Table) -> None:
        made = prototypes_of(rows, self.settings, list(self.runs))
        name = class_file(rows)
        for run, (prototypes, members) in made.items():
            self.runs[run].write_table(f"members/{name}", conform(members, MEMBERS))
            # The class counts as done once this second file is there.
            self.runs[run].write_table(f"prototypes/{name}", conform(prototypes, self.schema))


def prototype(context: Context, steps: Sequence[Step]) -> None:
    """PAIRS as PROTOTYPES and MEMBERS: one pass over the latents for all seeds and sizes."""
    job, start = context.job, time.monotonic()
    schema = prototypes_schema(latent_shape(job.base_model, job.encode.resolution))
    rows = Rows(context.input(steps[0], "pairs"), "pairs", _COLUMNS)
    for settings, alike in _by_settings(steps):
        runs = {(step.key["seed"], step.key["ipc"]): context.artifact(step) for step in alike}
        work = OneClass(settings, runs, schema)
        labels, done = rows.labels(), classes_done(list(runs.values()), "prototypes")
        left = [label for label in labels if label not in done]
        with context.progress(alike, len(labels), "classes", len(labels) - len(left)) as progress:
            for peaks in each_class(rows, context.rows(steps[0], "pairs"), left, work, context.scale.prototype):
                progress.add(1, peaks=peaks)
    seconds = (time.monotonic() - start) / len(steps)
    for step in steps:
        members, outliers, made = apart(_count, context.artifact(step), schema)
        if members != context.rows(step, "pairs"):
            raise RuntimeError(f"{step.title}: {context.rows(step, 'pairs')} pairs in, {members} members out")
        context.seal(step, rows_in=made, rows=made, seconds=seconds, members=members, outliers=outliers)


def _count(artifact: Artifact, schema: pa.Schema) -> tuple[int, int, int]:
    """Members, outliers among them, and prototypes."""
    members = artifact.table("members", MEMBERS, ["cluster"])["cluster"]
    outliers = int(pc.sum(pc.equal(members, -1)).as_py() or 0)
    return len(members), outliers, len(artifact.table("prototypes", schema, ["prototype_id"]))


def _by_settings(steps: Sequence[Step]) -> Iterator[tuple[config.Prototype, list[Step]]]:
    """The steps whose classes are clustered in the same way: one look at the latents serves them all."""
    for science in {json.dumps(step.science, sort_keys=True): step.science for step in steps}.values():
        yield config.Prototype(**science), [step for step in steps if step.science == science]
