"""Tests of the differences between methods: pairs, intervals and Holm's correction against known values."""

import itertools
from collections.abc import Sequence
from typing import Any

import numpy as np
import pytest

from vlcp_ray.stages.report.differences import Difference, compare, format_difference, holm


def trials(by_seed: dict[int, Sequence[float]]) -> list[dict[str, Any]]:
    return [
        {"seed": seed, "repeat": repeat, "top1_last": value}
        for seed, values in by_seed.items()
        for repeat, value in enumerate(values)
    ]


def found(ours: dict[int, Sequence[float]], other: dict[int, Sequence[float]]) -> Difference:
    difference = compare(trials(ours), trials(other))
    assert difference is not None
    return difference


def test_compare_equals_hand_computation() -> None:
    """Differences of 1, 2 and 3 points: mean 2, standard error 1 / sqrt(3), and t of 0.975 is 4.3027 at 2 degrees."""
    pair = found({0: [0.61], 1: [0.72], 2: [0.83]}, {0: [0.60], 1: [0.70], 2: [0.80]})
    assert (pair.points, pair.pairs) == (pytest.approx(2), 3)
    assert (pair.low, pair.high) == pytest.approx((2 - 4.30265 / 3**0.5, 2 + 4.30265 / 3**0.5), abs=1e-4)
    assert pair.p == pytest.approx(0.07418, abs=1e-5)  # of t = 2 sqrt(3) at 2 degrees


def test_compare_in_pairs_has_a_smaller_interval_where_seeds_differ() -> None:
    ours, other = {0: [0.5, 0.52], 1: [0.7, 0.71], 2: [0.9, 0.92]}, {0: [0.48, 0.49], 1: [0.67, 0.69], 2: [0.88, 0.9]}
    paired = found(ours, other)
    apart = found(ours, {(seed + 1) % 3: values for seed, values in other.items()})  # other pairs of the same sets
    assert paired.p is not None
    assert apart.p is not None
    assert (paired.pairs, apart.pairs) == (3, 3)
    assert paired.points == pytest.approx(apart.points)
    assert paired.p < 0.05 < apart.p


def test_compare_takes_means_over_repeats_first() -> None:
    """Repeats on one set are not independent: repeating every trial changes nothing."""
    ours, other = {0: [0.61, 0.65], 1: [0.72, 0.7]}, {0: [0.60, 0.58], 1: [0.70, 0.66]}
    once = found(ours, other)
    again = found({s: [*v, *v] for s, v in ours.items()}, {s: [*v, *v] for s, v in other.items()})
    assert (once.pairs, again.pairs) == (2, 2)
    assert (again.points, again.p) == pytest.approx((once.points, once.p))
    uneven = found({0: [0.6, 0.8], 1: [0.7]}, {0: [0.6], 1: [0.6]})
    assert uneven.points == pytest.approx(100 * np.mean([0.7 - 0.6, 0.7 - 0.6]))


def test_compare_of_one_seed_is_welch_over_repeats() -> None:
    """27 points, standard error sqrt(8/2 + 50/2); degrees (4 + 25)^2 / (4^2 + 25^2) = 1.312."""
    one = found({0: [0.8, 0.84]}, {0: [0.5, 0.6]})
    assert (one.points, one.pairs) == (pytest.approx(27), 0)
    assert one.low is not None
    assert one.high is not None
    assert (one.low + one.high) / 2 == pytest.approx(27)
    assert one.p is not None
    assert 0.07 < one.p < 0.1
    assert found({0: [0.8, 0.84]}, {7: [0.5, 0.6]}) == one  # of two seeds, each with a set


@pytest.mark.parametrize(
    ("ours", "other"),
    [
        ({0: [0.8]}, {0: [0.5]}),
        ({0: [0.8, 0.9]}, {0: [0.5]}),
        ({0: [0.8], 1: [0.8]}, {0: [0.5]}),
        ({0: [0.8], 1: [0.8]}, {1: [0.5], 2: [0.5]}),
        ({0: [0.8], 1: [0.9]}, {0: [0.5], 1: [0.6]}),  # all pairs are equal
        ({0: [0.8, 0.8]}, {0: [0.5, 0.5]}),
    ],
)
def test_compare_of_too_few_or_equal_trials_has_no_interval(
    ours: dict[int, Sequence[float]], other: dict[int, Sequence[float]]
) -> None:
    difference = found(ours, other)
    assert difference.points == pytest.approx(30, abs=6)
    assert (difference.low, difference.high, difference.p) == (None, None, None)


def test_compare_of_float32_rounding_has_no_interval() -> None:
    ours, other = (np.float32(0.1) + np.float32(0.1) * np.arange(3, dtype=np.float32) + shift for shift in (0, 0.3))
    assert found(*({s: [float(v)] for s, v in enumerate(values)} for values in (other, ours))).p is None


def test_compare_without_trials_is_none() -> None:
    assert compare([], trials({0: [0.5]})) is None
    assert compare(trials({0: [0.5]}), []) is None


def test_compare_does_not_depend_on_the_order_of_rows() -> None:
    ours, other = trials({0: [0.61, 0.62], 1: [0.7, 0.73]}), trials({0: [0.6, 0.59], 1: [0.66, 0.7]})
    results = {
        compare(list(rows), list(others))
        for rows, others in itertools.product(itertools.permutations(ours), itertools.permutations(other))
    }
    assert len(results) == 1
    one = [row | {"seed": 0} for row in (ours[0], ours[2], ours[3])]
    assert len({compare(list(rows), other[:2]) for rows in itertools.permutations(one)}) == 1


def test_holm_equals_known_values() -> None:
    """By hand: 5 x 0.01, 4 x 0.02, 3 x 0.03; 2 x 0.04 and 1 x 0.05 are smaller than the one before."""
    assert holm([0.01, 0.02, 0.03, 0.04, 0.05]) == pytest.approx([0.05, 0.08, 0.09, 0.09, 0.09])
    assert holm([0.04, 0.001, 0.03]) == pytest.approx([0.06, 0.003, 0.06])
    assert holm([0.6, 0.5]) == [1.0, 1.0]
    assert holm([0.03]) == [0.03]
    assert holm([]) == []


def test_holm_is_between_the_plain_values_and_bonferroni() -> None:
    values = np.random.default_rng(0).uniform(0, 0.2, 20)
    corrected = np.array(holm(values.tolist()))
    assert (corrected >= values).all()
    assert (corrected <= np.minimum(1, values * 20)).all()
    order = np.random.default_rng(1).permutation(20)
    np.testing.assert_array_equal(holm(values[order].tolist()), corrected[order])


def test_format_difference_has_brackets_where_there_is_an_interval() -> None:
    assert format_difference(2.1, 0.4, 3.84) == "+2.1 [+0.4, +3.8]"
    assert format_difference(-2.06, None, None) == "-2.1"
