"""Small changes to a good candidate, kept when the surrogate likes them."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np

from penstock.plan.fleet import Fleet
from penstock.plan.placement import PlacementProblem
from penstock.plan.search import kernel
from penstock.plan.search.constructors import fill
from penstock.plan.search.engine import UNIT, instance
from penstock.plan.search.ladder import Candidate, Routes
from penstock.plan.surrogate import Surrogate


@dataclass(frozen=True)
class PolishJob:
    """``steps`` proposals around a candidate; ``demand`` in tokens/s."""

    problem: PlacementProblem
    fleet: Fleet
    candidate: Candidate
    demand: float
    steps: int
    seed: int


def polish(job: PolishJob) -> Candidate:
    """Hill-climb on the surrogate's decode throughput with the moves of the annealing."""
    problem, fleet = job.problem, job.fleet
    surrogate, routes = Surrogate(problem), Routes(problem)
    moves = instance(fleet)
    work = kernel.work_space(fleet.num_nodes, fleet.num_layers, UNIT)
    work.random[0] = job.seed % kernel.MASK + 1
    best = job.candidate
    value = surrogate.decode_tokens_per_s(best.placement, best.flow)
    whole = best.placement.intervals
    start, end = fill(fleet, [whole[i] for i in fleet.origin.tolist()])
    for _ in range(job.steps):
        new_start, new_end = start.copy(), end.copy()
        if not kernel.propose(moves, new_start, new_end, work):
            continue
        demand = job.demand * float(np.exp((kernel.draw(work, 1000) - 500) / 5000))
        intervals = list(zip(new_start.tolist(), new_end.tolist(), strict=True))
        placement = fleet.placement(intervals, problem.num_nodes)
        made = routes.serving(placement, demand, best.rung)
        if made is None:
            continue
        estimate = surrogate.decode_tokens_per_s(made.placement, made.flow)
        if estimate > value * (1 + 1e-9):
            best, value, start, end = made, estimate, new_start, new_end
    return best
