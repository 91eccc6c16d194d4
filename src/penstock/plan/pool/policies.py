"""AlpaServe's policies by the names its results use."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from functools import partial

from penstock.plan.pool.evolve import evolve
from penstock.plan.pool.greedy import ONE_GPU, beam_search, round_robin, uniform
from penstock.plan.pool.ilp import mp_ilp, sr_ilp
from penstock.plan.pool.model import PoolPlacement, PoolProblem
from penstock.plan.pool.search import AS_PUBLISHED, ShapeLimits, mp_greedy, mp_search, sr_greedy
from penstock.plan.pool.separate import mp_search_separate

Policy = Callable[[PoolProblem, ShapeLimits], PoolPlacement]
"""Places a problem's models; the limits bind policies that choose tensor-parallel shapes."""


def _mp_search(problem: PoolProblem, limits: ShapeLimits) -> PoolPlacement:
    return mp_search(problem, limits).placement


def _mp_greedy(problem: PoolProblem, _: ShapeLimits, stages: int) -> PoolPlacement:
    return mp_greedy(problem, stages).placement


def _evolutionary(problem: PoolProblem, limits: ShapeLimits) -> PoolPlacement:
    return evolve(problem, [_mp_search(problem, limits)])


STATIC_POLICIES: Mapping[str, Policy] = {
    "sr-uniform": lambda problem, _: uniform(problem),
    "sr-greedy": lambda problem, _: sr_greedy(problem).placement,
    "sr-search": lambda problem, _: beam_search(problem, [ONE_GPU] * problem.cluster.gpus),
    "sr-ilp": lambda problem, _: sr_ilp(problem),
    "mp-rr": lambda problem, _: round_robin(problem),
    "mp-greedy-2": partial(_mp_greedy, stages=2),
    "mp-greedy-4": partial(_mp_greedy, stages=4),
    "mp-greedy-8": partial(_mp_greedy, stages=8),
    "mp-search": _mp_search,
    "mp-search-sep": mp_search_separate,
    "mp-ilp": lambda problem, _: mp_ilp(problem),
    "evolutionary": _evolutionary,
}


def place(name: str, problem: PoolProblem, limits: ShapeLimits = AS_PUBLISHED) -> PoolPlacement:
    """The placement of the policy called ``name``, one of ``STATIC_POLICIES``."""
    return STATIC_POLICIES[name](problem, limits)
