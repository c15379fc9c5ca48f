"""Tests of herding and k-center against their definitions in exact arithmetic."""

from collections.abc import Callable
from fractions import Fraction

import numpy as np
import numpy.typing as npt
import pytest
from hypothesis import given
from hypothesis import strategies as st

from vlcp_ray.methods.herding import herding
from vlcp_ray.methods.k_center import k_center

Select = Callable[[npt.NDArray[np.float32], int], list[int]]
Exact = list[list[Fraction]]

both = pytest.mark.parametrize("select", [herding, k_center])


@st.composite
def classes(draw: st.DrawFn, whole: bool) -> tuple[npt.NDArray[np.float32], int]:
    """Features of a small class and an ipc: small whole numbers, full of ties, or normal ones, with none."""
    n, d = draw(st.integers(3, 12)), draw(st.integers(1, 4))
    rng = np.random.default_rng(draw(st.integers(0, 2**32)))
    features = rng.integers(-2, 3, (n, d)) if whole else rng.normal(size=(n, d))
    return features.astype(np.float32), draw(st.integers(1, n))


def exact(features: npt.NDArray[np.float32]) -> Exact:
    return [[Fraction(float(value)) for value in row] for row in features]


def mean(rows: Exact) -> list[Fraction]:
    return [sum(column, Fraction()) / len(rows) for column in zip(*rows, strict=True)]


def squared(a: list[Fraction], b: list[Fraction]) -> Fraction:
    return sum(((x - y) ** 2 for x, y in zip(a, b, strict=True)), Fraction())


def reference_herding(rows: Exact, ipc: int) -> list[int]:
    """Herding by its definition, computed in full at each step; `min` takes the first of equals."""
    centre, selected = mean(rows), list[int]()
    for _ in range(ipc):
        free = [row for row in range(len(rows)) if row not in selected]
        selected.append(min(free, key=lambda row: squared(mean([rows[i] for i in [*selected, row]]), centre)))
    return selected


def reference_k_center(rows: Exact, ipc: int) -> list[int]:
    """Greedy k-center by its definition; `max` takes the first of equals."""
    centre = mean(rows)
    selected = [min(range(len(rows)), key=lambda row: squared(rows[row], centre))]
    while len(selected) < ipc:
        free = [row for row in range(len(rows)) if row not in selected]
        selected.append(max(free, key=lambda row: min(squared(rows[row], rows[i]) for i in selected)))
    return selected


@given(classes(whole=False))
def test_herding_equals_its_definition(sampled: tuple[npt.NDArray[np.float32], int]) -> None:
    features, ipc = sampled
    assert herding(features, ipc) == reference_herding(exact(features), ipc)


@given(classes(whole=False))
def test_k_center_equals_its_definition(sampled: tuple[npt.NDArray[np.float32], int]) -> None:
    features, ipc = sampled
    assert k_center(features, ipc) == reference_k_center(exact(features), ipc)


@given(classes(whole=True))
def test_coresets_with_ties_take_the_first_row(sampled: tuple[npt.NDArray[np.float32], int]) -> None:
    features, ipc = sampled
    assert herding(features, ipc) == reference_herding(exact(features), ipc)
    assert k_center(features, ipc) == reference_k_center(exact(features), ipc)


@both
def test_coresets_of_equal_images_take_them_in_order(select: Select) -> None:
    assert select(np.full((5, 512), 0.1, dtype=np.float32), 5) == [0, 1, 2, 3, 4]


def test_herding_takes_the_image_that_brings_the_mean_nearest() -> None:
    """Check each step, at the size of a real class, where the definition itself is too slow."""
    features = np.random.default_rng(0).gamma(0.5, size=(1300, 512)).astype(np.float32)
    centre, selected = features.mean(0, dtype=np.float64), herding(features, 10)
    for step, row in enumerate(selected):
        means = (features[selected[:step]].sum(0, dtype=np.float64) + features) / (step + 1)
        gaps = np.linalg.norm(means - centre, axis=1)
        gaps[selected[:step]] = np.inf
        assert gaps[row] == pytest.approx(gaps.min(), rel=1e-12)


def test_herding_stays_nearer_the_mean_than_chance() -> None:
    rng = np.random.default_rng(1)
    features = rng.normal(size=(300, 32)).astype(np.float32)

    def gap(rows: npt.ArrayLike) -> float:
        return float(np.linalg.norm(features[rows].mean(0) - features.mean(0)))

    assert gap(herding(features, 10)) < min(gap(rng.choice(300, 10, replace=False)) for _ in range(100))


def test_k_center_finds_every_distant_group() -> None:
    rng = np.random.default_rng(2)
    groups = rng.permutation(np.repeat(np.arange(6), 50))
    features = (100 * np.eye(6)[groups] + rng.normal(size=(300, 6))).astype(np.float32)
    assert sorted(groups[k_center(features, 6)]) == [0, 1, 2, 3, 4, 5]


@both
@given(sampled=classes(whole=True))
def test_coresets_of_smaller_ipc_begin_the_larger(select: Select, sampled: tuple[npt.NDArray[np.float32], int]) -> None:
    features, ipc = sampled
    selected = select(features, len(features))
    assert select(features, ipc) == selected[:ipc]
    assert sorted(selected) == list(range(len(features)))


@both
def test_coresets_are_independent_of_the_order(select: Select) -> None:
    rng = np.random.default_rng(3)
    image_ids = np.array([f"i{number:03d}" for number in range(100)])
    features = rng.normal(size=(100, 16)).astype(np.float32)
    expected = image_ids[select(features, 10)].tolist()
    shuffle = rng.permutation(100)
    shuffled_ids, shuffled = image_ids[shuffle], features[shuffle]
    order = shuffled_ids.argsort()
    assert shuffled_ids[order][select(shuffled[order], 10)].tolist() == expected
    assert set(shuffled_ids[select(shuffled, 10)]) == set(expected)


@both
def test_coresets_leave_the_features_unchanged(select: Select) -> None:
    features = np.random.default_rng(4).normal(size=(20, 8)).astype(np.float32)
    before = features.copy()
    assert select(features, 5) == select(features, 5)
    np.testing.assert_array_equal(features, before)


@both
def test_coresets_of_too_small_a_class_name_the_fix(select: Select) -> None:
    with pytest.raises(ValueError, match="3 images are fewer than ipc = 4: lower ipc or add images"):
        select(np.zeros((3, 2), dtype=np.float32), 4)


@both
def test_coresets_of_features_that_are_not_finite_are_refused(select: Select) -> None:
    features = np.zeros((5, 2), dtype=np.float32)
    features[3, 1] = np.nan
    with pytest.raises(ValueError, match="features of row 3 are not finite"):
        select(features, 2)
