"""AlpaServe's policies by name, those that change placements among them."""

from __future__ import annotations

import time
from collections.abc import Callable, Mapping
from functools import partial
from typing import TypeVar

from penstock.plan.pool.model import PoolPlacement, PoolProblem
from penstock.plan.pool.policies import STATIC_POLICIES, place
from penstock.plan.pool.search import sr_replace
from penstock.plan.pool.simulate import TimedPlacement

Placed = PoolPlacement | TimedPlacement
Policy = Callable[[PoolProblem], Placed]
T = TypeVar("T")

POLICIES: Mapping[str, Policy] = {
    **{name: partial(place, name) for name in STATIC_POLICIES},
    "sr-replace-60": partial(sr_replace, every_s=60.0),
}


def timed(call: Callable[[], T], passes: int = 3) -> tuple[T, float]:
    """What ``call`` gives, and its CPU seconds: the least of some passes, compilation apart."""
    result = call()
    best = float("inf")
    for _ in range(passes):
        started = time.process_time()
        result = call()
        best = min(best, time.process_time() - started)
        if best > 1.0:
            break
    return result, best
