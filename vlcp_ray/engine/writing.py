"""Write the rows of a plan to their artifacts, count the rows of an artifact, and complete it."""

from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any, Final

import pyarrow as pa
import pyarrow.compute as pc
import ray

from vlcp_ray.engine.context import Context
from vlcp_ray.engine.tasks import run_remote
from vlcp_ray.monitoring.memory import Peaks, measure_peaks, reset_peaks
from vlcp_ray.schemas import REJECTED, conform, with_column
from vlcp_ray.store.artifact import Artifact, Step, part_name

REJECTED_TABLE: Final = "rejected"
#: The column with the fingerprint of a row's artifact, where one plan writes several.
TARGET: Final = "target"
#: The columns with the peak memory of the workers of a plan, passed on from each to the next.
PEAK_COLUMNS: Final = ("peak_memory", "peak_gpu_memory", "halvings")


@dataclass
class WriteRows:
    """The last operation of a row-wise plan: write good rows to `table`, and rejected rows to `rejected`.

    A file is named after the ids in it, so that a task that runs twice writes the same file twice. The tables
    themselves are the record of what is done, so that no other record can disagree with them.
    """

    targets: Mapping[str, Artifact]
    stage: str
    table: str
    schema: pa.Schema
    id_column: str = "image_id"
    #: Further tables of the good rows, for those rows that have their columns, of which none is null. Their files have
    #: the names of those of `table`.
    beside: Mapping[str, pa.Schema] = field(default_factory=dict)

    def __call__(self, block: pa.Table) -> pa.Table:
        reset_peaks(self.stage)
        rows = {"rows": 0, "rejected": 0}
        for target, artifact in self.targets.items():
            part = block.filter(pc.equal(block[TARGET], target)) if TARGET in block.column_names else block
            good = part.filter(pc.equal(part["reason"], "")) if "reason" in part.column_names else part
            ids = good[self.id_column]
            for name, schema in self.beside.items():  # first: the rows of the table are those that are done
                if set(schema.names) <= set(good.column_names):
                    self._write_part(artifact, name, good.select(schema.names).drop_null(), schema, ids)
            rows["rows"] += self._write_part(artifact, self.table, good, self.schema, ids)
            if len(good) < len(part):
                bad = part.filter(pc.not_equal(part["reason"], ""))
                bad = with_column(bad, "stage", pa.array([self.stage] * len(bad), pa.string()))
                rows["rejected"] += self._write_part(artifact, REJECTED_TABLE, bad, REJECTED, bad[self.id_column])
        return pa.table({name: [count] for name, count in (rows | peak_columns(block)).items()})

    def _write_part(
        self, artifact: Artifact, folder: str, rows: pa.Table, schema: pa.Schema, ids: pa.ChunkedArray
    ) -> int:
        if len(rows):
            artifact.write_table(f"{folder}/{part_name(ids.to_pylist())}", conform(rows, schema))
        return len(rows)

    def remove_unfinished(self, artifact: Artifact) -> None:
        """Remove the files of further tables whose rows an interrupted run did not write to `table`."""
        for name in self.beside:
            finished = {part.name for part in artifact.parts(self.table)}
            artifact.delete_files([part for part in artifact.parts(name) if part.name not in finished])

    def done(self, artifact: Artifact) -> pa.Array:
        """Read the ids of the rows that an artifact has, good or rejected."""
        ids = artifact.table(self.table, self.schema, [self.id_column])[self.id_column]
        rejected = self.id_column if self.id_column in REJECTED.names else "source"
        bad = artifact.table(REJECTED_TABLE, REJECTED, [rejected])[rejected]
        return pa.chunked_array([*ids.chunks, *bad.chunks], pa.string()).combine_chunks()


def peak_columns(block: pa.Table, children: bool = False) -> dict[str, int]:
    """Return the highest peaks of this process and of the earlier workers, which the block's columns hold."""
    earlier = Peaks(*(pc.max(block[name]).as_py() or 0 if name in block.column_names else 0 for name in PEAK_COLUMNS))
    return dict(zip(PEAK_COLUMNS, earlier.maximum(measure_peaks(children)), strict=True))


def complete_rows(context: Context, step: Step, write: WriteRows, rows_in: int, facts: Mapping[str, Any]) -> None:
    """Complete an artifact, if each of its rows was written exactly once.

    Raises:
        RuntimeError: rows were lost or duplicated.
    """
    counts = count_rows(write, context.artifact(step))
    if counts["unique"] != counts["ids"]:
        raise RuntimeError(f"{step.title}: {counts['ids'] - counts['unique']} rows were written twice")
    rejected = counts["rejected"]
    facts = {**facts, **({"splits": counts["splits"]} if "split" in write.schema.names else {})}
    context.complete(step, rows_in=rows_in, rows=counts["ids"] - rejected, rejected=rejected, **facts)


def count_rows(write: WriteRows, artifact: Artifact) -> dict[str, Any]:
    """Count the rows, unique ids, rejected rows and splits of an artifact, on a worker."""
    counts: dict[str, Any] = run_remote(_count_rows, write, artifact)
    return counts


def done_ids(write: WriteRows, artifact: Artifact) -> ray.ObjectRef:
    """Read the ids of the rows that an artifact has on a worker, and return a reference to them.

    What an interrupted run has left of further tables is removed.
    """
    return ray.remote(_read_done).remote(write, artifact)


def _read_done(write: WriteRows, artifact: Artifact) -> pa.Array:
    write.remove_unfinished(artifact)
    return write.done(artifact)


def _count_rows(write: WriteRows, artifact: Artifact) -> dict[str, Any]:
    ids = write.done(artifact)
    counts: dict[str, Any] = {
        "ids": len(ids),
        "unique": len(pc.unique(ids)),
        "rejected": len(artifact.table(REJECTED_TABLE, REJECTED, ["stage"])),
    }
    if "split" in write.schema.names:
        splits = artifact.table(write.table, write.schema, ["split"])["split"]
        counts["splits"] = {str(c["values"]): c["counts"] for c in pc.value_counts(splits).to_pylist()}
    return counts
