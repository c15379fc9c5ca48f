"""Knows how fine-tuning runs on Ray Train: ranks, their rows, checkpoints, and the model that is left."""

import json
import tempfile
import threading
import time
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager, suppress
from dataclasses import asdict, dataclass
from functools import lru_cache
from itertools import accumulate
from pathlib import Path
from typing import TYPE_CHECKING, Any, Final

import numpy as np
import pyarrow as pa
import ray
import ray.train
import ray.train.torch
from ray.train import Checkpoint, CheckpointConfig, FailureConfig, RunConfig, ScalingConfig

from vlcp_ray import config
from vlcp_ray.flow.context import Context
from vlcp_ray.flow.data import read
from vlcp_ray.flow.storage import patient
from vlcp_ray.memory import Peaks, begin, kept_memory, peaks
from vlcp_ray.records import Record
from vlcp_ray.scale import Pool
from vlcp_ray.schedule import WINDOW, Positions, Schedule
from vlcp_ray.schemas import pairs_schema
from vlcp_ray.store import Artifact, Step, StoreError, patiently

if TYPE_CHECKING:
    from vlcp_ray.stages.finetune import Finetune
    from vlcp_ray.stages.finetune import Progress as Reached

MODEL: Final = "model"
_BLOCKS_HELD: Final = 64  # zero-copy views into the object store
_COLUMNS: Final = ("image_id", "caption", "train_moments")
_FAILURES: Final = 8  # of a rank or its machine; each costs the steps since the last epoch
_MEMORY: Final = "memory"  # of each rank, until the seal says the largest
_POLL: Final = 1.0  # seconds between looks at what the ranks have recorded


@dataclass(frozen=True)
class Rows:
    """PAIRS sorted by image_id, as blocks in the object store: any rows by their positions, each block fetched once."""

    blocks: Sequence[ray.ObjectRef]
    ends: Sequence[int]

    def fetch(self) -> Callable[[Positions], pa.Table]:
        """A function from positions to their rows, in the order of the positions."""
        ends = np.asarray(self.ends)
        block_of = lru_cache(maxsize=_BLOCKS_HELD)(lambda number: ray.get(self.blocks[number]))

        def rows(positions: Positions) -> pa.Table:
            numbers = np.searchsorted(ends, positions, side="right")
            order = np.argsort(numbers, kind="stable")
            starts = np.concatenate([[0], ends[:-1]])
            parts = [
                block_of(int(number)).take(positions[numbers == number] - starts[number])
                for number in np.unique(numbers)
            ]
            return pa.concat_tables(parts).take(np.argsort(order))

        return rows


@dataclass(frozen=True)
class Plan:
    """All that a rank is told."""

    settings: config.Finetune
    base_model: str
    seed: int
    resolution: int
    batch_per_device: int
    class_names: Sequence[str]
    schedule: Schedule
    rows: Rows
    artifact: Artifact


def finetune(context: Context, steps: Sequence[Step]) -> None:
    """PAIRS as a diffusers folder, a seed after another: each takes all devices."""
    rows = _sorted_rows(context.input(steps[0], "pairs"), context.rows(steps[0], "pairs"))
    for step in steps:
        _one_seed(context, step, rows)


def _one_seed(context: Context, step: Step, rows: Rows) -> None:
    start = time.monotonic()
    job, pool, artifact = context.job, context.scale.finetune, context.artifact(step)
    settings, seed, n_rows = job.finetune, step.key["seed"], context.rows(step, "pairs")
    schedule = Schedule(n_rows, settings.epochs, settings.batch_size, seed)
    names = context.manifest(step.inputs["pairs"].inputs["images"])["class_names"]
    resolution, base = job.encode.train_resolution, job.base_model
    plan = Plan(settings, base, seed, resolution, pool.batch_size, names, schedule, rows, artifact)
    images = schedule.images_after(schedule.steps)
    with _told(context, step, images):
        patiently(lambda: _fit(plan, pool), f"keep the checkpoints of {artifact.path}")
    for file in artifact.files(_MEMORY, ".json"):
        context.view.note(Peaks(*json.loads(artifact.read_bytes(f"{_MEMORY}/{file.rpartition('/')[2]}") or b"[]")))
    for reached in _reached(artifact):  # of which a run that was killed may have handed on a part
        _keep(context, step, reached)
    facts: dict[str, Any] = {"images": images, "steps": schedule.steps, "losses": losses(artifact)}
    context.seal(step, rows_in=n_rows, rows=n_rows, seconds=time.monotonic() - start, **facts)
    for folder in ("checkpoints", _MEMORY):
        artifact.delete(folder)


def _fit(plan: Plan, pool: Pool) -> None:
    """Train from the last checkpoint on, or from the start, to the end.

    Raises:
        OSError: the store refused to go on with a file that it had begun.
    """
    artifact = plan.artifact
    trainer = ray.train.torch.TorchTrainer(
        _rank,
        train_loop_config={"plan": plan},
        scaling_config=ScalingConfig(
            # Elastic where the pool may grow: the schedule cuts the same global batch for any number of ranks.
            num_workers=pool.num_workers if pool.fewest == pool.num_workers else (pool.fewest, pool.num_workers),
            use_gpu=pool.num_gpus > 0,
            resources_per_worker={"CPU": pool.num_cpus, **({"GPU": pool.num_gpus} if pool.num_gpus else {})},
        ),
        # The same name and place is what makes Ray Train go on from the last checkpoint.
        run_config=RunConfig(
            name="checkpoints",
            storage_path=artifact.path,
            storage_filesystem=patient(artifact.filesystem),
            checkpoint_config=CheckpointConfig(num_to_keep=1),
            failure_config=FailureConfig(max_failures=_FAILURES),
        ),
    )
    try:
        trainer.fit()
    except ray.train.ControllerError as error:
        if isinstance(error.controller_failure, OSError):
            raise error.controller_failure from error
        raise


def losses(artifact: Artifact) -> list[tuple[int, float]]:
    """(step, mean loss) of every epoch that is done."""
    return [(reached["step"], reached["loss"]) for reached in _reached(artifact)]


def _sorted_rows(pairs: Artifact, n_rows: int) -> Rows:
    if n_rows <= WINDOW:  # one window is one block: nothing to shuffle between machines
        return Rows([ray.remote(_read_sorted).remote(pairs)], [n_rows])
    blocks = read(pairs, "pairs", _COLUMNS).sort("image_id").materialize().to_arrow_refs()
    count = ray.remote(_count)
    counts = ray.get([count.remote(block) for block in blocks])
    held = [(block, count) for block, count in zip(blocks, counts, strict=True) if count]
    return Rows([block for block, _ in held], list(accumulate(count for _, count in held)))


def _read_sorted(pairs: Artifact) -> pa.Table:
    return pairs.table("pairs", pairs_schema((1, 1, 1), (1, 1, 1)), _COLUMNS).sort_by("image_id").combine_chunks()


def _count(block: pa.Table) -> int:
    return len(block)


def _rank(loop: dict[str, Any]) -> None:
    """What every rank does: go on from the last checkpoint, take its part of every step, leave the model."""
    # The ranks alone load diffusers, which takes ten seconds.
    from vlcp_ray.stages.finetune import Finetune, train

    begin("finetune")
    plan: Plan = loop["plan"]
    place = ray.train.get_context()
    rank, device = place.get_world_rank(), str(ray.train.torch.get_device())
    learner = Finetune(
        plan.settings,
        plan.base_model,
        plan.seed,
        plan.resolution,
        plan.batch_per_device,
        device,
        rank,
        place.get_world_size(),
        ray.train.torch.prepare_model,
    )
    if checkpoint := ray.train.get_checkpoint():
        with checkpoint.as_directory() as local:
            learner.load(local)

    def report(reached: "Reached") -> None:
        with tempfile.TemporaryDirectory() as local:
            if rank == 0:
                _record(plan, learner, reached)
                learner.save(local)
            ray.train.report(asdict(reached), checkpoint=Checkpoint.from_directory(local) if rank == 0 else None)

    with kept_memory():
        train(learner, plan.schedule, plan.rows.fetch(), report)
    if rank == 0:
        with tempfile.TemporaryDirectory() as local:
            learner.export(local)
            plan.artifact.put_folder(Path(local), MODEL)
    plan.artifact.write_bytes(f"{_MEMORY}/rank-{rank:04d}.json", json.dumps(peaks()).encode())


def _record(plan: Plan, learner: "Finetune", reached: "Reached") -> None:
    if reached.epoch % plan.settings.validation_epochs == 0:
        for number, image in enumerate(learner.validate(plan.class_names[:10])):
            plan.artifact.write_bytes(f"validation/epoch-{reached.epoch:04d}-{number:02d}.png", image)
    plan.artifact.write_bytes(f"progress/epoch-{reached.epoch:04d}.json", json.dumps(asdict(reached)).encode())


def _reached(artifact: Artifact, seen: int = 0) -> list[dict[str, Any]]:
    """What the epochs have recorded that are done, from the one numbered `seen` on."""
    names = [f"progress/{path.rpartition('/')[2]}" for path in artifact.files("progress", ".json")][seen:]
    return [json.loads(artifact.read_bytes(name) or b"{}") for name in names]


@contextmanager
def _told(context: Context, step: Step, images: int) -> Iterator[None]:
    """Tell how far the ranks are, by what they have recorded: it works wherever they run."""
    ended, artifact = threading.Event(), context.artifact(step)
    done = max((reached["images"] for reached in _reached(artifact)), default=0)
    with context.progress([step], images, "images", done) as progress:

        def look() -> None:
            over, seen = False, 0
            while not over:
                over = ended.wait(_POLL)
                with suppress(StoreError):  # the ranks go on, and what they record is read at the next look
                    for epoch in _reached(artifact, seen):
                        _keep(context, step, epoch)
                        note = f"epoch {epoch['epoch']}, loss {epoch['loss']:.4f}"
                        progress.add(max(0, epoch["images"] - progress.count), note)
                        seen += 1
                progress.add(0)

        watcher = threading.Thread(target=look, daemon=True)
        watcher.start()
        try:
            yield
        finally:
            ended.set()
            watcher.join()


def _keep(context: Context, step: Step, reached: dict[str, Any]) -> None:
    """Hand what an epoch has recorded on, unless that was done before."""
    series, name = f"finetune/seed-{step.key['seed']}-{step.fingerprint}", f"epoch-{reached['epoch']:04d}"
    if name in context.records.kept(series):
        return
    artifact = context.artifact(step)
    files = [path.rpartition("/")[2] for path in artifact.files("validation", ".png")]
    images = {
        f"validation/{file.removesuffix('.png').rpartition('-')[2]}": artifact.read_bytes(f"validation/{file}") or b""
        for file in files
        if file.startswith(f"{name}-")
    }
    curves = {key: value for key, value in reached.items() if key not in ("step", "epoch", "images")}
    context.records.keep(series, Record(name, [(reached["step"], curves)], images))
