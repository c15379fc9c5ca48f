"""Summarise scores: means and standard deviations over trials, as a text table, as plain objects and as a headline."""

import math
import statistics
from collections import Counter
from collections.abc import Mapping, Sequence
from typing import Any, Final

import pyarrow as pa

from vlcp_ray.methods import METHODS, full, random_images, vlcp
from vlcp_ray.protocols import PROTOCOLS
from vlcp_ray.stages.evaluate import SCORES
from vlcp_ray.stages.report.dd_ranking import (
    augmentation_robust_score,
    hard_label_recovery,
    improvement_over_random,
    label_robust_score,
)
from vlcp_ray.stages.report.differences import LEVEL, compare, format_difference, holm

#: The method that all others are compared with.
OURS: Final = (vlcp.METHOD.name,)
METRICS: Final = ("top1_last", "top1_best", "top5_last")

#: What a figure was made under, besides its protocol and network: figures of two budgets are not compared.
BUDGET: Final = ("epochs", "steps", "batch_size", "labels", "teacher")
_GROUP: Final = ("protocol", "network", "teacher", "method", "ipc", "epochs")
_BYTES: Final = ("image_bytes", "label_bytes", "teacher_bytes")
_AHEAD: Final = "ahead"
_COLUMNS: Final = (
    "protocol",
    "network",
    "teacher",
    "ipc",
    "method",
    "epochs",
    "steps",
    "batch",
    "trials",
    "top-1 last",
    "top-1 best",
    "top-5",
    "robust",
    "ARS",
    _AHEAD,
)
_DIFFERENCE: Final = ("difference", "low", "high", "p", "p_holm", "pairs", "significant")
_NUMERIC: Final = ("ipc", "epochs", "steps", "batch", "trials")
_TOP: Final = 5
_NOTE: Final = (
    "percent, mean ± standard deviation over trials; robust: DD-Ranking's label-robust score\n"
    f"{{}} ahead: points [{LEVEL:.0%} interval over seeds, or over the trials of a single seed]; "
    "* p < 0.05 after Holm's correction"
)

Row = dict[str, Any]


def score_summary(scores: pa.Table, first: Sequence[str] = OURS) -> list[Row]:
    """Compute mean and standard deviation over the trials of each (protocol, network, teacher, method, ipc, epochs).

    Args:
        scores: SCORES.
        first: the methods that come before all others; with the first of them the others are compared.

    Returns rows by protocol, network, teacher and ipc, with the methods in the order of METHODS and the full train
    split last. Each row has the six keys, the budget of its trials (BUDGET), the means of their bytes of images, stored
    labels and teacher, `variant` (its place among the numbers of epochs at this protocol, network and ipc),
    `has_variants`, `has_teachers` (whether this protocol has several), `n` (trials that count), `failed` (the number of
    others by outcome), `classes`, and of each metric `_mean` and `_std` (sample standard deviation), in fractions of 1,
    over the trials that count; `_mean` is None without such a trial, `_std` with fewer than two. Further:

    `difference`, `low`, `high`, `p`, `pairs`: vlcp's top1_last minus the row's at the same ipc, in points, with its
    interval (see `differences.compare`); None for vlcp's own row, without one, and where a test is not possible.
    Where `first` names another method, that takes the place of vlcp.
    `p_holm`: `p` after Holm's correction for the rows that are compared with the same row of vlcp.
    `significant`: whether `p_holm` is below 0.05, and no trial of both failed; None without `p`.
    `hlr`, `ior`, `label_robust`: DD-Ranking's, from means of top1_last; None without random, without the full train
    split, or without trials of the set under hard labels.
    `ars`: DD-Ranking's augmentation-robust score; None without random, or without trials of both without augmentation
    that all count. `plain`, `plain_failed`: the number of the row's own, and of those that do not count by outcome.
    The other figures are of the trials with augmentation.
    """
    groups: dict[tuple[Any, ...], list[Row]] = {}
    plain: dict[tuple[Any, ...], list[Row]] = {}
    for trial in scores.to_pylist():
        (groups if trial["augmented"] else plain).setdefault(tuple(trial[name] for name in _GROUP), []).append(trial)
    rows = [dict(zip(_GROUP, key, strict=True)) | _means_and_stds(trials) for key, trials in groups.items()]
    for row in rows:
        same = {other["epochs"] for other in rows if protocol_network_ipc(other) == protocol_network_ipc(row)}
        row["variant"], row["has_variants"] = sorted(same).index(row["epochs"]), len(same) > 1
        row["has_teachers"] = len({other["teacher"] for other in rows if other["protocol"] == row["protocol"]}) > 1
    ours = {comparison_key(row): row for row in rows if row["method"] == first[0]}
    rows = [
        row | _dd_ranking(row, rows) | _ars(row, rows, plain) | _difference(groups, _ours_of(row, ours), row)
        for row in rows
    ]
    return sorted(_corrected(rows), key=lambda row: row_order(row, first))


def row_order(row: Row, first: Sequence[str] = OURS) -> tuple[Any, ...]:
    """Return the key by which rows of the summary are sorted: by protocol, network, teacher, ipc, epochs and method."""
    place = _method_order(row["method"], first)
    return row["protocol"], row["network"], row["teacher"], row["ipc"] or math.inf, row["epochs"], place


def score_table(scores: pa.Table, first: Sequence[str] = OURS) -> str:
    """Format the summary as aligned lines of text: percent with one decimal, and a note that explains the signs.

    Args:
        first: as of `score_summary`.
    """
    rows = score_summary(scores, first)
    if not rows:
        return "no scores yet"
    lines = [_line(row) for row in rows]
    left_out = {"top-5"} if not has_top5(rows) else set()
    left_out |= set() if any(row["has_teachers"] for row in rows) else {"teacher"}
    left_out |= {"ARS"} if all(row["ars"] is None for row in rows) else set()
    columns = [name for name in _COLUMNS if name not in left_out]
    titles = [f"{first[0]} ahead" if name == _AHEAD else name for name in columns]
    cells = [titles, *([line[name] for name in columns] for line in lines)]
    widths = [max(len(row[i]) for row in cells) for i in range(len(columns))]
    padded = [
        [c.rjust(w) if name in _NUMERIC else c.ljust(w) for name, c, w in zip(columns, row, widths, strict=True)]
        for row in cells
    ]
    failed = [f"not counted: {text}" for text in failures(rows)]
    notes = [_NOTE.format(first[0]), *budget_notes(rows, first[0]), *failed]
    return "\n".join([*("  ".join(line).rstrip() for line in padded), *notes])


def differences_json(scores: pa.Table, first: Sequence[str] = OURS) -> list[Row]:
    """List the comparisons with vlcp as plain objects, in the order of the table; numbers have six decimals.

    Each has protocol, network, teacher, ipc, epochs, method and, of `score_summary`, difference, low, high, p, p_holm,
    pairs and significant.

    Args:
        first: as of `score_summary`.
    """
    names = (*_GROUP, *_DIFFERENCE)
    rows = [row for row in score_summary(scores, first) if row["difference"] is not None]
    return [{name: rounded(row[name]) for name in names} for row in rows]


def scores_json(scores: pa.Table) -> list[Row]:
    """List the trials as plain objects with the fields of SCORES, by trial_id; numbers are rounded to six decimals.

    A loss that is not finite is None.
    """
    rows = scores.select(SCORES.names).sort_by("trial_id").to_pylist()
    return [{name: rounded(value) for name, value in row.items()} for row in rows]


def headline(
    summary: Sequence[Row], classes: int | None, train_rows: int | None, our_method: str = OURS[0]
) -> tuple[str, str]:
    """Write the headline of the report: top-1 after the last epoch of the first network at its largest ipc.

    Args:
        summary: rows of `score_summary`.
        classes: number of classes, if known.
        train_rows: images of the full train split, if known.
        our_method: the method that the claim is about.

    Returns the claim, a sentence without its full stop, and the basis of the claim; both empty without its rows.
    """
    ours = [row for row in summary if row["method"] == our_method]
    if not ours:
        return "", ""
    first = [row for row in summary if protocol_network_ipc(row)[:2] == protocol_network_ipc(ours[0])[:2]]
    first = [row for row in first if row["variant"] == 0 and row["teacher"] in ("", ours[0]["teacher"])]
    largest = next((row for row in reversed(first) if row["method"] == our_method), ours[-1])
    ipc = largest["ipc"]
    if not largest["n"]:
        return (
            f"No training of {our_method} at {ipc:,} images per class has learned",
            f"{failures([largest])[0]}.",
        )
    counted = [row for row in first if row["n"]]
    random = next((row for row in counted if row["ipc"] == ipc and row["method"] == random_images.METHOD.name), None)
    whole = next((row for row in counted if row["method"] == full.METHOD.name), None)
    where = f" of each of {classes:,} classes" if classes else " per class"
    claim = f"{_reach(ipc, f'distilled image{{s}}{where}')} {_percent(largest)}"
    if random:
        claim += f" where {_reach(ipc, 'random one{s}')} {_percent(random)}"
    if whole:
        claim += f"; the full {f'{train_rows:,} reach' if train_rows else 'train split reaches'} {_percent(whole)}"
    is_one = largest["n"] == 1 and not largest["failed"]
    trials = "a single trial" if is_one else f"{format_trials(largest)} trials"
    epochs = f" of {largest['epochs']:,}" if largest["has_variants"] else ""
    setting = f"after the last epoch{epochs}, {largest['protocol']} protocol"
    setting += f", labels of {largest['teacher']}" if largest["has_teachers"] else ""
    basis = f"Top-1 of {largest['network']} {setting}, mean over {trials}."
    return claim, f"{basis} {_significance(random)}".rstrip()


def format_metrics(row: Row) -> dict[str, str]:
    """Format a summary row: metrics as `83.1 ± 0.5`, without ± where there is no std; the difference with interval."""
    text = {m: _format_percent(row[f"{m}_mean"], row[f"{m}_std"]) for m in METRICS}
    difference = row["difference"]
    ahead = "" if difference is None else format_difference(difference, row["low"], row["high"])
    return text | {"difference": ahead}


def protocol_network_ipc(row: Row) -> tuple[str, str, int]:
    """Return the key of the rows of one number of images; ipc is 0 for the full train split."""
    return row["protocol"], row["network"], row["ipc"]


def comparison_key(row: Row) -> tuple[str, str, int, int, str]:
    """Return the key of the rows that are compared with each other."""
    return *protocol_network_ipc(row), row["epochs"], row["teacher"]


def budget(row: Row) -> tuple[Any, ...]:
    """Return the budget of a row of the summary; two rows of other budgets are not compared."""
    return tuple(row[name] for name in BUDGET)


def format_labels(row: Row) -> str:
    """Format the labels of a row: `hard`, `soft, of ResNet-18, 60 epochs`, or `soft, stored, of ...`."""
    if row["labels"] == "hard":
        return "hard"
    return f"soft{', stored' if row['labels'] == 'stored' else ''}, of {row['teacher']}"


def budget_notes(summary: Sequence[Row], ours: str = OURS[0]) -> list[str]:
    """List the labels of each protocol, and rows that are not compared with `ours`, as their budgets differ."""
    labels = dict.fromkeys((row["protocol"], format_labels(row)) for row in summary)
    notes = [f"{protocol}: labels {text}" for protocol, text in labels]
    return notes + [
        f"not compared: {row['method']} {where(row)} ({row['protocol']}, {row['network']}), of another budget "
        f"than {ours}"
        for row in summary
        if row["is_other_budget"]
    ]


def rounded(value: Any) -> Any:
    """Round the numbers in lists and objects to six decimals, for JSON; a number that is not finite becomes None."""
    if isinstance(value, dict):
        return {name: rounded(item) for name, item in value.items()}
    if isinstance(value, list):
        return [rounded(item) for item in value]
    if isinstance(value, float):
        return round(value, 6) if math.isfinite(value) else None  # JSON has no NaN
    return value


def _means_and_stds(trials: Sequence[Row]) -> Row:
    counted = _counted(trials)
    failed = Counter(trial["outcome"] for trial in trials if trial["outcome"])
    result: Row = {"n": len(counted), "failed": dict(failed), "classes": len(trials[0]["per_class"])}
    for name in BUDGET:  # one value, or a tuple of the least and the most where sets have other numbers of images
        values = sorted({trial[name] for trial in trials})
        result[name] = values[0] if len(values) == 1 else (values[0], values[-1])
    result |= {name: round(statistics.fmean(trial[name] for trial in trials)) for name in _BYTES}
    for metric in METRICS:
        values = [trial[metric] for trial in counted]
        result[f"{metric}_mean"] = statistics.fmean(values) if values else None
        result[f"{metric}_std"] = statistics.stdev(values) if len(values) > 1 else None
    return result


def _difference(groups: Mapping[tuple[Any, ...], Sequence[Row]], ours: Row | None, row: Row) -> Row:
    """Compare a row with vlcp's; both `p_holm` and `significant` follow from all rows of the table."""
    found, is_other_budget = None, False
    if ours is not None and row["method"] != ours["method"]:
        is_other_budget = budget(ours) != budget(row)
        if not is_other_budget:
            found = compare(*(_counted(groups[tuple(one[name] for name in _GROUP)]) for one in (ours, row)))
    nothing = dict.fromkeys(("difference", "low", "high", "p", "pairs")) | {"is_whole": False}
    if ours is None or found is None:
        return nothing | {"is_other_budget": is_other_budget}
    is_whole = not ours["failed"] and not row["failed"]  # the mean of those that learned is no mean of the method
    values = {"low": found.low, "high": found.high, "p": found.p, "pairs": found.pairs}
    return {"difference": found.points, "is_other_budget": False} | values | {"is_whole": is_whole}


def _ours_of(row: Row, ours: Mapping[tuple[str, str, int, int, str], Row]) -> Row | None:
    """Return vlcp's row with the labels of the same teacher; where there is none, with those of another."""
    key = comparison_key(row)
    return ours.get(key) or next((other for one, other in ours.items() if one[:-1] == key[:-1]), None)


def _corrected(rows: Sequence[Row]) -> list[Row]:
    """Add `p_holm` and `significant`, from the p-values of the rows that are compared with each other."""
    tested: dict[tuple[str, str, int, int, str], list[int]] = {}
    for number, row in enumerate(rows):
        if row["p"] is not None:
            tested.setdefault(comparison_key(row), []).append(number)
    corrected = {
        number: value
        for numbers in tested.values()
        for number, value in zip(numbers, holm([rows[number]["p"] for number in numbers]), strict=True)
    }
    result = []
    for number, row in enumerate(rows):
        p = corrected.get(number)
        significant = None if p is None else row["is_whole"] and p < 1 - LEVEL
        plain = {name: value for name, value in row.items() if name != "is_whole"}
        result.append(plain | {"p_holm": p, "significant": significant})
    return result


def _counted(trials: Sequence[Row]) -> list[Row]:
    return [trial for trial in trials if not trial["outcome"]]


def _dd_ranking(row: Row, rows: Sequence[Row]) -> Row:
    """HLR, IOR and the label-robust score of a set."""

    def mean(**changed: Any) -> float | None:
        """Return the mean top1_last of the row that differs from this one in these keys only."""
        # Under hard labels there is one number of epochs, which is another, and no teacher.
        names = [name for name in _GROUP if name not in ("epochs", "teacher") or "protocol" not in changed]
        key = {name: row[name] for name in names} | changed
        means = [other["top1_last_mean"] for other in rows if all(other[name] == key[name] for name in names)]
        return means[0] if means else None  # of one row; None where all of its trials failed

    hard = {"protocol": next(protocol.name for protocol in PROTOCOLS.values() if protocol.labels == "hard")}
    whole, own = mean(**hard, method=full.METHOD.name, ipc=0), mean(**hard)
    random = mean(method=random_images.METHOD.name)
    is_set = row["method"] not in (random_images.METHOD.name, full.METHOD.name)
    if not is_set or not row["n"] or whole is None or own is None or random is None:
        return {"hlr": None, "ior": None, "label_robust": None}
    hlr, ior = hard_label_recovery(whole, own), improvement_over_random(row["top1_last_mean"], random)
    return {"hlr": hlr, "ior": ior, "label_robust": label_robust_score(hlr, ior)}


def _ars(row: Row, rows: Sequence[Row], plain: Mapping[tuple[Any, ...], Sequence[Row]]) -> Row:
    """Compute the augmentation-robust score of a set."""
    key = tuple(row[name] for name in _GROUP)
    other = tuple(random_images.METHOD.name if name == "method" else row[name] for name in _GROUP)
    random = next((one for one in rows if tuple(one[name] for name in _GROUP) == other), None)
    augmented = [one["top1_last_mean"] for one in (row, random) if one is not None and one["n"]]
    failed = Counter(trial["outcome"] for trial in plain.get(key, []) if trial["outcome"])
    result: Row = {"ars": None, "plain": len(plain.get(key, [])), "plain_failed": dict(failed)}
    trained = [plain.get(one, []) for one in (key, other)]
    counted = [trials if len(_counted(trials)) == len(trials) else [] for trials in trained]
    is_set = row["method"] not in (random_images.METHOD.name, full.METHOD.name)
    if not is_set or len(augmented) < len(counted) or not all(counted):
        return result
    means = [statistics.fmean(trial["top1_last"] for trial in trials) for trials in counted]
    score = augmentation_robust_score(improvement_over_random(*augmented), improvement_over_random(*means))
    return result | {"ars": score}


def _method_order(method: str, first: Sequence[str]) -> tuple[int, str]:
    order = [*first, *METHODS]
    return (order.index(method) if method in order else len(order)), method


def _line(row: Row) -> dict[str, str]:
    """Return the cells of a summary row by column."""
    text = format_metrics(row)
    keys = [row["protocol"], row["network"], row["teacher"], str(row["ipc"] or "all"), row["method"]]
    keys += [*(format_number(row[name]) for name in ("epochs", "steps", "batch_size")), format_trials(row)]
    robust, ars = ("" if row[name] is None else f"{row[name]:.3f}" for name in ("label_robust", "ars"))
    ahead = text["difference"] + (" *" if row["significant"] else "")
    return dict(zip(_COLUMNS, [*keys, *(text[metric] for metric in METRICS), robust, ars, ahead], strict=True))


def has_top5(summary: Sequence[Row]) -> bool:
    """Return whether top-5 accuracy says something: of up to five classes it is always 1."""
    return any(row["classes"] > _TOP for row in summary)


def format_trials(row: Row) -> str:
    """Format the number of trials of a summary row: "3", or "2 of 3" where one failed."""
    failed = sum(row["failed"].values())
    return f"{row['n']} of {row['n'] + failed}" if failed else str(row["n"])


def format_number(value: int | tuple[int, int]) -> str:
    """Format a number of a budget, or its range over the sets of a row."""
    return f"{value[0]:,} to {value[1]:,}" if isinstance(value, tuple) else f"{value:,}"


def failures(summary: Sequence[Row]) -> list[str]:
    """List the trials that are not counted: "minimax, ResNet-18, vlcp at 10 per class: 1 of 3 did not learn"."""
    return [
        f"{row['protocol']}, {row['network']}, {row['method']} {where(row)}: {count} of {trials}"
        f"{outcome.replace('_', ' ')}"
        for row in summary
        for trials, failed in (
            (f"{row['n'] + sum(row['failed'].values())} ", row["failed"]),
            (f"{row['plain']} without augmentation ", row["plain_failed"]),
        )
        for outcome, count in failed.items()
    ]


def where(row: Row) -> str:
    """Say of which images a row is, and after how many epochs where there are several numbers."""
    images = f"at {row['ipc']:,} per class" if row["ipc"] else "on the full train split"
    images += f", {row['epochs']:,} epochs" if row["has_variants"] else ""
    return f"{images}, labels of {row['teacher']}" if row["has_teachers"] and row["teacher"] else images


def _format_percent(mean: float | None, std: float | None) -> str:
    return "" if mean is None else _format(100 * mean, std and 100 * std)


def _format(value: float, std: float | None) -> str:
    return f"{value:.1f}" if std is None else f"{value:.1f} ± {std:.1f}"


def _percent(row: Row) -> str:
    return f"{100 * row['top1_last_mean']:.1f}\N{NO-BREAK SPACE}%"


def _reach(count: int, words: str) -> str:
    return f"{count:,} {words.format(s='' if count == 1 else 's')} {'reaches' if count == 1 else 'reach'}"


def _significance(random: Row | None) -> str:
    """Say whether the difference to the random images is shown."""
    if random is None:
        return ""
    if random["is_other_budget"]:
        return "The random images were trained on with another budget: a difference to them is not shown."
    if random["significant"] is None:
        return "The trials are too few, or too equal, for an interval: a difference to random is not shown."
    text = f"The difference to random, {format_metrics(random)['difference']} points"
    p = f"p = {random['p_holm']:.2g} after Holm's correction"
    if random["significant"]:
        return f"{text}, is significant ({p})."
    reason = "some trainings are not counted" if random["p_holm"] < 1 - LEVEL else p
    return f"{text}, is not shown ({reason})."
