"""Measure every stage against its reference, in turns, with the same models and images."""

import time
from collections.abc import Iterator
from functools import partial
from itertools import islice

import numpy as np
import pyarrow as pa
import ray

from tests.benchmarks import ours, reference
from tests.benchmarks.turns import PAIRS, Row, in_turns
from vlcp_ray import config
from vlcp_ray.engine.tasks import in_flight, task
from vlcp_ray.scale import Scale
from vlcp_ray.schemas import tensor_array
from vlcp_ray.stages.prototype.cluster import prototype


def caption(scale: Scale) -> Iterator[Row]:
    """Measure vLLM in an actor against transformers' `generate`, one image at a time; the engine's start is a note."""
    settings = ours.job().caption
    rows = ours.cifar(512)
    few = rows.slice(0, 12)
    theirs = reference.Captioner(settings)
    questions = list(zip(ours.files(few), few["class_name"].to_pylist(), strict=True))

    def one_by_one() -> float:
        return float(len([theirs(data, name) for data, name in questions]))

    begin = time.perf_counter()
    with ours.actors("vlcp_ray.stages.pair.caption:CaptionRows", {"settings": settings}, scale.caption) as engine:
        engine(few)
        note = f"the engine starts in {time.perf_counter() - begin:.0f} s, not counted"
        yield Row("pair: caption", "images/s", 8, in_turns(one_by_one, partial(engine, rows)), note)


def encode(scale: Scale) -> Iterator[Row]:
    """Measure one pass of the VAE per image on both sides, and two of ours with mirrored views for training."""
    rows, settings = ours.cifar(4096), ours.job().encode
    pool = scale.encode
    theirs = reference.Encoder(ours.MODEL, ours.files(rows), settings.resolution, pool.batch_size)

    def as_lists() -> float:
        return float(len(theirs()))

    for flip, target, title in ((False, 1.5, "pair: encode"), (True, None, "pair: encode, mirrored too")):
        arguments = {"settings": settings, "base_model": ours.MODEL, "batch_size": pool.batch_size, "flip": flip}
        with ours.actors("vlcp_ray.stages.pair.encode:EncodeRows", arguments, pool) as actors:
            actors(rows)
            before = actors.memory()
            turns = in_turns(as_lists, partial(actors, rows))
            note = f"memory of an actor {before:.0f} MiB before, {actors.memory():.0f} after {len(turns) + 1} turns"
            yield Row(title, "images/s", target, turns, note)


def finetune(scale: Scale) -> Iterator[Row]:
    """Measure ranks that sample from stored moments against the recipe with the VAE in its loop, 32 images per step."""
    rows, job = ours.cifar(2048), ours.job()
    settings, size, steps = job.finetune, job.encode.train_resolution, 8
    captions = ours.captions(rows)
    theirs = reference.Trainer(ours.MODEL, settings, size, ours.files(rows), captions)
    table = ours.pairs(rows, captions)
    losses: list[list[float]] = [[], []]

    def recipe() -> float:
        losses[0].append(float(np.mean([next(theirs) for _ in range(steps)])))
        return float(steps * settings.batch_size)

    with ours.ranks(table, job, scale.finetune) as ranks:

        def from_moments() -> float:
            losses[1].append(float(np.mean([ranks.step() for _ in range(steps)])))
            return float(steps * settings.batch_size)

        turns = in_turns(recipe, from_moments)
    mean = [f"{np.mean(side):.3f}±{np.std(side):.3f}" for side in losses]
    note = f"loss {mean[1]}, reference {mean[0]}"
    yield Row("finetune", "images/s", 1.3, turns, note)


def prototypes(scale: Scale) -> Iterator[Row]:
    """Measure a task per class against latents as lists: ten classes of CIFAR-10, and classes of ImageNet's size."""
    rows = ours.cifar(8000)
    job = ours.job("prototype.contamination=0.1")
    small = ours.pairs(rows, ours.captions(rows))
    by_class = [small.filter(pa.compute.equal(small["label"], label)) for label in range(10)]
    yield _prototypes("prototype: 10 classes of CIFAR-10", by_class, job.prototype, 10, scale, PAIRS, 10)
    large = [large_class(by_class[label]) for label in range(scale.prototype.num_workers)]
    yield _prototypes("prototype: 1,300 x 16,384, k = 50", large, job.prototype, 50, scale, PAIRS, 1)


def _prototypes(
    title: str, classes: list[pa.Table], settings: config.Prototype, ipc: int, scale: Scale, pairs: int, theirs: int
) -> Row:
    """Measure classes per second.

    Args:
        theirs: number of the classes that the reference clusters in its turn.
    """
    lists = [
        table["latent"].combine_chunks().to_numpy_ndarray().reshape(len(table), -1).tolist()
        for table in classes[:theirs]
    ]
    call, shared = task(one_class, scale.prototype), [ray.put(table) for table in classes]

    def as_lists() -> float:
        for latents, table in zip(lists, classes, strict=False):
            name = table["class_name"][0].as_py()
            reference.prototypes(latents, table["caption"].to_pylist(), name, settings, ipc, 0)
        return float(theirs)

    def tasks() -> float:
        work = (partial(call.remote, table, settings, ipc) for table in shared)
        return float(sum(1 for _ in in_flight(work, scale.prototype.num_workers)))

    return Row(title, "classes/s", 3, in_turns(as_lists, tasks, pairs))


def one_class(table: pa.Table, settings: config.Prototype, ipc: int) -> int:
    """Cluster one class, and return 1."""
    return len(prototype(table, settings, [(0, ipc)]))


def generate(scale: Scale) -> Iterator[Row]:
    """Measure batches of prototypes against one image at a time."""
    rows, settings = ours.cifar(64), ours.job().generate
    pool, table = scale.generate, ours.prototypes(rows)
    latents = table["latent"].combine_chunks().to_numpy_ndarray().copy()
    prototypes = list(islice(zip(latents, table["text"].to_pylist(), range(len(table)), strict=True), 6))
    theirs = reference.Generator(ours.MODEL, settings)

    def one_by_one() -> float:
        return float(len([theirs(*row) for row in prototypes]))

    arguments = {"settings": settings, "model": ours.MODEL, "batch_size": pool.batch_size}
    with ours.actors("vlcp_ray.stages.generate.img2img:Img2Img", arguments, pool) as actors:
        yield Row("generate", "images/s", 3, in_turns(one_by_one, partial(actors, table)))


def large_class(table: pa.Table) -> pa.Table:
    """Make a class of ImageNet's size: 1,300 latents of 4 x 64 x 64, enlarged from smaller real ones, with noise."""
    random = np.random.default_rng(0)
    rows = table.take(np.arange(1300) % len(table))
    small = rows["latent"].combine_chunks().to_numpy_ndarray().astype(np.float32)
    latents = small.repeat(16, axis=2).repeat(16, axis=3) + random.normal(0, 0.7, (1300, 4, 64, 64)).astype(np.float32)
    ids = pa.array([f"train/{number:05d}" for number in range(1300)])
    captions = pa.array(
        [f"{text} {' '.join(random.permutation(text.split()))}" for text in rows["caption"].to_pylist()]
    )
    columns = {"image_id": ids, "label": rows["label"], "class_name": rows["class_name"], "caption": captions}
    return pa.table({**columns, "latent": tensor_array(latents.astype(np.float16))})
