"""Knows how the rows of a table are worked on a class at a time: small tables shared in memory, large ones shuffled."""

from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from functools import partial

import pyarrow as pa
import pyarrow.compute as pc
import ray

from vlcp_ray.flow.data import keep, read, stream_groups
from vlcp_ray.flow.tasks import in_flight, task
from vlcp_ray.memory import Peaks, begin, peaks
from vlcp_ray.scale import Pool
from vlcp_ray.schedule import WINDOW
from vlcp_ray.store import Artifact

_LABELS = pa.schema([pa.field("label", pa.int32())])


@dataclass(frozen=True)
class Rows:
    """Rows of an artifact's table: some columns, and of the rows those with the given values."""

    artifact: Artifact
    table: str
    columns: Sequence[str]
    where: Mapping[str, str] = field(default_factory=dict)

    def labels(self) -> list[int]:
        """The labels that occur in the table, sorted. A worker looks: the driver holds no column of an image set."""
        labels: list[int] = ray.get(ray.remote(_labels).remote(self.artifact, self.table))
        return labels


def each_class(
    rows: Rows, n_rows: int, labels: Sequence[int], work: Callable[[pa.Table], None], pool: Pool
) -> Iterator[Peaks]:
    """Do one class after another, `pool.num_workers` at a time, and yield the worker's peaks as each is done.

    Args:
        n_rows: of the whole table.
        labels: the classes that are left to do.
        work: is given all rows of one class, in any order.
    """
    if n_rows <= WINDOW:  # small enough to be read by one worker and shared: no shuffle, which takes half a minute
        table = ray.remote(_read).remote(rows)
        call = task(_one_class, pool)
        shared = ray.put(work)
        yield from in_flight((partial(call.remote, table, label, shared) for label in labels), pool.num_workers)
    elif labels:
        done = pa.array(sorted(set(rows.labels()) - set(labels)), pa.int32())
        wanted = keep(
            read(rows.artifact, rows.table, rows.columns), done=ray.put(done), id_column="label", where=rows.where
        )
        for row in stream_groups(wanted, "label", len(labels), partial(_measured, work), pool):
            yield Peaks(row["memory"], row["gpu_memory"])


def classes_done(artifacts: Sequence[Artifact], table: str) -> list[int]:
    """The labels of the classes that every one of the artifacts has a file of."""
    names = [{path.rpartition("/")[2] for path in artifact.files(table)} for artifact in artifacts]
    return sorted(int(name.removesuffix(".parquet")) for name in set.intersection(*names))


def class_file(rows: pa.Table) -> str:
    """The name of the file that holds what is made of the rows of one class."""
    return f"{rows['label'][0].as_py():05d}.parquet"


def _labels(artifact: Artifact, table: str) -> list[int]:
    return sorted(pc.unique(artifact.table(table, _LABELS, ["label"])["label"]).to_pylist())


def _read(rows: Rows) -> pa.Table:
    table = rows.artifact.table(rows.table, _LABELS, rows.columns)
    for column, value in rows.where.items():
        table = table.filter(pc.equal(table[column], value))
    return table


def _one_class(table: pa.Table, label: int, work: Callable[[pa.Table], None]) -> Peaks:
    begin(type(work).__name__)
    work(table.filter(pc.equal(table["label"], label)))
    return peaks()


def _measured(work: Callable[[pa.Table], None], rows: pa.Table) -> pa.Table:
    begin(type(work).__name__)
    work(rows)
    return pa.table({name: [value] for name, value in peaks()._asdict().items()})
