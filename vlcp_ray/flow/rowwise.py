"""Knows how a row-wise stage runs from its first row to its seal: streamed, told, and counted where the rows are."""

import time
from collections.abc import Callable, Mapping, Sequence
from typing import Any

import pyarrow as pa
import pyarrow.compute as pc
import ray
from ray.data import Dataset

from vlcp_ray.flow.context import Context
from vlcp_ray.flow.data import REJECTED_TABLE, Work, Write, stream
from vlcp_ray.schemas import REJECTED
from vlcp_ray.store import Artifact, Step


def run_rows(
    context: Context,
    steps: Sequence[Step],
    rows: Dataset,
    works: Sequence[Work],
    write: Write,
    total: int,
    rows_per_block: int | None = None,
) -> float:
    """Stream the rows into the artifacts of `steps`, tell how it goes, and return the seconds that each one took.

    Args:
        total: how many rows there are with those that are done.
        rows_per_block: by default the scale's.
    """
    start = time.monotonic()
    found = [counts(write, context.artifact(step)) for step in steps]
    done, bad = (sum(count[name] for count in found) for name in ("ids", "rejected"))
    with context.progress(steps, total, "rows", done, bad) as told:
        block = rows_per_block or context.scale.rows_per_block
        for good, rejected, peaks in stream(rows, works, write, block, total - done):
            told.add(good + rejected, rejected=rejected, peaks=peaks)
    return (time.monotonic() - start) / len(steps)


def seal_rows(context: Context, step: Step, write: Write, rows_in: int, facts: Mapping[str, Any]) -> None:
    """Seal an artifact once all of its rows are there exactly once.

    Raises:
        RuntimeError: rows were lost or doubled.
    """
    found = counts(write, context.artifact(step))
    if found["unique"] != found["ids"]:
        raise RuntimeError(f"{step.title}: {found['ids'] - found['unique']} rows were written twice")
    rejected = found["rejected"]
    facts = {**facts, **({"splits": found["splits"]} if "split" in write.schema.names else {})}
    context.seal(step, rows_in=rows_in, rows=found["ids"] - rejected, rejected=rejected, **facts)


def counts(write: Write, artifact: Artifact) -> dict[str, Any]:
    """What an artifact has so far. A worker counts: the driver never holds a column of an image set."""
    found: dict[str, Any] = apart(_counts, write, artifact)
    return found


def done_ids(write: Write, artifact: Artifact) -> ray.ObjectRef:
    """A reference to the ids of the rows that an artifact has, which a worker has read."""
    return ray.remote(_done).remote(write, artifact)


def apart(function: Callable[..., Any], *arguments: Any) -> Any:
    """Call a function in a worker and bring home what it returns."""
    return ray.get(ray.remote(function).remote(*arguments))


def _done(write: Write, artifact: Artifact) -> pa.Array:
    return write.done(artifact)


def _counts(write: Write, artifact: Artifact) -> dict[str, Any]:
    ids = write.done(artifact)
    found: dict[str, Any] = {
        "ids": len(ids),
        "unique": len(pc.unique(ids)),
        "rejected": len(artifact.table(REJECTED_TABLE, REJECTED, ["stage"])),
    }
    if "split" in write.schema.names:
        splits = artifact.table(write.table, write.schema, ["split"])["split"]
        found["splits"] = {str(c["values"]): c["counts"] for c in pc.value_counts(splits).to_pylist()}
    return found
