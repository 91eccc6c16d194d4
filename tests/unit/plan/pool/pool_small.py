"""Small pools for tests, and the rules of the fast simulator written a second time."""

from __future__ import annotations

from itertools import product

import numpy as np
from hypothesis import strategies as st

from penstock.plan.pool.model import (
    Group,
    LatencyProfile,
    PoolCluster,
    PoolModel,
    PoolPlacement,
    PoolProblem,
    PoolTraffic,
    Shape,
    Timing,
)

SHAPES = (Shape(1, 1), Shape(1, 2), Shape(2, 1), Shape(2, 2), Shape(1, 4))


def profile(
    name: str, seconds: float, weight: float, batches: tuple[int, ...] = (1,)
) -> LatencyProfile:
    """Latency and weight spread over the GPUs of a group, with 5 % lost at each cut."""
    timings = {}
    for shape in SHAPES:
        each = seconds * (1 + 0.05 * (shape.gpus - 1)) / shape.gpus
        stages = {b: tuple(each * (0.6 + 0.4 * b) for _ in range(shape.pp)) for b in batches}
        timings[shape] = Timing(stages, (weight / shape.gpus,) * shape.pp)
    return LatencyProfile(name, timings)


def problem(
    gaps: list[float], models: list[int], seconds: list[float], gpus: int = 4, memory: float = 2.5
) -> PoolProblem:
    """Model i takes ``seconds[i]`` and weighs 1; deadlines are four times the latency."""
    arrival = np.cumsum(np.array(gaps))
    ids = np.array(models, dtype=np.int32)
    limits = np.array([4 * seconds[m] if m >= 0 else 1.0 for m in models])
    pool = tuple(PoolModel(profile(f"m{i}", s, 1.0), 4 * s, 1.0 / s) for i, s in enumerate(seconds))
    return PoolProblem(pool, PoolCluster(gpus, memory), PoolTraffic(arrival, ids, limits))


@st.composite
def problems(draw: st.DrawFn) -> PoolProblem:
    """Up to five models and 60 requests; ties in time are common, some requests are nobody's."""
    count = draw(st.integers(1, 5))
    n = draw(st.integers(1, 60))
    gaps = draw(st.lists(st.sampled_from([0.0, 0.0, 0.01, 0.05, 0.3]), min_size=n, max_size=n))
    models = draw(st.lists(st.integers(-1, count - 1), min_size=n, max_size=n))
    seconds = draw(
        st.lists(st.sampled_from([0.05, 0.1, 0.1, 0.25]), min_size=count, max_size=count)
    )
    return problem(gaps, models, seconds, memory=draw(st.sampled_from([0.7, 1.0, 2.5, 4.0])))


@st.composite
def placements(draw: st.DrawFn, pool: PoolProblem) -> PoolPlacement:
    """Any placement of up to four groups that fits."""
    groups = []
    left = pool.cluster.gpus
    while left > 0 and len(groups) < 4:
        shape = draw(st.sampled_from([s for s in SHAPES if s.gpus <= left]))
        left -= shape.gpus
        held: list[int] = []
        for m in range(len(pool.models)):
            wanted = Group(shape, (*held, m))
            if draw(st.booleans()) and pool.used_bytes(wanted) <= pool.cluster.memory_bytes:
                held.append(m)
        groups.append(Group(shape, tuple(held)))
    return PoolPlacement(tuple(groups))


def by_the_rules(pool: PoolProblem, placement: PoolPlacement) -> list[float | None]:
    """Finish of every request, None where it is rejected; plain lists, one request at a time."""
    clocks = [[0.0] * group.shape.pp for group in placement.groups]
    answers: list[float | None] = []
    traffic = pool.traffic
    rows = zip(traffic.arrival_s.tolist(), traffic.model.tolist(), traffic.slo_s, strict=True)
    for time, model, limit in rows:
        homes = [g for g, group in enumerate(placement.groups) if model in group.models]
        if not homes:
            answers.append(None)
            continue
        g = min(homes, key=lambda home: clocks[home][-1])
        shape = placement.groups[g].shape
        reached, at = [], time
        timing = pool.models[model].profile.timings[shape]
        for clock, seconds in zip(clocks[g], timing.latency_s, strict=True):
            at = max(at, clock) + float(np.float32(seconds * (1 + 0.009 * shape.pp)))
            reached.append(at)
        if reached[-1] + 0.011 - time <= float(np.float32(limit)):
            clocks[g] = reached
            answers.append(reached[-1] + 0.011)
        else:
            answers.append(None)
    return answers


def every_filling(pool: PoolProblem, shapes: list[Shape]) -> list[PoolPlacement]:
    """Every placement on groups of ``shapes`` that fits."""
    count = len(pool.models)
    subsets = [tuple(m for m in range(count) if bits >> m & 1) for bits in range(1 << count)]
    found = []
    for choice in product(subsets, repeat=len(shapes)):
        groups = tuple(Group(s, ms) for s, ms in zip(shapes, choice, strict=True))
        if all(pool.used_bytes(group) <= pool.cluster.memory_bytes for group in groups):
            found.append(PoolPlacement(groups))
    return found
