"""finetune: Ray Train runs the ranks, which read the same sorted rows, resume from checkpoints and write the model."""

import json
import shutil
import tempfile
import threading
import time
from collections import deque
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager, suppress
from dataclasses import asdict, dataclass
from functools import partial
from pathlib import Path
from queue import SimpleQueue
from typing import TYPE_CHECKING, Any, Final

import ray
import ray.train
import ray.train.torch
from pyarrow import fs as pafs
from ray.train import Checkpoint, CheckpointConfig, CheckpointUploadMode, FailureConfig, RunConfig

from vlcp_ray.engine.context import Context
from vlcp_ray.engine.ranks import TorchTrainer, scaling_config
from vlcp_ray.monitoring.allocator import memory_retained
from vlcp_ray.monitoring.memory import Peaks, measure_peaks, reset_peaks
from vlcp_ray.monitoring.tensorboard import Record
from vlcp_ray.scale import FinetunePool
from vlcp_ray.stages.finetune import MODEL, STAGE, Finetune, divide_pool
from vlcp_ray.stages.finetune.batches import Schedule
from vlcp_ray.stages.finetune.rows import PairRows, index_rows
from vlcp_ray.store import written
from vlcp_ray.store.artifact import Artifact, Step
from vlcp_ray.store.files import File
from vlcp_ray.store.io import StoreError, retry
from vlcp_ray.store.retrying_filesystem import retrying

if TYPE_CHECKING:
    from vlcp_ray.stages.finetune.trainer import EpochMetrics, Trainer

_MAX_FAILURES: Final = 8  # of a rank or its machine; each costs the steps since the last checkpoint
#: Seconds between reads of the ranks' metrics, on a local disk and on other stores.
_POLL_INTERVAL, _REMOTE_POLL_INTERVAL = 1.0, 10.0
# Folders of the artifact; those of checkpoints and peaks are deleted once it is complete.
_CHECKPOINTS, _METRICS, _PEAKS, _VALIDATION = "checkpoints", "progress", "memory", "validation"
_BATCH: Final = f"{_PEAKS}/batch_size"  # images of a forward pass, where those of the scale did not fit
_TEMPORARY: Final = (_CHECKPOINTS, _PEAKS)


def run(context: Context, steps: Sequence[Step]) -> None:
    """Turn PAIRS into one diffusers folder for each seed; several seeds at a time where the pool has ranks for them."""
    pairs, n_rows = context.input(steps[0], "pairs"), context.rows(steps[0], "pairs")
    rows = ray.remote(index_rows).remote(pairs)
    ray.get(ray.remote(_count).remote(rows))  # the error of damaged files, before any rank starts
    pool, at_once = divide_pool(context.scale.finetune, context.job.finetune.batch_size, len(steps))
    configs = [_configure_ranks(context, step, rows, pool) for step in steps]
    starts = dict.fromkeys(range(len(steps)), 0.0)

    def fit(number: int) -> None:
        starts[number] = time.monotonic()
        artifact = configs[number].artifact
        artifact.delete_files([File(f"{artifact.path}/{_BATCH}", 0)])  # of an earlier run, perhaps on other GPUs
        retry(partial(_fit, configs[number], pool), f"write the checkpoints of {configs[number].artifact.path}")

    with _show_progress(context, steps, configs):
        for number in _call_at_once(fit, len(steps), at_once):
            _complete(context, steps[number], configs[number], n_rows, starts[number], at_once)


def _count(rows: PairRows) -> int:
    return len(rows)


def _call_at_once(call: Callable[[int], None], count: int, at_once: int) -> Iterator[int]:
    """Call a function with each number below `count`, some at a time, and yield the numbers as their calls end.

    The first error ends it, or Ctrl-C; other calls are not waited for, and end with the process or its connection to
    Ray.
    """
    waiting: deque[int] = deque(range(count))
    ended: SimpleQueue[tuple[int, BaseException | None]] = SimpleQueue()
    for _ in range(at_once):
        threading.Thread(target=_call_waiting, args=(call, waiting, ended), daemon=True).start()
    try:
        for _ in range(count):
            number, error = ended.get()
            if error:
                raise error
            yield number
    finally:
        waiting.clear()


def _call_waiting(
    call: Callable[[int], None], waiting: deque[int], ended: "SimpleQueue[tuple[int, BaseException | None]]"
) -> None:
    """Call a function with one number after the other, until none is waiting or a call has failed."""
    error: BaseException | None = None
    while error is None:
        try:
            number = waiting.popleft()
        except IndexError:
            return
        try:
            call(number)
        except BaseException as raised:
            error = raised
        ended.put((number, error))


def _complete(context: Context, step: Step, config: "RankConfig", n_rows: int, start: float, at_once: int) -> None:
    """Complete the artifact of a seed, with the facts that its ranks have written.

    Its seconds are those from its start to its end, divided by the number of trainings at a time; the pool of its
    manifest has the ranks of all of these.
    """
    artifact, schedule, pool = context.artifact(step), config.schedule, config.pool
    for peaks, records in _read_json(artifact, _PEAKS):
        context.view.record_peaks(Peaks(*peaks))
        written.load(records)
    epochs = _read_json(artifact, _METRICS)
    for metrics in epochs:  # those that a killed run has not recorded
        _record_curves(context, step, metrics)
    facts: dict[str, Any] = {
        "images": schedule.images_after(schedule.steps),
        "steps": schedule.steps,
        "losses": [(metrics["step"], metrics["loss"]) for metrics in epochs],
        "optimizer": pool.optimizer,
    }
    ranks = {"num_workers": at_once * pool.num_workers, "min_workers": at_once * pool.required_workers}
    facts |= {"seconds": (time.monotonic() - start) / at_once, "pools": {STAGE.name: pool.model_copy(update=ranks)}}
    context.complete(step, rows_in=n_rows, rows=n_rows, temporary=_TEMPORARY, **facts)
    for folder in _TEMPORARY:
        artifact.delete(folder)


@dataclass(frozen=True)
class RankConfig:
    """The arguments of every rank."""

    settings: Finetune
    base_model: str
    seed: int
    resolution: int
    pool: FinetunePool
    class_names: Sequence[str]
    schedule: Schedule
    rows: ray.ObjectRef  # of PairRows
    artifact: Artifact


def _configure_ranks(context: Context, step: Step, rows: ray.ObjectRef, pool: FinetunePool) -> RankConfig:
    job, seed = context.job, step.key["seed"]
    return RankConfig(
        settings=job.finetune,
        base_model=job.base_model,
        seed=seed,
        resolution=job.encode.train_resolution,
        pool=pool,
        class_names=context.manifest(step.inputs["pairs"].inputs["images"])["class_names"],
        schedule=Schedule(context.rows(step, "pairs"), job.finetune.epochs, job.finetune.batch_size, seed),
        rows=rows,
        artifact=context.artifact(step),
    )


def _fit(config: RankConfig, pool: FinetunePool) -> None:
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
    from torch import OutOfMemoryError, cuda

    from vlcp_ray.stages.finetune.trainer import TOO_LITTLE_MEMORY, Trainer, train

    reset_peaks(STAGE.name)
    config: RankConfig = loop["config"]
    world = ray.train.get_context()
    rank, device = world.get_world_rank(), str(ray.train.torch.get_device())
    if device.startswith("cuda") and not cuda.is_available():
        raise ValueError("finetune: Ray has given a rank a GPU that torch does not find: see `vlcp-ray doctor` there")
    unfinished = Path(tempfile.gettempdir(), f"vlcp-ray-{config.artifact.path.rpartition('/')[2]}")
    if rank == 0:
        shutil.rmtree(unfinished, ignore_errors=True)  # checkpoints of an attempt that has ended in their upload
    batch, trainer = _batch_per_device(config), None
    try:
        trainer = Trainer(
            config.settings,
            config.base_model,
            config.seed,
            config.resolution,
            config.pool.model_copy(update={"batch_size": batch}),
            device,
            rank,
            world.get_world_size(),
            # The gradients are DDP's buckets, not a copy of them.
            partial(ray.train.torch.prepare_model, parallel_strategy_kwargs={"gradient_as_bucket_view": True}),
        )
        if checkpoint := ray.train.get_checkpoint():
            with checkpoint.as_directory() as local:
                trainer.load(local)
        report = partial(_write_metrics, config, trainer) if rank == 0 else lambda _: None
        save = partial(_save_checkpoint, trainer, unfinished)
        with memory_retained():
            rows: PairRows = ray.get(config.rows)
            train(trainer, config.schedule, rows.reader(), report, save, 60 * config.pool.checkpoint_minutes)
    except OutOfMemoryError as error:  # while the ranks were adding up their gradients: all start again
        if batch == 1:
            raise ValueError(TOO_LITTLE_MEMORY) from error
        reached = trainer.batch_per_device if trainer else batch  # on this rank, which may have halved it already
        config.artifact.write_bytes(_BATCH, str(max(1, reached // 2)).encode())
        raise
    if rank == 0:
        with tempfile.TemporaryDirectory() as local:
            trainer.export(local)
            config.artifact.put_folder(Path(local), MODEL)
    records = written.dump()
    config.artifact.write_bytes(f"{_PEAKS}/rank-{rank:04d}.json", json.dumps([measure_peaks(), records]).encode())


def _batch_per_device(config: RankConfig) -> int:
    """Return the images of a forward pass: those of the scale, or fewer where an earlier attempt had too few memory."""
    limit = config.artifact.read_bytes(_BATCH)
    return min(config.pool.batch_size, int(limit)) if limit else config.pool.batch_size


def _save_checkpoint(trainer: "Trainer", folder: Path, totals: Sequence[float]) -> None:
    """Write a checkpoint to a local folder, whose upload goes on while the next steps are taken."""
    checkpoint = None
    if trainer.rank == 0:
        folder.mkdir(exist_ok=True)
        local = tempfile.mkdtemp(dir=folder)
        trainer.save(local, totals)
        checkpoint = Checkpoint.from_directory(local)
    ray.train.report(
        {},
        checkpoint=checkpoint,
        checkpoint_upload_mode=CheckpointUploadMode.ASYNC,
        delete_local_checkpoint_after_upload=True,
    )


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
def _show_progress(context: Context, steps: Sequence[Step], configs: Sequence[RankConfig]) -> Iterator[None]:
    """Show progress from the metrics that the ranks write to the artifacts, on whichever machines they run."""
    ended = threading.Event()
    artifacts = [context.artifact(step) for step in steps]
    total = sum(config.schedule.images_after(config.schedule.steps) for config in configs)
    known = [_read_json(artifact, _METRICS) for artifact in artifacts]
    images = [max((metrics["images"] for metrics in epochs), default=0) for epochs in known]
    counts = [0] * len(steps)
    is_local = isinstance(artifacts[0].filesystem, pafs.LocalFileSystem)
    with context.progress(steps, total, "images", sum(images)) as progress:

        def read(number: int) -> None:
            for metrics in _read_json(artifacts[number], _METRICS, counts[number]):
                _record_curves(context, steps[number], metrics)
                seed = f"seed {steps[number].key['seed']}, " if len(steps) > 1 else ""
                note = f"{seed}epoch {metrics['epoch']}, loss {metrics['loss']:.4f}"
                progress.add(max(0, metrics["images"] - images[number]), note)
                images[number] = max(images[number], metrics["images"])
                counts[number] += 1

        def poll() -> None:
            is_last = False
            while not is_last:
                is_last = ended.wait(_POLL_INTERVAL if is_local else _REMOTE_POLL_INTERVAL)
                for number in range(len(steps)):
                    with suppress(StoreError):  # the ranks continue; the next poll reads what this one could not
                        read(number)
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
