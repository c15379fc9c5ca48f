"""Knows where the report finds what it tells: manifests, tables and pictures of the whole job."""

import os
import platform
import time
from collections.abc import Sequence
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc

from vlcp_ray.flow.context import Context, versions
from vlcp_ray.flow.data import REJECTED_TABLE
from vlcp_ray.scale import Pool
from vlcp_ray.schemas import IMAGES, MEMBERS, REJECTED, SCORES, SYNTHETIC, prototypes_schema, with_column
from vlcp_ray.stages.report import DistilledSet, Report, StageRow, render, shown_labels
from vlcp_ray.store import Artifact, Step

_PROTOTYPE = [name for name in prototypes_schema((1, 1, 1)).names if name != "latent"]
_DETAILS = ("members", "outliers", "steps", "images")


def report(context: Context, steps: Sequence[Step]) -> None:
    """Everything as one HTML page."""
    (step,) = steps
    start = time.monotonic()
    made = list(step.inputs.values())
    context.artifact(step).write_bytes("index.html", render(_gather(context, made)).encode())
    context.seal(step, rows_in=len(made), rows=len(made), seconds=time.monotonic() - start)


def _gather(context: Context, made: Sequence[Step]) -> Report:
    by_stage = {stage: [s for s in made if s.stage == stage] for stage in {s.stage for s in made}}
    by_stage = {stage: by_stage.get(stage, []) for stage in (*by_stage, "pair", "finetune", "generate")}
    rejected = [context.artifact(s).table(REJECTED_TABLE, REJECTED) for s in [*by_stage["ingest"], *by_stage["pair"]]]
    ingested = context.manifest(by_stage["ingest"][0])
    drawn = [step for step in by_stage["generate"] if step.key["method"] == "vlcp"]
    return Report(
        title=context.job.name,
        settings=context.job.model_dump(mode="json"),
        facts=_facts(context),
        stages=[_row(context, s) for s in made],
        scores=pa.concat_tables([context.artifact(s).table("scores", SCORES) for s in by_stage["evaluate"]]),
        sets=[_set(context, s, by_stage, len(drawn)) for s in drawn],
        rejected=pa.concat_tables(rejected),
        losses={s.key["seed"]: context.manifest(s)["losses"] for s in by_stage["finetune"]},
        validation=_validation(context, by_stage["finetune"]),
        train_rows=ingested["splits"].get("train"),
        class_names=ingested["class_names"],
    )


def _facts(context: Context) -> dict[str, str]:
    machine = f"{platform.system()} {platform.machine()}, {os.cpu_count()} cores"
    workers = ", ".join(f"{name} {pool.num_workers}" for name, pool in context.scale if isinstance(pool, Pool))
    return {"machine": machine, "python": platform.python_version(), "workers": workers, **versions()}


def _row(context: Context, step: Step) -> StageRow:
    manifest = context.manifest(step)
    facts = dict(manifest.get("splits", {})) | {name: manifest[name] for name in _DETAILS if name in manifest}
    detail = ", ".join(f"{name} {value:,}" for name, value in facts.items())
    return StageRow(
        step.title,
        step.stage,
        step.fingerprint,
        manifest["rows_in"],
        manifest["rows"],
        manifest["rejected"],
        manifest["seconds"],
        detail,
    )


def _set(context: Context, step: Step, by_stage: dict[str, list[Step]], sets: int) -> DistilledSet:
    prototypes = context.input(step, "prototypes")
    source = step.inputs["prototypes"].inputs["pairs"].inputs["images"]
    rows = prototypes.table("prototypes", prototypes_schema((1, 1, 1)), _PROTOTYPE)
    labels = pa.array(shown_labels(rows["label"].to_pylist(), sets), pa.int32())
    shown = rows.filter(pc.is_in(rows["label"], value_set=labels))
    key = {**step.key, "method": "centroid"}
    decoded = [_part(context.artifact(s), labels) for s in by_stage.get("select", ()) if s.key == key]
    return DistilledSet(
        seed=step.key["seed"],
        ipc=step.key["ipc"],
        prototypes=shown,
        synthetic=_part(context.artifact(step), labels),
        centroids=decoded[0] if decoded else None,
        nearest=_nearest(prototypes, context.artifact(source), labels),
        classes=len(pc.unique(rows["label"])),
        images=len(rows),
    )


def _part(artifact: Artifact, labels: pa.Array) -> pa.Table:
    return artifact.rows("synthetic", SYNTHETIC, SYNTHETIC.names, "label", labels)


def _nearest(prototypes: Artifact, images: Artifact, labels: pa.Array) -> pa.Table:
    """The real member nearest to each centroid, with its bytes."""
    members = prototypes.rows("members", MEMBERS, MEMBERS.names, "label", labels)
    members = members.filter(pc.greater_equal(members["cluster"], 0))
    members = members.sort_by([("label", "ascending"), ("cluster", "ascending"), ("distance", "ascending")])
    places = members.select(["label", "cluster"]).to_pandas()
    members = members.take(np.flatnonzero(~places.duplicated()))
    names = [f"{row['label']:04d}-{row['cluster']:04d}" for row in members.to_pylist()]
    members = with_column(members, "prototype_id", pa.array(names, pa.string()))
    pixels = images.rows("images", IMAGES, ["image_id", "image"], "image_id", members["image_id"])
    return members.join(pixels, "image_id").select(["prototype_id", "image_id", "image", "distance"])


def _validation(context: Context, steps: Sequence[Step]) -> list[tuple[str, bytes]]:
    found: list[tuple[str, bytes]] = []
    for step in steps:
        artifact = context.artifact(step)
        names = _class_names(context, step)
        files = [path.rpartition("/")[2] for path in artifact.files("validation", ".png")]
        last = max((name.split("-")[1] for name in files), default="")
        for name in files:
            epoch, number = name.removesuffix(".png").split("-")[1:]
            if epoch == last:
                caption = f"{names[int(number)]}, seed {step.key['seed']}, epoch {int(epoch)}"
                found.append((caption, artifact.read_bytes(f"validation/{name}") or b""))
    return found


def _class_names(context: Context, step: Step) -> Any:
    return context.manifest(step.inputs["pairs"].inputs["images"])["class_names"]
