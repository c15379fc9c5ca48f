"""Knows what the row-wise stages read and write: ingest, pair, generate and select."""

import tempfile
import time
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any, Final

import pyarrow.compute as pc
import pyarrow.dataset as pads
import ray
from ray.data import Dataset

from vlcp_ray import config
from vlcp_ray.flow.context import Context
from vlcp_ray.flow.data import REJECTED_TABLE, Work, Write, keep, read, read_all, stream
from vlcp_ray.flow.feeds import Chosen, ReadShard, Route, Routed
from vlcp_ray.models.shapes import latent_shape
from vlcp_ray.progress import Progress
from vlcp_ray.scale import Pool
from vlcp_ray.schemas import IMAGES, REJECTED, SYNTHETIC, pairs_schema
from vlcp_ray.sources import open_source
from vlcp_ray.stages.select import random_ids
from vlcp_ray.store import Step, open_root

_STAGES: Final = "vlcp_ray.stages"


def ingest(context: Context, steps: Sequence[Step]) -> None:
    """The image set as IMAGES."""
    (step,) = steps
    settings = context.job.ingest
    source = open_source(settings.source)
    shards = [shard for shard in source.shards() if shard != "val" or not settings.val_fraction]
    artifact = context.artifact(step)
    write = Write({"": artifact}, "ingest", "images", IMAGES)
    rows = ray.data.from_items(shards, override_num_blocks=len(shards)).map_batches(
        ReadShard(source), batch_size=1, batch_format="pyarrow"
    )
    rows = keep(rows, done=write.done(artifact))
    work = Work(
        f"{_STAGES}.ingest:Ingest", {"settings": settings, "class_names": source.class_names}, context.scale.ingest
    )
    _run(context, [step], rows, [work], write, {step.fingerprint: source.count(shards)}, class_names=source.class_names)


def pair(context: Context, steps: Sequence[Step]) -> None:
    """IMAGES(train) as PAIRS: descriptions, then latents, in one plan."""
    (step,) = steps
    job, scale, artifact = context.job, context.scale, context.artifact(step)
    model = job.base_model
    channels, height, width = latent_shape(model, job.encode.train_resolution)
    schema = pairs_schema(latent_shape(model, job.encode.resolution), (2 * channels, height, width))
    write = Write({"": artifact}, "pair", "pairs", schema)
    encoding = {"settings": job.encode, "base_model": model, "batch_size": scale.encode.batch_size}
    works = [_captioning(job.caption, scale.caption), Work(f"{_STAGES}.encode:Encode", encoding, scale.encode)]
    columns = ["image_id", "label", "class_name", "split", "image", "source"]
    rows = read(context.input(step, "images"), "images", columns)
    rows = keep(rows, done=write.done(artifact), where={"split": "train"})
    train = int(context.manifest(step.inputs["images"])["splits"]["train"])
    _run(context, [step], rows, works, write, {step.fingerprint: train})


def _captioning(settings: config.Caption, pool: Pool) -> Work:
    if not settings.source:
        return Work(f"{_STAGES}.caption:Caption", {"settings": settings}, pool)
    filesystem, path = open_root(settings.source)
    captions = pads.dataset(path, filesystem=filesystem).to_table(columns=["image_id", "caption"])
    return Work(f"{_STAGES}.caption:CarryCaptions", {"captions": captions}, pool)


def generate(context: Context, steps: Sequence[Step]) -> None:
    """PROTOTYPES as SYNTHETIC: all sizes of one seed with one load of its model."""
    for model in {step.inputs["model"].fingerprint: step.inputs["model"] for step in steps}.values():
        mine = [step for step in steps if step.inputs["model"].fingerprint == model.fingerprint]
        with tempfile.TemporaryDirectory() as local:
            path = context.artifact(model).get_folder("model", Path(local))
            _draw(context, mine, "Generate", path, "generate")


def select(context: Context, steps: Sequence[Step]) -> None:
    """The other ways of writing SYNTHETIC."""
    if mine := [step for step in steps if step.key["method"] == "random"]:
        _select_random(context, mine)
    if mine := [step for step in steps if step.key["method"] == "centroid"]:
        _draw(context, mine, "Decode", context.job.base_model, "select")


def _select_random(context: Context, steps: Sequence[Step]) -> None:
    images = context.input(steps[0], "images")
    index = images.table("images", IMAGES, ["image_id", "class_name", "split"])
    index = index.filter(pc.equal(index["split"], "train"))
    chosen = {step.fingerprint: random_ids(index, step.key["seed"], step.key["ipc"]) for step in steps}
    totals = {target: len(image_ids) for target, image_ids in chosen.items()}
    targets = {step.fingerprint: context.artifact(step) for step in steps}
    write = Write(targets, "select", "synthetic", SYNTHETIC)
    for target, artifact in targets.items():
        done = set(write.done(artifact).to_pylist())
        chosen[target] = [image_id for image_id in chosen[target] if image_id not in done]
    rows = read(images, "images").map_batches(Chosen(chosen), batch_size=None, batch_format="pyarrow")
    _run(context, steps, rows, [], write, totals)


def _draw(context: Context, steps: Sequence[Step], stage: str, model: str, name: str) -> None:
    pool = context.scale.generate
    targets = {step.fingerprint: context.artifact(step) for step in steps}
    write = Write(targets, name, "synthetic", SYNTHETIC, "prototype_id")
    origins = [context.input(step, "prototypes") for step in steps]
    routes = {
        origin.path: Route(step.fingerprint, step.key["seed"], write.done(targets[step.fingerprint]))
        for origin, step in zip(origins, steps, strict=True)
    }
    rows = read_all(origins, "prototypes").map_batches(Routed(routes), batch_size=None, batch_format="pyarrow")
    arguments = {"settings": context.job.generate, "model": model, "batch_size": pool.batch_size}
    work = Work(f"{_STAGES}.generate:{stage}", arguments, pool)
    totals = {step.fingerprint: context.rows(step, "prototypes") for step in steps}
    _run(context, steps, rows, [work], write, totals)


def _run(
    context: Context,
    steps: Sequence[Step],
    rows: Dataset,
    works: Sequence[Work],
    write: Write,
    totals: Mapping[str, int],
    **facts: Any,
) -> None:
    """Stream the rows, tell how it goes, and seal each artifact once all of its rows are there exactly once."""
    start = time.monotonic()
    artifacts = {step.fingerprint: context.artifact(step) for step in steps}
    done = sum(len(write.done(artifact)) for artifact in artifacts.values())
    title = steps[0].title if len(steps) == 1 else f"{write.stage} ({len(steps)} sets)"
    with Progress(title, sum(totals.values()), "rows", done) as progress:
        for good, rejected in stream(rows, works, write, context.scale.rows_per_block):
            progress.add(good + rejected)
    seconds = (time.monotonic() - start) / len(steps)
    for step in steps:
        _seal(context, step, write, totals[step.fingerprint], facts | {"seconds": seconds})


def _seal(context: Context, step: Step, write: Write, rows_in: int, facts: Mapping[str, Any]) -> None:
    artifact = context.artifact(step)
    ids = write.done(artifact)
    if len(pc.unique(ids)) != len(ids):
        raise RuntimeError(f"{step.title}: {len(ids) - len(pc.unique(ids))} rows were written twice")
    rejected = len(artifact.table(REJECTED_TABLE, REJECTED, ["image_id"]))
    if "split" in write.schema.names:
        splits = artifact.table(write.table, write.schema, ["split"])["split"]
        counts = {str(count["values"]): count["counts"] for count in pc.value_counts(splits).to_pylist()}
        facts = {**facts, "splits": counts}
    context.seal(step, rows_in=rows_in, rows=len(ids) - rejected, rejected=rejected, **facts)
