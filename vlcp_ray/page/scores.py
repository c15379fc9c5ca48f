"""Knows what of the scores the page shows: bars, curves over images and epochs, classes, confusions."""

from collections.abc import Sequence
from typing import Any, Final

import numpy as np
import numpy.typing as npt
import pyarrow as pa

from vlcp_ray.page import charts
from vlcp_ray.published import Published
from vlcp_ray.scores import cells, score_summary

#: More curves than this cover each other: the best three of the others stand beside vlcp and random.
MAX_CURVES: Final = 5
#: More classes than this are not told one by one, only the weakest and the most confused of them.
MAX_CLASSES: Final = 20
_PAIRS: Final = 5
_UNCHECKED: Final = {"minimax": 0.0, "rded": 0.8}  # the share of the epochs before the first check (METHOD 3)

Row = dict[str, Any]


_RANKINGS: Final = ("hlr", "ior", "label_robust")


def score_rows(summary: Sequence[Row], stated: Sequence[Published] = ()) -> list[Row]:
    """The rows of the score table with their cells as text; HLR, IOR and the label-robust score are fractions.

    Published figures stand behind the measured ones of the same protocol, network and number of images.
    """
    rows: list[Row] = []
    for i, row in enumerate(summary):
        text = cells(row) | {name: _fraction(row[name]) for name in _RANKINGS}
        rows.append(row | {"text": text, "published": False})
        if i + 1 == len(summary) or _size(summary[i + 1]) != _size(row):
            rows += [_stated(one) for one in stated if (one.protocol, one.network, one.ipc) == _size(row)]
    return rows


def insignificant(summary: Sequence[Row]) -> list[str]:
    """The comparisons with vlcp that these trials do not decide, in words."""
    several = len({_size(row)[:2] for row in summary}) > 1
    return [
        f"{row['method']} at {row['ipc']:,} per class ({cells(row)['difference']} points"
        f"{'; {network}, {protocol}'.format(**row) if several else ''})"
        for row in summary
        if row["shown"] is False
    ]


def _size(row: Row) -> tuple[str, str, int]:
    return row["protocol"], row["network"], row["ipc"]


def _stated(one: Published) -> Row:
    spread = f"{one.top1_best:.1f}" + ("" if one.std is None else f" ± {one.std:.1f}")
    blank = dict.fromkeys(("top1_last", "top5_last", "difference", *_RANKINGS), "")
    keys = {"protocol": one.protocol, "network": one.network, "ipc": one.ipc, "method": one.method}
    return keys | {"text": blank | {"top1_best": spread}, "published": True, "shown": None, "difference": None}


def judgements(scores: pa.Table, class_names: Sequence[str], stated: Sequence[Published] = ()) -> list[Row]:
    """What is drawn of each protocol and network, in the order of the table.

    Args:
        scores: SCORES.
        class_names: by label; where they are not known, the labels stand for them.
        stated: the published figures of the image set, for the plot over images per class.

    Returns for each: its title; `bars`, an SVG; `by_ipc` and `learning`, titled SVGs, empty where there is nothing to
    draw; `classes`, accuracies by class and method; `confused`, of the method that leads, or None.
    """
    summary, trials = score_summary(scores), scores.to_pylist()
    views = []
    for protocol, network in dict.fromkeys((row["protocol"], row["network"]) for row in summary):
        mine = [row for row in summary if (row["protocol"], row["network"]) == (protocol, network)]
        own = [trial for trial in trials if (trial["protocol"], trial["network"]) == (protocol, network)]
        ipc = max((row["ipc"] for row in mine), default=0)
        title, chosen = f"{network}, {protocol} protocol", _leading(mine, ipc)
        views.append(
            {
                "title": title,
                "bars": _bars(mine, own, title),
                "by_ipc": _by_ipc(mine, chosen, title, [one for one in stated if one.method == "vlcp"]),
                "learning": _learning(own, chosen, ipc, protocol, title),
                "classes": _classes(own, chosen, ipc, class_names),
                "confused": _confused(own, chosen[0], ipc, class_names) if chosen else None,
                "ipc": ipc,
            }
        )
    return views


def _leading(rows: Sequence[Row], ipc: int) -> list[str]:
    """vlcp, random, then the best of the others at this ipc."""
    ranked = sorted((row for row in rows if row["ipc"] == ipc), key=lambda row: -row["top1_last_mean"])
    first = [name for name in ("vlcp", "random") if any(row["method"] == name for row in ranked)]
    return list(dict.fromkeys([*first, *(row["method"] for row in ranked)]))[:MAX_CURVES]


def _bars(rows: Sequence[Row], trials: Sequence[Row], title: str) -> str:
    full = next((row["top1_last_mean"] for row in rows if not row["ipc"]), None)
    bars = [_bar(row, trials) for row in rows if row["ipc"]]
    reference = None if full is None else (f"full train split {100 * full:.1f}", full)
    return charts.score_chart(bars, reference, f"Top-1 accuracy of {title}")


def _bar(row: Row, trials: Sequence[Row]) -> charts.Bar:
    values = [t["top1_last"] for t in trials if (t["method"], t["ipc"]) == (row["method"], row["ipc"])]
    ours = row["method"] == "vlcp"
    return charts.Bar(
        f"{_per_class(row['ipc'])}", row["method"], row["top1_last_mean"], row["top1_last_std"], values, ours
    )


def _by_ipc(rows: Sequence[Row], methods: Sequence[str], title: str, stated: Sequence[Published]) -> str:
    """Top-1 over images per class, last epoch, with deviations; empty where there is one size alone."""
    told = {method: [row for row in rows if row["method"] == method and row["ipc"]] for method in methods}
    curves = {name: [(float(row["ipc"]), 100 * row["top1_last_mean"]) for row in mine] for name, mine in told.items()}
    if max((len(points) for points in curves.values()), default=0) < 2:
        return ""
    spreads = {name: [100 * (row["top1_last_std"] or 0.0) for row in mine] for name, mine in told.items()}
    places = [(float(one.ipc), one.top1_best) for one in stated if (one.protocol, one.network) == _size(rows[0])[:2]]
    curves |= {_STATED: places} if places else {}
    full = next((row["top1_last_mean"] for row in rows if not row["ipc"]), None)
    sizes = sorted({x for points in curves.values() for x, _ in points})
    if full is not None:
        curves |= {"full": [(sizes[0], 100 * full), (sizes[-1], 100 * full)]}
    heading, dashed = f"Top-1 over images per class, {title}", (_STATED, "full")
    return charts.line_chart(curves, "images per class", heading, spreads=spreads, ticks=sizes, dashed=dashed)


_STATED: Final = "vlcp, published"


def _learning(trials: Sequence[Row], methods: Sequence[str], ipc: int, protocol: str, title: str) -> str:
    """Mean top-1 at every check of the training; empty where there was one check alone."""
    start, curves = _UNCHECKED.get(protocol, 0.0), {}
    for method in methods:
        told = [trial["curve"] for trial in trials if (trial["method"], trial["ipc"]) == (method, ipc)]
        mean = np.mean([curve for curve in told if len(curve) == len(told[0])], axis=0)
        places = start + (1 - start) * np.arange(1, len(mean) + 1) / len(mean)
        curves[method] = list(zip((100 * places).tolist(), (100 * mean).tolist(), strict=True))
    if max((len(points) for points in curves.values()), default=0) < 2:
        return ""
    return charts.line_chart(curves, "% of the epochs", f"Top-1 while learning, {title}")


def _classes(trials: Sequence[Row], methods: Sequence[str], ipc: int, class_names: Sequence[str]) -> Row | None:
    """Mean accuracy of every class under the leading methods and the full split; of many classes the weakest."""
    wanted = [(method, ipc) for method in methods]
    wanted += [("full", 0)] if any(trial["method"] == "full" for trial in trials) and ipc else []
    means = {}
    for method, size in wanted:
        told = [t["per_class"] for t in trials if (t["method"], t["ipc"]) == (method, size)]
        means[method] = np.mean(told, axis=0)
    if not means:
        return None
    lead = next(iter(means.values()))
    order = np.argsort(lead, kind="stable") if len(lead) > MAX_CLASSES else np.arange(len(lead))
    rows: list[Row] = [
        {"name": _name(class_names, label), "values": [float(mean[label]) for mean in means.values()]}
        for label in order[:MAX_CLASSES].tolist()
    ]
    low = min(value for row in rows for value in row["values"])
    return {"methods": list(means), "rows": rows, "left_out": len(lead) - len(rows), "low": low}


def _confused(trials: Sequence[Row], method: str, ipc: int, class_names: Sequence[str]) -> Row | None:
    """The confusion matrix of a method's trials together, as shares of a row, and the most confused pairs."""
    told = [t["confusion"] for t in trials if (t["method"], t["ipc"]) == (method, ipc) and t["confusion"]]
    if not told:
        return None
    side = round(len(told[0]) ** 0.5)
    counts: npt.NDArray[np.int64] = np.sum(told, axis=0, dtype=np.int64).reshape(side, side)
    shares = counts / counts.sum(1, keepdims=True).clip(min=1)
    wrong = np.where(np.eye(side, dtype=bool), 0.0, shares)
    pairs = [divmod(place, side) for place in np.argsort(-wrong, axis=None, kind="stable")[:_PAIRS].tolist()]
    names = [_name(class_names, label) for label in range(side)]
    return {
        "method": method,
        "names": names,
        "rows": list(zip(names, shares.tolist(), strict=True)) if side <= MAX_CLASSES else [],
        "pairs": [(names[i], names[j], float(wrong[i, j])) for i, j in pairs if wrong[i, j] > 0],
    }


def _name(class_names: Sequence[str], label: int) -> str:
    return class_names[label] if label < len(class_names) else str(label)


def _per_class(ipc: int) -> str:
    return f"{ipc:,} image{'s' * (ipc != 1)} per class"


def _fraction(value: float | None) -> str:
    return "" if value is None else f"{value:.3f}"
