"""Profiles as the arrays that the compiled replay reads."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np

from penstock.plan.pool.kernel import (
    Requests,
    State,
    Tables,
    empty_state,
)
from penstock.plan.pool.model import (
    Floats,
    PoolModel,
    PoolPlacement,
    PoolProblem,
    Shape,
)

SLOWER_PER_STAGE = 0.009


def single(values: Floats) -> Floats:
    """Rounded to single precision, in which AlpaServe keeps latencies and deadlines."""
    return values.astype(np.float32).astype(np.float64)


def requests_of(problem: PoolProblem) -> Requests:
    traffic = problem.traffic
    return Requests(
        np.ascontiguousarray(traffic.arrival_s, dtype=np.float64),
        np.ascontiguousarray(traffic.model, dtype=np.int32),
        problem.limit_s,
    )


def tables_of(
    models: Sequence[PoolModel], shapes: Sequence[Shape], batch: int = 1, stages: int = 0
) -> Tables:
    """Tables of groups with ``shapes``; every stage is slower by 0.9 % for each stage there is.

    ``stages`` is the least length of the stage axis. A batch that a profile lacks counts as a
    shape that cannot hold the model.
    """
    kinds = list(dict.fromkeys(shapes))
    most = max([stages, 1, *(shape.pp for shape in kinds)])
    latency = np.full((len(models), len(kinds), most), np.inf)
    weight = np.full((len(models), len(kinds)), np.inf)
    for m, model in enumerate(models):
        for k, shape in enumerate(kinds):
            timing = model.profile.timings.get(shape)
            if timing is None or batch not in timing.stage_latency_s:
                continue
            seconds = np.array(timing.stage_latency_s[batch])
            latency[m, k, : shape.pp] = seconds * (1 + SLOWER_PER_STAGE * shape.pp)
            latency[m, k, shape.pp :] = 0.0
            weight[m, k] = timing.most_weight_bytes
    latency = single(latency)
    return Tables(
        latency,
        latency.max(axis=2),
        weight,
        np.array([shape.pp for shape in kinds], dtype=np.int64),
        np.array([kinds.index(shape) for shape in shapes], dtype=np.int64),
    )


def state_of(problem: PoolProblem, placement: PoolPlacement) -> State:
    """Replicas as ``placement`` has them; groups keep its order, which decides ties."""
    state = empty_state(len(problem.models), len(placement.groups))
    for g, group in enumerate(placement.groups):
        for m in sorted(group.models):
            state.members[g, state.size[g]] = m
            state.size[g] += 1
            state.groups[m, state.holds[m]] = g
            state.holds[m] += 1
    return state
