"""Knows what a run has cost, stage by stage, and how it stands to what was expected."""

from collections.abc import Mapping, Sequence
from typing import Any, Final

from vlcp_ray.page.contents import StageRow

#: As they are made; a graph lists each artifact just before what needs it first.
_ORDER: Final = ("ingest", "pair", "finetune", "prototype", "teach", "generate", "select", "evaluate")

Row = dict[str, Any]


def duration(seconds: float | None) -> str:
    """Seconds in the words of a clock."""
    if seconds is None:
        return "reused"
    if seconds < 60:
        return f"{seconds:.1f} s"
    minutes, rest = divmod(round(seconds), 60)
    return f"{minutes} min {rest:02d} s" if minutes < 60 else f"{minutes // 60:,} h {minutes % 60:02d} min"


def size(n_bytes: float) -> str:
    """Bytes in the unit that leaves one to three digits before the point."""
    for unit in ("B", "KiB", "MiB", "GiB"):
        if n_bytes < 1000:
            return f"{n_bytes:,.0f} {unit}" if unit == "B" or n_bytes >= 100 else f"{n_bytes:,.1f} {unit}"
        n_bytes /= 1024
    return f"{n_bytes:,.1f} TiB"


def costs(stages: Sequence[StageRow], estimates: Mapping[str, float]) -> list[Row]:
    """A row for each stage, in the order of the run: artifacts, seconds, rate, devices, memory, estimate.

    `rate` is of the stage's own unit a second, `peak_memory` the largest MiB that was measured; either is None where
    nothing is known. `share` is of the longest stage.
    """
    names = sorted({row.stage for row in stages}, key=_place)
    rows = [_stage([row for row in stages if row.stage == name], name) for name in names]
    longest = max((row["seconds"] for row in rows), default=0.0) or 1.0
    return [row | {"share": row["seconds"] / longest, "estimate": estimates.get(row["name"])} for row in rows]


def _place(name: str) -> tuple[int, str]:
    return (_ORDER.index(name) if name in _ORDER else len(_ORDER)), name


def _stage(rows: Sequence[StageRow], name: str) -> Row:
    seconds = sum(row.seconds or 0.0 for row in rows)
    done = sum(row.done for row in rows)
    measured = [row.peak_memory for row in rows if row.peak_memory is not None]
    return {
        "name": name,
        "artifacts": len(rows),
        "seconds": seconds,
        "done": done,
        "unit": rows[0].unit,
        "rate": done / seconds if seconds and done else None,
        "devices": "; ".join(dict.fromkeys(row.devices for row in rows if row.devices)),
        "peak_memory": max(measured, default=None),
    }
