"""Knows what the row-wise stages after ingest read and write: pair, generate and select."""

import json
import os
import tempfile
from collections.abc import Mapping, Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any, Final

import pyarrow as pa
from ray.data import Dataset

from vlcp_ray import config
from vlcp_ray.flow.choose import choose
from vlcp_ray.flow.context import Context
from vlcp_ray.flow.data import Work, Write, keep, read, read_all
from vlcp_ray.flow.feeds import Chosen, Route, Routed
from vlcp_ray.flow.labelled import check_classes
from vlcp_ray.flow.rowwise import apart, done_ids, run_rows, seal_rows
from vlcp_ray.models.shapes import latent_shape
from vlcp_ray.scale import Pool, Scale
from vlcp_ray.schemas import IMAGES, SYNTHETIC, pairs_schema
from vlcp_ray.stages.select import random_ids
from vlcp_ray.store import Artifact, Step

_STAGES: Final = "vlcp_ray.stages"


def pair(context: Context, steps: Sequence[Step]) -> None:
    """IMAGES(train) as PAIRS: descriptions, then latents, in one plan."""
    (step,) = steps
    job, scale, artifact = context.job, context.scale, context.artifact(step)
    manifest = context.manifest(step.inputs["images"])
    check_classes(manifest, max(job.ipc))
    model = job.base_model
    channels, height, width = latent_shape(model, job.encode.train_resolution)
    flip = job.finetune.random_flip
    schema = pairs_schema(latent_shape(model, job.encode.resolution), (2 * channels, height, width), 1 + flip)
    write = Write({"": artifact}, "pair", "pairs", schema)
    encoding = {"settings": job.encode, "base_model": model, "batch_size": scale.encode.batch_size, "flip": flip}
    works = [_captioning(job.caption, scale), Work(f"{_STAGES}.encode:Encode", encoding, scale.encode)]
    rows_per_block = scale.rows_per_block
    if job.caption.source:  # a row is then so little work that the plan's own work for a block shows
        rows_per_block *= 4
        if "RAY_ADDRESS" not in os.environ:  # all of this machine is there already: Ray would grow the pool late
            works[1] = replace(works[1], pool=scale.encode.model_copy(update={"min_workers": None}))
    columns = ["image_id", "label", "class_name", "split", "image", "source"]
    rows = read(context.input(step, "images"), "images", columns)
    rows = keep(rows, done=done_ids(write, artifact), where={"split": "train"})
    _run(context, [step], rows, works, write, {step.fingerprint: sum(manifest["train"])}, rows_per_block)


def _captioning(settings: config.Caption, scale: Scale) -> Work:
    if settings.source:  # one worker without a device joins faster than any number of encoders encode
        return Work("vlcp_ray.flow.feeds:CarryFrom", {"uri": settings.source}, Pool(batch_size=scale.rows_per_block))
    return Work(f"{_STAGES}.caption:Caption", {"settings": settings}, scale.caption)


def generate(context: Context, steps: Sequence[Step]) -> None:
    """PROTOTYPES as SYNTHETIC: all sizes of one seed with one load of its model."""
    for alike in _alike(steps):
        science, model = dict(alike[0].science), alike[0].inputs.get("model")
        text = science.pop("text")
        science.pop("base_model", None)
        arguments = {"settings": config.Generate(**science), "text": text}
        with tempfile.TemporaryDirectory() as local:
            tuned = context.artifact(model).get_folder("model", Path(local)) if model else context.job.base_model
            _draw(context, alike, "Generate", "generate", arguments | {"model": tuned})


def _alike(steps: Sequence[Step]) -> list[list[Step]]:
    """The steps that one load of a model serves."""
    groups: dict[str, list[Step]] = {}
    for step in steps:
        model = step.inputs["model"].fingerprint if "model" in step.inputs else ""
        alike = json.dumps([step.key["method"], model, step.science], sort_keys=True)
        groups.setdefault(alike, []).append(step)
    return list(groups.values())


def select(context: Context, steps: Sequence[Step]) -> None:
    """The other ways of writing SYNTHETIC."""
    for images in [step.inputs["images"] for step in steps if "images" in step.inputs][:1]:  # all have the same
        check_classes(context.manifest(images), max(context.job.ipc))
    by_method: dict[str, list[Step]] = {}
    for step in steps:
        by_method.setdefault(step.key["method"], []).append(step)
    if mine := by_method.pop("random", []):
        _select_random(context, mine)
    if mine := by_method.pop("centroid", []):
        arguments = {"settings": context.job.generate, "model": context.job.base_model}
        _draw(context, mine, "Decode", "select", arguments)
    if mine := [step for method in by_method.values() for step in method]:
        choose(context, mine)


def _select_random(context: Context, steps: Sequence[Step]) -> None:
    images = context.input(steps[0], "images")
    chosen: dict[str, list[str]] = apart(_random, images, {s.fingerprint: (s.key["seed"], s.key["ipc"]) for s in steps})
    totals = {target: len(image_ids) for target, image_ids in chosen.items()}
    targets = {step.fingerprint: context.artifact(step) for step in steps}
    write = Write(targets, "select", "synthetic", SYNTHETIC)
    for target, artifact in targets.items():
        done = set(write.done(artifact).to_pylist())
        chosen[target] = [image_id for image_id in chosen[target] if image_id not in done]
    rows = read(images, "images").map_batches(Chosen(chosen), batch_size=None, batch_format="pyarrow")
    _run(context, steps, rows, [], write, totals)


def _random(images: Artifact, wanted: Mapping[str, tuple[int, int]]) -> dict[str, list[str]]:
    index = images.rows("images", IMAGES, ["image_id", "class_name"], "split", pa.array(["train"]))
    return {target: random_ids(index, seed, ipc) for target, (seed, ipc) in wanted.items()}


def _draw(context: Context, steps: Sequence[Step], stage: str, name: str, arguments: Mapping[str, Any]) -> None:
    pool = context.scale.generate
    targets = {step.fingerprint: context.artifact(step) for step in steps}
    write = Write(targets, name, "synthetic", SYNTHETIC, "prototype_id")
    origins = [context.input(step, "prototypes") for step in steps]
    routes = {
        origin.path: Route(step.fingerprint, step.key["seed"], write.done(targets[step.fingerprint]))
        for origin, step in zip(origins, steps, strict=True)
    }
    rows = read_all(origins, "prototypes").map_batches(Routed(routes), batch_size=None, batch_format="pyarrow")
    work = Work(f"{_STAGES}.generate:{stage}", {**arguments, "batch_size": pool.batch_size}, pool)
    totals = {step.fingerprint: context.rows(step, "prototypes") for step in steps}
    _run(context, steps, rows, [work], write, totals)


def _run(
    context: Context,
    steps: Sequence[Step],
    rows: Dataset,
    works: Sequence[Work],
    write: Write,
    totals: Mapping[str, int],
    rows_per_block: int | None = None,
) -> None:
    seconds = run_rows(context, steps, rows, works, write, sum(totals.values()), rows_per_block)
    for step in steps:
        seal_rows(context, step, write, totals[step.fingerprint], {"seconds": seconds})
