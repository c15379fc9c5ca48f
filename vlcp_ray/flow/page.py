"""Knows where the report finds what it tells: manifests, tables and pictures of the whole job."""

import json
import os
import platform
import time
from collections.abc import Iterator, Sequence
from functools import partial
from typing import Any, Final

import pyarrow as pa
import pyarrow.compute as pc

from vlcp_ray.cost.table import expected_seconds
from vlcp_ray.flow.context import Context, versions
from vlcp_ray.flow.data import REJECTED_TABLE
from vlcp_ray.flow.pictures import image_bytes, planes, thumbnails
from vlcp_ray.flow.sets import By, distilled, members_of, shown_prototypes
from vlcp_ray.page.contents import Plane, Report, Sample, StageRow
from vlcp_ray.page.sets import Budget
from vlcp_ray.scale import Scale, pools
from vlcp_ray.schemas import IMAGES, REJECTED, SCORES, pairs_schema, prototypes_schema
from vlcp_ray.stages.report import MAX_EXAMPLES, render
from vlcp_ray.store import Step
from vlcp_ray.text import common_words

#: The pools of a stage whose name none of them has.
_POOLS: Final = {"pair": ("caption", "encode"), "select": ("generate",), "teach": ("evaluate",)}
#: What a stage works through, where that is not the rows that come out of it.
_WORK: Final = {"finetune": ("images", "images"), "prototype": ("members", "images"), "evaluate": ("rows", "trials")}
_DETAILS: Final = ("members", "outliers", "steps", "images")
_MAX_PLANES: Final = 10


def report(context: Context, steps: Sequence[Step]) -> None:
    """Everything as one HTML page."""
    (step,) = steps
    start = time.monotonic()
    made = list(step.inputs.values())
    context.artifact(step).write_bytes("index.html", render(_gather(context, made)).encode())
    context.seal(step, rows_in=len(made), rows=len(made), seconds=time.monotonic() - start)


def _gather(context: Context, made: Sequence[Step]) -> Report:
    by_stage: By = {stage: [s for s in made if s.stage == stage] for stage in {s.stage for s in made}}
    by_stage = {stage: by_stage.get(stage, []) for stage in (*by_stage, "pair", "finetune", "generate")}
    drawn = [step for step in by_stage["generate"] if step.key["method"] == "vlcp"]
    (ingest,) = by_stage["ingest"]
    rejected = pa.concat_tables(
        [context.artifact(s).table(REJECTED_TABLE, REJECTED) for s in (ingest, *by_stage["pair"])]
    )
    seeds = list(dict.fromkeys(step.key["seed"] for step in drawn))
    budget = Budget(len(drawn), len(seeds))
    lead = max(drawn, key=lambda step: (step.key["ipc"], -step.key["seed"]), default=None)
    return Report(
        title=context.job.name,
        settings=context.job.model_dump(mode="json"),
        facts=_facts(context),
        stages=[_row(context, s) for s in made],
        scores=pa.concat_tables([context.artifact(s).table("scores", SCORES) for s in by_stage["evaluate"]]),
        sets=[distilled(context, s, by_stage, budget, detailed=s.key["seed"] == seeds[0]) for s in drawn],
        rejected=rejected,
        rejected_images=_rejected_images(context, ingest, rejected),
        progress={s.key["seed"]: list(_records(context, s)) for s in by_stage["finetune"]},
        validation=[sample for s in by_stage["finetune"] for sample in _samples(context, s)],
        splits=context.manifest(ingest)["splits"],
        train_bytes=image_bytes(context.artifact(ingest), "images", "train"),
        class_names=context.manifest(ingest)["class_names"],
        dropped_words=_dropped_words(context, lead, budget) if lead else {},
        planes=_planes(context, lead, budget) if lead else (),
        others=_others(context, lead, budget) if lead else None,
        estimates=expected_seconds(context.job, context.store, made, context.scale),
        command=context.command,
    )


def _facts(context: Context) -> dict[str, str]:
    machine = f"{platform.system()} {platform.machine()}, {os.cpu_count()} cores"
    return {"machine": machine, "python": platform.python_version(), **versions()}


def _row(context: Context, step: Step) -> StageRow:
    manifest = context.manifest(step)
    facts = dict(manifest.get("splits", {})) | {name: manifest[name] for name in _DETAILS if name in manifest}
    work, unit = _WORK.get(step.stage, ("rows", "images"))
    known = pools(Scale.model_validate(manifest["scale"]))
    used = [known[name] for name in _POOLS.get(step.stage, (step.stage,)) if name in known]
    return StageRow(
        step.title,
        step.stage,
        step.fingerprint,
        manifest["rows_in"],
        manifest["rows"],
        manifest["rejected"],
        manifest["seconds"],
        ", ".join(f"{name} {value:,}" for name, value in facts.items()),
        devices=" + ".join(str(pool) for pool in used),
        done=int(manifest.get(work, manifest["rows"])),
        unit=unit,
        peak_memory=manifest.get("peak_memory"),
    )


def _rejected_images(context: Context, ingest: Step, rejected: pa.Table) -> dict[str, bytes]:
    """The pictures of the first rows that a later stage than ingest has rejected: those can be looked at."""
    ids: dict[tuple[str, str], list[str]] = {}
    for row in rejected.sort_by("image_id").to_pylist():
        if row["stage"] != "ingest":
            ids.setdefault((row["stage"], row["reason"]), []).append(row["image_id"])
    shown = pa.array([name for names in ids.values() for name in names[:MAX_EXAMPLES]], pa.string())
    if not len(shown):
        return {}
    found = context.artifact(ingest).rows("images", IMAGES, ["image_id", "image"], "image_id", shown)
    return {row["image_id"]: row["image"] for row in found.to_pylist()}


def _records(context: Context, step: Step) -> Iterator[dict[str, Any]]:
    artifact = context.artifact(step)
    for path in artifact.files("progress", ".json"):
        yield json.loads(artifact.read_bytes(f"progress/{path.rpartition('/')[2]}") or b"{}")


def _samples(context: Context, step: Step) -> Iterator[Sample]:
    artifact = context.artifact(step)
    names = context.manifest(step.inputs["pairs"].inputs["images"])["class_names"]
    for path in artifact.files("validation", ".png"):
        name = path.rpartition("/")[2]
        epoch, number = (int(part) for part in name.removesuffix(".png").split("-")[1:])
        image = artifact.read_bytes(f"validation/{name}") or b""
        yield Sample(step.key["seed"], epoch, names[number], image)


def _dropped_words(context: Context, lead: Step, budget: Budget) -> dict[int, list[tuple[str, float]]]:
    """By shown class, the words that are too common in it: of its inliers, which are the same in all sets."""
    labels, members = members_of(context, lead, budget)
    outliers = members.filter(pc.less(members["cluster"], 0))["image_id"]
    pairs = context.artifact(lead.inputs["prototypes"].inputs["pairs"])
    columns = ["image_id", "label", "caption"]
    said = pairs.rows("pairs", pairs_schema((1, 1, 1), (1, 1, 1)), columns, "label", labels)
    said = said.filter(pc.invert(pc.is_in(said["image_id"], value_set=outliers)))
    of = partial(common_words, max_df=context.job.prototype.max_df)
    return {
        label: of(said.filter(pc.equal(said["label"], label))["caption"].to_pylist()) for label in labels.to_pylist()
    }


def _planes(context: Context, lead: Step, budget: Budget) -> list[Plane]:
    prototypes = context.input(lead, "prototypes")
    pairs = context.artifact(lead.inputs["prototypes"].inputs["pairs"])
    labels = budget.shown_labels(shown_prototypes(prototypes, budget)["label"].to_pylist())[:_MAX_PLANES]
    n_init, pool = context.job.prototype.n_init, context.scale.prototype
    return planes(pairs, prototypes, labels, n_init, lead.key["seed"], pool)


def _others(context: Context, lead: Step, budget: Budget) -> pa.Table | None:
    """One small image of every class that no set shows in full."""
    columns = ["prototype_id", "label", "cluster"]
    rows = context.input(lead, "prototypes").table("prototypes", prototypes_schema((1, 1, 1)), columns)
    shown = budget.shown_labels(rows["label"].to_pylist())
    rest = rows.filter(pc.and_(pc.equal(rows["cluster"], 0), pc.invert(pc.is_in(rows["label"], pa.array(shown)))))
    return thumbnails(context.artifact(lead), rest["prototype_id"].to_pylist()) if len(rest) else None
