"""Measure the overhead of Ray: the throughput of a stage's plan divided by that of the same class in plain processes.

Batches take a second or more. The start of actors and processes is not counted on either side: the measurement starts
when each of them has returned its first batch.
"""

import tempfile
import time
from collections.abc import Callable, Iterator, Mapping
from concurrent.futures import ProcessPoolExecutor, as_completed
from dataclasses import replace
from functools import partial
from multiprocessing import get_context
from pkgutil import resolve_name
from typing import Any

import pyarrow as pa
import torch

from tests.benchmarks import ours
from tests.benchmarks.stages import large_class, one_class
from tests.benchmarks.turns import PAIRS, Row
from vlcp_ray.engine.streaming import RowWork, read, stream
from vlcp_ray.engine.tasks import in_flight, task
from vlcp_ray.engine.writing import WriteRows
from vlcp_ray.monitoring.allocator import retain_memory
from vlcp_ray.scale import Pool, Scale
from vlcp_ray.schemas import SYNTHETIC
from vlcp_ray.stages.pair import pairs_schema
from vlcp_ray.store.artifact import Step, Store

_TARGET = 0.9
_BATCHES = 6  # of each worker in a turn, of which the first is not counted


def machine(scale: Scale) -> Iterator[Row]:
    """Measure the VAE, the UNet and the clustering with and without Ray."""
    cores = scale.evaluate.num_workers
    encoding = {"settings": ours.job().encode, "base_model": ours.MODEL, "batch_size": 128, "flip": False}
    images = ours.cifar(cores * _BATCHES * 1024).append_column("caption", pa.array(["-"] * cores * _BATCHES * 1024))
    write = WriteRows({}, "encode", "pairs", pairs_schema((4, 4, 4), (8, 4, 4), 1))
    encode = RowWork("vlcp_ray.stages.pair.encode:EncodeRows", encoding, Pool(num_workers=cores, batch_size=1024))
    yield _row_wise(encode, images, write)
    generation = {"settings": ours.job().generate, "model": ours.MODEL, "batch_size": 32}
    write = WriteRows({}, "generate", "synthetic", SYNTHETIC, "prototype_id")
    generate = RowWork("vlcp_ray.stages.generate.img2img:Img2Img", generation, Pool(num_workers=cores, batch_size=32))
    rows = ours.prototypes(ours.cifar(cores * _BATCHES * 32))
    yield _row_wise(generate, rows, write)
    yield _by_class(scale)


def _row_wise(work: RowWork, rows: pa.Table, write: WriteRows) -> Row:
    """Measure rows per second of a plan from the store to the store, and of processes that do the same with files."""
    pool = work.pool
    with tempfile.TemporaryDirectory() as folder, _processes(pool.num_workers, work.name, work.arguments) as bare:
        store = Store.at(folder)
        source = store.artifact(Step("source", 1, {}))
        for start in range(0, len(rows), pool.batch_size):
            source.write_table(f"rows/{start:06}.parquet", rows.slice(start, pool.batch_size))

        def write_to(name: str, turn: int) -> WriteRows:
            return replace(write, targets={"": store.artifact(Step(name, turn, {}))})

        def in_ray(turn: int) -> Iterator[int]:
            blocks = stream(read(source, "rows"), [work], write_to("ray", turn), pool.batch_size)
            yield from (good for good, _, _ in blocks)

        def in_processes(turn: int) -> Iterator[int]:
            target = write_to("bare", turn)
            futures = [bare.submit(_process_file, part.path, target) for part in source.parts("rows")]
            yield from (future.result() for future in as_completed(futures))

        pairs = [
            (_steady_rate(in_processes(turn), pool.num_workers), _steady_rate(in_ray(turn), pool.num_workers))
            for turn in range(PAIRS)
        ]
    return Row(f"Ray over plain processes: {write.stage}", "rows/s", _TARGET, pairs)


def _by_class(scale: Scale) -> Row:
    """Measure classes of ImageNet's size per second, of tasks on Ray and of plain processes."""
    pool, settings = scale.prototype, ours.job("prototype.contamination=0.1").prototype
    rows = ours.cifar(8000)
    table = ours.pairs(rows, ours.captions(rows))
    classes = [large_class(table.filter(pa.compute.equal(table["label"], label))) for label in range(6)]
    import ray

    shared, call = [ray.put(table) for table in classes], task(one_class, pool)
    with ProcessPoolExecutor(pool.num_workers, get_context("spawn")) as bare:

        def in_ray() -> Iterator[int]:
            yield from in_flight((partial(call.remote, table, settings, 5) for table in shared), pool.num_workers)

        def in_processes() -> Iterator[int]:
            futures = [bare.submit(one_class, table, settings, 5) for table in classes]
            yield from (future.result() for future in as_completed(futures))

        list(in_ray()), list(in_processes())
        workers = pool.num_workers
        pairs = [(_steady_rate(in_processes(), workers), _steady_rate(in_ray(), workers)) for _ in range(PAIRS)]
    return Row("Ray over plain processes: prototype", "classes/s", _TARGET, pairs)


def _steady_rate(counts: Iterator[int], workers: int) -> float:
    """Measure rows per second after each worker has returned its first batch."""
    arrived = [(time.perf_counter(), count) for count in counts]
    begin = arrived[workers - 1][0]
    return sum(count for _, count in arrived[workers:]) / (arrived[-1][0] - begin)


def _processes(workers: int, name: str, arguments: Mapping[str, Any]) -> ProcessPoolExecutor:
    """Start plain processes with the class loaded and one thread each, as Ray's actors have."""
    return ProcessPoolExecutor(workers, get_context("spawn"), _load, (name, dict(arguments)))


_loaded: list[Callable[[pa.Table], pa.Table]] = []


def _load(name: str, arguments: dict[str, Any]) -> None:
    torch.set_num_threads(1)
    retain_memory()
    _loaded.append(resolve_name(name)(**arguments))


def _process_file(file: str, write: WriteRows) -> int:
    from pyarrow import parquet

    return int(write(_loaded[0](parquet.read_table(file)))["rows"][0].as_py())
