"""The cost section of the report: time, rate, devices and memory of each stage, beside its estimate."""

from collections.abc import Mapping, Sequence
from typing import Any

from vlcp_ray.stages import STAGES
from vlcp_ray.stages.report.contents import StageRow

Row = dict[str, Any]


def format_duration(seconds: float | None) -> str:
    """Format seconds as `4.2 s`, `2 min 05 s` or `3 h 20 min`; None, where nothing was computed, as `reused`."""
    if seconds is None:
        return "reused"
    if seconds < 60:
        return f"{seconds:.1f} s"
    minutes, rest = divmod(round(seconds), 60)
    return f"{minutes} min {rest:02d} s" if minutes < 60 else f"{minutes // 60:,} h {minutes % 60:02d} min"


def format_bytes(n_bytes: float) -> str:
    """Format bytes in the unit that leaves one to three digits before the point."""
    for unit in ("B", "KiB", "MiB", "GiB"):
        if n_bytes < 1000:
            return f"{n_bytes:,.0f} {unit}" if unit == "B" or n_bytes >= 100 else f"{n_bytes:,.1f} {unit}"
        n_bytes /= 1024
    return f"{n_bytes:,.1f} TiB"


def costs(stages: Sequence[StageRow], estimates: Mapping[str, float]) -> list[Row]:
    """Sum the artifacts of each stage.

    Args:
        stages: a row for each artifact.
        estimates: seconds by stage.

    Returns a row for each stage, in the order of STAGES: `name`, `artifacts`, `seconds`, `done` units, `unit`, `rate`
    in units per second, `devices`, `peak_memory` (the largest MiB measured), `share` of the longest stage's seconds,
    and `estimate` in seconds. Rate, peak memory and estimate are None where they are unknown.
    """
    names = [name for name in STAGES if any(row.stage == name for row in stages)]
    rows = [_stage_cost(name, [row for row in stages if row.stage == name]) for name in names]
    longest = max((row["seconds"] for row in rows), default=0.0) or 1.0
    return [row | {"share": row["seconds"] / longest, "estimate": estimates.get(row["name"])} for row in rows]


def _stage_cost(name: str, rows: Sequence[StageRow]) -> Row:
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
