"""Replicas for given groups, one at a time: greedy, beam, round robin, uniform."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np

from penstock.errors import InputError
from penstock.plan.pool.kernel import (
    compiled_grow,
    compiled_replay,
    empty_record,
    empty_state,
    grow,
    sorted_order,
)
from penstock.plan.pool.model import Floats, Group, PoolPlacement, PoolProblem, Shape
from penstock.plan.pool.simulate import PoolOutcome, outcome_of
from penstock.plan.pool.tables import requests_of, state_of, tables_of

ONE_GPU = Shape(1, 1)


@dataclass(frozen=True)
class Grown:
    """A placement and what it does; ``decided`` requests were looked at to find it."""

    placement: PoolPlacement
    outcome: PoolOutcome
    decided: int

    @property
    def score(self) -> float:
        return self.outcome.score(self.placement.replicas)


def grow_replicas(
    problem: PoolProblem,
    shapes: Sequence[Shape],
    *,
    by_seconds: bool = False,
    kept: Sequence[tuple[int, int]] = (),
    compiled: bool = True,
) -> Grown:
    """AlpaServe's greedy: the most unserved model that fits onto the least asked group, again
    and again until nothing fits.

    ``by_seconds`` ranks groups by seconds of service instead of by requests, which is fairer
    where models differ. ``kept`` replicas (place in ``shapes``, model) are there from the start.
    """
    requests = requests_of(problem)
    tables = tables_of(problem.models, shapes)
    state = empty_state(len(problem.models), len(shapes))
    record = empty_record(problem.traffic.num_requests, tables.latency.shape[2])
    run = compiled_grow() if compiled else grow
    memory, asked = float(problem.cluster.memory_bytes), problem.requests_of
    given = np.array(kept, dtype=np.int32).reshape(-1, 2)
    decided = run(requests, tables, state, record, memory, asked, by_seconds, given)
    groups = tuple(
        Group(shapes[g], tuple(int(m) for m in state.members[g, : state.size[g]]))
        for g in state.order.tolist()
    )
    rank = np.append(state.rank, -1)
    record.choice[:] = rank[record.choice]
    return Grown(PoolPlacement(groups), outcome_of(problem.traffic, record), int(decided))


def order_of(values: Sequence[float] | Floats) -> list[int]:
    """Indices that sort ``values`` upwards, equal ones as AlpaServe meets them."""
    order, stack = np.empty(len(values), np.int64), np.empty(256, np.int64)
    sorted_order(np.array(values, dtype=np.float64), order, stack)
    return [int(i) for i in order]


def beam_search(problem: PoolProblem, shapes: Sequence[Shape], width: int = 3) -> PoolPlacement:
    """Keep the ``width`` best of all single additions, step by step; the best ever seen.

    A replica must leave some memory free here: AlpaServe's test is strict in this search.
    """
    simulate = _Simulator(problem, shapes)
    empty = PoolPlacement(tuple(Group(shape) for shape in shapes))
    beam, best, best_score = [empty], empty, -1.0
    visited = set()
    while True:
        following = []
        for placement in beam:
            for g, m in _strict_additions(problem, placement):
                found = placement.adding(g, m).normalised()
                key = tuple(group.models for group in found.groups)
                if key not in visited:
                    visited.add(key)
                    following.append(found)
        if not following:
            return best
        scores = [simulate.score(placement) for placement in following]
        beam = []
        for i in order_of(scores)[::-1][:width]:
            beam.append(following[i])
            if scores[i] > best_score:
                best, best_score = following[i], scores[i]


def _strict_additions(problem: PoolProblem, placement: PoolPlacement) -> list[tuple[int, int]]:
    found = []
    for g, group in enumerate(placement.groups):
        used = problem.used_bytes(group)
        for m in range(len(problem.models)):
            room = problem.weight_bytes(m, group.shape) + used < problem.cluster.memory_bytes
            if room and m not in group.models:
                found.append((g, m))
    return found


class _Simulator:
    """Scores many placements of one problem without building its arrays again."""

    def __init__(self, problem: PoolProblem, shapes: Sequence[Shape]) -> None:
        self.problem = problem
        self.kinds = tuple(dict.fromkeys(shapes))
        self.requests = requests_of(problem)
        self.tables = tables_of(problem.models, self.kinds)
        stages = self.tables.latency.shape[2]
        self.record = empty_record(problem.traffic.num_requests, stages)

    def score(self, placement: PoolPlacement) -> float:
        shape = np.array([self.kinds.index(g.shape) for g in placement.groups], dtype=np.int64)
        tables = self.tables._replace(shape=shape)
        state = state_of(self.problem, placement)
        compiled_replay()(self.requests, tables, state, self.record)
        return outcome_of(self.problem.traffic, self.record).score(placement.replicas)


def round_robin(problem: PoolProblem, stages: int = 4) -> PoolPlacement:
    """MP-RR: groups of (1, ``stages``), leftover GPUs in powers of two; deal the models in turn.

    A group that is full keeps its turn, as in AlpaServe: once it holds what it can, dealing ends.
    """
    gpus = problem.cluster.gpus
    shapes = [Shape(1, stages)] * (gpus // stages)
    shapes += [Shape(1, size) for size in powers_of_two(gpus % stages)]
    held: list[list[int]] = [[] for _ in shapes]
    used = [0.0] * len(shapes)
    turn, found = 0, True
    while found:
        found = False
        for m in range(len(problem.models)):
            weight = problem.weight_bytes(m, shapes[turn])
            if m in held[turn] or weight + used[turn] > problem.cluster.memory_bytes:
                continue
            found = True
            used[turn] += weight
            held[turn].append(m)
            turn = (turn + 1) % len(shapes)
    return PoolPlacement(
        tuple(Group(shape, tuple(ms)) for shape, ms in zip(shapes, held, strict=True))
    )


def powers_of_two(total: int) -> list[int]:
    """The powers of two that sum to ``total``, ascending."""
    return [1 << bit for bit in range(total.bit_length()) if total >> bit & 1]


def uniform(problem: PoolProblem) -> PoolPlacement:
    """SR-uniform: one GPU a group; group i holds models i, i + 1, ... as many as fit.

    As many as fit of the first model, as AlpaServe counts. Raises ``InputError`` where other
    models are larger and do not fit.
    """
    count = len(problem.models)
    weight = problem.weight_bytes(0, ONE_GPU)
    each = min(int(problem.cluster.memory_bytes / weight), count)
    placement = PoolPlacement(
        tuple(
            Group(ONE_GPU, tuple((g + i) % count for i in range(each)))
            for g in range(problem.cluster.gpus)
        )
    )
    try:
        problem.check(placement)
    except InputError as error:
        raise InputError(f"sr-uniform counts by the first model, and {error}") from error
    return placement
