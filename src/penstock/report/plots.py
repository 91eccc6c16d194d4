"""Figures that stand alone: published beside ours, as lines or as bars, one SVG file each."""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from dataclasses import dataclass

from penstock.report.svg import element, frame, linear_ticks, log_ticks, number, points, text

Point = tuple[float, float]

_COLOURS = ("#0072b2", "#d55e00", "#009e73", "#b8558f", "#b98500", "#4a9fd6", "#6a5acd", "#5c6670")
_STYLE = (
    ".chart{background:#fff}"
    "text{font:11px system-ui,sans-serif;fill:#16202b}"
    ".title{font-size:13px;font-weight:600}.muted{fill:#5c6670}"
    ".grid{stroke:#dde3e8;stroke-width:1}.axis{stroke:#5c6670;stroke-width:1}"
    ".line{fill:none;stroke-width:1.8;stroke-linejoin:round}.theirs{stroke-dasharray:5 3}"
)


@dataclass(frozen=True)
class Curve:
    """Points of one line. ``style`` is its colour; a published line is dashed, its marks open."""

    label: str
    points: tuple[Point, ...]
    style: int
    published: bool = False


@dataclass(frozen=True)
class Plot:
    """A figure. ``curves`` over numbers; or, with ``bars``, a group of bars for each of them.

    ``bars`` name the groups, whose places are 0, 1, ...; ``ticks`` are (x, label) where numbers
    do not say enough.
    """

    name: str
    title: str
    x_label: str
    y_label: str
    curves: tuple[Curve, ...]
    bars: tuple[str, ...] = ()
    ticks: tuple[tuple[float, str], ...] = ()

    def to_svg(self) -> str:
        return _bars(self) if self.bars else _lines(self)


# Spans as small as this are one value.
_FLAT = 1e-9
_WIDTH, _LEFT, _RIGHT, _TOP, _PLOT = 640.0, 58.0, 16.0, 30.0, 260.0
_LEGEND_ROW, _LEGEND_COLUMN = 16.0, 190.0


def _lines(plot: Plot) -> str:
    every = [(x, y) for curve in plot.curves for x, y in curve.points if math.isfinite(x + y)]
    if not every:
        return _page(plot, [text(_LEFT, _TOP + 40, "no values", class_="muted")], "No values.")
    low_x, high_x = min(x for x, _ in every), max(x for x, _ in every)
    if high_x - low_x <= _FLAT * max(1.0, abs(high_x)):
        low_x, high_x = low_x - 0.5, high_x + 0.5
    low_y, high_y, logarithmic = _range([y for _, y in every])

    def at(x: float, y: float) -> Point:
        across = (x - low_x) / (high_x - low_x)
        up = math.log(y / low_y) if logarithmic else y - low_y
        up /= math.log(high_y / low_y) if logarithmic else high_y - low_y
        return _LEFT + across * (_WIDTH - _LEFT - _RIGHT), _TOP + (1 - up) * _PLOT

    parts = _y_axis(low_y, high_y, logarithmic, lambda y: at(low_x, y)[1])
    given = plot.ticks or tuple((x, _figure(x)) for x in linear_ticks(low_x, high_x, 8))
    for x, label in given:
        place = at(x, high_y)[0]
        parts.append(text(place, _TOP + _PLOT + 16, label, text_anchor="middle"))
    for curve in plot.curves:
        parts += _curve(curve, [at(x, y) for x, y in curve.points if math.isfinite(x + y)])
    return _page(plot, parts, _said(plot))


def _curve(curve: Curve, places: Sequence[Point]) -> list[str]:
    colour = _COLOURS[curve.style % len(_COLOURS)]
    kind = "line theirs" if curve.published else "line"
    shape = points([x for x, _ in places], [y for _, y in places])
    parts = [element("polyline", points=shape, class_=kind, stroke=colour)] if places else []
    fill = "#fff" if curve.published else colour
    parts += [element("circle", cx=x, cy=y, r=3.0, fill=fill, stroke=colour) for x, y in places]
    return parts


def _bars(plot: Plot) -> str:
    values = [y for curve in plot.curves for _, y in curve.points if math.isfinite(y)]
    high = max([*values, 0.0])
    high = high if high > _FLAT else 1.0
    group = (_WIDTH - _LEFT - _RIGHT) / len(plot.bars)
    wide = 0.8 * group / max(1, len(plot.curves))

    def height(y: float) -> float:
        return _PLOT * max(0.0, y) / (1.08 * high)

    parts = _y_axis(0.0, 1.08 * high, False, lambda y: _TOP + _PLOT - height(y))
    for i, label in enumerate(plot.bars):
        middle = _LEFT + (i + 0.5) * group
        for row, part in enumerate(_folded(label, group)):
            at = _TOP + _PLOT + 15 + 12 * row
            parts.append(text(middle, at, part, text_anchor="middle"))
    for place, curve in enumerate(plot.curves):
        colour = "#b8c4cf" if curve.published else _COLOURS[curve.style % len(_COLOURS)]
        for x, y in curve.points:
            if not math.isfinite(y):
                continue
            left = _LEFT + x * group + 0.1 * group + place * wide
            top = _TOP + _PLOT - height(y)
            parts.append(
                element("rect", x=left, y=top, width=0.94 * wide, height=height(y), fill=colour)
            )
            if len(plot.bars) * len(plot.curves) <= 30:
                parts.append(text(left + 0.47 * wide, top - 3, _figure(y), text_anchor="middle"))
    return _page(plot, parts, _said(plot))


def _folded(label: str, width: float) -> list[str]:
    """``label`` in at most three lines of about ``width`` pixels."""
    lines = [""]
    for word in label.split():
        joined = f"{lines[-1]} {word}".strip()
        if len(joined) * 6 > width and lines[-1]:
            lines.append(word)
        else:
            lines[-1] = joined
    return lines[:3]


def _range(values: Sequence[float]) -> tuple[float, float, bool]:
    """Ends of the y axis, and whether it is logarithmic: positive values over two decades."""
    low, high = min(values), max(values)
    if low > _FLAT and high / low > 100:
        return low / 1.15, high * 1.15, True
    low = min(low, 0.0)
    flat = high - low <= _FLAT
    return low, low + 1.0 if flat else low + 1.06 * (high - low), False


def _y_axis(
    low: float, high: float, logarithmic: bool, place: Callable[[float], float]
) -> list[str]:
    parts = []
    for tick in log_ticks(low, high) if logarithmic else linear_ticks(low, high, 6):
        y = place(tick)
        parts.append(element("line", x1=_LEFT, x2=_WIDTH - _RIGHT, y1=y, y2=y, class_="grid"))
        parts.append(text(_LEFT - 7, y + 3.5, _figure(tick), text_anchor="end"))
    bottom = _TOP + _PLOT
    parts.append(element("line", x1=_LEFT, x2=_WIDTH - _RIGHT, y1=bottom, y2=bottom, class_="axis"))
    return parts


def _page(plot: Plot, parts: Sequence[str], said: str) -> str:
    below = _TOP + _PLOT + (54 if plot.bars else 36)
    middle = _LEFT + (_WIDTH - _LEFT - _RIGHT) / 2
    labels = [
        text(_LEFT, 18.0, plot.title, class_="title"),
        text(middle, below, plot.x_label, text_anchor="middle", class_="muted"),
        text(
            0.0,
            0.0,
            plot.y_label,
            text_anchor="middle",
            class_="muted",
            transform=f"translate(14 {number(_TOP + _PLOT / 2)}) rotate(-90)",
        ),
    ]
    columns = max(1, int((_WIDTH - _LEFT) // _LEGEND_COLUMN))
    for i, curve in enumerate(plot.curves):
        x = _LEFT + (i % columns) * _LEGEND_COLUMN
        y = below + 18 + (i // columns) * _LEGEND_ROW
        labels += _key(plot, curve, x, y)
    rows = math.ceil(len(plot.curves) / columns)
    return frame(
        _WIDTH,
        below + 14 + rows * _LEGEND_ROW,
        f"<style>{_STYLE}</style>",
        *parts,
        *labels,
        title=plot.title,
        description=said,
        name="figure",
    )


def _key(plot: Plot, curve: Curve, x: float, y: float) -> list[str]:
    colour = _COLOURS[curve.style % len(_COLOURS)]
    label = f"{curve.label}, published" if curve.published else curve.label
    shown = text(x + 28, y, label)
    if plot.bars:
        fill = "#b8c4cf" if curve.published else colour
        return [element("rect", x=x, y=y - 9, width=20.0, height=10.0, fill=fill), shown]
    kind = "line theirs" if curve.published else "line"
    ends = points([x, x + 22], [y - 4, y - 4])
    return [element("polyline", points=ends, class_=kind, stroke=colour), shown]


def _said(plot: Plot) -> str:
    """The figure in words: every curve with its ends."""
    parts = []
    for curve in plot.curves:
        if curve.points:
            (x0, y0), (x1, y1) = curve.points[0], curve.points[-1]
            name = f"{curve.label}{', published' if curve.published else ''}"
            parts.append(f"{name}: {_figure(y0)} at {_figure(x0)}, {_figure(y1)} at {_figure(x1)}")
    return "; ".join(parts)


def _figure(value: float) -> str:
    if value and not 1e-3 <= abs(value) < 1e5:
        return f"{value:.2g}"
    return f"{value:,.3g}" if abs(value) < 1000 else f"{value:,.0f}"
