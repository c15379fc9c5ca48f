"""Scores of one or more jobs side by side: as text, Markdown, LaTeX or CSV."""

import csv
import io
import re
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from functools import cached_property
from typing import Any, Final

import pyarrow as pa

from vlcp_ray.exports import markdown
from vlcp_ray.stages.report.scores import (
    BUDGET,
    METRICS,
    budget,
    format_labels,
    format_metrics,
    format_trials,
    row_order,
    score_summary,
)

_KEY: Final = ("protocol", "network", "ipc", "method", "epochs")
_NUMERIC: Final = ("ipc", "epochs")
_NUMBERS: Final = (
    *(f"{metric}_{what}" for metric in METRICS for what in ("mean", "std")),
    *("difference", "low", "high", "p_holm", "label_robust", "ars"),
)
_OTHER: Final = "†"
_NOTE: Final = "top-1 after the last epoch in percent, mean ± standard deviation over trials, and their number"
_LATEX: Final = {
    **{character: f"\\{character}" for character in "&%$#_{}"},
    "\\": r"\textbackslash{}",
    "~": r"\textasciitilde{}",
    "^": r"\textasciicircum{}",
    "±": r"$\pm$",
    _OTHER: r"$^\dagger$",
}


@dataclass(frozen=True, eq=False)
class Column:
    """The scores of one job.

    Args:
        title: its name.
        trials: SCORES.
        images: what identifies its image set: figures of two sets are not compared.
    """

    title: str
    trials: pa.Table
    images: str

    @cached_property
    def rows(self) -> list[dict[str, Any]]:
        """The rows of the score table."""
        return score_summary(self.trials)


def text(columns: Sequence[Column]) -> str:
    """Format a row for each protocol, network, ipc, method and epochs, and a column of top-1 for each job.

    Where a job has several teachers for a protocol, there is a row for each of them.
    """
    rows = _cells(columns)
    widths = [max(len(row[place]) for row in rows) for place in range(len(rows[0]))]
    lines = ("  ".join(cell.ljust(width) for cell, width in zip(row, widths, strict=True)).rstrip() for row in rows)
    return "\n".join([*lines, *_notes(columns, rows)])


def to_markdown(columns: Sequence[Column]) -> str:
    """Write the table of `text` in Markdown."""
    cells = _cells(columns)
    head, *rows = cells
    named = ([*map(markdown.text, row[: -len(columns)]), *row[-len(columns) :]] for row in rows)
    lines = [[markdown.text(cell) for cell in head], ["---"] * len(head), *named]
    notes = (f"\n{markdown.text(note)}" for note in _notes(columns, cells))
    return "\n".join([*(f"| {' | '.join(line)} |" for line in lines), *notes])


def to_latex(columns: Sequence[Column]) -> str:
    """Write the table of `text` in LaTeX, with the rules of booktabs; the notes are comments."""
    cells = _cells(columns)
    head, *rows = (" & ".join(map(_escape, row)) + r" \\" for row in cells)
    names = cells[0][: -len(columns)]
    form = "".join("r" if name in _NUMERIC else "l" for name in names) + "r" * len(columns)
    notes = [f"% {note}" for note in _notes(columns, cells)]
    body = [r"\toprule", head, r"\midrule", *rows, r"\bottomrule"]
    return "\n".join([*notes, rf"\begin{{tabular}}{{{form}}}", *body, r"\end{tabular}"])


def to_csv(columns: Sequence[Column]) -> str:
    """Write a line for each row of each job, with its budget; accuracies are fractions of 1, differences points."""
    names = ("job", *_KEY, *(name for name in BUDGET if name not in _KEY), "trials", "failed", *_NUMBERS)
    lines = io.StringIO()
    writer = csv.DictWriter(lines, names, lineterminator="\n")
    writer.writeheader()
    for column in columns:
        for row in column.rows:
            cells = {name: row[name] for name in names if name in row}
            cells |= {"job": column.title, "trials": row["n"], "failed": sum(row["failed"].values())}
            writer.writerow({name: _csv_value(value) for name, value in cells.items()})
    return lines.getvalue().rstrip("\n")


#: The options of `report` that choose a format.
FORMATS: Final[dict[str, Callable[[Sequence[Column]], str]]] = {
    "csv": to_csv,
    "latex": to_latex,
    "markdown": to_markdown,
}


def _csv_value(value: Any) -> Any:
    """Write a range of a budget as `1 to 2`; a text that a spreadsheet would compute gets an apostrophe."""
    if isinstance(value, tuple):
        return f"{value[0]} to {value[1]}"
    if isinstance(value, float):
        return f"{value:.6f}"
    return f"'{value}" if isinstance(value, str) and re.match(r"[=+\-@\t\r]", value) else value


def _cells(columns: Sequence[Column]) -> list[list[str]]:
    """Return the cells of the table, its head first; the last of each row are those of the jobs."""
    several = {row["protocol"] for column in columns for row in column.rows if row["has_teachers"]}
    summaries = [{_key(row, several): row for row in column.rows} for column in columns]
    rows = {key: row for summary in reversed(summaries) for key, row in summary.items()}
    names = [name for name in (*_KEY[:2], "teacher", *_KEY[2:]) if name != "teacher" or several]
    table = [[*names, *(column.title for column in columns)]]
    for row in sorted(rows.values(), key=row_order):
        key = _key(row, several)
        found = [summary.get(key) for summary in summaries]
        first = next(one for one in found if one is not None)
        named = {**row, "teacher": key[-1], "ipc": row["ipc"] or "all", "epochs": f"{row['epochs']:,}"}
        table.append([*(str(named[name]) for name in names), *(_cell(one, first) for one in found)])
    return table


def _key(row: dict[str, Any], several: set[str]) -> tuple[Any, ...]:
    """Return what a row of the table stands for.

    Args:
        several: the protocols that a job has several teachers for; with the others a teacher is of the budget.
    """
    return *(row[name] for name in _KEY), row["teacher"] if row["protocol"] in several else ""


def _cell(row: dict[str, Any] | None, first: dict[str, Any]) -> str:
    if row is None:
        return ""
    mark = _OTHER if budget(row) != budget(first) else ""
    return f"{format_metrics(row)['top1_last']}{mark} ({format_trials(row)})".lstrip()


def _notes(columns: Sequence[Column], cells: Sequence[Sequence[str]]) -> list[str]:
    notes = [_NOTE]
    if any(_OTHER in cell for row in cells[1:] for cell in row):
        notes.append(f"{_OTHER} another budget than the first job of the row: steps, batch size, labels or teacher")
    for column in columns:
        rows = column.rows
        labels = dict.fromkeys(f"{row['protocol']}: {format_labels(row)}" for row in rows if row["labels"] != "hard")
        notes += [f"{column.title}: labels of {label}" for label in labels]
        notes += [f"{column.title}: no scores yet"] if not rows else []
    notes += [
        f"{column.title}: other real images than {columns[0].title}, so that accuracies are not comparable"
        for column in columns[1:]
        if column.images != columns[0].images
    ]
    return notes


def _escape(cell: str) -> str:
    return "".join(_LATEX.get(character, character) for character in cell)
