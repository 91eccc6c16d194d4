"""MP-search: every way to cut a pool into groups of one shape, filled greedily; the best score."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from penstock.errors import InputError
from penstock.plan.pool.greedy import ONE_GPU, Grown, grow_replicas, powers_of_two
from penstock.plan.pool.kernel import OVERHEAD_S
from penstock.plan.pool.model import Floats, PoolCluster, PoolProblem, Shape
from penstock.plan.pool.simulate import PER_REPLICA, TimedPlacement
from penstock.plan.pool.tables import tables_of


@dataclass(frozen=True, slots=True)
class ShapeLimits:
    """The widest group: ``max_op`` tensor-parallel ways, ``max_pp`` stages."""

    max_op: int = 4
    max_pp: int = 8


AS_PUBLISHED = ShapeLimits()
AS_MAVERIQ = ShapeLimits(max_op=8, max_pp=8)
SIMILAR = 0.38
THRESHOLDS = (1.0, 0.5, 0.3, 0.2, 0.1)
MOST_SPLITS = 100


def shape_mixes(cluster: PoolCluster, limits: ShapeLimits) -> list[tuple[Shape, ...]]:
    """Shapes of all groups, one tuple a candidate, smallest groups first.

    Group sizes are powers of two; GPUs that are left over form pipelines of powers of two. A group
    wider than a node takes whole nodes.
    """
    mixes = []
    size = 1
    while size <= cluster.gpus:
        whole = size <= cluster.gpus_per_node or size % cluster.gpus_per_node == 0
        if whole:
            rest = tuple(Shape(1, pp) for pp in powers_of_two(cluster.gpus % size))
            stages = [1 << bit for bit in range(size.bit_length())]
            mixes += [
                (Shape(size // pp, pp),) * (cluster.gpus // size) + rest
                for pp in stages
                if pp <= limits.max_pp and size // pp <= limits.max_op
            ]
        size *= 2
    return mixes


def score_bound(problem: PoolProblem, shapes: Sequence[Shape]) -> float:
    """No placement on groups of ``shapes`` scores higher.

    A model's requests count where some group that has room for it, idle, would meet the longest
    of their deadlines; of these no more than the groups have seconds for; latency counts 0, and
    every group holds as many of the lightest models as fit.
    """
    kinds = list(dict.fromkeys(shapes))
    tables = tables_of(problem.models, kinds)
    memory = problem.cluster.memory_bytes
    fits = tables.weight <= memory
    alone = np.where(fits, tables.latency.sum(axis=2), np.inf).min(axis=1)
    # The replay adds stage by stage, which rounds otherwise than a sum.
    reachable = alone + OVERHEAD_S <= problem.longest_limit_s * (1 + 1e-9)
    served = float(problem.requests_of[reachable].sum())
    room_s = len(shapes) * problem.horizon_s * (1 + 1e-9)
    for stage in (np.zeros(len(kinds), np.int64), tables.stages - 1):
        pace = np.where(fits, tables.latency[:, np.arange(len(kinds)), stage], np.inf).min(axis=1)
        served = min(served, _most(problem.requests_of[reachable], pace[reachable], room_s))
    replicas = 0
    for k, shape in enumerate(kinds):
        filled = np.cumsum(np.sort(tables.weight[:, k]))
        room = int(np.count_nonzero(filled <= memory * (1 + 1e-9)))
        replicas += room * shapes.count(shape)
    return served / max(1, problem.traffic.num_requests) + PER_REPLICA * replicas


def _most(requests: NDArray[np.int64], pace_s: Floats, room_s: float) -> float:
    """Most requests that fit into ``room_s``, the quick ones first, the last one in part."""
    order = np.argsort(pace_s, kind="stable")
    seconds = np.cumsum(requests[order] * pace_s[order])
    whole = int(np.searchsorted(seconds, room_s, side="right"))
    served = float(requests[order[:whole]].sum())
    if whole < len(order):
        before = float(seconds[whole - 1]) if whole else 0.0
        served += (room_s - before) / float(pace_s[order[whole]])
    return served


def mp_search(
    problem: PoolProblem, limits: ShapeLimits = AS_PUBLISHED, *, by_seconds: bool = False
) -> Grown:
    """The best of all shape mixes; the first of equal ones.

    Mixes whose bound cannot beat the best so far are not grown. Raises ``InputError`` where the
    limits leave no mix.
    """
    mixes = shape_mixes(problem.cluster, limits)
    if not mixes:
        raise InputError("no group shape is within the limits; raise max_op or max_pp")
    bounds = [score_bound(problem, mix) for mix in mixes]
    best: Grown | None = None
    best_at = -1
    decided = 0
    for at in sorted(range(len(mixes)), key=lambda i: (-bounds[i], i)):
        if best is not None and bounds[at] < best.score:
            break
        found = grow_replicas(problem, mixes[at], by_seconds=by_seconds)
        decided += found.decided
        if best is None or (found.score, -at) > (best.score, -best_at):
            best, best_at = found, at
    if best is None:
        raise InputError("a pool without shapes")
    return Grown(best.placement, best.outcome, decided)


def sr_greedy(problem: PoolProblem) -> Grown:
    """Greedy replicas on groups of one GPU."""
    return grow_replicas(problem, [ONE_GPU] * problem.cluster.gpus)


def mp_greedy(problem: PoolProblem, stages: int) -> Grown:
    """Greedy replicas on pipelines of ``stages``. Raises ``InputError`` where GPUs are left."""
    if problem.cluster.gpus % stages:
        raise InputError(f"{problem.cluster.gpus} GPUs are no multiple of {stages}")
    return grow_replicas(problem, [Shape(1, stages)] * (problem.cluster.gpus // stages))


def sr_replace(problem: PoolProblem, every_s: float) -> TimedPlacement:
    """SR-greedy anew for every window of the traffic itself, swaps free (an upper bound).

    A window starts with the first request later than ``every_s`` after the start of the last one.
    """
    if not every_s > 0:
        raise InputError("sr-replace needs a window longer than 0 s")
    arrival = problem.traffic.arrival_s
    starts = [0]
    for i in range(1, len(arrival)):
        if arrival[i] > arrival[starts[-1]] + every_s:
            starts.append(i)
    windows = zip(starts, [*starts[1:], len(arrival)], strict=True)
    placements = [
        sr_greedy(PoolProblem(problem.models, problem.cluster, problem.traffic.part(a, b)))
        for a, b in windows
    ]
    begins = tuple(float(arrival[i]) for i in starts) if len(arrival) else (0.0,)
    return TimedPlacement(begins, tuple(found.placement for found in placements))
