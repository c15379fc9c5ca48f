"""Row-wise execution on Ray Data: stream tables through actor pools and write the results block by block."""

import math
import sys
import time
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from functools import lru_cache
from pkgutil import resolve_name
from socket import gethostname
from typing import Any, Final

import pyarrow as pa
import pyarrow.compute as pc
import ray
from ray.data import ActorPoolStrategy, Dataset

from vlcp_ray.engine.context import Context, share_seconds
from vlcp_ray.engine.writing import PEAK_COLUMNS, WriteRows, count_rows, peak_columns
from vlcp_ray.monitoring.allocator import retain_memory
from vlcp_ray.monitoring.memory import Peaks, reset_peaks
from vlcp_ray.scale import Pool
from vlcp_ray.settings import ConfigError
from vlcp_ray.store import written
from vlcp_ray.store.artifact import Artifact, Step
from vlcp_ray.store.files import File

#: The columns of a written block, besides the counts of WriteRows: the records of the files (see `store.written`).
_WRITTEN: Final = "written"
#: A table is read by a task for each 64 MiB, and by at least eight tasks if it has as many files.
_READ_BYTES: Final = 64 * 2**20
_MIN_READS: Final = 8


@dataclass(frozen=True)
class RowWork:
    """A row-wise class, given by its name `module:class`, its constructor's arguments and its pool of actors.

    The class is not imported here: its libraries take ten seconds to load, and only the actors need them.

    Args:
        calls: at the same time, in threads of an actor.
    """

    name: str
    arguments: Mapping[str, Any]
    pool: Pool
    calls: int = 1


class RowActor:
    """Create an object of a row-wise class once, then call it with every batch."""

    def __init__(self, name: str, arguments: Mapping[str, Any]) -> None:
        retain_memory()  # 1.8 times the images/s when the VAE encodes on one core, in batches of 128 at 32 px
        reset_peaks(name)
        try:
            self.call = _import(name)(**arguments)
        except ImportError as error:
            raise _import_error(name, error) from error

    def __call__(self, table: pa.Table) -> pa.Table:
        result: pa.Table = self.call(table.drop_columns([c for c in PEAK_COLUMNS if c in table.column_names]))
        for name, value in peak_columns(table, children=True).items():  # vLLM's engine may run in a child process
            result = result.append_column(name, pa.repeat(pa.scalar(value, pa.int32()), len(result)))
        return result


def _import(name: str) -> Any:
    try:
        return resolve_name(name)
    except Exception as error:  # whatever a library raises while it is imported
        raise _import_error(name, error) from error


def _import_error(name: str, error: Exception) -> ConfigError:
    reason = " ".join(f"{type(error).__name__}: {error}".split())
    return ConfigError(
        f"a worker on {gethostname()} cannot import what {name.partition(':')[0]} needs ({reason}); run `vlcp-ray "
        f"doctor` in its environment, that of {sys.executable}"
    )


@dataclass
class FilterRows:
    """Row-wise: drop the rows that are done, or whose columns do not have the wanted values."""

    done: Any = None  # a reference to the ids: a million of them are copied once to each node
    id_column: str = "image_id"
    where: Mapping[str, str] = field(default_factory=dict)

    def __call__(self, block: pa.Table) -> pa.Table:
        for column, value in self.where.items():
            block = block.filter(pc.equal(block[column], value))
        if self.done is not None and len(block):
            positions = _done_index(self.done).get_indexer(block[self.id_column].to_numpy(zero_copy_only=False))
            block = block.filter(pa.array(positions < 0))
        return block


@lru_cache(maxsize=2)
def _done_index(done: ray.ObjectRef) -> Any:
    """Return the done ids as a pandas index, hashed once in each process; Arrow would hash them for every block."""
    import pandas as pd

    return pd.Index(ray.get(done).to_numpy(zero_copy_only=False)).unique()


def read(artifact: Artifact, table: str, columns: Sequence[str] | None = None) -> Dataset:
    """Read a table of an artifact as a stream."""
    return read_all([artifact], table, columns, include_paths=False)


def read_all(
    artifacts: Sequence[Artifact], table: str, columns: Sequence[str] | None = None, include_paths: bool = True
) -> Dataset:
    """Read a table of several artifacts as one stream, with the file of each row in the column `path`.

    Raises:
        ValueError: an artifact's table has no rows.
    """
    parts: list[File] = []
    for artifact in artifacts:
        found = artifact.parts(table)
        if not found:
            raise ValueError(
                f"{artifact.path}/{table} has no rows; remove the folder {artifact.path} and re-run the same command"
            )
        parts += found
    n_blocks = min(len(parts), max(_MIN_READS, math.ceil(sum(part.size for part in parts) / _READ_BYTES)))
    blocks = [pa.Table.from_pylist([part._asdict() for part in parts[start::n_blocks]]) for start in range(n_blocks)]
    reader = ReadParts(artifacts[0].filesystem, None if columns is None else tuple(columns), include_paths)
    return ray.data.from_arrow(blocks).map_batches(reader, batch_size=None, batch_format="pyarrow")


@dataclass(frozen=True)
class ReadParts:
    """Row-wise: read the files of each row, whose path and size are known, as one table for each file.

    Ray's own reader opens every file twice, asks for the size each time, starts processes for the footers only, and
    takes the types that a file claims.

    Args:
        columns: all by default.
        include_paths: whether the rows get the column `path`, with their file.
    """

    filesystem: Any
    columns: tuple[str, ...] | None
    include_paths: bool

    def __call__(self, block: pa.Table) -> Iterator[pa.Table]:
        for part in (File(**row) for row in block.to_pylist()):
            rows = Artifact(self.filesystem, part.path.rsplit("/", 2)[0]).read_parts([part], self.columns)
            yield rows.append_column("path", pa.repeat(part.path, len(rows))) if self.include_paths else rows


def filter_rows(dataset: Dataset, **arguments: Any) -> Dataset:
    """Pass the dataset through `FilterRows`."""
    return dataset.map_batches(FilterRows(**arguments), batch_size=None, batch_format="pyarrow")


def run_rows(
    context: Context,
    steps: Sequence[Step],
    rows: Dataset,
    work: Sequence[RowWork],
    write: WriteRows,
    totals: Mapping[str, int],
    rows_per_block: int | None = None,
) -> dict[str, float]:
    """Stream rows through the work into the artifacts of `steps`.

    Args:
        totals: rows of each artifact, by its fingerprint, including those that are done.
        rows_per_block: by default the scale's.

    Returns the seconds of each artifact, by its fingerprint: its share of the wall-clock time, by its rows, of which
    each costs the same.
    """
    start, total = time.monotonic(), sum(totals.values())
    counts = [count_rows(write, context.artifact(step)) for step in steps]
    done, rejected_before = (sum(count[name] for count in counts) for name in ("ids", "rejected"))
    with context.progress(steps, total, "rows", done, rejected_before) as progress:
        block = rows_per_block or context.scale.rows_per_block
        for good, rejected, peaks in stream(rows, work, write, block, total - done):
            progress.add(good + rejected, rejected=rejected, peaks=peaks)
    return share_seconds(time.monotonic() - start, totals)


def stream(
    dataset: Dataset, work: Sequence[RowWork], write: WriteRows, rows_per_block: int, remaining: int | None = None
) -> Iterator[tuple[int, int, Peaks]]:
    """Run the plan, and yield for each written block its (good, rejected) rows and the peaks of its workers.

    Args:
        rows_per_block: the maximum. A block has fewer rows where a worker would get no block, but at least two batches:
            loading a model for less is not worth it.
        remaining: rows that are not done, where the number is known: no more actors are started than there are blocks.
    """
    max_workers = max((one.pool.num_workers for one in work), default=1)
    if remaining is not None:
        min_rows = 2 * max((one.pool.batch_size for one in work), default=1)
        rows_per_block = min(rows_per_block, max(min_rows, math.ceil(remaining / max_workers)))
    blocks = max_workers if remaining is None else math.ceil(remaining / rows_per_block)
    dataset = dataset.repartition(target_num_rows_per_block=rows_per_block)
    for one in work:
        actors = max(1, min(one.pool.num_workers, blocks))
        dataset = dataset.map_batches(
            RowActor,
            fn_constructor_kwargs={"name": one.name, "arguments": dict(one.arguments)},
            batch_size=one.pool.batch_size,
            batch_format="pyarrow",
            compute=ActorPoolStrategy(
                min_size=min(one.pool.required_workers, actors),
                max_size=actors,
                max_concurrent_calls_per_actor=one.calls if one.calls > 1 else None,
                enable_true_multi_threading=one.calls > 1,
            ),
            num_cpus=one.pool.num_cpus,
            num_gpus=one.pool.num_gpus or None,
        )
    dataset = dataset.map_batches(WriteBlock(write), batch_size=None, batch_format="pyarrow")
    for batch in dataset.iter_batches(batch_size=None, batch_format="pyarrow"):
        for records in batch[_WRITTEN].to_pylist():
            written.load(records)
        peaks = Peaks(*(max(batch[name].to_pylist(), default=0) for name in PEAK_COLUMNS))
        yield sum(batch["rows"].to_pylist()), sum(batch["rejected"].to_pylist()), peaks


@dataclass(frozen=True)
class WriteBlock:
    """The last operation of a plan: write a block, and return its counts with the records of the written files."""

    write: WriteRows

    def __call__(self, block: pa.Table) -> pa.Table:
        counts = self.write(block)
        return counts.append_column(_WRITTEN, pa.array([written.dump()], pa.string()))
