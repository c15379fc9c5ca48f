"""finetune: Ray Train runs the ranks, which read the same sorted rows, resume from checkpoints and write the model."""

import json
import shutil
import tempfile
import threading
import time
from collections import deque
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager, suppress
from dataclasses import asdict, dataclass, replace
from functools import partial
from pathlib import Path
from pkgutil import resolve_name
from queue import SimpleQueue
from typing import TYPE_CHECKING, Any, Final

import ray
import ray.train
import ray.train.torch
from pyarrow import fs as pafs
from ray.train import Checkpoint, CheckpointConfig, CheckpointUploadMode, FailureConfig, RunConfig

from vlcp_ray.engine.context import Context
from vlcp_ray.engine.ranks import TorchTrainer, scaling_config
from vlcp_ray.engine.tasks import task
from vlcp_ray.models import dit_classes
from vlcp_ray.monitoring.allocator import memory_retained
from vlcp_ray.monitoring.memory import Peaks, measure_peaks, reset_peaks
from vlcp_ray.monitoring.tensorboard import Record
from vlcp_ray.scale import FinetunePool
from vlcp_ray.stages.finetune import MODEL, STAGE, TRAINED, divide_pool, is_unet
from vlcp_ray.stages.finetune.batches import Schedule
from vlcp_ray.stages.finetune.moments import MomentRows, encode_class
from vlcp_ray.stages.finetune.rows import PairRows, index_rows
from vlcp_ray.store import written
from vlcp_ray.store.artifact import Artifact, Step
from vlcp_ray.store.files import File
from vlcp_ray.store.io import StoreError, retry
from vlcp_ray.store.retrying_filesystem import retrying

if TYPE_CHECKING:
    from vlcp_ray.stages.finetune.training import EpochMetrics, RankTrainer

_MAX_FAILURES: Final = 8  # of a rank or its machine; each costs the steps since the last checkpoint
#: Seconds between reads of the ranks' metrics, on a local disk and on other stores.
_POLL_INTERVAL, _REMOTE_POLL_INTERVAL = 1.0, 10.0
# Folders of the artifact; those of checkpoints and peaks are deleted once it is complete.
_CHECKPOINTS, _METRICS, _PEAKS, _VALIDATION = "checkpoints", "progress", "memory", "validation"
_BATCH: Final = f"{_PEAKS}/batch_size"  # images of a forward pass, where those of the scale did not fit
_TEMPORARY: Final = (_CHECKPOINTS, _PEAKS)


def run(context: Context, steps: Sequence[Step]) -> None:
    """Train a model for each step: a UNet on PAIRS, or a class-conditional DiT on IMAGES for a compared method."""
    for train, chosen in ((_train_unets, is_unet), (_train_dits, lambda step: not is_unet(step))):
        if own := [step for step in steps if chosen(step)]:
            train(context, own)


def _train_unets(context: Context, steps: Sequence[Step]) -> None:
    """Turn PAIRS into one diffusers folder for each seed; several seeds at a time where the pool has ranks for them."""
    pairs, n_rows = context.input(steps[0], "pairs"), context.rows(steps[0], "pairs")
    rows = ray.remote(index_rows).remote(pairs)
    ray.get(ray.remote(_count).remote(rows))  # the error of damaged files, before any rank starts
    pool, at_once = divide_pool(context.scale.finetune, context.job.finetune.batch_size, len(steps))
    configs = [_configure_ranks(context, step, rows, pool) for step in steps]
    starts = dict.fromkeys(range(len(steps)), 0.0)

    def fit(number: int) -> None:
        starts[number] = time.monotonic()
        _fit_anew(configs[number])

    with _show_progress(context, steps, configs):
        for number in _call_at_once(fit, len(steps), at_once):
            _complete(context, steps[number], [configs[number]], n_rows, starts[number], at_once, at_once)


def _train_dits(context: Context, steps: Sequence[Step]) -> None:
    """Turn IMAGES into the trained weights of a DiT for each seed and each group of classes, one group after the other.

    The images of a group are encoded once for all seeds.

    Raises:
        ConfigError: the DiT does not know a class.
    """
    settings, start, encoding = context.job.compare.minimax, time.monotonic(), 0.0
    manifest = context.manifest(steps[0].inputs["images"])
    known = dit_classes.find(manifest["class_names"], settings.model)
    counts = {label: count for label, count in enumerate(manifest["train"]) if count}
    groups = dit_classes.divide(list(counts), settings.classes_per_model)
    pool, at_once = divide_pool(context.scale.finetune, settings.batch_size, len(steps))
    trainings = [
        [
            _configure_dit(context, step, number, {label: known[label] for label in labels}, counts, pool)
            for step in steps
        ]
        for number, labels in enumerate(groups)
    ]
    every = [config for configs in trainings for config in configs]
    with _show_progress(context, [*steps] * len(groups), every):
        for labels, configs in zip(groups, trainings, strict=True):
            left = [config for config in configs if config.artifact.read_bytes(f"{MODEL}/{TRAINED}") is None]
            if not left:
                continue
            begin = time.monotonic()
            rows = _encode_classes(context, steps[0], labels)
            encoding += time.monotonic() - begin
            fit = partial(_fit_one, [replace(config, rows=rows) for config in left])
            for _ in _call_at_once(fit, len(left), at_once):
                pass
    for number, step in enumerate(steps):
        own = [configs[number] for configs in trainings]
        _complete(context, step, own, sum(counts.values()), start, at_once, len(steps), encoding)


def _fit_one(configs: "Sequence[RankConfig]", number: int) -> None:
    _fit_anew(configs[number])


def _encode_classes(context: Context, step: Step, labels: Sequence[int]) -> ray.ObjectRef:
    """Encode the training images of some classes on the workers of the pool `encode`, a task for each class."""
    job, pool = context.job, context.scale.encode
    settings = job.compare.minimax
    images = context.input(step, "images")
    encode = task(encode_class, pool)
    encoded: list[ray.ObjectRef] = []
    running: list[ray.ObjectRef] = []
    for label in labels:
        if len(running) >= pool.num_workers:
            _, running = ray.wait(running, num_returns=1, fetch_local=False)
        encoded.append(encode.remote(images, label, settings, pool.batch_size))
        running.append(encoded[-1])
    rows = ray.remote(_join).remote(*encoded)
    ray.get(ray.remote(_count).remote(rows))  # the error of an image, before any rank starts
    return rows


def _join(*encoded: tuple[MomentRows, str]) -> MomentRows:
    """Join what calls of `task` have returned, on a worker."""
    return MomentRows.concatenate([rows for rows, _ in encoded])


def _fit_anew(config: "RankConfig") -> None:
    """Train to the end, without what an earlier run has learned of its GPUs; a store that fails is tried again."""
    artifact = config.artifact
    artifact.delete_files([File(f"{artifact.path}/{_BATCH}", 0)])  # of an earlier run, perhaps on other GPUs
    retry(partial(_fit, config, config.pool), f"write the checkpoints of {artifact.path}")


def _count(rows: PairRows | MomentRows) -> int:
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


def _complete(
    context: Context,
    step: Step,
    configs: "Sequence[RankConfig]",
    n_rows: int,
    start: float,
    at_once: int,
    shares: int,
    encoding: float = 0.0,
) -> None:
    """Complete the artifact of a step, with the facts that the ranks of its trainings have written.

    Its seconds are those since `start`, divided by `shares`: the number of artifacts that were made in this time. In
    `encoding` of them the pool `encode` has worked, not the ranks. The pool of its manifest has the ranks of all
    trainings at a time.
    """
    artifact, pool = context.artifact(step), configs[0].pool
    losses = []
    for config in configs:
        for peaks, records in _read_json(config.artifact, _PEAKS):
            context.view.record_peaks(Peaks(*peaks))
            written.load(records)
        epochs = _read_json(config.artifact, _METRICS)
        for metrics in epochs:  # those that a killed run has not recorded
            _record_curves(context, step, metrics, config.folder)
        losses.append([(metrics["step"], metrics["loss"]) for metrics in epochs])
    schedules = [config.schedule for config in configs]
    facts: dict[str, Any] = {
        "images": sum(schedule.images_after(schedule.steps) for schedule in schedules),
        "steps": sum(schedule.steps for schedule in schedules),
        "losses": losses[0] if len(losses) == 1 else losses,
        "optimizer": pool.optimizer,
    }
    ranks = {"num_workers": at_once * pool.num_workers, "min_workers": at_once * pool.required_workers}
    seconds = (time.monotonic() - start) / shares
    facts |= {"seconds": seconds, "pools": {STAGE.name: pool.model_copy(update=ranks)}}
    if encoding:
        encoded = encoding / shares
        facts["seconds_by_pool"] = {"encode": encoded, STAGE.name: seconds - encoded}
    temporary = [f"{config.folder}/{name}".lstrip("/") for config in configs for name in _TEMPORARY]
    context.complete(step, rows_in=n_rows, rows=n_rows, temporary=temporary, **facts)
    for folder in temporary:
        artifact.delete(folder)


@dataclass(frozen=True)
class RankConfig:
    """The arguments of every rank.

    Args:
        trainer: `module:class` of its `RankTrainer`.
        arguments: of the constructor of the trainer, besides those that differ between ranks.
        pool: of the ranks.
        schedule: of the optimiser steps.
        rows: a reference to the rows, whose `reader` returns those at given positions.
        root: of the artifact.
        folder: of the training within it; "" where the artifact has only one.
    """

    trainer: str
    arguments: Mapping[str, Any]
    pool: FinetunePool
    schedule: Schedule
    rows: ray.ObjectRef
    root: Artifact
    folder: str = ""

    @property
    def artifact(self) -> Artifact:
        """The folder of the training."""
        return replace(self.root, path=f"{self.root.path}/{self.folder}") if self.folder else self.root


def _configure_ranks(context: Context, step: Step, rows: ray.ObjectRef, pool: FinetunePool) -> RankConfig:
    job, seed = context.job, step.key["seed"]
    return RankConfig(
        trainer="vlcp_ray.stages.finetune.trainer:Trainer",
        arguments={
            "settings": job.finetune,
            "base_model": job.base_model,
            "seed": seed,
            "resolution": job.encode.train_resolution,
            "class_names": context.manifest(step.inputs["pairs"].inputs["images"])["class_names"],
        },
        pool=pool,
        schedule=Schedule(context.rows(step, "pairs"), job.finetune.epochs, job.finetune.batch_size, seed),
        rows=rows,
        root=context.artifact(step),
    )


def _configure_dit(
    context: Context, step: Step, number: int, known: Mapping[int, int], counts: Mapping[int, int], pool: FinetunePool
) -> RankConfig:
    """Configure the ranks that train the DiT on a group of classes.

    Args:
        number: of the group.
        known: the DiT's number of each label of the group.
        counts: training images of each label.
    """
    settings, seed = context.job.compare.minimax, step.key["seed"]
    n_rows = sum(counts[label] for label in known)
    return RankConfig(
        trainer="vlcp_ray.stages.finetune.dit:DitTrainer",
        arguments={"settings": settings, "seed": seed, "classes": dict(known)},
        pool=pool,
        schedule=Schedule(n_rows, settings.epochs, settings.batch_size, seed),
        rows=None,
        root=context.artifact(step),
        folder=dit_classes.folder(number),
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

    from vlcp_ray.stages.finetune.training import TOO_LITTLE_MEMORY, train

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
        trainer = resolve_name(config.trainer)(
            **config.arguments,
            pool=config.pool.model_copy(update={"batch_size": batch}),
            device=device,
            rank=rank,
            world_size=world.get_world_size(),
            # The gradients are DDP's buckets, not a copy of them.
            wrap=partial(ray.train.torch.prepare_model, parallel_strategy_kwargs={"gradient_as_bucket_view": True}),
        )
        if checkpoint := ray.train.get_checkpoint():
            with checkpoint.as_directory() as local:
                trainer.load(local)
        report = partial(_write_metrics, config, trainer) if rank == 0 else lambda _: None
        save = partial(_save_checkpoint, trainer, unfinished)
        with memory_retained():
            rows = ray.get(config.rows)
            train(trainer, config.schedule, rows.reader(), report, save, 60 * config.pool.checkpoint_minutes)
    except OutOfMemoryError as error:  # while the ranks were adding up their gradients: all start again
        if batch == 1:
            section = trainer.section if trainer else STAGE.name
            raise ValueError(TOO_LITTLE_MEMORY.format(section)) from error
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


def _save_checkpoint(trainer: "RankTrainer[Any]", folder: Path, totals: Sequence[float]) -> None:
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


def _write_metrics(config: RankConfig, trainer: "RankTrainer[Any]", metrics: "EpochMetrics") -> None:
    name = f"epoch-{metrics.epoch:04d}"
    for number, image in enumerate(trainer.validate(metrics.epoch)):
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
    artifacts = [config.artifact for config in configs]
    total = sum(config.schedule.images_after(config.schedule.steps) for config in configs)
    known = [_read_json(artifact, _METRICS) for artifact in artifacts]
    images = [max((metrics["images"] for metrics in epochs), default=0) for epochs in known]
    counts, several = [0] * len(steps), len({step.fingerprint for step in steps}) > 1
    is_local = isinstance(artifacts[0].filesystem, pafs.LocalFileSystem)
    with context.progress(list({step.fingerprint: step for step in steps}.values()), total, "images", sum(images)) as (
        progress
    ):

        def read(number: int) -> None:
            for metrics in _read_json(artifacts[number], _METRICS, counts[number]):
                _record_curves(context, steps[number], metrics, configs[number].folder)
                seed = f"seed {steps[number].key['seed']}, " if several else ""
                group = f"{configs[number].folder}, " if configs[number].folder else ""
                note = f"{seed}{group}epoch {metrics['epoch']}, loss {metrics['loss']:.4f}"
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


def _record_curves(context: Context, step: Step, metrics: dict[str, Any], folder: str = "") -> None:
    """Record the metrics and validation images of an epoch for TensorBoard and the tracker, once.

    Args:
        folder: of the training within the artifact.
    """
    part = f"-{folder.replace('/', '-')}" if folder else ""
    series, name = f"{STAGE.name}/seed-{step.key['seed']}-{step.fingerprint}{part}", f"epoch-{metrics['epoch']:04d}"
    if name in context.records.names(series):
        return
    artifact = context.artifact(step)
    validation = f"{folder}/{_VALIDATION}".lstrip("/")
    files = [file.name for file in artifact.files(validation, ".png")]
    images = {
        f"validation/{file.removesuffix('.png').rpartition('-')[2]}": artifact.read_bytes(f"{validation}/{file}") or b""
        for file in files
        if file.startswith(f"{name}-")
    }
    curves = {key: value for key, value in metrics.items() if key not in ("step", "epoch", "images")}
    context.records.add(series, Record(name, [(metrics["step"], curves)], images))
