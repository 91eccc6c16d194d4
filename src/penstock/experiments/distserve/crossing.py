"""Where a curve of SLO attainment falls under a target, and how much later one does than another.

The factors of Figures 8 and 9 compare these points. A curve that never falls under the target, or
never reaches it, has none: the published script takes its end instead, we say so.
"""

from __future__ import annotations

from collections.abc import Sequence
from itertools import pairwise

Point = tuple[float, float]
"""(x, attainment in percent)."""


def crossing(points: Sequence[Point], target_pct: float = 90.0, *, falls_up: bool = True) -> float:
    """The x at which attainment first falls under the target; NaN if there is none.

    ``falls_up``: it gets harder as x grows (request rate); otherwise as x shrinks (SLO scale).
    Between two points the curve is a straight line.
    """
    curve = sorted(points, reverse=not falls_up)
    for (x0, y0), (x1, y1) in pairwise(curve):
        if y0 >= target_pct > y1:
            return x0 + (x1 - x0) * (y0 - target_pct) / (y0 - y1)
        if y0 < target_pct:
            break
    return float("nan")


def improvement(ours: Sequence[Point], base: Sequence[Point], *, falls_up: bool) -> float:
    """How many times the rate, or how many times tighter a limit; NaN where a curve has no end."""
    mine, other = crossing(ours, falls_up=falls_up), crossing(base, falls_up=falls_up)
    return mine / other if falls_up else other / mine
