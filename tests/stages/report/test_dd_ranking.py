"""Tests of the scores of DD-Ranking against hand computation."""

import math

import pytest

from vlcp_ray.stages.report.dd_ranking import (
    augmentation_robust_score,
    hard_label_recovery,
    improvement_over_random,
    label_robust_score,
)


def test_dd_ranking_equals_hand_computation() -> None:
    hlr, ior = hard_label_recovery(0.9, 0.4), improvement_over_random(0.7, 0.5)
    assert hlr == pytest.approx(0.5)
    assert ior == pytest.approx(0.2)
    # alpha = 0.5 * 0.2 - 0.5 * 0.5 = -0.15; e^-0.15 = 0.8607, 1 / e = 0.3679, e - 1 / e = 2.3504
    assert label_robust_score(hlr, ior) == pytest.approx((0.860708 - 0.367879) / 2.350402, abs=1e-5)
    assert label_robust_score(hlr, ior, weight=1) == pytest.approx((1.221403 - 0.367879) / 2.350402, abs=1e-5)
    assert label_robust_score(-1, 1) == 1
    assert label_robust_score(1, -1) == 0


def test_dd_ranking_of_percentages_raises() -> None:
    with pytest.raises(ValueError, match=r"90\.0 is not a fraction of 1; divide percentages by 100"):
        hard_label_recovery(90.0, 40.0)
    with pytest.raises(ValueError, match="is not a fraction"):
        improvement_over_random(0.5, 50)
    with pytest.raises(ValueError, match="differences of fractions"):
        label_robust_score(50, 0.1)


def test_dd_ranking_takes_fractions_up_to_their_limits() -> None:
    assert (hard_label_recovery(1, 0), hard_label_recovery(0, 1)) == (1, -1)
    assert (improvement_over_random(1, 0), improvement_over_random(0, 1)) == (1, -1)
    # Without weight for IOR only HLR counts.
    assert label_robust_score(0.0, 1.0, weight=0) == pytest.approx((1 - math.exp(-1)) / (math.e - math.exp(-1)))
    for hlr, ior, weight in (
        (1.01, 0, 0.5),
        (-1.01, 0, 0.5),
        (0, 1.01, 0.5),
        (0, -1.01, 0.5),
        (0, 0, 1.1),
        (0, 0, -0.1),
    ):
        with pytest.raises(ValueError, match="fraction"):
            label_robust_score(hlr, ior, weight)


def test_augmentation_robust_score_equals_hand_computation() -> None:
    # beta = 0.5 * 0.2 + 0.5 * 0.1 = 0.15; e^0.15 = 1.1618
    assert augmentation_robust_score(0.2, 0.1) == pytest.approx((1.161834 - 0.367879) / 2.350402, abs=1e-5)
    assert augmentation_robust_score(0.2, 0.1, weight=1) == augmentation_robust_score(0.2, 0.2)
    assert augmentation_robust_score(0.0, 0.0) == pytest.approx(0.2689, abs=1e-4)
    assert (augmentation_robust_score(1, 1), augmentation_robust_score(-1, -1)) == (1, 0)


def test_augmentation_robust_score_is_lower_where_the_gain_is_of_the_augmentation() -> None:
    assert augmentation_robust_score(0.2, 0.2) > augmentation_robust_score(0.2, 0.0) > augmentation_robust_score(0, 0)


def test_augmentation_robust_score_of_percentages_raises() -> None:
    for augmented, plain, weight in (
        (1.1, 0.1, 0.5),
        (-1.1, 0.1, 0.5),
        (0.2, 1.1, 0.5),
        (0.2, -1.1, 0.5),
        (0.2, 0.1, 2),
    ):
        with pytest.raises(ValueError, match="fraction"):
            augmentation_robust_score(augmented, plain, weight)
