"""The section of coverage and memorisation: measures of the distilled sets, synthetic images nearest to real ones."""

import statistics
from collections.abc import Mapping, Sequence
from typing import Any, Final

import numpy as np
import pyarrow as pa

from vlcp_ray.methods import METHODS, vlcp

#: Pairs of a synthetic and a real image that are shown.
MAX_PAIRS: Final = 24
#: The measures of the table, with the factor of their unit (percent, or the spread of the real images) and decimals.
_MEASURES: Final = {"coverage": (100, 1), "diversity": (1, 2), "redundancy": (100, 1), "to_real": (1, 2)}

Row = dict[str, Any]


def nearest_pairs(neighbours: pa.Table) -> pa.Table:
    """Return the rows of NEIGHBOURS with the smallest distance, in units of their class, and the column `relative`.

    Args:
        neighbours: NEIGHBOURS of one set, in any order.

    Returns at most MAX_PAIRS rows, the nearest first, equal ones by image_id; `relative` is null where the class has no
    unit: where it has one image, or where all are equal.
    """
    distance, spread = (neighbours[name].to_numpy() for name in ("distance", "spread"))
    has_unit = spread > 0  # False for NaN
    relative = np.divide(distance, spread, out=np.full(len(neighbours), np.nan), where=has_unit)
    table = neighbours.append_column("relative", pa.array(relative, from_pandas=True))
    order = [("relative", "ascending"), ("image_id", "ascending")]
    return table.sort_by(order).slice(0, MAX_PAIRS)  # nulls are last


def coverage_rows(coverage: Sequence[Mapping[str, Any]]) -> list[Row]:
    """Format the measures by ipc and method: means over seeds, with their standard deviation.

    Args:
        coverage: rows of `coverage.summarise`.

    Returns rows of ipc, method, `is_ours`, `sets` and, in `text`, the measures; empty text where no set has one.
    """
    groups: dict[tuple[int, str], list[Mapping[str, Any]]] = {}
    for row in coverage:
        groups.setdefault((row["ipc"], row["method"]), []).append(row)
    names = list(METHODS)
    ordered = sorted(groups, key=lambda key: (key[0], names.index(key[1]) if key[1] in names else len(names), key[1]))
    return [
        {"ipc": ipc, "method": method, "is_ours": method == vlcp.METHOD.name, "sets": len(groups[ipc, method])}
        | {"text": {name: _format([row[name] for row in groups[ipc, method]], *_MEASURES[name]) for name in _MEASURES}}
        for ipc, method in ordered
    ]


def _format(values: Sequence[float | None], factor: float, decimals: int) -> str:
    known = [factor * value for value in values if value is not None]
    if not known:
        return ""
    std = f" ± {statistics.stdev(known):.{decimals}f}" if len(known) > 1 else ""
    return f"{statistics.fmean(known):.{decimals}f}{std}"
