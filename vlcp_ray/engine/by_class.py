"""Group-wise execution on Ray: call a function once per class, with all rows of the class."""

import json
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from functools import partial
from typing import Any, Final, TypeAlias

import pyarrow as pa
import pyarrow.compute as pc
import ray
from ray.data import Dataset

from vlcp_ray.engine.context import Context, share_seconds
from vlcp_ray.engine.streaming import filter_rows, read
from vlcp_ray.engine.tasks import in_flight, run_remote, task
from vlcp_ray.monitoring.memory import Peaks, measure_peaks, reset_peaks
from vlcp_ray.scale import Pool
from vlcp_ray.store import written
from vlcp_ray.store.artifact import Artifact, Step

#: A table of at most this many rows is read by one worker and shared, without a shuffle, which takes half a minute.
SHARED_ROWS: Final = 16_384
#: The same of rows that are prepared: a worker holds the files as they are.
SHARED_BYTES: Final = 2**28
_LABELS: Final = pa.schema([pa.field("label", pa.int32())])

#: Takes all rows of one class, in any order, and writes its files. Where it makes several artifacts, it returns the
#: seconds that each of them took, by the artifact's path.
ClassWork: TypeAlias = Callable[[pa.Table], Mapping[str, float] | None]


@dataclass(frozen=True)
class ClassRows:
    """Some columns of an artifact's table, and the rows whose columns have the given values.

    Args:
        prepare: row-wise, called with the rows before they are sent to the worker of their class, as to make images
            small; the column `label` stays.
    """

    artifact: Artifact
    table: str
    columns: Sequence[str]
    where: Mapping[str, str] = field(default_factory=dict)
    prepare: Callable[[pa.Table], pa.Table] | None = None

    def labels(self) -> list[int]:
        """List the labels of the table, sorted; a worker reads them."""
        labels: list[int] = run_remote(_read_labels, self.artifact, self.table)
        return labels


def run_classes(
    context: Context,
    steps: Sequence[Step],
    table: str,
    rows: ClassRows,
    n_rows: int,
    work: ClassWork,
    pool: Pool,
    labels: Sequence[int] | None = None,
    more: Sequence[ClassRows] = (),
    n_bytes: int = 0,
) -> dict[str, float]:
    """Call `work` once for each class that is not done, and show the progress.

    Args:
        table: a class is done if every artifact of `steps` has its file of this table.
        labels: of all classes; those of `rows` by default.
        n_rows, more, n_bytes: as in `each_class`.

    Returns the seconds of each artifact, by its fingerprint: its share of the wall-clock time, by the seconds that
    `work` has measured.
    """
    start, labels = time.monotonic(), rows.labels() if labels is None else labels
    artifacts = {step.fingerprint: context.artifact(step) for step in steps}
    done, measured = classes_done(list(artifacts.values()), table), dict.fromkeys(artifacts, 0.0)
    left = [label for label in labels if label not in done]
    with context.progress(steps, len(labels), "classes", len(labels) - len(left)) as progress:
        for peaks, seconds in each_class(rows, n_rows, left, work, pool, more, n_bytes):
            progress.add(1, peaks=peaks)
            for fingerprint, artifact in artifacts.items():
                measured[fingerprint] += seconds.get(artifact.path, 0.0)
    return share_seconds(time.monotonic() - start, measured)


def each_class(
    rows: ClassRows,
    n_rows: int,
    labels: Sequence[int],
    work: ClassWork,
    pool: Pool,
    more: Sequence[ClassRows] = (),
    n_bytes: int = 0,
) -> Iterator[tuple[Peaks, Mapping[str, float]]]:
    """Call `work` once per class, on at most `pool.num_workers` workers at a time.

    Yields, as each class ends, the peaks of its worker and the seconds that `work` has returned.

    Args:
        n_rows: rows of all tables.
        labels: the classes that are not done.
        more: other tables with the same columns, after `prepare`, whose rows of a class are added.
        n_bytes: of the files whose rows are prepared.
    """
    sources = (rows, *more)
    if n_rows <= SHARED_ROWS and n_bytes <= SHARED_BYTES:
        tables = [ray.remote(_read_rows).remote(source) for source in sources]
        call = task(_process_class, pool)
        shared = ray.put((work, [source.prepare for source in sources]))
        yield from in_flight((partial(call.remote, label, shared, *tables) for label in labels), pool.num_workers)
    elif labels:
        done = ray.put(pa.array(sorted(set(rows.labels()) - set(labels)), pa.int32()))
        first, *others = (_stream_rows(source, done) for source in sources)
        wanted = first.union(*others) if others else first
        for row in stream_groups(wanted, "label", len(labels), partial(_process_group, work), pool):
            written.load(row["written"])
            yield Peaks(*(row[name] for name in Peaks._fields)), json.loads(row["seconds"])


def stream_groups(
    dataset: Dataset, key: str, count: int, function: Callable[[pa.Table], pa.Table], pool: Pool
) -> Iterator[dict[str, Any]]:
    """Call a function once per key, with all rows of the key, and yield the rows that it returns.

    There are as many partitions as keys (`count`), so that a task holds about one group. Ray Data's default of 200
    would start 200 tasks for ten digits, and put five classes of ImageNet into each.

    A group must be whole, so this plan cannot be resumed by row: the caller leaves out the groups that are done.
    """

    def call(group: pa.Table) -> pa.Table:  # Ray Data requires a plain function
        return function(group)

    groups = dataset.groupby(key, num_partitions=count).map_groups(
        call, batch_format="pyarrow", num_cpus=pool.num_cpus, num_gpus=pool.num_gpus or None
    )
    for row in groups.iter_rows():
        yield dict(row)


def classes_done(artifacts: Sequence[Artifact], table: str) -> list[int]:
    """List the labels of the classes for which every artifact has a file, sorted."""
    names = [{part.name for part in artifact.parts(table)} for artifact in artifacts]
    return sorted(int(name.removesuffix(".parquet")) for name in set.intersection(*names))


def class_file(rows: pa.Table) -> str:
    """Return the name of the file for the results of one class."""
    return f"{rows['label'][0].as_py():05d}.parquet"


def _read_labels(artifact: Artifact, table: str) -> list[int]:
    return sorted(pc.unique(artifact.table(table, _LABELS, ["label"])["label"]).to_pylist())


def _read_rows(rows: ClassRows) -> pa.Table:
    table = rows.artifact.table(rows.table, _LABELS, rows.columns)
    for column, value in rows.where.items():
        table = table.filter(pc.equal(table[column], value))
    return table


def _stream_rows(rows: ClassRows, done: ray.ObjectRef) -> Dataset:
    """Read the rows of the classes that are not done, and prepare them."""
    wanted = filter_rows(read(rows.artifact, rows.table, rows.columns), done=done, id_column="label", where=rows.where)
    if rows.prepare is None:
        return wanted
    prepare = rows.prepare

    def call(block: pa.Table) -> pa.Table:  # Ray Data requires a plain function
        return prepare(block)

    return wanted.map_batches(call, batch_size=None, batch_format="pyarrow")


def _process_class(
    label: int,
    work: tuple[ClassWork, Sequence[Callable[[pa.Table], pa.Table] | None]],
    *tables: pa.Table,
) -> tuple[Peaks, Mapping[str, float]]:
    """Call the work with the rows of a class from all tables, each prepared by its function."""
    function, prepares = work
    reset_peaks(type(function).__name__)
    parts = [table.filter(pc.equal(table["label"], label)) for table in tables]
    parts = [part if prepare is None else prepare(part) for part, prepare in zip(parts, prepares, strict=True)]
    seconds = function(pa.concat_tables(parts)) or {}
    return measure_peaks(), seconds


def _process_group(work: ClassWork, rows: pa.Table) -> pa.Table:
    reset_peaks(type(work).__name__)
    seconds = json.dumps(work(rows) or {})
    row = measure_peaks()._asdict() | {"seconds": seconds, "written": written.dump()}
    return pa.table({name: [value] for name, value in row.items()})
