"""Figures as people read them: few digits, one unit a row, thousands apart."""

from __future__ import annotations

import math
from collections.abc import Sequence

DASH = "–"  # noqa: RUF001 - an en dash stands for "undefined" in tables


def row_figures(
    values: Sequence[float | None], unit: str, *, scale: Sequence[float | None] | None = None
) -> tuple[str, list[str]]:
    """Format the values of one row alike; returns the unit to show and one text a value.

    ``scale`` are the values that decide on unit and decimals, where that is more than the row.

    Seconds become ms where all are below one second, shares become %; undefined is a dash.
    The number of decimals follows the largest value: three or four significant digits.
    """
    deciding = values if scale is None else scale
    known = [abs(value) for value in deciding if value is not None and math.isfinite(value)]
    factor = 1.0
    if unit == "s" and known and max(known) < 1.0:
        unit, factor = "ms", 1e3
    elif unit == "share":
        unit, factor = "%", 100.0
    largest = max(known, default=0.0) * factor
    smallest = min((value for value in known if value > 0), default=0.0) * factor
    whole = all(float(value * factor).is_integer() for value in known) and unit in {"", "tokens"}
    decimals = 0 if whole else _decimals(largest, smallest)
    if unit == "%":
        decimals = 1
    return unit, [
        f"{value * factor:,.{decimals}f}" if value is not None and math.isfinite(value) else DASH
        for value in values
    ]


def figure(value: float | None, unit: str = "") -> str:
    """Format one value with its unit."""
    shown, (text,) = row_figures([value], unit)
    if text == DASH or not shown:
        return text
    return f"{text} {shown}"


def change(value: float | None) -> str:
    """Format a relative difference with its sign, ``+12.3 %``."""
    if value is None or not math.isfinite(value):
        return ""
    if abs(value) >= 10:
        return f"×{value + 1:,.1f}"  # noqa: RUF001 - the multiplication sign
    return f"{value * 100:+.1f} %"


def _decimals(largest: float, smallest: float) -> int:
    """Three or four significant digits of the largest; one more where a value is below 1."""
    if largest >= 1000:
        return 0
    if largest >= 100:
        return 1
    return 2 if smallest >= 1 else 3
