"""finetune: Ray Train runs the ranks, which read the same sorted rows, resume from checkpoints and write the model."""

import json
import tempfile
import threading
import time
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager, suppress
from dataclasses import asdict, dataclass
from functools import lru_cache, partial
from itertools import accumulate
from pathlib import Path
from typing import TYPE_CHECKING, Any, Final

import numpy as np
import pyarrow as pa
import ray
import ray.train
import ray.train.torch
from pyarrow import fs as pafs
from ray.train import Checkpoint, CheckpointConfig, FailureConfig, RunConfig

from vlcp_ray.engine.context import Context
from vlcp_ray.engine.ranks import TorchTrainer, scaling_config
from vlcp_ray.engine.streaming import read
from vlcp_ray.monitoring.allocator import memory_retained
from vlcp_ray.monitoring.memory import Peaks, measure_peaks, reset_peaks
from vlcp_ray.monitoring.tensorboard import Record
from vlcp_ray.scale import Pool
from vlcp_ray.stages.finetune import MODEL, STAGE, Finetune
from vlcp_ray.stages.finetune.batches import Positions, Schedule
from vlcp_ray.stages.pair import PAIRS
from vlcp_ray.store import written
from vlcp_ray.store.artifact import Artifact, Step
from vlcp_ray.store.io import StoreError, retry
from vlcp_ray.store.retrying_filesystem import retrying

if TYPE_CHECKING:
    from vlcp_ray.stages.finetune.trainer import EpochMetrics, Trainer

_COLUMNS: Final = ("image_id", "caption", "train_moments")
_CACHED_BLOCKS: Final = 64  # per rank; zero-copy views into the object store
_MAX_FAILURES: Final = 8  # of a rank or its machine; each costs the steps since the last epoch
#: Seconds between reads of the ranks' metrics, on a local disk and on other stores.
_POLL_INTERVAL, _REMOTE_POLL_INTERVAL = 1.0, 10.0
# Folders of the artifact; those of checkpoints and peaks are deleted once it is complete.
_CHECKPOINTS, _METRICS, _PEAKS, _VALIDATION = "checkpoints", "progress", "memory", "validation"
_TEMPORARY: Final = (_CHECKPOINTS, _PEAKS)


def run(context: Context, steps: Sequence[Step]) -> None:
    """Turn PAIRS into one diffusers folder for each seed. The seeds run one after another, each on the whole pool."""
    n_rows = context.rows(steps[0], "pairs")
    rows = _sort_pairs(context.input(steps[0], "pairs"), n_rows, context.job.finetune.shuffle_window)
    for step in steps:
        start, artifact = time.monotonic(), context.artifact(step)
        config = _configure_ranks(context, step, rows)
        images = config.schedule.images_after(config.schedule.steps)
        with _show_progress(context, step, images):
            retry(partial(_fit, config, context.scale.finetune), f"write the checkpoints of {artifact.path}")
        for peaks, records in _read_json(artifact, _PEAKS):
            context.view.record_peaks(Peaks(*peaks))
            written.load(records)
        epochs = _read_json(artifact, _METRICS)
        for metrics in epochs:  # those that a killed run has not recorded
            _record_curves(context, step, metrics)
        losses = [(metrics["step"], metrics["loss"]) for metrics in epochs]
        facts: dict[str, Any] = {"images": images, "steps": config.schedule.steps, "losses": losses}
        seconds = time.monotonic() - start
        context.complete(step, rows_in=n_rows, rows=n_rows, seconds=seconds, temporary=_TEMPORARY, **facts)
        for folder in _TEMPORARY:
            artifact.delete(folder)


@dataclass(frozen=True)
class SortedPairs:
    """PAIRS sorted by image_id, as blocks in the object store. Rows are read by position, each block fetched once.

    Args:
        blocks: references to tables.
        ends: for each block, the position after its last row.
    """

    blocks: Sequence[ray.ObjectRef]
    ends: Sequence[int]

    def reader(self) -> Callable[[Positions], pa.Table]:
        """Return a function from positions to their rows, in the order of the positions."""
        ends = np.asarray(self.ends)
        starts = np.concatenate([[0], ends[:-1]])
        get_block = lru_cache(maxsize=_CACHED_BLOCKS)(lambda number: ray.get(self.blocks[number]))

        def read_rows(positions: Positions) -> pa.Table:
            numbers = np.searchsorted(ends, positions, side="right")
            order = np.argsort(numbers, kind="stable")
            parts = [
                get_block(int(number)).take(positions[numbers == number] - starts[number])
                for number in np.unique(numbers)
            ]
            return pa.concat_tables(parts).take(np.argsort(order))

        return read_rows


def _sort_pairs(pairs: Artifact, n_rows: int, window: int) -> SortedPairs:
    if n_rows <= window:  # one window is one block: no shuffle between machines
        return SortedPairs([ray.remote(_read_sorted).remote(pairs)], [n_rows])
    blocks = read(pairs, "pairs", _COLUMNS).sort("image_id").materialize().to_arrow_refs()
    count = ray.remote(_count_rows)
    counts = ray.get([count.remote(block) for block in blocks])
    filled = [(block, count) for block, count in zip(blocks, counts, strict=True) if count]
    return SortedPairs([block for block, _ in filled], list(accumulate(count for _, count in filled)))


def _read_sorted(pairs: Artifact) -> pa.Table:
    return pairs.table("pairs", PAIRS, _COLUMNS).sort_by("image_id").combine_chunks()


def _count_rows(block: pa.Table) -> int:
    return len(block)


@dataclass(frozen=True)
class RankConfig:
    """The arguments of every rank."""

    settings: Finetune
    base_model: str
    seed: int
    resolution: int
    batch_per_device: int
    class_names: Sequence[str]
    schedule: Schedule
    rows: SortedPairs
    artifact: Artifact


def _configure_ranks(context: Context, step: Step, rows: SortedPairs) -> RankConfig:
    job, seed = context.job, step.key["seed"]
    return RankConfig(
        settings=job.finetune,
        base_model=job.base_model,
        seed=seed,
        resolution=job.encode.train_resolution,
        batch_per_device=context.scale.finetune.batch_size,
        class_names=context.manifest(step.inputs["pairs"].inputs["images"])["class_names"],
        schedule=Schedule(
            context.rows(step, "pairs"), job.finetune.epochs, job.finetune.batch_size, seed, job.finetune.shuffle_window
        ),
        rows=rows,
        artifact=context.artifact(step),
    )


def _fit(config: RankConfig, pool: Pool) -> None:
    """Train to the end, from the last checkpoint if there is one.

    Raises:
        OSError: the store failed in the middle of a file.
    """
    artifact = config.artifact
    trainer = TorchTrainer(
        _run_rank,
        train_loop_config={"config": config},
        # Elastic where the pool may grow: the schedule cuts the same global batch for any number of ranks.
        scaling_config=scaling_config(pool),
        # Ray Train resumes from the last checkpoint when name and storage path are the same again.
        run_config=RunConfig(
            name=_CHECKPOINTS,
            storage_path=artifact.path,
            storage_filesystem=retrying(artifact.filesystem),
            checkpoint_config=CheckpointConfig(num_to_keep=1),
            failure_config=FailureConfig(max_failures=_MAX_FAILURES),
        ),
    )
    try:
        trainer.fit()
    except ray.train.ControllerError as error:
        if isinstance(error.controller_failure, OSError):
            raise error.controller_failure from error
        raise


def _run_rank(loop: dict[str, Any]) -> None:
    """Run one rank: resume from the last checkpoint, take its share of every step, write the model."""
    # Imported by the ranks only: diffusers takes ten seconds to load.
    from vlcp_ray.stages.finetune.trainer import Trainer, train

    reset_peaks(STAGE.name)
    config: RankConfig = loop["config"]
    world = ray.train.get_context()
    rank, device = world.get_world_rank(), str(ray.train.torch.get_device())
    trainer = Trainer(
        config.settings,
        config.base_model,
        config.seed,
        config.resolution,
        config.batch_per_device,
        device,
        rank,
        world.get_world_size(),
        ray.train.torch.prepare_model,
    )
    if checkpoint := ray.train.get_checkpoint():
        with checkpoint.as_directory() as local:
            trainer.load(local)

    def report(metrics: "EpochMetrics") -> None:
        with tempfile.TemporaryDirectory() as local:
            if rank == 0:
                _write_metrics(config, trainer, metrics)
                trainer.save(local)
            ray.train.report(asdict(metrics), checkpoint=Checkpoint.from_directory(local) if rank == 0 else None)

    with memory_retained():
        train(trainer, config.schedule, config.rows.reader(), report)
    if rank == 0:
        with tempfile.TemporaryDirectory() as local:
            trainer.export(local)
            config.artifact.put_folder(Path(local), MODEL)
    records = written.dump()
    config.artifact.write_bytes(f"{_PEAKS}/rank-{rank:04d}.json", json.dumps([measure_peaks(), records]).encode())


def _write_metrics(config: RankConfig, trainer: "Trainer", metrics: "EpochMetrics") -> None:
    name = f"epoch-{metrics.epoch:04d}"
    if metrics.epoch % config.settings.validation_epochs == 0:
        for number, image in enumerate(trainer.validate(config.class_names[: config.settings.validation_classes])):
            config.artifact.write_bytes(f"{_VALIDATION}/{name}-{number:02d}.png", image)
    config.artifact.write_bytes(f"{_METRICS}/{name}.json", json.dumps(asdict(metrics)).encode())


def _read_json(artifact: Artifact, folder: str, start: int = 0) -> list[Any]:
    """Read the JSON files of a folder in the order of their names, from index `start` on."""
    names = [f"{folder}/{file.name}" for file in artifact.files(folder, ".json")][start:]
    return [json.loads(artifact.read_bytes(name) or b"{}") for name in names]


@contextmanager
def _show_progress(context: Context, step: Step, images: int) -> Iterator[None]:
    """Show progress from the metrics that rank 0 writes to the artifact, on whichever machine it runs."""
    ended, artifact = threading.Event(), context.artifact(step)
    done = max((metrics["images"] for metrics in _read_json(artifact, _METRICS)), default=0)
    with context.progress([step], images, "images", done) as progress:

        def poll() -> None:
            is_local = isinstance(artifact.filesystem, pafs.LocalFileSystem)
            is_last, n_read = False, 0
            while not is_last:
                is_last = ended.wait(_POLL_INTERVAL if is_local else _REMOTE_POLL_INTERVAL)
                with suppress(StoreError):  # the ranks continue; the next poll reads what this one could not
                    for metrics in _read_json(artifact, _METRICS, n_read):
                        _record_curves(context, step, metrics)
                        note = f"epoch {metrics['epoch']}, loss {metrics['loss']:.4f}"
                        progress.add(max(0, metrics["images"] - progress.count), note)
                        n_read += 1
                progress.add(0)

        poller = threading.Thread(target=poll, daemon=True)
        poller.start()
        try:
            yield
        finally:
            ended.set()
            poller.join()


def _record_curves(context: Context, step: Step, metrics: dict[str, Any]) -> None:
    """Record the metrics and validation images of an epoch for TensorBoard and the tracker, once."""
    series, name = f"{STAGE.name}/seed-{step.key['seed']}-{step.fingerprint}", f"epoch-{metrics['epoch']:04d}"
    if name in context.records.names(series):
        return
    artifact = context.artifact(step)
    files = [file.name for file in artifact.files(_VALIDATION, ".png")]
    images = {
        f"validation/{file.removesuffix('.png').rpartition('-')[2]}": artifact.read_bytes(f"{_VALIDATION}/{file}")
        or b""
        for file in files
        if file.startswith(f"{name}-")
    }
    curves = {key: value for key, value in metrics.items() if key not in ("step", "epoch", "images")}
    context.records.add(series, Record(name, [(metrics["step"], curves)], images))
