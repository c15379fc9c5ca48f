"""Knows how the page's figures are drawn: matplotlib's SVG, in the colours of the page's style, light or dark."""

import io
import math
import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, Final
from xml.etree import ElementTree as ET

import numpy as np
import numpy.typing as npt

if TYPE_CHECKING:
    from matplotlib.axes import Axes
    from matplotlib.figure import Figure

#: Colours that no figure has by chance stand for the variables of the page's style.
_PALETTE: Final = 8
_NAMES: Final = ("ink", "quiet", "rule", "bar", "ours", "card", "bad", *(f"c{i}" for i in range(_PALETTE)))
_COLOUR: Final = {name: f"#0a00{number + 1:02x}" for number, name in enumerate(_NAMES)}
_STYLE: Final[dict[Any, Any]] = {
    "svg.fonttype": "none",  # words stay words, in the reader's font
    "svg.hashsalt": "vlcp_ray",  # the same figure has the same bytes
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
#: Width in inches of 72 units; narrow, so that words stay readable when a phone scales the figure down.
_WIDTH: Final = 5.6
_KEYS, _KEY_LETTERS = 3, 30  # names of curves side by side, and the letters of names that all fit
_MARKERS: Final = "osD^vP*X"

Points = Sequence[tuple[float, float]]
Floats = npt.NDArray[np.floating[Any]]


@dataclass(frozen=True)
class Bar:
    """One row of a score chart; `value`, `std` and `trials` are fractions of 1."""

    group: str
    label: str
    value: float
    std: float | None
    trials: Sequence[float]
    ours: bool = False


@dataclass(frozen=True)
class Cloud:
    """The images of one class on a plane: `points` (n, 2), the cluster of each (-1: an outlier), `centres` (k, 2)."""

    title: str
    points: Floats
    clusters: npt.NDArray[np.integer[Any]]
    centres: Floats


def score_chart(bars: Sequence[Bar], reference: tuple[str, float] | None, title: str) -> str:
    """Horizontal bars with whiskers of one standard deviation and a dot per trial, as an SVG element.

    Args:
        bars: bars of one group must be adjacent; the group's name stands above them.
        reference: a dashed line at a fraction of 1, with its name.
    """
    rows = _rows(bars)
    top = _ceiling([bar.value + (bar.std or 0.0) for bar in bars] + ([reference[1]] if reference else []))

    def draw(figure: "Figure") -> None:
        axes = figure.add_subplot()
        axes.set(xlim=(0, 100 * top), ylim=(len(rows) - 0.4, -0.6), xlabel="top-1, %")
        axes.grid(visible=False, axis="y")
        axes.spines["left"].set_visible(False)
        axes.tick_params(axis="y", length=0)
        axes.set_yticks(range(len(rows)), [row.label if isinstance(row, Bar) else "" for row in rows])
        for y, row in enumerate(rows):
            if isinstance(row, Bar):
                _draw_bar(axes, row, y)
            else:
                axes.text(0, y + 0.1, row, fontweight="bold", va="center")
        if reference:
            axes.axvline(100 * reference[1], color=_COLOUR["quiet"], linestyle="--", linewidth=1, gid="reference")
            axes.set_title(reference[0], loc="right", color=_COLOUR["quiet"], fontsize=10)

    return _svg(draw, 0.27 * len(rows) + 0.75, title)


def line_chart(
    curves: Mapping[str, Points],
    across: str,
    title: str,
    *,
    spreads: Mapping[str, Sequence[float | None]] | None = None,
    ticks: Sequence[float] | None = None,
    dashed: Sequence[str] = (),
) -> str:
    """A line with its points for each curve, as an SVG element; eight of them can be told apart.

    Args:
        curves: (x, y) points by name; points that are not finite are left out.
        across: what x is, in a word or two.
        spreads: by name, the whisker of each point.
        ticks: the only places of x that get a number; x is then logarithmic.
        dashed: names of the curves that are not measured here.
    """

    def draw(figure: "Figure") -> None:
        axes = figure.add_subplot()
        for i, (name, points) in enumerate(curves.items()):
            finite = [place for place, point in enumerate(points) if math.isfinite(point[1])]
            x, y = ([points[place][axis] for place in finite] for axis in (0, 1))
            look: dict[str, Any] = {
                "color": _COLOUR[f"c{i % _PALETTE}"],
                "linewidth": 1.8,
                "gid": "curve",
                "label": name,
            }
            look |= {"marker": _MARKERS[i % _PALETTE], "markersize": 4.5 if len(finite) < 30 else 0}
            axes.plot(x, y, linestyle="--" if name in dashed else "-", **look)
            if spreads and name in spreads:
                told = [spreads[name][place] or 0.0 for place in finite]
                axes.errorbar(x, y, told, fmt="none", ecolor=look["color"], elinewidth=1, capsize=3)
        if ticks:
            axes.set_xscale("log")
            axes.set_xticks(list(ticks), [f"{tick:,g}" for tick in ticks])
            axes.minorticks_off()
        axes.set_xlabel(across)
        if len(heights := {y for points in curves.values() for _, y in points if math.isfinite(y)}) == 1:
            axes.set_ylim(0, 2 * heights.pop() or 1)  # what never changes needs no finer axis
        axes.margins(x=0.03)
        if len(curves) > 1:
            figure.legend(loc="outside upper left", ncols=columns, handlelength=1.6, columnspacing=1.2)

    columns = _KEYS if sum(map(len, curves)) > _KEY_LETTERS else max(1, len(curves))
    return _svg(draw, 3.1 + 0.2 * (len(curves) > 1) * math.ceil(len(curves) / columns), title)


def cloud_chart(clouds: Sequence[Cloud], title: str) -> str:
    """Images of a class on a plane side by side: a colour a cluster, a cross an outlier, a star a centre."""

    def draw(figure: "Figure") -> None:
        for axes, cloud in zip(figure.subplots(1, len(clouds), squeeze=False)[0], clouds, strict=True):
            inside = cloud.clusters >= 0
            colours = [_COLOUR[f"c{cluster % _PALETTE}"] for cluster in cloud.clusters[inside]]
            axes.scatter(*cloud.points[inside].T, s=12, c=colours, linewidths=0, alpha=0.65, clip_on=False)
            axes.scatter(*cloud.points[~inside].T, s=26, marker="x", c=_COLOUR["bad"], linewidths=1.4, gid="outliers")
            axes.scatter(
                *cloud.centres.T, s=110, marker="*", c=_COLOUR["ink"], edgecolors=_COLOUR["card"], gid="centres"
            )
            axes.set(xticks=[], yticks=[], aspect="equal", adjustable="datalim")
            axes.margins(0.06)
            for spine in axes.spines.values():
                spine.set_visible(True)
            if len(clouds) > 1:
                axes.set_title(cloud.title, fontsize=10, color=_COLOUR["quiet"])

    return _svg(draw, 2.7, title, width=2.6 * len(clouds))


def _rows(bars: Sequence[Bar]) -> list[Bar | str]:
    rows: list[Bar | str] = []
    for before, bar in zip([None, *bars], bars, strict=False):
        rows += [bar] if before and before.group == bar.group else [bar.group, bar]
    return rows


def _draw_bar(axes: "Axes", bar: Bar, y: float) -> None:
    colour = _COLOUR["ours" if bar.ours else "ink"]
    axes.barh(y, 100 * bar.value, height=0.62, color=_COLOUR["ours" if bar.ours else "bar"], gid="bar")
    if bar.std is not None:
        axes.errorbar(100 * bar.value, y, xerr=100 * bar.std, fmt="none", ecolor=_COLOUR["ink"], capsize=3, gid="std")
    if len(bar.trials) > 1:
        places = [100 * trial for trial in bar.trials]
        look: dict[str, Any] = {
            "color": _COLOUR["ink"],
            "markersize": 4,
            "markerfacecolor": _COLOUR["card"],
            "markeredgecolor": _COLOUR["ink"],
        }
        axes.plot(places, [y] * len(places), "o", markeredgewidth=0.8, gid="trials", clip_on=False, **look)
    spread = f" ± {100 * bar.std:.1f}" if bar.std is not None else ""
    place: dict[str, Any] = {"transform": axes.get_yaxis_transform(), "va": "center"}
    weight = "bold" if bar.ours else "normal"
    axes.text(1.03, y, f"{100 * bar.value:.1f}{spread}", color=colour, fontweight=weight, **place)


def _ceiling(values: Sequence[float]) -> float:
    return min(1.0, math.ceil(max(values, default=1.0) * 10 - 1e-9) / 10) or 0.1


def _svg(draw: Any, height: float, title: str, width: float = _WIDTH) -> str:
    """What is drawn on a figure of so many inches, as an element of an HTML page."""
    # matplotlib takes a second to import, for which `plan` has no time.
    import matplotlib
    from matplotlib.figure import Figure

    with matplotlib.rc_context(_STYLE):
        figure, buffer = Figure((width, height), layout="constrained"), io.BytesIO()
        draw(figure)
        figure.savefig(buffer, format="svg", metadata={"Date": None})
    return _inline(ET.fromstring(buffer.getvalue()), title)  # noqa: S314 - it was written a line above


def _inline(svg: ET.Element, title: str) -> str:
    """matplotlib's document as an element: no sheet, no metadata, no names but those that are used, our colours."""
    for parent in list(svg.iter()):
        for child in list(parent):
            if child.tag.endswith(("}metadata", "}style")):
                parent.remove(child)
    for node in svg.iter():
        node.tag = node.tag.rpartition("}")[2]
        node.attrib = {name.rpartition("}")[2]: _plain(value) for name, value in node.attrib.items()}
        if node.tag == "g" and (known := _KNOWN.match(node.get("id", ""))):
            node.set("class", known[0])
    used = set(re.findall(r"#(\w+)", ET.tostring(svg, encoding="unicode")))
    for node in svg.iter():
        node.text, node.tail = (words if words and words.strip() else None for words in (node.text, node.tail))
        if node.get("id") not in used:
            node.attrib.pop("id", None)
    svg.attrib = {"viewBox": svg.get("viewBox", ""), "role": "img", "aria-label": title}
    svg.insert(0, ET.Element("title"))
    svg[0].text = title
    return ET.tostring(svg, encoding="unicode")


def _plain(value: str) -> str:
    """An attribute in the page's colours and font; more than two decimals are finer than a pixel."""
    return _DECIMALS.sub(r"\1", _FAMILY.sub("", _SENTINEL.sub(lambda found: _VARIABLE[found[0]], value)))


_FAMILY: Final = re.compile(r" font-family: [^;]*;")
_DECIMALS: Final = re.compile(r"(\.\d\d)\d+")
_KNOWN: Final = re.compile("curve|bar|std|trials|reference|outliers|centres")
_VARIABLE: Final = {colour: f"var(--{name})" for name, colour in _COLOUR.items()}
_SENTINEL: Final = re.compile("|".join(_VARIABLE))
