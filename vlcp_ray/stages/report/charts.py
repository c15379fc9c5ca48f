"""Charts for the page: matplotlib SVGs whose colours are CSS variables of the page, for its light and dark style."""

import io
import math
import re
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, Final
from xml.etree import ElementTree as ET

import numpy as np
import numpy.typing as npt

if TYPE_CHECKING:
    from matplotlib.axes import Axes
    from matplotlib.figure import Figure

#: Placeholder colours, unlike any other colour of a chart; `_inline` replaces them by CSS variables of the page.
_PALETTE: Final = 8
_NAMES: Final = ("ink", "quiet", "rule", "bar", "ours", "card", "bad", *(f"c{i}" for i in range(_PALETTE)))
_COLOUR: Final = {name: f"#0a00{number + 1:02x}" for number, name in enumerate(_NAMES)}
_STYLE: Final[dict[Any, Any]] = {
    "svg.fonttype": "none",  # text stays text, in the page's font
    "svg.hashsalt": "vlcp_ray",  # ids in the SVG depend on the chart alone
    "font.size": 11,
    "text.color": _COLOUR["ink"],
    "axes.edgecolor": _COLOUR["rule"],
    "axes.labelcolor": _COLOUR["quiet"],
    "axes.facecolor": "none",
    "axes.spines.right": False,
    "axes.spines.top": False,
    "axes.grid": True,
    "axes.axisbelow": True,
    "grid.color": _COLOUR["rule"],
    "xtick.color": _COLOUR["rule"],
    "ytick.color": _COLOUR["rule"],
    "xtick.labelcolor": _COLOUR["quiet"],
    "ytick.labelcolor": _COLOUR["quiet"],
    "figure.facecolor": "none",
    "axes.formatter.limits": (-3, 5),
    "axes.formatter.useoffset": False,
    "axes.prop_cycle": f"cycler(color=['{_COLOUR['c0']}'])",
    "legend.frameon": False,
    "legend.fontsize": 10,
}
#: Width in inches of 72 units; narrow, so that text stays readable where a phone scales the chart down.
_WIDTH: Final = 5.6
#: Columns of a legend whose names have more letters than fit into one line.
_LEGEND_COLUMNS, _LEGEND_LETTERS = 3, 30
_MARKERS: Final = "osD^vP*X"

Points = Sequence[tuple[float, float]]
Floats = npt.NDArray[np.floating[Any]]


@dataclass(frozen=True)
class Bar:
    """One row of a score chart.

    Args:
        group: the heading that it is under.
        label: its name.
        value: its length, a fraction of 1.
        std: standard deviation, a fraction of 1; None for one trial.
        trials: value of each trial, a fraction of 1.
        ours: whether it is highlighted.
    """

    group: str
    label: str
    value: float
    std: float | None
    trials: Sequence[float]
    ours: bool = False


@dataclass(frozen=True)
class Scatter:
    """One scatter plot: the images of a class.

    Args:
        points: (n, 2).
        clusters: (n,), the cluster of each point; -1 for an outlier.
        centres: (k, 2), the centres of the clusters.
    """

    title: str
    points: Floats
    clusters: npt.NDArray[np.integer[Any]]
    centres: Floats


def score_chart(bars: Sequence[Bar], reference: tuple[str, float] | None, title: str) -> str:
    """Plot horizontal bars with whiskers of one standard deviation and a dot for each trial, as an SVG element.

    Args:
        bars: bars of one group must be adjacent; the group's name is their heading.
        reference: name and place, a fraction of 1, of a dashed line.
        title: for screen readers.
    """
    rows = _rows(bars)
    top = _ceiling([bar.value + (bar.std or 0.0) for bar in bars] + ([reference[1]] if reference else []))

    def plot(figure: "Figure") -> None:
        axes = figure.add_subplot()
        axes.set(xlim=(0, 100 * top), ylim=(len(rows) - 0.4, -0.6), xlabel="top-1, %")
        axes.grid(visible=False, axis="y")
        axes.spines["left"].set_visible(False)
        axes.tick_params(axis="y", length=0)
        axes.set_yticks(range(len(rows)), [row.label if isinstance(row, Bar) else "" for row in rows])
        for y, row in enumerate(rows):
            if isinstance(row, Bar):
                _plot_bar(axes, row, y)
            else:
                axes.text(0, y + 0.1, row, fontweight="bold", va="center")
        if reference:
            axes.axvline(100 * reference[1], color=_COLOUR["quiet"], linestyle="--", linewidth=1, gid="reference")
            axes.set_title(reference[0], loc="right", color=_COLOUR["quiet"], fontsize=10)

    return _svg(plot, 0.27 * len(rows) + 0.75, title)


def line_chart(
    curves: Mapping[str, Points],
    x_label: str,
    title: str,
    *,
    stds: Mapping[str, Sequence[float | None]] | None = None,
    ticks: Sequence[float] | None = None,
    dashed: Sequence[str] = (),
) -> str:
    """Plot a line with markers for each curve, as an SVG element; up to eight curves differ in colour and marker.

    Args:
        curves: (x, y) points by name; points that are not finite are left out.
        x_label: what x is.
        title: for screen readers.
        stds: by name, the whisker of each point.
        ticks: the only ticks of x, which is then logarithmic.
        dashed: names of the curves with a dashed line.
    """

    def plot(figure: "Figure") -> None:
        axes = figure.add_subplot()
        for i, (name, points) in enumerate(curves.items()):
            finite = [row for row, point in enumerate(points) if math.isfinite(point[1])]
            x, y = ([points[row][axis] for row in finite] for axis in (0, 1))
            style: dict[str, Any] = {
                "color": _COLOUR[f"c{i % _PALETTE}"],
                "linewidth": 1.8,
                "gid": "curve",
                "label": name,
            }
            style |= {"marker": _MARKERS[i % _PALETTE], "markersize": 4.5 if len(finite) < 30 else 0}
            axes.plot(x, y, linestyle="--" if name in dashed else "-", **style)
            if stds and name in stds:
                whiskers = [stds[name][row] or 0.0 for row in finite]
                axes.errorbar(x, y, whiskers, fmt="none", ecolor=style["color"], elinewidth=1, capsize=3)
        if ticks:
            axes.set_xscale("log")
            axes.set_xticks(list(ticks), [f"{tick:,g}" for tick in ticks])
            axes.minorticks_off()
        axes.set_xlabel(x_label)
        if len(heights := {y for points in curves.values() for _, y in points if math.isfinite(y)}) == 1:
            axes.set_ylim(0, 2 * heights.pop() or 1)  # a constant needs no finer axis
        axes.margins(x=0.03)
        if len(curves) > 1:
            figure.legend(loc="outside upper left", ncols=columns, handlelength=1.6, columnspacing=1.2)

    columns = _LEGEND_COLUMNS if sum(map(len, curves)) > _LEGEND_LETTERS else max(1, len(curves))
    return _svg(plot, 3.1 + 0.2 * (len(curves) > 1) * math.ceil(len(curves) / columns), title)


def scatter_chart(scatters: Sequence[Scatter], title: str) -> str:
    """Plot the images of a class, one scatter plot beside the other, as an SVG element.

    A colour is a cluster, a cross an outlier, a star a centre.

    Args:
        title: for screen readers.
    """

    def plot(figure: "Figure") -> None:
        for axes, scatter in zip(figure.subplots(1, len(scatters), squeeze=False)[0], scatters, strict=True):
            inside = scatter.clusters >= 0
            colours = [_COLOUR[f"c{cluster % _PALETTE}"] for cluster in scatter.clusters[inside]]
            axes.scatter(*scatter.points[inside].T, s=12, c=colours, linewidths=0, alpha=0.65, clip_on=False)
            axes.scatter(*scatter.points[~inside].T, s=26, marker="x", c=_COLOUR["bad"], linewidths=1.4, gid="outliers")
            axes.scatter(
                *scatter.centres.T, s=110, marker="*", c=_COLOUR["ink"], edgecolors=_COLOUR["card"], gid="centres"
            )
            axes.set(xticks=[], yticks=[], aspect="equal", adjustable="datalim")
            axes.margins(0.06)
            for spine in axes.spines.values():
                spine.set_visible(True)
            if len(scatters) > 1:
                axes.set_title(scatter.title, fontsize=10, color=_COLOUR["quiet"])

    return _svg(plot, 2.7, title, width=2.6 * len(scatters))


def _rows(bars: Sequence[Bar]) -> list[Bar | str]:
    """Return the bars, with the group's name before the first bar of each group."""
    rows: list[Bar | str] = []
    for before, bar in zip([None, *bars], bars, strict=False):
        rows += [bar] if before and before.group == bar.group else [bar.group, bar]
    return rows


def _plot_bar(axes: "Axes", bar: Bar, y: float) -> None:
    colour = _COLOUR["ours" if bar.ours else "ink"]
    axes.barh(y, 100 * bar.value, height=0.62, color=_COLOUR["ours" if bar.ours else "bar"], gid="bar")
    if bar.std is not None:
        axes.errorbar(100 * bar.value, y, xerr=100 * bar.std, fmt="none", ecolor=_COLOUR["ink"], capsize=3, gid="std")
    if len(bar.trials) > 1:
        values = [100 * trial for trial in bar.trials]
        style: dict[str, Any] = {
            "color": _COLOUR["ink"],
            "markersize": 4,
            "markerfacecolor": _COLOUR["card"],
            "markeredgecolor": _COLOUR["ink"],
        }
        axes.plot(values, [y] * len(values), "o", markeredgewidth=0.8, gid="trials", clip_on=False, **style)
    std = f" ± {100 * bar.std:.1f}" if bar.std is not None else ""
    beside: dict[str, Any] = {"transform": axes.get_yaxis_transform(), "va": "center"}
    weight = "bold" if bar.ours else "normal"
    axes.text(1.03, y, f"{100 * bar.value:.1f}{std}", color=colour, fontweight=weight, **beside)


def _ceiling(values: Sequence[float]) -> float:
    """Return the end of the axis: the largest value rounded up to a tenth, at most 1."""
    return min(1.0, math.ceil(max(values, default=1.0) * 10 - 1e-9) / 10) or 0.1


def _svg(plot: Callable[["Figure"], None], height: float, title: str, width: float = _WIDTH) -> str:
    """Plot on a figure of this size in inches, and return it as an element for an HTML page."""
    # matplotlib takes a second to import, which would delay `plan`.
    import matplotlib
    from matplotlib.figure import Figure

    with matplotlib.rc_context(_STYLE):
        figure, buffer = Figure((width, height), layout="constrained"), io.BytesIO()
        plot(figure)
        figure.savefig(buffer, format="svg", metadata={"Date": None})
    return _inline(ET.fromstring(buffer.getvalue()), title)  # noqa: S314 - written by matplotlib in the lines above


def _inline(svg: ET.Element, title: str) -> str:
    """Turn matplotlib's document into an element in the page's colours, without style sheet, metadata, unused ids."""
    for parent in list(svg.iter()):
        for child in list(parent):
            if child.tag.endswith(("}metadata", "}style")):
                parent.remove(child)
    for node in svg.iter():
        node.tag = node.tag.rpartition("}")[2]
        node.attrib = {name.rpartition("}")[2]: _page_style(value) for name, value in node.attrib.items()}
        if node.tag == "g" and (match := _CLASSES.match(node.get("id", ""))):
            node.set("class", match[0])
    used = set(re.findall(r"#(\w+)", ET.tostring(svg, encoding="unicode")))
    for node in svg.iter():
        node.text, node.tail = (text if text and text.strip() else None for text in (node.text, node.tail))
        if node.get("id") not in used:
            node.attrib.pop("id", None)
    svg.attrib = {"viewBox": svg.get("viewBox", ""), "role": "img", "aria-label": title}
    svg.insert(0, ET.Element("title"))
    svg[0].text = title
    return ET.tostring(svg, encoding="unicode")


def _page_style(value: str) -> str:
    """Put an attribute into the page's colours and font, with two decimals: more are finer than a pixel."""
    return _DECIMALS.sub(r"\1", _FONT.sub("", _PLACEHOLDER.sub(lambda match: _VARIABLE[match[0]], value)))


_FONT: Final = re.compile(r" font-family: [^;]*;")
_DECIMALS: Final = re.compile(r"(\.\d\d)\d+")
_CLASSES: Final = re.compile("curve|bar|std|trials|reference|outliers|centres")
_VARIABLE: Final = {colour: f"var(--{name})" for name, colour in _COLOUR.items()}
_PLACEHOLDER: Final = re.compile("|".join(_VARIABLE))
