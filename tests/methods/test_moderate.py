"""Tests of the moderate coreset: the distances nearest to the median."""

import numpy as np
import pytest

from vlcp_ray.methods.moderate import moderate


def test_moderate_selects_the_median_distance_first_and_nests() -> None:
    features = np.array([[-9.0], [-1], [0], [1], [4], [5]], np.float32)  # mean 0; distances 9 1 0 1 4 5, median 2.5
    assert moderate(features, 6) == [1, 3, 4, 2, 5, 0]
    assert moderate(features, 2) == [1, 3]


def test_moderate_of_random_features_has_neither_the_nearest_nor_the_farthest_rows() -> None:
    features = np.random.default_rng(0).normal(size=(101, 7)).astype(np.float32)
    distances = np.linalg.norm(features - features.mean(0), axis=1).argsort().argsort()
    chosen = distances[moderate(features, 11)]
    assert sorted(chosen)[5] == pytest.approx(50, abs=3)
    assert chosen.min() > 30
    assert chosen.max() < 70


def test_moderate_of_too_few_rows_is_refused() -> None:
    with pytest.raises(ValueError, match="1 images are fewer than ipc = 2"):
        moderate(np.zeros((1, 3), np.float32), 2)
