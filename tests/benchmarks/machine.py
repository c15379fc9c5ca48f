"""Measures what Ray costs: the throughput of a stage's plan over that of the same callable in plain processes.

Batches are of a second or more. The start of actors and processes is left out on both sides: what is measured begins
once each of them has handed back its first batch.
"""

import importlib
import tempfile
import time
from collections.abc import Callable, Iterator, Mapping
from concurrent.futures import ProcessPoolExecutor, as_completed
from functools import partial
from multiprocessing import get_context
from typing import Any

import pyarrow as pa
import torch

from tests.benchmarks import ours
from tests.benchmarks.stages import large_class, one_class
from tests.benchmarks.turns import PAIRS, Row
from vlcp_ray.flow.data import Work, Write, read, stream
from vlcp_ray.flow.tasks import in_flight, task
from vlcp_ray.memory import keep_memory
from vlcp_ray.scale import Pool, Scale
from vlcp_ray.schemas import SYNTHETIC, pairs_schema
from vlcp_ray.store import Step, Store

_TARGET = 0.9
_BATCHES = 6  # of each worker in a turn; the first one is not counted


def machine(scale: Scale) -> Iterator[Row]:
    """The VAE, the UNet and the clustering in Ray against themselves without it."""
    cores = scale.evaluate.num_workers
    settings, drawing = ours.job().encode, ours.job().generate
    encoding = {"settings": settings, "base_model": ours.MODEL, "batch_size": 128, "flip": False}
    images = ours.cifar(cores * _BATCHES * 1024).append_column("caption", pa.array(["-"] * cores * _BATCHES * 1024))
    yield _row_wise("encode", encoding, images, Pool(num_workers=cores, batch_size=1024), "pairs")
    drawing = {"settings": drawing, "model": ours.MODEL, "batch_size": 32}
    rows = ours.prototypes(ours.cifar(cores * _BATCHES * 32))
    yield _row_wise("generate", drawing, rows, Pool(num_workers=cores, batch_size=32), "synthetic")
    yield _by_class(scale)


def _row_wise(stage: str, arguments: Mapping[str, Any], rows: pa.Table, pool: Pool, table: str) -> Row:
    """Rows a second of a plan from the store to the store, and of processes that do the same with files."""
    name = f"vlcp_ray.stages.{stage}:{stage.capitalize()}"
    schema, key = (
        (pairs_schema((4, 4, 4), (8, 4, 4), 1), "image_id") if table == "pairs" else (SYNTHETIC, "prototype_id")
    )
    with tempfile.TemporaryDirectory() as folder, _processes(pool.num_workers, name, arguments) as bare:
        store = Store.at(folder)
        source = store.artifact(Step("source", 1, {}))
        for start in range(0, len(rows), pool.batch_size):
            source.write_table(f"rows/{start:06}.parquet", rows.slice(start, pool.batch_size))

        def in_ray(turn: int) -> Iterator[int]:
            target = store.artifact(Step("ray", turn, {}))
            write = Write({"": target}, stage, table, schema, key)
            works = [Work(name, arguments, pool)]
            yield from (good for good, _, _ in stream(read(source, "rows"), works, write, pool.batch_size))

        def in_processes(turn: int) -> Iterator[int]:
            target = store.artifact(Step("bare", turn, {}))
            write = Write({"": target}, stage, table, schema, key)
            work = [bare.submit(_work, file, write) for file in source.files("rows")]
            yield from (done.result() for done in as_completed(work))

        pairs = [
            (_steady(in_processes(turn), pool.num_workers), _steady(in_ray(turn), pool.num_workers))
            for turn in range(PAIRS)
        ]
    return Row(f"Ray over a bare loop: {stage}", "rows/s", _TARGET, pairs)


def _by_class(scale: Scale) -> Row:
    """Classes of ImageNet's size a second, of tasks on Ray and of processes."""
    pool, settings = scale.prototype, ours.job("prototype.contamination=0.1").prototype
    rows = ours.cifar(8000)
    table = ours.pairs(rows, ours.captions(rows))
    classes = [large_class(table.filter(pa.compute.equal(table["label"], label))) for label in range(6)]
    import ray

    shared, call = [ray.put(one) for one in classes], task(one_class, pool)
    with ProcessPoolExecutor(pool.num_workers, get_context("spawn")) as bare:

        def in_ray() -> Iterator[int]:
            yield from in_flight((partial(call.remote, one, settings, 5) for one in shared), pool.num_workers)

        def in_processes() -> Iterator[int]:
            work = [bare.submit(one_class, one, settings, 5) for one in classes]
            yield from (done.result() for done in as_completed(work))

        list(in_ray()), list(in_processes())
        pairs = [(_steady(in_processes(), pool.num_workers), _steady(in_ray(), pool.num_workers)) for _ in range(PAIRS)]
    return Row("Ray over a bare loop: prototype", "classes/s", _TARGET, pairs)


def _steady(counts: Iterator[int], workers: int) -> float:
    """Rows a second after each worker has handed back its first batch."""
    arrived = [(time.perf_counter(), count) for count in counts]
    begin = arrived[workers - 1][0]
    return sum(count for _, count in arrived[workers:]) / (arrived[-1][0] - begin)


def _processes(workers: int, stage: str, arguments: Mapping[str, Any]) -> ProcessPoolExecutor:
    """Plain processes with the stage loaded, a thread each as Ray's actors have it."""
    return ProcessPoolExecutor(workers, get_context("spawn"), _load, (stage, dict(arguments)))


_loaded: list[Callable[[pa.Table], pa.Table]] = []


def _load(stage: str, arguments: dict[str, Any]) -> None:
    torch.set_num_threads(1)
    keep_memory()
    module, _, name = stage.partition(":")
    _loaded.append(getattr(importlib.import_module(module), name)(**arguments))


def _work(file: str, write: Write) -> int:
    from pyarrow import parquet

    return int(write(_loaded[0](parquet.read_table(file)))["rows"][0].as_py())
