"""Tests of the charts: proportions, points and legends, colours of the page, reproducible bytes."""

import math
import re

import numpy as np
import pytest

from vlcp_ray.stages.report import charts

BARS = [charts.Bar("10", "vlcp", 0.8, 0.1, (0.7, 0.9), ours=True), charts.Bar("10", "random", 0.4, None, (0.4,))]


def group(svg: str, class_: str) -> list[str]:
    return re.findall(rf'<g class="{class_}"[^>]*>(.*?)</g>', svg, re.DOTALL)


def widths(svg: str) -> list[float]:
    xs_of_bars = [[float(x) for x in re.findall(r"[ML] ([\d.]+) ", path)] for path in group(svg, "bar")]
    return [max(xs) - min(xs) for xs in xs_of_bars]


def test_score_chart_bars_are_proportional() -> None:
    svg = charts.score_chart(BARS, ("full", 1.0), "scores")
    ours, other = widths(svg)
    assert ours == pytest.approx(2 * other, abs=0.1)
    assert len(group(svg, "trials")) == 1  # one trial is the bar itself
    assert len(group(svg, "reference")) == 1
    assert "80.0 ± 10.0" in svg
    assert ">40.0<" in svg


def test_score_chart_is_an_element_in_the_colours_of_the_page() -> None:
    svg = charts.score_chart(BARS, None, "a <title>")
    assert svg.startswith("<svg viewBox=")
    assert 'aria-label="a &lt;title&gt;"' in svg
    assert not re.search(r"https?:|<style|metadata|font-family|#0a00", svg)
    assert set(re.findall(r"(?:fill|stroke): ([^;\"]+)", svg)) <= {"none"} | set(re.findall(r"var\(--\w+\)", svg))
    targets = set(re.findall(r"#(\w+)", svg))
    assert targets == set(re.findall(r'id="(\w+)"', svg))  # unused ids are removed


def test_score_chart_of_the_same_bars_has_the_same_bytes() -> None:
    assert charts.score_chart(BARS, ("full", 1.0), "x") == charts.score_chart(BARS, ("full", 1.0), "x")


def test_line_chart_leaves_out_points_that_are_not_finite() -> None:
    curves = {"seed 0": [(1.0, 0.5), (2.0, math.nan), (3.0, 0.25)], "seed 1": [(1.0, 0.6)]}
    svg = charts.line_chart(curves, "step", "loss")
    assert len(group(svg, "curve")) >= 2
    assert "nan" not in svg
    assert ">seed 0<" in svg
    assert ">seed 1<" in svg
    assert ">seed 0<" not in charts.line_chart({"seed 0": [(0.0, 1.0)]}, "step", "one curve has no legend")


def test_line_chart_ticks_are_the_only_numbers_of_x() -> None:
    curves = {"vlcp": [(1.0, 80.0), (10.0, 90.0), (50.0, 95.0)]}
    svg = charts.line_chart(curves, "images per class", "x", stds={"vlcp": [1.0, None, 2.0]}, ticks=[1, 10, 50])
    texts = re.findall(r"<text[^>]*>([^<]+)</text>", svg)
    assert [text for text in texts if text in ("1", "10", "20", "50")] == ["1", "10", "50"]


def test_scatter_chart_plots_outliers_as_crosses() -> None:
    points = np.random.default_rng(0).normal(size=(20, 2))
    clusters = np.array([-1] * 3 + [0] * 9 + [1] * 8)
    before = charts.Scatter("all images", points, clusters, points[:2])
    after = charts.Scatter("outliers removed", points[3:], clusters[3:], points[:2])
    svg = charts.scatter_chart([before, after], "t-SNE")
    (crosses,) = re.findall(r'class="outliers">(.*?)<g class="centres"', svg, re.DOTALL)
    assert crosses.count("<use") == 3
    assert "all images" in svg
    assert "all images" not in charts.scatter_chart([before], "t-SNE")
