"""AlpaServe's policies by the names its results use."""

from __future__ import annotations

import time
from collections.abc import Callable, Mapping
from functools import partial
from typing import TypeVar

from penstock.plan.pool.evolve import evolve
from penstock.plan.pool.greedy import ONE_GPU, beam_search, round_robin, uniform
from penstock.plan.pool.ilp import mp_ilp, sr_ilp
from penstock.plan.pool.model import PoolPlacement, PoolProblem
from penstock.plan.pool.search import mp_greedy, mp_search, sr_greedy, sr_replace
from penstock.plan.pool.separate import mp_search_separate
from penstock.plan.pool.simulate import TimedPlacement

Placed = PoolPlacement | TimedPlacement
Policy = Callable[[PoolProblem], Placed]
T = TypeVar("T")


def _sr_greedy(problem: PoolProblem) -> Placed:
    return sr_greedy(problem).placement


def _sr_search(problem: PoolProblem) -> Placed:
    return beam_search(problem, [ONE_GPU] * problem.cluster.gpus)


def _mp_greedy(problem: PoolProblem, stages: int) -> Placed:
    return mp_greedy(problem, stages).placement


def _mp_search(problem: PoolProblem) -> Placed:
    return mp_search(problem).placement


def _evolutionary(problem: PoolProblem) -> Placed:
    return evolve(problem, [mp_search(problem).placement])


POLICIES: Mapping[str, Policy] = {
    "sr-uniform": uniform,
    "sr-greedy": _sr_greedy,
    "sr-search": _sr_search,
    "sr-ilp": sr_ilp,
    "sr-replace-60": partial(sr_replace, every_s=60.0),
    "mp-rr": round_robin,
    "mp-greedy-2": partial(_mp_greedy, stages=2),
    "mp-greedy-4": partial(_mp_greedy, stages=4),
    "mp-greedy-8": partial(_mp_greedy, stages=8),
    "mp-search": _mp_search,
    "mp-search-sep": mp_search_separate,
    "mp-ilp": mp_ilp,
    "evolutionary": _evolutionary,
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
