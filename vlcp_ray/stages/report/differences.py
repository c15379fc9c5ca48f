"""Differences between two methods: paired over the seeds of their sets, with a t interval and a corrected p-value."""

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any, Final

import numpy as np
import numpy.typing as npt

#: Of the intervals; a difference is shown where its corrected p-value is below 1 - LEVEL.
LEVEL: Final = 0.95
#: Spreads below this are rounding (accuracies are float32): numbers that are all equal have no t interval.
_SMALLEST_STD: Final = 1e-6

Trial = Mapping[str, Any]
Floats = npt.NDArray[np.float64]


@dataclass(frozen=True)
class Difference:
    """The mean accuracy of one method minus that of another.

    Args:
        points: the difference in percentage points.
        low, high: its 95 % t interval in points; None where the trials are too few, or all equal.
        p: of the two-sided t test that the difference is 0; None where there is no interval.
        pairs: sets of the same seed that were compared; 0 where the trials are not paired.
    """

    points: float
    low: float | None = None
    high: float | None = None
    p: float | None = None
    pairs: int = 0


def compare(ours: Sequence[Trial], other: Sequence[Trial]) -> Difference | None:
    """Compare the trials of two methods under one protocol, network and ipc.

    Two or more seeds that both methods have: the means over the repeats of each seed are compared in pairs
    (scipy.stats.ttest_rel). One seed of each: their repeats are compared without pairs and without equal variances
    (Welch, scipy.stats.ttest_ind), so that the interval is of these two sets, not of the methods. Otherwise there is no
    interval: the means of a method's seeds are compared.

    Args:
        ours, other: rows of SCORES with seed, repeat and top1_last that count, in any order.

    Returns None where one of the two has no trial.
    """
    if not ours or not other:
        return None
    means, other_means = _means_by_seed(ours), _means_by_seed(other)
    seeds = sorted(means.keys() & other_means.keys())
    if len(seeds) > 1:
        return _paired(np.array([means[seed] for seed in seeds]), np.array([other_means[seed] for seed in seeds]))
    if len(means) == len(other_means) == 1:
        return _welch(_values(ours), _values(other))
    return Difference(100 * float(np.mean(list(means.values())) - np.mean(list(other_means.values()))))


def mean_interval(trials: Sequence[Trial]) -> tuple[float, float | None, float | None]:
    """Return the mean accuracy of some trials and its 95 % t interval, as fractions of 1.

    Over the means of the seeds, and with a single seed over its repeats, so that the interval is of this set, not of
    the method. No interval of a single number, or of equal ones.

    Args:
        trials: rows of SCORES with seed and top1_last that count, at least one.
    """
    means = _means_by_seed(trials)
    values = np.array([means[seed] for seed in sorted(means)]) if len(means) > 1 else _values(trials)
    mean = float(np.mean(values))
    if len(values) < 2 or np.std(values, ddof=1) < _SMALLEST_STD:
        return mean, None, None
    from scipy import stats

    low, high = stats.t.interval(LEVEL, len(values) - 1, mean, stats.sem(values))
    return mean, float(low), float(high)


def holm(p_values: Sequence[float]) -> list[float]:
    """Correct p-values for their number by Holm's method, which holds the chance of any false one below the level.

    The smallest of m is multiplied by m, the next by m - 1, ...; none becomes smaller than one before it, or larger
    than 1. Holm, A Simple Sequentially Rejective Multiple Test Procedure, Scandinavian Journal of Statistics 6 (1979).

    Args:
        p_values: of the comparisons of one table, in any order.

    Returns the corrected p-values in the same order.
    """
    values = np.asarray(p_values, np.float64)
    order = np.argsort(values, kind="stable")
    factors = np.arange(len(values), 0, -1)
    corrected = np.empty_like(values)
    corrected[order] = np.minimum(1.0, np.maximum.accumulate(values[order] * factors))
    result: list[float] = corrected.tolist()
    return result


def format_difference(points: float, low: float | None, high: float | None) -> str:
    """Format a difference with its interval: `+2.1 [+0.4, +3.8]`, without brackets where there is no interval."""
    interval = "" if low is None or high is None else f" [{low:+.1f}, {high:+.1f}]"
    return f"{points:+.1f}{interval}"


def _means_by_seed(trials: Sequence[Trial]) -> dict[int, float]:
    by_seed: dict[int, list[float]] = {}
    for trial in trials:
        by_seed.setdefault(trial["seed"], []).append(trial["top1_last"])
    # An exact sum: the order of the rows does not change the last bit.
    return {seed: math.fsum(values) / len(values) for seed, values in by_seed.items()}


def _values(trials: Sequence[Trial]) -> Floats:
    return np.array(sorted(trial["top1_last"] for trial in trials), np.float64)


def _paired(ours: Floats, other: Floats) -> Difference:
    points, pairs = 100 * float(np.mean(ours - other)), len(ours)
    if np.std(ours - other, ddof=1) < _SMALLEST_STD:
        return Difference(points, pairs=pairs)
    from scipy import stats  # a second to import, which would delay `plan`

    return _with_interval(points, stats.ttest_rel(ours, other), pairs)


def _welch(ours: Floats, other: Floats) -> Difference:
    points = 100 * float(np.mean(ours) - np.mean(other))
    if min(len(ours), len(other)) < 2 or math.hypot(np.std(ours, ddof=1), np.std(other, ddof=1)) < _SMALLEST_STD:
        return Difference(points)
    from scipy import stats

    return _with_interval(points, stats.ttest_ind(ours, other, equal_var=False), pairs=0)


def _with_interval(points: float, test: Any, pairs: int) -> Difference:
    """Read interval and p-value of a result of scipy's t tests."""
    interval = test.confidence_interval(LEVEL)
    return Difference(points, 100 * float(interval.low), 100 * float(interval.high), float(test.pvalue), pairs)
