"""The score section of the report: table rows, bars, curves over images and epochs, class accuracies, confusions."""

import statistics
from collections.abc import Mapping, Sequence
from typing import Any, Final

import numpy as np
import numpy.typing as npt
import pyarrow as pa

from vlcp_ray.methods import full, random_images, vlcp
from vlcp_ray.protocols import PROTOCOLS
from vlcp_ray.stages.report import charts, device_seconds
from vlcp_ray.stages.report.published import Published
from vlcp_ray.stages.report.scores import (
    OURS,
    comparison_key,
    format_labels,
    format_metrics,
    format_number,
    format_trials,
    protocol_network_ipc,
    score_summary,
    where,
)

#: More curves than this cover each other: vlcp, random and the best three of the other methods.
MAX_CURVES: Final = 5
#: Of more classes than this only the weakest are listed, and of the confusion matrix only the most confused pairs.
MAX_CLASSES: Final = 20
_MAX_PAIRS: Final = 5
_MEGABYTE: Final = 1e6
_DD_RANKING: Final = ("hlr", "ior", "label_robust", "ars")
_BYTES: Final = ("image_bytes", "label_bytes", "teacher_bytes")
_PUBLISHED: Final = f"{vlcp.METHOD.name}, published"

Row = dict[str, Any]


def score_rows(
    summary: Sequence[Row],
    figures: Sequence[Published] = (),
    sets: Sequence[Mapping[str, Any]] = (),
    our_method: str = OURS[0],
) -> list[Row]:
    """Format the rows of the score table: each summary row with `text`, `is_published`, `is_ours` and `block`, equal in
    rows under one heading.

    HLR, IOR and the label-robust score are fractions of 1.

    Args:
        summary: rows of `score_summary`.
        figures: published figures of the image set; they follow the measured rows of the same protocol, network,
            images per class, epochs, batch size and kind of labels.
        sets: measures of the distilled sets; a row has the mean device-seconds of those that it was trained on.
        our_method: the method that the others are compared with.
    """
    rows: list[Row] = []
    for i, row in enumerate(summary):
        block = f"{row['protocol']} {row['network']} {row['teacher']}"
        text = format_metrics(row) | {name: _fraction(row[name]) for name in _DD_RANKING}
        text |= {name: format_number(row[name]) for name in ("epochs", "steps", "batch_size")}
        text |= {"trials": format_trials(row), "labels": format_labels(row)}
        text |= {name: _megabytes(row[name]) for name in _BYTES}
        of_row = [one for one in sets if (one["method"], one["ipc"]) == (row["method"], row["ipc"])]
        text |= {name: _mean([one[name] for one in of_row]) for name in device_seconds.NAMES}
        flags = {"is_published": False, "is_ours": row["method"] == our_method}
        rows.append(row | flags | {"text": text, "block": block})
        if i + 1 == len(summary) or comparison_key(summary[i + 1]) != comparison_key(row):
            same = [other for other in summary if comparison_key(other) == comparison_key(row)]
            rows += [
                _published_row(figure) | {"block": block}
                for figure in figures
                if _setting(figure) == protocol_network_ipc(row) and any(map(figure.has_budget_of, same))
            ]
    return rows


def other_budget_rows(summary: Sequence[Row], figures: Sequence[Published]) -> list[Row]:
    """Format the published figures whose budget is that of no measured row of the same network and images per class."""
    return [
        _published_row(figure)
        for figure in figures
        if any(_setting(figure) == protocol_network_ipc(row) for row in summary)
        and not any(_setting(figure) == protocol_network_ipc(row) and figure.has_budget_of(row) for row in summary)
    ]


def _setting(figure: Published) -> tuple[str, str, int]:
    return figure.protocol, figure.network, figure.ipc


def not_shown(summary: Sequence[Row]) -> list[str]:
    """List the comparisons with ours whose difference is not shown: not significant, or too few trials, in words."""
    several = len({protocol_network_ipc(row)[:2] for row in summary}) > 1
    return [
        f"{row['method']} {where(row)} ({format_metrics(row)['difference']} points"
        f"{'; {network}, {protocol}'.format(**row) if several else ''})"
        for row in summary
        if row["difference"] is not None and not row["significant"]
    ]


def _published_row(figure: Published) -> Row:
    top1_best = f"{figure.top1_best:.1f}" + ("" if figure.std is None else f" ± {figure.std:.1f}")
    unknown = ("trials", "top1_last", "top5_last", "difference", "steps", *_DD_RANKING, *_BYTES, *device_seconds.NAMES)
    text = dict.fromkeys(unknown, "")
    text |= {"top1_best": top1_best, "epochs": f"{figure.epochs:,}", "batch_size": f"{figure.batch_size:,}"}
    text["labels"] = f"soft, of {figure.teacher}" if figure.teacher else "hard"
    keys = {"protocol": figure.protocol, "network": figure.network, "ipc": figure.ipc, "method": figure.method}
    flags = {"is_published": True, "is_ours": False, "significant": None, "difference": None}
    return keys | flags | {"text": text}


def evaluation_views(
    scores: pa.Table, class_names: Sequence[str], figures: Sequence[Published] = (), first: Sequence[str] = OURS
) -> list[Row]:
    """Plot and list the scores of each protocol, network and teacher, in the order of the table.

    Args:
        scores: SCORES.
        class_names: by label; where they are unknown, labels are shown.
        figures: published figures of the image set, for the plot over images per class.
        first: as of `score_summary`.

    Returns for each: `title`; `bars`, an SVG; `by_ipc`, `by_bytes` and `learning_curves`, SVGs, empty with a single
    point;
    `classes`, accuracies by class and method; `confusion`, of the first method; and `ipc`, the largest, at which
    learning curves, class accuracies and confusion were measured.
    """
    summary = [row for row in score_summary(scores, first) if row["n"]]
    trials = [trial for trial in scores.to_pylist() if not trial["outcome"] and trial["augmented"]]
    ours = [figure for figure in figures if figure.method == vlcp.METHOD.name]
    views = []
    keys = ("protocol", "network", "teacher")
    for key in dict.fromkeys((*(row[name] for name in keys), row["variant"]) for row in summary):
        protocol, network, teacher, variant = key
        same = [row for row in summary if tuple(row[name] for name in keys) == key[:-1]]
        rows = [row for row in same if not row["ipc"] or row["variant"] == variant]
        budgets = {(row["ipc"], row["epochs"]) for row in rows}
        own_trials = [
            trial
            for trial in trials
            if tuple(trial[name] for name in keys) == key[:-1] and (trial["ipc"], trial["epochs"]) in budgets
        ]
        ipc = max((row["ipc"] for row in rows), default=0)
        title, methods = f"{network}, {protocol} protocol", _leading_methods(rows, ipc, first[0])
        title += f", labels of {teacher}" if same[0]["has_teachers"] and teacher else ""
        if any(row["variant"] for row in same):
            title += f", {next(row['epochs'] for row in rows if row['ipc'] == ipc):,} epochs"
        views.append(
            {
                "title": title,
                "bars": _bars(rows, own_trials, title, first[0]),
                "by_ipc": _by_ipc(rows, methods, title, ours),
                "by_bytes": _by_bytes(rows, methods, title),
                "learning_curves": _learning_curves(own_trials, methods, ipc, protocol, title),
                "classes": _classes(own_trials, methods, ipc, class_names),
                "confusion": _confusion(own_trials, methods[0], ipc, class_names) if methods else None,
                "ipc": ipc,
            }
        )
    return views


def _leading_methods(rows: Sequence[Row], ipc: int, our_method: str) -> list[str]:
    """Ours, random, then the best of the others at this ipc."""
    ranked = sorted((row for row in rows if row["ipc"] == ipc), key=lambda row: -row["top1_last_mean"])
    names = [row["method"] for row in ranked]
    first = [name for name in (our_method, random_images.METHOD.name) if name in names]
    return list(dict.fromkeys([*first, *names]))[:MAX_CURVES]


def _bars(rows: Sequence[Row], trials: Sequence[Row], title: str, our_method: str) -> str:
    reference = next((row["top1_last_mean"] for row in rows if not row["ipc"]), None)
    bars = [_bar(row, trials, our_method) for row in rows if row["ipc"]]
    line = None if reference is None else (f"full train split {100 * reference:.1f}", reference)
    return charts.score_chart(bars, line, f"Top-1 accuracy of {title}")


def _bar(row: Row, trials: Sequence[Row], our_method: str) -> charts.Bar:
    values = [t["top1_last"] for t in trials if (t["method"], t["ipc"]) == (row["method"], row["ipc"])]
    group = f"{row['ipc']:,} image{'s' * (row['ipc'] != 1)} per class"
    shown = row["top1_last_mean"], row["top1_last_std"], values
    return charts.Bar(group, row["method"], *shown, row["method"] == our_method)


def _by_ipc(rows: Sequence[Row], methods: Sequence[str], title: str, figures: Sequence[Published]) -> str:
    """Plot top-1 after the last epoch over images per class, with std; empty where there is a single ipc."""
    rows_of = {method: [row for row in rows if row["method"] == method and row["ipc"]] for method in methods}
    curves = {
        name: [(float(row["ipc"]), 100 * row["top1_last_mean"]) for row in own_rows]
        for name, own_rows in rows_of.items()
    }
    if max((len(points) for points in curves.values()), default=0) < 2:
        return ""
    stds = {name: [100 * (row["top1_last_std"] or 0.0) for row in own_rows] for name, own_rows in rows_of.items()}
    published = [
        (float(figure.ipc), figure.top1_best)
        for figure in figures
        if any(_setting(figure) == protocol_network_ipc(row) and figure.has_budget_of(row) for row in rows)
    ]
    curves |= {_PUBLISHED: published} if published else {}
    reference = next((row["top1_last_mean"] for row in rows if not row["ipc"]), None)
    ipcs = sorted({x for points in curves.values() for x, _ in points})
    if reference is not None:
        curves |= {full.METHOD.name: [(ipcs[0], 100 * reference), (ipcs[-1], 100 * reference)]}
    heading, dashed = f"Top-1 over images per class, {title}", (_PUBLISHED, full.METHOD.name)
    return charts.line_chart(curves, "images per class", heading, stds=stds, ticks=ipcs, dashed=dashed)


def _by_bytes(rows: Sequence[Row], methods: Sequence[str], title: str) -> str:
    """Plot top-1 after the last epoch over the bytes that a set takes with its labels and the teacher they need."""
    curves = {
        name: [
            (sum(row[part] for part in _BYTES) / _MEGABYTE, 100 * row["top1_last_mean"])
            for row in rows
            if row["method"] == name and row["ipc"]
        ]
        for name in methods
    }
    if max((len(points) for points in curves.values()), default=0) < 2:
        return ""
    largest = sorted({round(x, 3) for points in curves.values() for x, _ in points})
    ticks = [largest[0], largest[-1]]
    return charts.line_chart(
        curves, "MB of images, stored labels and teacher", f"Top-1 over megabytes, {title}", ticks=ticks
    )


def _learning_curves(trials: Sequence[Row], methods: Sequence[str], ipc: int, protocol: str, title: str) -> str:
    """Plot mean top-1 at every validation of the training; empty where there was a single one."""
    start, curves = PROTOCOLS[protocol].unvalidated, {}
    for method in methods:
        measured = [trial["curve"] for trial in trials if (trial["method"], trial["ipc"]) == (method, ipc)]
        mean = np.mean([curve for curve in measured if len(curve) == len(measured[0])], axis=0)
        shares = start + (1 - start) * np.arange(1, len(mean) + 1) / len(mean)
        curves[method] = list(zip((100 * shares).tolist(), (100 * mean).tolist(), strict=True))
    if max((len(points) for points in curves.values()), default=0) < 2:
        return ""
    return charts.line_chart(curves, "% of the epochs", f"Top-1 during training, {title}")


def _classes(trials: Sequence[Row], methods: Sequence[str], ipc: int, class_names: Sequence[str]) -> Row | None:
    """Mean accuracy of every class under the leading methods and the full split; of many classes the weakest."""
    wanted = [(method, ipc) for method in methods]
    wanted += [(full.METHOD.name, 0)] if any(trial["method"] == full.METHOD.name for trial in trials) and ipc else []
    means = {}
    for method, its_ipc in wanted:
        values = [t["per_class"] for t in trials if (t["method"], t["ipc"]) == (method, its_ipc)]
        means[method] = np.mean(values, axis=0)
    if not means:
        return None
    first = next(iter(means.values()))
    order = np.argsort(first, kind="stable") if len(first) > MAX_CLASSES else np.arange(len(first))
    rows: list[Row] = [
        {"name": _name(class_names, label), "values": [float(mean[label]) for mean in means.values()]}
        for label in order[:MAX_CLASSES].tolist()
    ]
    lowest = min(value for row in rows for value in row["values"])
    return {"methods": list(means), "rows": rows, "left_out": len(first) - len(rows), "lowest": lowest}


def _confusion(trials: Sequence[Row], method: str, ipc: int, class_names: Sequence[str]) -> Row | None:
    """Return the confusion matrix summed over a method's trials, as shares of each row, and the most confused pairs."""
    matrices = [t["confusion"] for t in trials if (t["method"], t["ipc"]) == (method, ipc) and t["confusion"]]
    if not matrices:
        return None
    side = round(len(matrices[0]) ** 0.5)
    counts: npt.NDArray[np.int64] = np.sum(matrices, axis=0, dtype=np.int64).reshape(side, side)
    shares = counts / counts.sum(1, keepdims=True).clip(min=1)
    wrong = np.where(np.eye(side, dtype=bool), 0.0, shares)
    pairs = [divmod(place, side) for place in np.argsort(-wrong, axis=None, kind="stable")[:_MAX_PAIRS].tolist()]
    names = [_name(class_names, label) for label in range(side)]
    return {
        "method": method,
        "names": names,
        "rows": list(zip(names, shares.tolist(), strict=True)) if side <= MAX_CLASSES else [],
        "pairs": [(names[i], names[j], float(wrong[i, j])) for i, j in pairs if wrong[i, j] > 0],
    }


def _name(class_names: Sequence[str], label: int) -> str:
    return class_names[label] if label < len(class_names) else str(label)


def _megabytes(value: int) -> str:
    return f"{value / _MEGABYTE:,.2f}" if value else ""


def _mean(values: Sequence[float | None]) -> str:
    known = [value for value in values if value is not None]
    return f"{statistics.fmean(known):,.1f}" if known else ""


def _fraction(value: float | None) -> str:
    return "" if value is None else f"{value:.3f}"
