"""Keep a stage of ours loaded between the turns of a benchmark: the actors of its pool, and the rows for them."""

import tempfile
from collections.abc import Iterator, Mapping, Sequence
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass
from functools import lru_cache
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import ray
from pyarrow import parquet

from tests.image_sets import SHARED
from vlcp_ray.config import Job, load_job
from vlcp_ray.engine.streaming import RowActor
from vlcp_ray.images import decode
from vlcp_ray.monitoring.allocator import memory_retained
from vlcp_ray.scale import FinetunePool, Pool
from vlcp_ray.schemas import tensor_array
from vlcp_ray.stages.finetune.batches import Schedule
from vlcp_ray.stages.pair import pairs_schema
from vlcp_ray.stages.pair.encode import EncodeRows

JOB = Path(__file__).parents[2] / "jobs" / "digits.toml"
MODEL = "demo/stable_diffusion"
CIFAR = SHARED / "cifar10" / "train-00000-of-00001.parquet"
CLASS_NAMES = ("airplane", "automobile", "bird", "cat", "deer", "dog", "frog", "horse", "ship", "truck")
WORDS = [
    "bright",
    "dark",
    "round",
    "square",
    "long",
    "short",
    "thin",
    "wide",
    "smooth",
    "rough",
    "striped",
    "spotted",
    "plain",
    "shiny",
    "dull",
    "curved",
    "straight",
    "tall",
    "small",
    "large",
    "heavy",
    "light",
    "sharp",
    "blunt",
    "open",
    "closed",
    "upright",
    "leaning",
    "crouching",
    "standing",
    "facing",
    "left",
    "right",
    "wings",
    "tail",
    "wheels",
    "windows",
    "fur",
    "feathers",
    "horns",
    "deck",
    "mast",
    "cabin",
    "muzzle",
    "ears",
    "eyes",
    "legs",
    "body",
    "roof",
    "door",
    "grass",
    "water",
    "sky",
    "road",
    "snow",
]


class MeasuredActor(RowActor):
    """An actor of a streaming plan that can measure its memory."""

    def memory(self) -> float:
        """Measure the resident memory of this process in MiB."""
        lines = Path("/proc/self/status").read_text().splitlines()
        return next(int(line.split()[1]) / 2**10 for line in lines if line.startswith("VmRSS:"))


class Actors:
    """The actors of one pool, with the same row-wise class loaded in each."""

    def __init__(self, name: str, arguments: Mapping[str, Any], pool: Pool) -> None:
        actor = ray.remote(num_cpus=pool.num_cpus)(MeasuredActor)
        self.actors = [actor.remote(name, dict(arguments)) for _ in range(pool.num_workers)]
        self.batch_size = pool.batch_size

    def __call__(self, rows: pa.Table) -> float:
        """Process all rows in blocks, and return the number of rows that came back."""
        pool = ray.util.ActorPool(self.actors)
        blocks = [rows.slice(start, self.batch_size) for start in range(0, len(rows), self.batch_size)]
        tables = pool.map_unordered(lambda actor, block: actor.__call__.remote(block), blocks)
        return float(sum(len(table) for table in tables))

    def memory(self) -> float:
        """Measure the resident memory of the largest actor in MiB."""
        return float(max(ray.get([actor.memory.remote() for actor in self.actors])))

    def end(self) -> None:
        for actor in self.actors:
            ray.kill(actor)


class Rank:
    """One rank of fine-tuning, in an actor: the trainer of the stage, wrapped as Ray Train wraps it."""

    def __init__(self, rank: int, world_size: int, rendezvous: str, job: Job, batch: int, rows: pa.Table) -> None:
        from torch import distributed
        from torch.nn.parallel import DistributedDataParallel

        from vlcp_ray.stages.finetune.trainer import Trainer

        _OPEN_CONTEXTS.enter_context(memory_retained())
        distributed.init_process_group("gloo", init_method=f"file://{rendezvous}", rank=rank, world_size=world_size)
        settings, size = job.finetune, job.encode.train_resolution
        pool = FinetunePool(batch_size=batch, gradient_checkpointing=False)
        self.trainer = Trainer(
            settings, job.base_model, 0, size, pool, "cpu", rank, world_size, DistributedDataParallel
        )
        self.rank, self.world_size, self.rows = rank, world_size, rows
        self.schedule = Schedule(len(rows), 1000, settings.batch_size, 0)

    def step(self) -> float:
        """Take one step and return this rank's share of its mean loss."""
        batch = self.schedule.rank_batch(self.trainer.steps_done, self.rank, self.world_size)
        inputs = self.trainer.prepare(self.rows.take(batch.positions), batch)
        return float(self.trainer.step(inputs).item())


_OPEN_CONTEXTS = ExitStack()  # until the actor ends


@dataclass(frozen=True)
class Ranks:
    """All ranks of fine-tuning."""

    actors: Sequence[Any]

    def step(self) -> float:
        """Take one step and return its mean loss."""
        return float(sum(ray.get([actor.step.remote() for actor in self.actors])))


@contextmanager
def ranks(rows: pa.Table, job: Job, pool: Pool) -> Iterator[Ranks]:
    """Start as many ranks as the pool has, on the same rows, for as long as the block lasts."""
    actor, n = ray.remote(num_cpus=pool.num_cpus)(Rank), pool.num_workers
    shared = ray.put(rows)
    with tempfile.TemporaryDirectory() as folder:
        rendezvous = f"{folder}/rendezvous"
        started = [actor.remote(rank, n, rendezvous, job, pool.batch_size, shared) for rank in range(n)]
        try:
            yield Ranks(started)
        finally:
            for rank in started:
                ray.kill(rank)


@contextmanager
def actors(name: str, arguments: Mapping[str, Any], pool: Pool) -> Iterator[Actors]:
    """Start actors for as long as the block lasts."""
    started = Actors(name, arguments, pool)
    try:
        yield started
    finally:
        started.end()


def job(*overrides: str) -> Job:
    """Load the digits job, whose tiny models all figures are measured with."""
    return load_job(JOB, overrides)


@lru_cache
def cifar(count: int) -> pa.Table:
    """Return `count` rows of CIFAR-10 as IMAGES, repeated under new ids where the sample has fewer."""
    if not CIFAR.exists():
        raise SystemExit(f"{CIFAR.name} of CIFAR-10 is needed in {CIFAR.parent}")
    sample = parquet.read_table(CIFAR)
    rows = sample.take(np.arange(count) % len(sample))
    labels = rows["label"].to_pylist()
    columns = {
        "image_id": [f"train/{number}" for number in range(count)],
        "label": pa.array(labels, pa.int32()),
        "class_name": [CLASS_NAMES[label] for label in labels],
        "split": ["train"] * count,
        "image": pa.array([image["bytes"] for image in rows["img"].to_pylist()], pa.binary()),
        "source": [f"cifar {number}" for number in range(count)],
    }
    return pa.table(columns)


def pairs(rows: pa.Table, texts: Sequence[str]) -> pa.Table:
    """Make PAIRS of rows with the given captions."""
    encoded = EncodeRows(job().encode, MODEL, 128)(rows)
    table = encoded.append_column("caption", pa.array(texts, pa.string()))
    return table.select(pairs_schema((4, 4, 4), (8, 4, 4)).names).combine_chunks()


def prototypes(rows: pa.Table) -> pa.Table:
    """Make PROTOTYPES with a column `seed`, as generate reads them, from the rows' own latents and captions."""
    texts = captions(rows, words=10)  # at most 77 tokens: the pipeline of the reference cuts longer texts
    latents = pairs(rows, texts)["latent"].combine_chunks().to_numpy_ndarray().astype(np.float32)
    columns = {
        "prototype_id": [f"{number:04d}" for number in range(len(rows))],
        "label": rows["label"],
        "class_name": rows["class_name"],
        "latent": tensor_array(latents),
        "text": texts,
        "seed": pa.array([0] * len(rows), pa.int64()),
    }
    return pa.table(columns)


def files(rows: pa.Table) -> list[bytes]:
    """Return the image files of rows."""
    content: list[bytes] = rows["image"].to_pylist()
    return content


def captions(rows: pa.Table, words: int = 60) -> list[str]:
    """Make captions of about LLaVA's length: words sampled with probabilities that depend on the image's colours."""
    weights = np.stack([np.resize(np.asarray(decode(data)).mean(axis=0).ravel(), len(WORDS)) for data in files(rows)])
    random = np.random.default_rng(0)
    chosen = [random.choice(len(WORDS), words, p=row / row.sum()) for row in weights.astype(float) + 1]
    names: Sequence[str] = rows["class_name"].to_pylist()
    return [
        f"The {name} in the image is {' and '.join(WORDS[i] for i in ids)}."
        for name, ids in zip(names, chosen, strict=True)
    ]
