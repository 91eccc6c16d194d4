"""A scatter chart with a front: points of two figures, those that none beats joined by a line."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

from penstock.report.svg import element, frame, linear_ticks, text, tooltip

WIDTH, HEIGHT = 720.0, 300.0
LEFT, BOTTOM, TOP, RIGHT = 64.0, 44.0, 20.0, 16.0


@dataclass(frozen=True, slots=True)
class Dot:
    """``label`` is shown on hover; ``good`` sets the colour, ``large`` the size."""

    x: float
    y: float
    label: str
    good: bool = True
    large: bool = True


def scatter(
    dots: Sequence[Dot],
    front: Sequence[tuple[float, float]],
    *,
    x_title: str,
    y_title: str,
    title: str,
    name: str,
) -> str:
    """The chart as SVG, both axes from 0; "" without dots."""
    if not dots:
        return ""
    most_x = 1.1 * max(dot.x for dot in dots) or 1.0
    most_y = 1.1 * max(dot.y for dot in dots) or 1.0

    def at(x: float, y: float) -> tuple[float, float]:
        across = LEFT + (WIDTH - LEFT - RIGHT) * x / most_x
        return across, HEIGHT - BOTTOM - (HEIGHT - BOTTOM - TOP) * y / most_y

    parts = []
    for tick in linear_ticks(0, most_x):
        label = f"{tick:g}"
        x = at(tick, 0)[0]
        parts.append(text(x, HEIGHT - BOTTOM + 18, label, text_anchor="middle", class_="axis"))
    for tick in linear_ticks(0, most_y):
        y = at(0, tick)[1]
        parts.append(text(LEFT - 8, y + 4, f"{tick:g}", text_anchor="end", class_="axis"))
        parts.append(element("line", x1=LEFT, x2=WIDTH - RIGHT, y1=y, y2=y, stroke="var(--rule)"))
    line = " ".join(f"{x:.1f},{y:.1f}" for x, y in (at(*point) for point in front))
    parts.append(element("polyline", points=line, fill="none", stroke="var(--accent)"))
    for dot in dots:
        x, y = at(dot.x, dot.y)
        colour = "var(--good)" if dot.good else "var(--bad)"
        radius = 5.0 if dot.large else 2.5
        parts.append(element("circle", tooltip(dot.label), cx=x, cy=y, r=radius, fill=colour))
    parts.append(text(WIDTH / 2, HEIGHT - 8, x_title, text_anchor="middle", class_="axis"))
    parts.append(text(4, 12, y_title, class_="axis"))
    return frame(WIDTH, HEIGHT, *parts, title=title, description=title, name=name)
