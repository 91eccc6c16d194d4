"""Small pieces of SVG text: elements, ticks, an accessible frame. Colours are CSS classes."""

from __future__ import annotations

import math
from collections.abc import Sequence
from html import escape


def element(name: str, *children: str, **attributes: object) -> str:
    """Return ``<name …>children</name>``.

    Children are markup already; attribute values are escaped. ``class_`` means ``class``, other
    underscores become hyphens, None leaves an attribute out.
    """
    parts = [name]
    for key, value in attributes.items():
        if value is None:
            continue
        label = "class" if key == "class_" else key.replace("_", "-")
        shown = number(value) if isinstance(value, float) else str(value)
        parts.append(f'{label}="{escape(shown)}"')
    head = " ".join(parts)
    return f"<{head}>{''.join(children)}</{name}>" if children else f"<{head}/>"


def text(x: float, y: float, content: str, **attributes: object) -> str:
    """Return a text element; ``content`` is escaped."""
    return element("text", escape(content), x=float(x), y=float(y), **attributes)


def tooltip(content: str) -> str:
    """Return a ``<title>`` child: shown on hover, read aloud by screen readers."""
    return element("title", escape(content))


def frame(
    width: float,
    height: float,
    *children: str,
    title: str,
    description: str,
    name: str,
    **attributes: object,
) -> str:
    """Return the outer ``<svg>`` with its text alternative. ``name`` is unique in a page."""
    return element(
        "svg",
        element("title", escape(title), id=f"{name}-t"),
        element("desc", escape(description), id=f"{name}-d"),
        *children,
        viewBox=f"0 0 {number(width)} {number(height)}",
        role="img",
        aria_labelledby=f"{name}-t {name}-d",
        class_="chart",
        **attributes,
    ).replace("<svg ", '<svg xmlns="http://www.w3.org/2000/svg" ', 1)


def number(value: float) -> str:
    """Coordinates with at most two decimals, without trailing zeros."""
    return f"{value:.2f}".rstrip("0").rstrip(".") if value % 1 else f"{value:.0f}"


def points(xs: Sequence[float], ys: Sequence[float]) -> str:
    """Return the ``points`` attribute of a polyline."""
    return " ".join(f"{number(x)},{number(y)}" for x, y in zip(xs, ys, strict=True))


def linear_ticks(low: float, high: float, count: int = 5) -> list[float]:
    """Round numbers from ``low`` to ``high``, about ``count`` of them."""
    span = high - low
    if span <= 0 or not math.isfinite(span):
        return [low]
    rough = span / max(count, 1)
    power = 10.0 ** math.floor(math.log10(rough))
    step = next(power * m for m in (1, 2, 2.5, 5, 10) if power * m >= rough * 0.999)
    first = math.ceil(low / step - 1e-9)
    last = math.floor(high / step + 1e-9)
    return [i * step for i in range(first, last + 1)]


def log_ticks(low: float, high: float) -> list[float]:
    """1, 2 and 5 times powers of ten within ``[low, high]``; powers alone over three decades."""
    if low <= 0 or high <= low:
        return [low]
    decades = range(math.floor(math.log10(low)), math.ceil(math.log10(high)) + 1)
    factors = (1, 2, 5) if math.log10(high / low) <= 3 else (1,)
    every = [10.0**d * m for d in decades for m in factors]
    return [tick for tick in every if low * 0.999 <= tick <= high * 1.001]
