"""Accuracies across architectures: teachers by students, for each method, with intervals."""

import math
from collections.abc import Iterator, Sequence
from typing import Any, Final

import pyarrow as pa

from vlcp_ray.stages.report.differences import mean_interval
from vlcp_ray.stages.report.scores import rounded, score_summary

_SETTING: Final = ("protocol", "ipc", "epochs")
_KEYS: Final = (*_SETTING, "method", "teacher", "network")

Row = dict[str, Any]


def cells(scores: pa.Table) -> list[Row]:
    """Compute the accuracy of each student under the labels of each teacher, on the sets of each method.

    Args:
        scores: SCORES.

    Returns rows by protocol, images per class (the full train split last), epochs and method, of settings with more
    than one teacher or network: these keys, `teacher` (empty under hard labels), `network`, `top1`, the mean of
    top1_last over the trials that count, its 95 % t interval `low`, `high` (see `differences.mean_interval`), and the
    numbers of `seeds` and `trials`.
    """
    trials = [trial for trial in scores.to_pylist() if trial["augmented"] and not trial["outcome"]]
    rows = [row for row in score_summary(scores) if row["n"]]
    pairs: dict[tuple[Any, ...], set[tuple[str, str]]] = {}
    for row in rows:
        pairs.setdefault(_setting(row), set()).add((row["teacher"], row["network"]))
    order = list(dict.fromkeys(row["method"] for row in rows))

    def place(row: Row) -> tuple[Any, ...]:
        return row["protocol"], row["ipc"] or math.inf, row["epochs"], order.index(row["method"])

    found = []
    for row in sorted(rows, key=place):
        if len(pairs[_setting(row)]) > 1:
            own = [trial for trial in trials if all(trial[name] == row[name] for name in _KEYS)]
            top1, low, high = mean_interval(own)
            seeds = len({trial["seed"] for trial in own})
            numbers = {"top1": top1, "low": low, "high": high, "seeds": seeds, "trials": len(own)}
            found.append({name: row[name] for name in _KEYS} | numbers)
    return found


def cells_json(scores: pa.Table) -> list[Row]:
    """List the cells as plain objects; numbers are rounded to six decimals."""
    return [rounded(cell) for cell in cells(scores)]


def matrices(scores: pa.Table) -> list[Row]:
    """Arrange the cells in tables for the page.

    Returns for each protocol, number of images per class and of epochs: these keys, `networks`, the columns, and
    `rows`: `method`, `teacher`, and `texts` in percent, empty where there is no cell.
    """
    by_setting: dict[tuple[Any, ...], list[Row]] = {}
    for cell in cells(scores):
        by_setting.setdefault(_setting(cell), []).append(cell)
    return [
        dict(zip(_SETTING, setting, strict=True))
        | {"networks": (networks := list(dict.fromkeys(cell["network"] for cell in own)))}
        | {"rows": list(_rows(own, networks))}
        for setting, own in by_setting.items()
    ]


def format_cell(cell: Row) -> str:
    """Format the accuracy of a cell in percent: `52.3 [50.1, 54.5]`, without brackets where there is no interval."""
    interval = "" if cell["low"] is None else f" [{100 * cell['low']:.1f}, {100 * cell['high']:.1f}]"
    return f"{100 * cell['top1']:.1f}{interval}"


def _rows(own: Sequence[Row], networks: Sequence[str]) -> Iterator[Row]:
    for method, teacher in dict.fromkeys((cell["method"], cell["teacher"]) for cell in own):
        texts = {
            cell["network"]: format_cell(cell) for cell in own if (cell["method"], cell["teacher"]) == (method, teacher)
        }
        yield {"method": method, "teacher": teacher, "texts": [texts.get(name, "") for name in networks]}


def _setting(row: Row) -> tuple[Any, ...]:
    return tuple(row[name] for name in _SETTING)
