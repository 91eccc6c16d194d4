"""What changes of a pool did to the service: how deep attainment fell, and for how long."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from penstock.measure.run import Run
from penstock.spec.workload import SLO

TOLERANCE = 0.05
"""A window counts as a dip when its attainment lies this far under what was usual before."""


@dataclass(frozen=True, slots=True)
class Dip:
    """``depth``: share of the requests below the attainment before; 0 where nothing fell."""

    time_s: float
    before: float
    depth: float
    length_s: float


def good_requests(run: Run, slo: SLO) -> NDArray[np.bool_]:
    """Which requests finished within all limits of ``slo`` (TTFT, TPOT, end to end)."""
    table = run.requests
    ttft = table.first_token_s - table.arrival_s
    steps = np.maximum(table.output_tokens - 1, 1)
    tpot = (table.last_token_s - table.first_token_s) / steps
    good: NDArray[np.bool_] = ~np.isnan(table.last_token_s)
    limits = (
        (slo.ttft_s, ttft),
        (slo.tpot_s, tpot),
        (slo.e2e_s, table.last_token_s - table.arrival_s),
    )
    for limit, values in limits:
        if limit is not None:
            good &= values <= limit
    return good


def slo_dips(
    run: Run, slo: SLO, times_s: Sequence[float], window_s: float = 30.0
) -> tuple[Dip, ...]:
    """Attainment by arrival in windows after each change, against the two windows before it.

    A dip lasts until the first window without one, or until the next change.
    """
    arrival = run.requests.arrival_s
    good = good_requests(run, slo)

    def share(start: float, end: float) -> float | None:
        first, last = np.searchsorted(arrival, (start, end))
        return float(good[first:last].mean()) if last > first else None

    dips = []
    ends = [*times_s[1:], float(arrival[-1]) if len(arrival) else 0.0]
    for at, until in zip(times_s, ends, strict=True):
        before = share(at - 2 * window_s, at)
        depth, length = 0.0, 0.0
        start = at
        while before is not None and start < until:
            found = share(start, min(start + window_s, until))
            if found is None or found >= before - TOLERANCE:
                break
            depth = max(depth, before - found)
            length += min(window_s, until - start)
            start += window_s
        dips.append(Dip(at, before if before is not None else float("nan"), depth, length))
    return tuple(dips)


def cost_per_1000_good(gpu_seconds: float, price_per_hour: float, good: int) -> float:
    """Dollars for a thousand requests that met their limits; infinity if none did."""
    return gpu_seconds / 3600 * price_per_hour / good * 1000 if good else float("inf")
