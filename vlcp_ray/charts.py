"""Knows how scores and curves are drawn: inline SVG without colours of its own, so that the page's style decides."""

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Final
from xml.etree import ElementTree as ET

#: The drawing's width in its own units; narrow, so that its words stay readable when a phone scales it down.
WIDTH: Final = 460.0
_LEFT, _RIGHT, _ROW, _AXIS = 78.0, 84.0, 23.0, 26.0
_LOSS_HEIGHT, _LOSS_LEFT = 230.0, 44.0
#: Points of the faint and of the firm line of a curve; more says nothing at this width and makes the page heavy.
_FINE, _COARSE = 300, 30
_KEYS = 4  # names of curves side by side

Points = Sequence[tuple[float, float]]


@dataclass(frozen=True)
class Bar:
    """One row of a score chart; `value`, `std` and `trials` are fractions of 1."""

    group: str
    label: str
    value: float
    std: float | None
    trials: Sequence[float]
    ours: bool = False


def score_chart(bars: Sequence[Bar], reference: tuple[str, float] | None, title: str) -> str:
    """Horizontal bars with whiskers of one standard deviation and a dot per trial, as an SVG element.

    Args:
        bars: bars of one group must be adjacent; the group's name stands above them.
        reference: a dashed line at a fraction of 1, with its name.
    """
    top = _ceiling([bar.value + (bar.std or 0.0) for bar in bars] + ([reference[1]] if reference else []))
    groups = [bar.group for i, bar in enumerate(bars) if i == 0 or bars[i - 1].group != bar.group]
    bottom = 20.0 + _ROW * (len(bars) + len(groups))
    svg = _canvas(bottom + _AXIS, title)
    _percent_axis(svg, top, bottom)
    y = 20.0
    for i, bar in enumerate(bars):
        if i == 0 or bars[i - 1].group != bar.group:
            _text(svg, 0, y + 16, bar.group, "group")
            y += _ROW
        _draw_bar(svg, bar, y, top)
        y += _ROW
    if reference:
        x = _x(reference[1], top)
        _node(svg, "line", x1=x, x2=x, y1=18, y2=bottom, class_="reference")
        _text(svg, min(x + 4, WIDTH), 12, reference[0], "label end" if x > WIDTH / 2 else "label")
    return ET.tostring(svg, encoding="unicode")


def loss_chart(curves: Mapping[str, Points], title: str) -> str:
    """A faint line of near-raw losses and a firm one of means over stretches for each curve, as an SVG element.

    Args:
        curves: (step, loss) points by name, at least one in all; losses that are not finite are left out.
    """
    clean = {name: finite for name, points in curves.items() if (finite := [p for p in points if math.isfinite(p[1])])}
    fine = {name: thin(points, _FINE) for name, points in clean.items()}
    coarse = {name: thin(points, _COARSE) for name, points in clean.items()}
    return _curves([(fine, "faint "), (coarse, "")], "step", title, zero=True) if fine else _nothing(title)


def line_chart(curves: Mapping[str, Points], across: str, title: str) -> str:
    """A line with its points for each curve, as an SVG element; five of them can be told apart.

    Args:
        curves: (x, y) points by name, at least one in all.
        across: what x is, in a word or two.
    """
    return _curves([(curves, "")], across, title, zero=False)


def _curves(layers: Sequence[tuple[Mapping[str, Points], str]], across: str, title: str, *, zero: bool) -> str:
    """Layers of the same curves, each with a class for its lines, over one pair of axes; x from 0 if `zero`."""
    first = layers[0][0]
    rows = math.ceil(len(first) / _KEYS) if len(first) > 1 else 1
    top = 20.0 + 16.0 * (rows - 1)
    svg = _canvas(_LOSS_HEIGHT + top - 20, title)
    steps = [x for curves, _ in layers for points in curves.values() for x, _ in points]
    frame = _Frame(0.0 if zero else min(steps), max(steps), *_span([y for p in first.values() for _, y in p]), top)
    _axes(svg, frame, across)
    for i, name in enumerate(first):
        for curves, class_ in layers:
            _line(svg, curves[name], frame, f"curve {class_}c{i % 5}")
        if len(first) > 1:
            x, y = _LOSS_LEFT + 92 * (i % _KEYS), 16.0 * (i // _KEYS)
            _node(svg, "rect", x=x, y=y + 2, width=14, height=4, class_=f"key c{i % 5}")
            _text(svg, x + 19, y + 9, name, "label")
    return ET.tostring(svg, encoding="unicode")


def _nothing(title: str) -> str:
    svg = _canvas(_LOSS_HEIGHT, title)
    _text(svg, 0, 20, "no finite loss", "label")
    return ET.tostring(svg, encoding="unicode")


def ticks(low: float, high: float, count: int = 4) -> list[float]:
    """Round numbers from low to high, about `count` of them, one at least."""
    if high <= low:
        return [low]
    rough = (high - low) / count
    power = 10.0 ** math.floor(math.log10(rough))
    step = next(power * factor for factor in (1, 2, 2.5, 5, 10) if power * factor >= rough * 0.999)
    first = math.ceil(low / step - 1e-9)
    return [round(i * step, 12) for i in range(first, math.floor(high / step + 1e-9) + 1)] or [low]


def thin(points: Points, count: int) -> list[tuple[float, float]]:
    """At most `count` points, each the mean of an equal stretch of the given ones, in order of the step."""
    ordered = sorted(points)
    size = max(1, math.ceil(len(ordered) / count))
    stretches = (ordered[i : i + size] for i in range(0, len(ordered), size))
    return [(sum(x for x, _ in part) / len(part), sum(y for _, y in part) / len(part)) for part in stretches]


@dataclass(frozen=True)
class _Frame:
    x0: float
    x1: float
    y0: float
    y1: float
    top: float

    def x(self, value: float) -> float:
        return _LOSS_LEFT + (value - self.x0) / ((self.x1 - self.x0) or 1.0) * (WIDTH - _LOSS_LEFT - 8)

    def y(self, value: float) -> float:
        return self.top + (self.y1 - value) / (self.y1 - self.y0) * (_LOSS_HEIGHT - 56.0)

    @property
    def bottom(self) -> float:
        return self.top + _LOSS_HEIGHT - 20


def _span(values: Sequence[float]) -> tuple[float, float]:
    low, high = min(values), max(values)
    margin = (high - low) * 0.05 or abs(high) * 0.05 or 1.0
    return low - margin, high + margin


def _axes(svg: ET.Element, frame: _Frame, across: str) -> None:
    for value in ticks(frame.y0, frame.y1, 5):
        _node(svg, "line", x1=_LOSS_LEFT, x2=WIDTH, y1=frame.y(value), y2=frame.y(value), class_="grid")
        _text(svg, _LOSS_LEFT - 6, frame.y(value) + 4, f"{value:g}", "label end")
    for value in ticks(frame.x0, frame.x1):
        _text(svg, frame.x(value), frame.bottom - 20, f"{value:,g}" if value < 1e6 else f"{value:.2g}", "label mid")
    _text(svg, (WIDTH + _LOSS_LEFT) / 2, frame.bottom - 4, across, "label mid")


def _line(svg: ET.Element, points: Points, frame: _Frame, class_: str) -> None:
    if len(points) == 1:
        _node(
            svg, "circle", cx=frame.x(points[0][0]), cy=frame.y(points[0][1]), r=2.5, class_=class_.replace("faint", "")
        )
        return
    path = " ".join(f"{frame.x(x):.1f},{frame.y(y):.1f}" for x, y in points)
    _node(svg, "polyline", points=path, class_=class_)


def _ceiling(values: Sequence[float]) -> float:
    return min(1.0, math.ceil(max(values, default=1.0) * 10 - 1e-9) / 10) or 0.1


def _x(value: float, top: float) -> float:
    return _LEFT + min(max(value, 0.0), top) / top * (WIDTH - _LEFT - _RIGHT)


def _percent_axis(svg: ET.Element, top: float, bottom: float) -> None:
    for value in ticks(0.0, top * 100):
        x = _x(value / 100, top)
        _node(svg, "line", x1=x, x2=x, y1=22, y2=bottom, class_="grid")
        _text(svg, x, bottom + 16, f"{value:g}", "label mid")
    _text(svg, WIDTH, bottom + 16, "top-1, %", "label end")


def _draw_bar(svg: ET.Element, bar: Bar, y: float, top: float) -> None:
    middle, start = y + _ROW / 2, _x(0, top)
    kind = "ours" if bar.ours else "other"
    _text(svg, _LEFT - 8, middle + 4, bar.label, f"label end {kind}")
    _node(svg, "rect", x=start, y=y + 4, width=_x(bar.value, top) - start, height=_ROW - 8, rx=2, class_=f"bar {kind}")
    if bar.std is not None:
        low, high = _x(bar.value - bar.std, top), _x(bar.value + bar.std, top)
        path = f"M{low:.1f} {middle - 4:.1f}v8m0-4H{high:.1f}m0-4v8"
        _node(svg, "path", d=path, class_="whisker")
    for trial in bar.trials if len(bar.trials) > 1 else ():
        _node(svg, "circle", cx=_x(trial, top), cy=middle, r=2, class_="trial")
    spread = f" ± {100 * bar.std:.1f}" if bar.std is not None else ""
    _text(svg, WIDTH, middle + 4, f"{100 * bar.value:.1f}{spread}", f"label end {kind}")


def _canvas(height: float, title: str) -> ET.Element:
    view = {"viewBox": f"0 0 {WIDTH:g} {height:g}", "role": "img", "aria-label": title}
    svg = ET.Element("svg", view)
    ET.SubElement(svg, "title").text = title
    return svg


def _node(parent: ET.Element, tag: str, *, class_: str, **attributes: float | str) -> ET.Element:
    plain = {name: value if isinstance(value, str) else f"{value:.1f}" for name, value in attributes.items()}
    return ET.SubElement(parent, tag, {**plain, "class": class_})


def _text(parent: ET.Element, x: float, y: float, words: str, class_: str) -> None:
    _node(parent, "text", x=x, y=y, class_=class_).text = words
