"""Tests of the charts: proportions, points and legends, colours of the page, reproducible bytes."""

import math
import re
from collections.abc import Callable

import numpy as np
import pytest
from matplotlib.axes import Axes
from matplotlib.collections import LineCollection
from matplotlib.figure import Figure

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


@pytest.fixture
def drawn(monkeypatch: pytest.MonkeyPatch) -> list[Figure]:
    """The figures of the charts, before they become SVGs."""
    figures: list[Figure] = []

    def keep(plot: Callable[[Figure], None], height: float, title: str, width: float = 5.6) -> str:
        figures.append(Figure((width, height), layout="constrained"))
        plot(figures[-1])
        return title

    monkeypatch.setattr(charts, "_svg", keep)
    return figures


def texts(axes: Axes) -> dict[str, tuple[float, float]]:
    return {text.get_text(): text.get_position() for text in axes.texts}


def test_score_chart_has_a_row_for_each_bar_and_each_group(drawn: list[Figure]) -> None:
    bars = [*BARS, charts.Bar("50", "d4m", 0.6, 0.2, (0.4, 0.6, 0.8))]
    assert charts.score_chart(bars, ("full 96.0", 0.96), "title") == "title"
    (axes,) = drawn[0].axes
    assert [tick.get_text() for tick in axes.get_yticklabels()] == ["", "vlcp", "random", "", "d4m"]
    assert axes.get_yticks().tolist() == [0, 1, 2, 3, 4]
    assert (axes.get_xlim(), axes.get_ylim()) == ((0, 100), (4.6, -0.6))
    assert [(bar.get_x(), bar.get_width(), bar.get_y() + bar.get_height() / 2) for bar in axes.patches] == [
        (0, pytest.approx(80), pytest.approx(1)),
        (0, pytest.approx(40), pytest.approx(2)),
        (0, pytest.approx(60), pytest.approx(4)),
    ]
    assert max(bar.get_height() for bar in axes.patches) < 1  # bars do not touch
    found = texts(axes)
    assert list(found) == ["10", "80.0 ± 10.0", "40.0", "50", "60.0 ± 20.0"]
    assert [found[label] for label in ("80.0 ± 10.0", "40.0", "60.0 ± 20.0")] == [(1.03, 1), (1.03, 2), (1.03, 4)]
    assert [found[group][0] for group in ("10", "50")] == [0, 0]
    trials = [line.get_xydata() for line in axes.lines if line.get_gid() == "trials"]
    np.testing.assert_allclose(trials[0], [(70, 1), (90, 1)])
    np.testing.assert_allclose(trials[1], [(40, 4), (60, 4), (80, 4)])
    whiskers = [c.get_segments()[0].tolist() for c in axes.collections if isinstance(c, LineCollection)]
    np.testing.assert_allclose(whiskers, [[(70, 1), (90, 1)], [(40, 4), (80, 4)]])
    (line,) = (line for line in axes.lines if line.get_gid() == "reference")
    assert line.get_xdata() == [96, 96]
    assert axes.get_title(loc="right") == "full 96.0"


def test_score_chart_is_higher_by_a_line_of_text_for_each_row(drawn: list[Figure]) -> None:
    for bars in ([], BARS[:1], BARS, [*BARS, *BARS]):
        charts.score_chart(bars, None, "x")
    # A group of one bar has two rows; the axis below them takes 0.75 inches.
    assert [figure.get_figheight() for figure in drawn] == pytest.approx([0.75 + 0.27 * n for n in (0, 2, 3, 5)])
    assert all(figure.get_figwidth() == 5.6 for figure in drawn)
    assert drawn[1].axes[0].get_title(loc="right") == ""


@pytest.mark.parametrize(
    ("value", "std", "reference", "end"),
    [(0.8, 0.05, None, 90), (0.8, None, None, 80), (0.8, 0.1, 0.75, 90), (0.2, None, 0.75, 80), (0.95, 0.2, None, 100)],
)
def test_score_chart_ends_at_the_next_tenth(
    drawn: list[Figure], value: float, std: float | None, reference: float | None, end: float
) -> None:
    line = None if reference is None else ("full", reference)
    charts.score_chart([charts.Bar("1", "x", value, std, ())], line, "x")
    assert drawn[0].axes[0].get_xlim() == pytest.approx((0, end))


@pytest.mark.parametrize(
    ("values", "end"), [([], 1.0), ([0.0], 0.1), ([0.05], 0.1), ([0.3, 0.1], 0.3), ([0.301], 0.4), ([1.2], 1.0)]
)
def test_ceiling_is_a_tenth_up_to_one(values: list[float], end: float) -> None:
    assert charts._ceiling(values) == pytest.approx(end)


def test_line_chart_draws_finite_points_with_their_whiskers(drawn: list[Figure]) -> None:
    curves = {"a": [(1.0, 10.0), (2.0, math.nan), (4.0, 30.0)], "b": [(1.0, 20.0)]}
    charts.line_chart(curves, "x", "title", stds={"a": [1.0, 2.0, None]}, ticks=[1, 4], dashed=["b"])
    (axes,) = drawn[0].axes
    a, b = (line for line in axes.lines if line.get_gid() == "curve")
    assert [a.get_xydata().tolist(), b.get_xydata().tolist()] == [[[1, 10], [4, 30]], [[1, 20]]]
    assert [(line.get_linestyle(), line.get_marker(), line.get_label()) for line in (a, b)] == [
        ("-", "o", "a"),
        ("--", "s", "b"),
    ]
    (whiskers,) = (c for c in axes.collections if isinstance(c, LineCollection))
    assert [segment.tolist() for segment in whiskers.get_segments()] == [[[1, 9], [1, 11]], [[4, 30], [4, 30]]]
    assert axes.get_xscale() == "log"
    assert axes.get_xticks().tolist() == [1, 4]
    assert axes.get_xlabel() == "x"


def test_line_chart_without_stds_or_ticks_is_linear_without_whiskers(drawn: list[Figure]) -> None:
    charts.line_chart({"a": [(1.0, 10.0), (2.0, 20.0)]}, "x", "title")
    charts.line_chart({"a": [(1.0, 10.0), (2.0, 20.0)]}, "x", "title", stds={"b": [1.0, 2.0]})
    for figure in drawn:
        assert figure.axes[0].get_xscale() == "linear"
        assert not figure.axes[0].collections
        assert not figure.legends


def test_line_chart_has_eight_colours_and_markers_and_none_on_long_curves(drawn: list[Figure]) -> None:
    charts.line_chart({f"c{i}": [(1.0, float(i)), (2.0, 0.0)] for i in range(9)}, "x", "title")
    lines = drawn[0].axes[0].lines
    assert len({line.get_color() for line in lines}) == len({line.get_marker() for line in lines}) == 8
    assert (lines[8].get_color(), lines[8].get_marker()) == (lines[0].get_color(), lines[0].get_marker())
    for count in (29, 30):
        charts.line_chart({"a": [(float(x), float(x % 7)) for x in range(count)]}, "x", "title")
    assert [figure.axes[0].lines[0].get_markersize() > 0 for figure in drawn[1:]] == [True, False]


@pytest.mark.parametrize(("height", "end"), [(5.0, 10.0), (0.0, 1.0)])
def test_line_chart_of_a_constant_has_it_in_the_middle(drawn: list[Figure], height: float, end: float) -> None:
    charts.line_chart({"a": [(1.0, height), (2.0, height)]}, "x", "title")
    assert drawn[0].axes[0].get_ylim() == (0, end)
    charts.line_chart({"a": [(1.0, 5.0), (2.0, 6.0)]}, "x", "title")
    assert drawn[1].axes[0].get_ylim()[0] > 4


@pytest.mark.parametrize(
    ("names", "columns", "lines"),
    [
        (["a", "b"], 2, 1),
        (["a" * 15, "b" * 15], 2, 1),  # 30 letters fit into a line
        (["aaaaa", "bbbbbb", "ccccc", "ddddd", "eeeee"], 5, 1),
        (["a" * 20, "b" * 11], 3, 1),
        (["a" * 10, "b" * 10, "c" * 10, "d"], 3, 2),
    ],
)
def test_line_chart_legend_has_three_columns_where_names_are_long(
    drawn: list[Figure], names: list[str], columns: int, lines: int
) -> None:
    charts.line_chart({name: [(1.0, 1.0), (2.0, 2.0)] for name in names}, "x", "title")
    (legend,) = drawn[0].legends
    assert [text.get_text() for text in legend.get_texts()] == names
    assert legend._ncols == columns
    assert drawn[0].get_figheight() == pytest.approx(3.1 + 0.2 * lines)
    charts.line_chart({names[0]: [(1.0, 1.0)]}, "x", "title")
    assert drawn[1].get_figheight() == pytest.approx(3.1)


def test_scatter_chart_has_inliers_outliers_and_centres_beside_each_other(drawn: list[Figure]) -> None:
    points = np.arange(8.0).reshape(4, 2)
    one = charts.Scatter("one", points, np.array([-1, 0, 9, 1]), points[:1] + 10)
    charts.scatter_chart([one], "title")
    charts.scatter_chart([one, charts.Scatter("two", points, np.array([0, 0, 1, 8]), points[:2])], "title")
    (axes,) = drawn[0].axes
    inside, outside, centres = axes.collections
    assert inside.get_offsets().tolist() == points[1:].tolist()
    assert outside.get_offsets().tolist() == points[:1].tolist()
    assert centres.get_offsets().tolist() == [[10, 11]]
    colours = inside.get_facecolors()[:, :3]
    assert colours[1].tolist() == colours[2].tolist() != colours[0].tolist()  # clusters 9 and 1 have one colour
    assert axes.get_title() == ""
    assert [axes.get_title() for axes in drawn[1].axes] == ["one", "two"]
    assert all(spine.get_visible() for axes in drawn[1].axes for spine in axes.spines.values())
    assert [tuple(figure.get_size_inches()) for figure in drawn] == [(2.6, 2.7), (5.2, 2.7)]
    left, right = drawn[1].axes
    assert left.get_position().x1 <= right.get_position().x0


def test_charts_numbers_have_two_decimals() -> None:
    svg = charts.score_chart(BARS, ("full", 1 / 3), "x")
    assert not re.search(r"\d\.\d{3}", re.sub(r'aria-label="[^"]*"', "", svg))
    assert svg.startswith('<svg viewBox="0 0 403.2 112.32" role="img" aria-label="x"><title>x</title>')
