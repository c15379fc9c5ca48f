"""Knows how a stage of ours is kept warm between turns: the actors of its pool, loaded once, fed with blocks."""

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
from vlcp_ray.flow.data import Stage
from vlcp_ray.images import decode
from vlcp_ray.memory import kept_memory
from vlcp_ray.scale import Pool
from vlcp_ray.schedule import Schedule
from vlcp_ray.schemas import pairs_schema, tensor_array
from vlcp_ray.stages.encode import Encode

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


class Warm(Stage):
    """A stage that says how much memory its process has."""

    def memory(self) -> float:
        """MiB that are resident."""
        lines = Path("/proc/self/status").read_text().splitlines()
        return next(int(line.split()[1]) / 2**10 for line in lines if line.startswith("VmRSS:"))


class Actors:
    """The actors of one pool with a stage loaded in each."""

    def __init__(self, stage: str, arguments: Mapping[str, Any], pool: Pool) -> None:
        actor = ray.remote(num_cpus=pool.num_cpus)(Warm)
        self.actors = [actor.remote(stage, dict(arguments)) for _ in range(pool.num_workers)]
        self.batch_size = pool.batch_size

    def __call__(self, rows: pa.Table) -> float:
        """Work on all rows, in blocks, as fast as the actors take them; returns how many rows came back."""
        pool = ray.util.ActorPool(self.actors)
        blocks = [rows.slice(start, self.batch_size) for start in range(0, len(rows), self.batch_size)]
        made = pool.map_unordered(lambda actor, block: actor.__call__.remote(block), blocks)
        return float(sum(len(table) for table in made))

    def memory(self) -> float:
        """MiB that the largest of them has."""
        return float(max(ray.get([actor.memory.remote() for actor in self.actors])))

    def end(self) -> None:
        for actor in self.actors:
            ray.kill(actor)


class Rank:
    """One rank of fine-tuning, in an actor: the learner of the stage, wrapped as Ray Train wraps it."""

    def __init__(self, rank: int, world_size: int, meeting: str, job: Job, batch: int, rows: pa.Table) -> None:
        from torch import distributed
        from torch.nn.parallel import DistributedDataParallel

        from vlcp_ray.stages.finetune import Finetune

        _KEPT.enter_context(kept_memory())
        distributed.init_process_group("gloo", init_method=f"file://{meeting}", rank=rank, world_size=world_size)
        settings, size = job.finetune, job.encode.train_resolution
        self.learner = Finetune(
            settings, job.base_model, 0, size, batch, "cpu", rank, world_size, DistributedDataParallel
        )
        self.rank, self.world_size, self.rows = rank, world_size, rows
        self.schedule = Schedule(len(rows), 1000, settings.batch_size, 0)

    def step(self) -> float:
        """This rank's share of the mean loss of one step."""
        part = self.schedule.part(self.learner.steps_done, self.rank, self.world_size)
        return self.learner.step(self.rows.take(part.positions), part)


_KEPT = ExitStack()  # for as long as an actor lives


@dataclass(frozen=True)
class Ranks:
    """All ranks of fine-tuning."""

    actors: Sequence[Any]

    def step(self) -> float:
        """One step; returns its mean loss."""
        return float(sum(ray.get([actor.step.remote() for actor in self.actors])))


@contextmanager
def ranks(rows: pa.Table, job: Job, pool: Pool) -> Iterator[Ranks]:
    """As many ranks as the pool has, over the same rows."""
    actor, n = ray.remote(num_cpus=pool.num_cpus)(Rank), pool.num_workers
    shared = ray.put(rows)
    with tempfile.TemporaryDirectory() as folder:
        meeting = f"{folder}/meeting"
        there = [actor.remote(rank, n, meeting, job, pool.batch_size, shared) for rank in range(n)]
        try:
            yield Ranks(there)
        finally:
            for one in there:
                ray.kill(one)


@contextmanager
def actors(stage: str, arguments: Mapping[str, Any], pool: Pool) -> Iterator[Actors]:
    """Actors for as long as the block lasts."""
    there = Actors(stage, arguments, pool)
    try:
        yield there
    finally:
        there.end()


def job(*overrides: str) -> Job:
    """The digits job, whose tiny models all figures are measured with."""
    return load_job(JOB, overrides)


@lru_cache
def cifar(count: int) -> pa.Table:
    """So many rows of CIFAR-10 as IMAGES has them, repeated under new ids where the sample has fewer."""
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


def pairs(rows: pa.Table, said: Sequence[str]) -> pa.Table:
    """PAIRS of rows under given captions."""
    encoded = Encode(job().encode, MODEL, 128)(rows)
    table = encoded.append_column("caption", pa.array(said, pa.string()))
    return table.select(pairs_schema((4, 4, 4), (8, 4, 4)).names).combine_chunks()


def prototypes(rows: pa.Table) -> pa.Table:
    """PROTOTYPES, with the seed of their set, as `generate` is given them: the rows' own latents under captions."""
    said = captions(rows, words=10)  # no more than 77 tokens: the stock pipeline of the reference cuts what is longer
    latents = pairs(rows, said)["latent"].combine_chunks().to_numpy_ndarray().astype(np.float32)
    columns = {
        "prototype_id": [f"{number:04d}" for number in range(len(rows))],
        "label": rows["label"],
        "class_name": rows["class_name"],
        "latent": tensor_array(latents),
        "text": said,
        "seed": pa.array([0] * len(rows), pa.int64()),
    }
    return pa.table(columns)


def files(rows: pa.Table) -> list[bytes]:
    """The image files of rows."""
    found: list[bytes] = rows["image"].to_pylist()
    return found


def captions(rows: pa.Table, words: int = 60) -> list[str]:
    """Sentences of about LLaVA's length: words drawn with odds that follow the image's own colours."""
    odds = np.stack([np.resize(np.asarray(decode(data)).mean(axis=0).ravel(), len(WORDS)) for data in files(rows)])
    random = np.random.default_rng(0)
    chosen = [random.choice(len(WORDS), words, p=row / row.sum()) for row in odds.astype(float) + 1]
    names: Sequence[str] = rows["class_name"].to_pylist()
    return [
        f"The {name} in the image is {' and '.join(WORDS[i] for i in ids)}."
        for name, ids in zip(names, chosen, strict=True)
    ]
