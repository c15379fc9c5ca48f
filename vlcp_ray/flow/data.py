"""Knows how row-wise and group-wise stages run on Ray Data: streamed, resumed by row or class, written whole."""

import importlib
import math
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from functools import lru_cache
from typing import Any, Final

import pyarrow as pa
import pyarrow.compute as pc
import ray
from ray.data import ActorPoolStrategy, Dataset

from vlcp_ray.flow.storage import patient
from vlcp_ray.memory import Peaks, begin, keep_memory, peaks
from vlcp_ray.scale import Pool
from vlcp_ray.schemas import REJECTED, conform, with_column
from vlcp_ray.store import Artifact, part_name

REJECTED_TABLE: Final = "rejected"
#: The column that says which artifact a row belongs to, where one plan fills several.
TARGET: Final = "target"
_PEAKS: Final = ("peak_memory", "peak_gpu_memory")


@dataclass(frozen=True)
class Work:
    """One row-wise stage as data: its class as `module:name`, what it is constructed with, the actors that hold it.

    The class is named and not imported, as its libraries take ten seconds to load: the actors alone pay for them.
    """

    stage: str
    arguments: Mapping[str, Any]
    pool: Pool


class Stage:
    """The actor's side of a `Work`: loads the stage once, then calls it with every batch."""

    def __init__(self, stage: str, arguments: Mapping[str, Any]) -> None:
        keep_memory()  # the VAE takes 1.8 times the images/s on a core, in batches of 128 at 32 px
        module, _, name = stage.partition(":")
        begin(stage)
        self.call = getattr(importlib.import_module(module), name)(**arguments)

    def __call__(self, table: pa.Table) -> pa.Table:
        made: pa.Table = self.call(table.drop_columns([c for c in _PEAKS if c in table.column_names]))
        for name, value in _peaks_of(table, children=True).items():  # vLLM's engine may be a process of its own
            made = made.append_column(name, pa.repeat(pa.scalar(value, pa.int32()), len(made)))
        return made


@dataclass
class Write:
    """The last step of a row-wise plan: good rows to `table`, rejected ones beside it, each file whole or not at all.

    A file is named after the ids in it, so that a task that runs twice writes the same file twice. The tables
    themselves are the record of what is done: there is no second one that could disagree.
    """

    targets: Mapping[str, Artifact]
    stage: str
    table: str
    schema: pa.Schema
    id_column: str = "image_id"

    def __call__(self, block: pa.Table) -> pa.Table:
        begin(self.stage)
        rows = {"rows": 0, "rejected": 0}
        for target, artifact in self.targets.items():
            part = block.filter(pc.equal(block[TARGET], target)) if TARGET in block.column_names else block
            good = part.filter(pc.equal(part["reason"], "")) if "reason" in part.column_names else part
            rows["rows"] += self._write(artifact, self.table, good, self.schema)
            if len(good) < len(part):
                bad = with_column(part.filter(pc.not_equal(part["reason"], "")), "stage", self.stage_column(part, good))
                rows["rejected"] += self._write(artifact, REJECTED_TABLE, bad, REJECTED)
        return pa.table({name: [count] for name, count in (rows | _peaks_of(block)).items()})

    def stage_column(self, part: pa.Table, good: pa.Table) -> pa.Array:
        return pa.array([self.stage] * (len(part) - len(good)), pa.string())

    def _write(self, artifact: Artifact, folder: str, rows: pa.Table, schema: pa.Schema) -> int:
        if len(rows):
            name = part_name(rows[self.id_column].to_pylist())
            artifact.write_table(f"{folder}/{name}", conform(rows, schema))
        return len(rows)

    def done(self, artifact: Artifact) -> pa.Array:
        """The ids of the rows that are written already, good or rejected."""
        ids = artifact.table(self.table, self.schema, [self.id_column])[self.id_column]
        if self.id_column in REJECTED.names:
            bad = artifact.table(REJECTED_TABLE, REJECTED, [self.id_column])[self.id_column]
            ids = pa.chunked_array([*ids.chunks, *bad.chunks], pa.string())
        return ids.combine_chunks()


@dataclass
class Keep:
    """Drops the rows that are done or not of the wanted split."""

    done: Any = None  # a reference to the ids, so that a million of them travel once a node
    id_column: str = "image_id"
    where: Mapping[str, str] = field(default_factory=dict)

    def __call__(self, block: pa.Table) -> pa.Table:
        for column, value in self.where.items():
            block = block.filter(pc.equal(block[column], value))
        if self.done is not None and len(block):
            places = _places(self.done).get_indexer(block[self.id_column].to_numpy(zero_copy_only=False))
            block = block.filter(pa.array(places < 0))
        return block


@lru_cache(maxsize=2)
def _places(done: ray.ObjectRef) -> Any:
    """The ids that are done as pandas' index: hashed once a process, where Arrow would hash them for every block."""
    import pandas as pd

    return pd.Index(ray.get(done).to_numpy(zero_copy_only=False)).unique()


def read(artifact: Artifact, table: str, columns: Sequence[str] | None = None) -> Dataset:
    """A table of an artifact as a stream."""
    return read_all([artifact], table, columns, include_paths=False)


def read_all(
    artifacts: Sequence[Artifact], table: str, columns: Sequence[str] | None = None, include_paths: bool = True
) -> Dataset:
    """A table of several artifacts as one stream, in which `path` says which file a row is from.

    Raises:
        ValueError: an artifact's table has no rows.
    """
    for artifact in artifacts:
        if not artifact.files(table):
            raise ValueError(f"{artifact.path}/{table} has no rows; remove the folder {artifact.path} and run again")
    files = [file for artifact in artifacts for file in artifact.files(table)]
    options = {"columns": None if columns is None else list(columns), "include_paths": include_paths}
    return ray.data.read_parquet(files, filesystem=patient(artifacts[0].filesystem), **options)


def keep(dataset: Dataset, **arguments: Any) -> Dataset:
    """The dataset through `Keep`."""
    return dataset.map_batches(Keep(**arguments), batch_size=None, batch_format="pyarrow")


def stream(
    dataset: Dataset, works: Sequence[Work], write: Write, rows_per_block: int, left: int | None = None
) -> Iterator[tuple[int, int, Peaks]]:
    """Run the plan and yield (good, rejected) rows as blocks land in the store, and their workers' peaks.

    Args:
        rows_per_block: at most; fewer where some worker would get none, though not below two of its batches, for
            which alone an actor is worth the seconds that it loads its model.
        left: how many rows there are to do, where that is known: no more actors are started than get a block.
    """
    widest = max((work.pool.num_workers for work in works), default=1)
    if left is not None:
        least = 2 * max((work.pool.batch_size for work in works), default=1)
        rows_per_block = min(rows_per_block, max(least, math.ceil(left / widest)))
    blocks = widest if left is None else math.ceil(left / rows_per_block)
    dataset = dataset.repartition(target_num_rows_per_block=rows_per_block)
    for work in works:
        actors = max(1, min(work.pool.num_workers, blocks))
        dataset = dataset.map_batches(
            Stage,
            fn_constructor_kwargs={"stage": work.stage, "arguments": dict(work.arguments)},
            batch_size=work.pool.batch_size,
            batch_format="pyarrow",
            compute=ActorPoolStrategy(min_size=min(work.pool.fewest, actors), max_size=actors),
            num_cpus=work.pool.num_cpus,
            num_gpus=work.pool.num_gpus or None,
        )
    dataset = dataset.map_batches(write, batch_size=None, batch_format="pyarrow")
    for batch in dataset.iter_batches(batch_size=None, batch_format="pyarrow"):
        most = Peaks(*(max(batch[name].to_pylist(), default=0) for name in _PEAKS))
        yield sum(batch["rows"].to_pylist()), sum(batch["rejected"].to_pylist()), most


def _peaks_of(block: pa.Table, children: bool = False) -> dict[str, int]:
    """The peaks of this process and of those before it in the plan: they travel as columns beside the rows."""
    before = Peaks(*(pc.max(block[name]).as_py() or 0 if name in block.column_names else 0 for name in _PEAKS))
    return dict(zip(_PEAKS, before.most(peaks(children)), strict=True))


def stream_groups(
    dataset: Dataset, key: str, count: int, function: Callable[[pa.Table], pa.Table], pool: Pool
) -> Iterator[dict[str, Any]]:
    """Call a function with all rows of one key after another and yield the rows that it returns.

    There are as many partitions as keys (`count`), so that a task holds about one group: Ray Data's 200 would be 200
    tasks for ten digits, and five classes of ImageNet in each.

    Nothing of this plan may be resumed by row: a group must be whole. The caller leaves out groups that are done.
    """

    def call(group: pa.Table) -> pa.Table:  # Ray Data wants a plain function
        return function(group)

    groups = dataset.groupby(key, num_partitions=count).map_groups(
        call, batch_format="pyarrow", num_cpus=pool.num_cpus, num_gpus=pool.num_gpus or None
    )
    for row in groups.iter_rows():
        yield dict(row)
