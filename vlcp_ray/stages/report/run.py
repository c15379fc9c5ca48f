"""report: gather manifests, tables and images of the whole job, and render them as one page."""

import json
import os
import platform
import time
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from functools import partial
from typing import Any, Final

import pyarrow as pa
import pyarrow.compute as pc
import ray

from vlcp_ray.cost.table import expected_seconds
from vlcp_ray.engine.by_class import ClassRows, class_file, run_classes
from vlcp_ray.engine.context import Context, versions
from vlcp_ray.engine.tasks import in_flight, run_remote, task
from vlcp_ray.engine.writing import REJECTED_TABLE
from vlcp_ray.methods import centroid, vlcp
from vlcp_ray.models.words import common_words
from vlcp_ray.schemas import IMAGES, REJECTED, SYNTHETIC
from vlcp_ray.stages import STAGES, evaluate, finetune, generate, ingest, pair
from vlcp_ray.stages.pair import PAIRS
from vlcp_ray.stages.prototype import PROTOTYPES
from vlcp_ray.stages.report import COVERAGE, NEIGHBOURS
from vlcp_ray.stages.report.contents import DistilledSet, Neighbour, Report, Sample, StageRow, TsnePlot
from vlcp_ray.stages.report.coverage import ShrinkImages, compare_class, summarise
from vlcp_ray.stages.report.coverage_section import nearest_pairs
from vlcp_ray.stages.report.device_seconds import recorded_pools, with_device_seconds
from vlcp_ray.stages.report.distilled_sets import read_members, read_set, read_sizes
from vlcp_ray.stages.report.images import count_bytes, thumbnails
from vlcp_ray.stages.report.render import MAX_EXAMPLES, render
from vlcp_ray.stages.report.sets_section import Budget
from vlcp_ray.stages.report.tsne import plot, read_latents
from vlcp_ray.store.artifact import Artifact, Step
from vlcp_ray.store.uris import public

#: Further counts of a manifest that the page shows.
_DETAILS: Final = ("members", "outliers", "steps", "images")
_MAX_PLOTS: Final = 10
_COMPARED: Final = ("image_id", "label", "split", "image")


def run(context: Context, steps: Sequence[Step]) -> None:
    """Compare the distilled sets with the real images, and write everything that the job has made as one HTML page."""
    (step,) = steps
    start, inputs = time.monotonic(), list(step.inputs.values())
    _compare_sets(context, step)
    context.artifact(step).write_bytes("index.html", render(_gather(context, inputs, context.artifact(step))).encode())
    context.complete(step, rows_in=len(inputs), rows=len(inputs), seconds=time.monotonic() - start)


def _compare_sets(context: Context, page: Step) -> None:
    """Write COVERAGE and NEIGHBOURS of all distilled sets, a task for each class on the prototype stage's pool."""
    sets = {step.fingerprint: step for step in page.inputs.values() if "synthetic" in STAGES[step.stage].tables}
    if not sets:
        return
    artifact, pool = context.artifact(page), context.scale.prototype
    (images,) = (step for step in page.inputs.values() if step.stage == ingest.STAGE.name)
    real = ClassRows(context.artifact(images), "images", _COMPARED, {"split": "train"}, ShrinkImages(""))
    made = [
        ClassRows(context.artifact(step), "synthetic", _COMPARED, prepare=ShrinkImages(name))
        for name, step in sets.items()
    ]
    work = CompareClass(artifact, {name: dict(step.key) for name, step in sets.items()})
    manifests = [context.manifest(step) for step in (images, *sets.values())]
    rows = sum(int(manifest["rows"]) for manifest in manifests)
    size = sum(int(file["bytes"]) for manifest in manifests for file in manifest["files"].values())
    labels = range(len(manifests[0]["class_names"]))  # each has training images: ingest refuses others
    run_classes(context, [page], "coverage", real, rows, work, pool, labels, made, size)


@dataclass(frozen=True)
class CompareClass:
    """Group-wise: compare one class of all sets with its real images, and write its files."""

    artifact: Artifact
    sets: Mapping[str, Mapping[str, Any]]  # method, ipc and seed, by the set's fingerprint

    def __call__(self, rows: pa.Table) -> None:
        """Write COVERAGE and NEIGHBOURS of the class of `rows`, SHRUNK in any order."""
        coverage, neighbours = compare_class(rows, self.sets)
        self.artifact.write_table(f"neighbours/{class_file(rows)}", neighbours)
        # The second file marks the class as done.
        self.artifact.write_table(f"coverage/{class_file(rows)}", coverage)


def _gather(context: Context, steps: Sequence[Step], page: Artifact) -> Report:
    """Read what the page shows of the job's artifacts.

    Args:
        page: the artifact of the report, with COVERAGE and NEIGHBOURS.
    """
    by_stage = {name: [step for step in steps if step.stage == name] for name in STAGES}
    (images,) = by_stage[ingest.STAGE.name]
    finetunes = [step for step in by_stage[finetune.STAGE.name] if finetune.is_unet(step)]
    sets = [step for step in by_stage[generate.STAGE.name] if step.key["method"] == vlcp.METHOD.name]
    seeds = list(dict.fromkeys(step.key["seed"] for step in sets))
    main_set = max(sets, key=lambda step: (step.key["ipc"], -step.key["seed"]), default=None)
    budget = Budget(len(sets), len(seeds))
    rejected = pa.concat_tables(
        [context.artifact(step).table(REJECTED_TABLE, REJECTED) for step in (images, *by_stage[pair.STAGE.name])]
    )
    manifest, manifests = context.manifest(images), {step.fingerprint: context.manifest(step) for step in steps}
    return Report(
        title=context.job.name,
        settings=public(context.job.model_dump(mode="json")),
        facts=_facts(),
        stages=[_stage_row(context, step) for step in steps],
        scores=pa.concat_tables(
            [context.artifact(step).table("scores", evaluate.SCORES) for step in by_stage[evaluate.STAGE.name]]
        ),
        sets=[_set(context, step, steps, budget, detailed=step.key["seed"] == seeds[0]) for step in sets],
        rejected=rejected,
        rejected_images=_rejected_images(context, images, rejected),
        epoch_metrics={step.key["seed"]: list(_epoch_metrics(context, step)) for step in finetunes},
        samples=[sample for step in finetunes for sample in _samples(context, step)],
        source=public(context.job.ingest.source),
        sample=ingest.format_sample(context.job.ingest),
        class_lists=context.job.ingest.classes,
        splits=manifest["splits"],
        skipped=manifest.get("skipped", {}),
        too_long=_too_long_captions([context.manifest(step) for step in by_stage[pair.STAGE.name]]),
        answers=_answers([context.manifest(step) for step in by_stage[pair.STAGE.name]]),
        caption_problems=_caption_problems([context.manifest(step) for step in by_stage[pair.STAGE.name]]),
        train_bytes=run_remote(count_bytes, context.artifact(images), "images", "train"),
        class_names=manifest["class_names"],
        dropped_words=_dropped_words(context, main_set, budget) if main_set else {},
        tsne_plots=_tsne_plots(context, main_set, budget) if main_set else (),
        other_classes=_other_classes(context, main_set, budget) if main_set else None,
        coverage=with_device_seconds(summarise(page.table("coverage", COVERAGE)), steps, manifests),
        neighbours=_neighbours(context, main_set, images, page) if main_set else (),
        estimates=expected_seconds(context.job, context.store, steps, manifests, context.scale),
        command=public(context.command),
        model_note=context.job.model_note(),
    )


def _answers(pairs: Sequence[Mapping[str, Any]]) -> str:
    """Format the tokens of the captioner's answers, from the manifest of PAIRS, if the job has it."""
    return next((text for manifest in pairs if (text := pair.format_tokens(manifest.get("caption_tokens", {})))), "")


def _caption_problems(pairs: Sequence[Mapping[str, Any]]) -> list[tuple[str, Sequence[Mapping[str, str]]]]:
    """Format the captions that look wrong, with their examples."""
    return [
        found
        for manifest in pairs
        for found in pair.format_problems(
            manifest.get("caption_problems", {}), manifest.get("caption_lengths", {}).get("captions", 0)
        )
    ]


def _too_long_captions(pairs: Sequence[Mapping[str, Any]]) -> str:
    """Format the number of captions that are too long, from the manifest of PAIRS, if the job has it."""
    for lengths in (manifest.get("caption_lengths", {}) for manifest in pairs):
        if lengths.get("too_long"):
            return pair.format_too_long(lengths["too_long"], lengths["captions"], lengths["encoder_tokens"])
    return ""


def _facts() -> dict[str, str]:
    machine = f"{platform.system()} {platform.machine()}, {os.cpu_count()} cores"
    return {"machine": machine, "python": platform.python_version(), **versions()}


def _stage_row(context: Context, step: Step) -> StageRow:
    manifest, stage = context.manifest(step), STAGES[step.stage]
    counts = dict(manifest.get("splits", {})) | {name: manifest[name] for name in _DETAILS if name in manifest}
    return StageRow(
        step.title,
        step.stage,
        step.fingerprint,
        manifest["rows_in"],
        manifest["rows"],
        manifest["rejected"],
        manifest["seconds"],
        ", ".join(f"{name} {count:,}" for name, count in counts.items()),
        devices=" + ".join(str(pool) for pool in recorded_pools(step, manifest)),
        done=int(manifest.get(stage.counted, manifest["rows"])),
        unit=stage.unit,
        peak_memory=manifest.get("peak_memory"),
    )


def _set(context: Context, step: Step, steps: Sequence[Step], budget: Budget, *, detailed: bool) -> DistilledSet:
    decoded_key = {**step.key, "method": centroid.METHOD.name}
    decoded = [context.artifact(s) for s in steps if s.key == decoded_key and "synthetic" in STAGES[s.stage].tables]
    return read_set(
        step.key,
        context.artifact(step),
        context.input(step, "prototypes"),
        context.artifact(_pairs(step).inputs["images"]),
        decoded[0] if decoded else None,
        budget,
        run_remote(count_bytes, context.artifact(step), "synthetic", "train"),
        detailed=detailed,
    )


def _pairs(step: Step) -> Step:
    """Return the step of PAIRS that a set's prototypes were made from."""
    return step.inputs["prototypes"].inputs["pairs"]


def _rejected_images(context: Context, images: Step, rejected: pa.Table) -> dict[str, bytes]:
    """Read the first images of each reason that a stage after ingest has rejected: their files are in IMAGES."""
    ids: dict[tuple[str, str], list[str]] = {}
    for row in rejected.sort_by("image_id").to_pylist():
        if row["stage"] != images.stage:
            ids.setdefault((row["stage"], row["reason"]), []).append(row["image_id"])
    shown = pa.array([image_id for group in ids.values() for image_id in group[:MAX_EXAMPLES]], pa.string())
    if not len(shown):
        return {}
    rows = context.artifact(images).rows("images", IMAGES, ["image_id", "image"], "image_id", shown)
    return {row["image_id"]: row["image"] for row in rows.to_pylist()}


def _epoch_metrics(context: Context, step: Step) -> Iterator[dict[str, Any]]:
    artifact = context.artifact(step)
    for file in artifact.files("progress", ".json"):
        yield json.loads(artifact.read_bytes(f"progress/{file.name}") or b"{}")


def _samples(context: Context, step: Step) -> Iterator[Sample]:
    artifact = context.artifact(step)
    class_names = context.manifest(step.inputs["pairs"].inputs["images"])["class_names"]
    for file in artifact.files("validation", ".png"):
        epoch, number = (int(part) for part in file.name.removesuffix(".png").split("-")[1:])
        image = artifact.read_bytes(f"validation/{file.name}") or b""
        yield Sample(step.key["seed"], epoch, class_names[number], image)


def _dropped_words(context: Context, step: Step, budget: Budget) -> Mapping[int, list[tuple[str, float]]]:
    """For each shown class, find the words that are too common among its inliers, which are the same in all sets."""
    prototypes = context.input(step, "prototypes")
    labels, members = read_members(prototypes, budget, read_sizes(prototypes))
    outliers = members.filter(pc.less(members["cluster"], 0))["image_id"]
    columns = ["image_id", "label", "caption"]
    captions = context.artifact(_pairs(step)).rows("pairs", PAIRS, columns, "label", labels)
    captions = captions.filter(pc.invert(pc.is_in(captions["image_id"], value_set=outliers)))
    max_df, matching = context.job.prototype.max_df, context.job.prototype.matching
    by_label = {label: captions.filter(pc.equal(captions["label"], label)) for label in labels.to_pylist()}
    return {label: common_words(rows["caption"].to_pylist(), max_df, matching) for label, rows in by_label.items()}


def _tsne_plots(context: Context, step: Step, budget: Budget) -> list[TsnePlot]:
    """Lay out the first classes, a task for each on the prototype stage's pool; the latents are read once."""
    prototypes, settings, pool = context.input(step, "prototypes"), context.job.prototype, context.scale.prototype
    labels = budget.shown_labels(budget.shown_prototypes(read_sizes(prototypes))["label"].to_pylist())[:_MAX_PLOTS]
    latents = ray.remote(read_latents).remote(context.artifact(_pairs(step)), list(labels))
    call = task(plot, pool)
    submit = (partial(call.remote, latents, prototypes, label, settings.n_init, step.key["seed"]) for label in labels)
    plots = dict(in_flight(submit, pool.num_workers))
    return [plots[label] for label in labels]


def _neighbours(context: Context, step: Step, images: Step, page: Artifact) -> Sequence[Neighbour]:
    """Read the synthetic images of a set that are nearest to a real one, with both images."""
    pairs = nearest_pairs(run_remote(_rows_of_set, page, dict(step.key)))
    files = [
        artifact.rows(table, schema, ["image_id", "image"], "image_id", pairs[name])
        for artifact, table, schema, name in (
            (context.artifact(step), "synthetic", SYNTHETIC, "image_id"),
            (context.artifact(images), "images", IMAGES, "real_image_id"),
        )
    ]
    synthetic, real = ({row["image_id"]: row["image"] for row in table.to_pylist()} for table in files)
    names = context.manifest(images)["class_names"]
    return [
        Neighbour(
            names[row["label"]],
            row["real_image_id"],
            row["distance"],
            row["relative"],
            synthetic[row["image_id"]],
            real[row["real_image_id"]],
        )
        for row in pairs.to_pylist()
    ]


def _rows_of_set(page: Artifact, key: Mapping[str, Any]) -> pa.Table:
    table = page.rows("neighbours", NEIGHBOURS, NEIGHBOURS.names, "seed", pa.array([key["seed"]], pa.int32()))
    return table.filter(pc.and_(pc.equal(table["method"], key["method"]), pc.equal(table["ipc"], key["ipc"])))


def _other_classes(context: Context, step: Step, budget: Budget) -> pa.Table | None:
    """Make a thumbnail for every class that no set shows in full; None if there is no such class."""
    columns = ["prototype_id", "label", "cluster"]
    rows = context.input(step, "prototypes").table("prototypes", PROTOTYPES, columns)
    shown = budget.shown_labels(rows["label"].to_pylist())
    rest = rows.filter(pc.and_(pc.equal(rows["cluster"], 0), pc.invert(pc.is_in(rows["label"], pa.array(shown)))))
    if not len(rest):
        return None
    classes: pa.Table = run_remote(thumbnails, context.artifact(step), rest["prototype_id"].to_pylist())
    return classes
