"""Knows what the group-wise stage reads and writes: prototype, a class at a time."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass

import pyarrow as pa
import pyarrow.compute as pc

from vlcp_ray import config
from vlcp_ray.flow.context import Context
from vlcp_ray.flow.data import keep, read, stream_groups
from vlcp_ray.models.shapes import latent_shape
from vlcp_ray.progress import Progress
from vlcp_ray.schemas import MEMBERS, conform, prototypes_schema
from vlcp_ray.stages.prototype import prototype as prototypes_of
from vlcp_ray.store import Artifact, Step


@dataclass
class OneClass:
    """All sets of one class from one look at its latents; each set's file is written by the worker itself."""

    settings: config.Prototype
    runs: Mapping[tuple[int, int], Artifact]
    schema: pa.Schema

    def __call__(self, rows: pa.Table) -> pa.Table:
        made = prototypes_of(rows, self.settings, list(self.runs))
        name = f"{rows['label'][0].as_py():05d}.parquet"
        for run, (prototypes, members) in made.items():
            self.runs[run].write_table(f"members/{name}", conform(members, MEMBERS))
            # The class counts as done once this second file is there.
            self.runs[run].write_table(f"prototypes/{name}", conform(prototypes, self.schema))
        return pa.table({"rows": [len(rows)]})


def prototype(context: Context, steps: Sequence[Step]) -> None:
    """PAIRS as PROTOTYPES and MEMBERS: one pass over the latents for all seeds and sizes."""
    job = context.job
    schema = prototypes_schema(latent_shape(job.base_model, job.encode.resolution))
    runs = {(step.key["seed"], step.key["ipc"]): context.artifact(step) for step in steps}
    pairs = context.input(steps[0], "pairs")
    done = _classes_done(list(runs.values()))
    counts = pc.value_counts(read_labels(pairs)).to_pylist()
    total, left = len(counts), sum(1 for count in counts if count["values"] not in done)
    with Progress(f"prototype ({len(steps)} sets)", total, "classes", total - left) as progress:
        if left:
            rows = read(pairs, "pairs", ["image_id", "label", "class_name", "caption", "latent"])
            rows = keep(rows, done=pa.array(done, pa.int32()), id_column="label")
            for _ in stream_groups(rows, "label", left, OneClass(job.prototype, runs, schema), context.scale.prototype):
                progress.add(1)
    for step in steps:
        artifact = context.artifact(step)
        members = artifact.table("members", MEMBERS, ["cluster"])["cluster"]
        outliers = int(pc.sum(pc.equal(members, -1)).as_py() or 0)
        made = len(artifact.table("prototypes", schema, ["prototype_id"]))
        if len(members) != context.rows(step, "pairs"):
            raise RuntimeError(f"{step.title}: {context.rows(step, 'pairs')} pairs in, {len(members)} members out")
        context.seal(step, rows_in=made, rows=made, share=len(steps), members=len(members), outliers=outliers)


def read_labels(pairs: Artifact) -> pa.ChunkedArray:
    """The label of every pair."""
    labels = pa.schema([pa.field("label", pa.int32())])
    return pairs.table("pairs", labels, ["label"])["label"]


def _classes_done(artifacts: Sequence[Artifact]) -> list[int]:
    """The labels of the classes that every one of the artifacts has."""
    names = [{path.rpartition("/")[2] for path in artifact.files("prototypes")} for artifact in artifacts]
    return sorted(int(name.removesuffix(".parquet")) for name in set.intersection(*names))
