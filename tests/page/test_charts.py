"""Checks the charts' geometry: proportions, round ticks, thinned curves."""

import math
import re

import pytest

from vlcp_ray import charts


def line_points(svg: str) -> list[int]:
    return [len(points.split()) for points in re.findall(r'points="([^"]*)"', svg)]


def test_long_loss_curves_are_thinned_and_bad_values_left_out() -> None:
    svg = charts.loss_chart({"seed 0": [(i, 1 / (i + 1)) for i in range(100_000)] + [(100_000, math.nan)]}, "loss")
    assert "nan" not in svg
    assert list(line_points(svg)) == [300, 30]
    assert "no finite loss" in charts.loss_chart({"seed 0": [(0, math.inf)]}, "loss")
    assert "<circle" in charts.loss_chart({"seed 0": [(5, 0.5)]}, "loss")


def test_thinning_keeps_means() -> None:
    assert charts.thin([(3, 1.0), (1, 0.0), (0, 2.0), (2, 3.0)], 2) == [(0.5, 1.0), (2.5, 2.0)]
    assert charts.thin([], 3) == []


@pytest.mark.parametrize(
    ("low", "high", "expected"),
    [(0, 100, [0, 25, 50, 75, 100]), (0.12, 0.31, [0.15, 0.2, 0.25, 0.3]), (3, 3, [3]), (0, 8, [0, 2, 4, 6, 8])],
)
def test_ticks_are_round(low: float, high: float, expected: list[float]) -> None:
    assert charts.ticks(low, high) == expected


def test_score_bars_start_at_zero_and_end_in_proportion() -> None:
    bars = [charts.Bar("10", "vlcp", 0.8, 0.1, (0.7, 0.9), ours=True), charts.Bar("10", "random", 0.4, None, (0.4,))]
    svg = charts.score_chart(bars, ("full", 1.0), "scores")
    widths = [float(width) for width in re.findall(r'<rect[^>]* width="([\d.]+)"', svg)]
    assert widths[0] == pytest.approx(2 * widths[1], abs=0.1)
    assert svg.count("<circle") == 2
    assert svg.count("whisker") == 1
    assert "80.0 ± 10.0" in svg
