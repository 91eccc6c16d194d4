"""MP-search-sep: models of like latency apart, each cluster of them on GPUs of its own."""

from __future__ import annotations

from collections.abc import Sequence
from functools import cache

import numpy as np

from penstock.errors import InputError
from penstock.plan.pool.greedy import ONE_GPU
from penstock.plan.pool.model import NOBODY, Group, PoolCluster, PoolPlacement, PoolProblem
from penstock.plan.pool.search import (
    AS_PUBLISHED,
    MOST_SPLITS,
    SIMILAR,
    THRESHOLDS,
    ShapeLimits,
    mp_search,
)
from penstock.plan.pool.simulate import score


def like_models(problem: PoolProblem) -> list[list[int]]:
    """Models by latency on one GPU: each joins the first cluster whose first model is within 38 %.

    Raises ``InputError`` for a model that one GPU does not hold.
    """
    clusters: list[list[int]] = []
    for m in range(len(problem.models)):
        seconds = _alone_s(problem, m)
        for cluster in clusters:
            first = _alone_s(problem, cluster[0])
            if abs(seconds - first) / first < SIMILAR:
                cluster.append(m)
                break
        else:
            clusters.append([m])
    return clusters


def _alone_s(problem: PoolProblem, model: int) -> float:
    timing = problem.models[model].profile.timings.get(ONE_GPU)
    if timing is None:
        name = problem.models[model].profile.name
        raise InputError(f"{name} has no profile on one GPU, by which models are separated")
    return max(timing.latency_s)


def gpu_splits(gpus: int, parts: int) -> list[tuple[int, ...]]:
    """Ways to give ``gpus`` to ``parts`` clusters so that each cut leaves nodes of 8 in step."""
    if parts == 1:
        return [(gpus,)]
    found = []
    for last in range(1, gpus):
        if last <= gpus % 8 or (gpus - last) % 8 == 0 or gpus % 8 == 0:
            found += [(*split, last) for split in gpu_splits(gpus - last, parts - 1)]
    return found


def near_splits(
    splits: Sequence[tuple[int, ...]], rates: Sequence[float], latencies_s: Sequence[float]
) -> list[tuple[int, ...]]:
    """Splits whose share of throughput is near the share of traffic: fewer than 100 where the
    narrowest threshold allows it."""
    wanted = np.array(rates, dtype=np.float32)
    wanted = wanted / np.sum(wanted)
    near: list[tuple[int, ...]] = []
    for threshold in THRESHOLDS:
        near = []
        for split in splits:
            speed = np.array([gpus / s for gpus, s in zip(split, latencies_s, strict=True)])
            if np.max(np.abs(wanted - speed / speed.sum())) < threshold:
                near.append(split)
        if len(near) < MOST_SPLITS:
            break
    return near


def mp_search_separate(problem: PoolProblem, limits: ShapeLimits = AS_PUBLISHED) -> PoolPlacement:
    """MP-search over all models, or over clusters of like models where that scores higher.

    A cluster's search sees the whole traffic and serves its own models only, so it depends on
    its GPUs alone and is done once for each number of them.
    """
    best = mp_search(problem, limits)
    clusters = like_models(problem)
    rates = [sum(problem.models[m].rate_rps for m in cluster) for cluster in clusters]
    if not sum(rates) > 0:
        rates = [float(sum(problem.requests_of[cluster])) for cluster in clusters]
    firsts = [_alone_s(problem, cluster[0]) for cluster in clusters]
    splits = near_splits(gpu_splits(problem.cluster.gpus, len(clusters)), rates, firsts)

    @cache
    def groups_of(cluster: int, gpus: int) -> tuple[Group, ...]:
        return _alone(problem, clusters[cluster], gpus, limits)

    found, found_score = best.placement, best.score
    for split in splits:
        groups = [g for c, gpus in enumerate(split) for g in groups_of(c, gpus)]
        placement = PoolPlacement(tuple(groups))
        value = score(problem, placement)
        if value > found_score:
            found, found_score = placement, value
    return found


def _alone(
    problem: PoolProblem, models: Sequence[int], gpus: int, limits: ShapeLimits
) -> tuple[Group, ...]:
    """The groups of MP-search for ``models`` alone on ``gpus``, under the problem's own ids."""
    ids = [NOBODY] * len(problem.models)
    for place, model in enumerate(models):
        ids[model] = place
    part = PoolProblem(
        tuple(problem.models[m] for m in models),
        PoolCluster(gpus, problem.cluster.memory_bytes),
        problem.traffic.renamed(ids),
    )
    groups = mp_search(part, limits).placement.groups
    return tuple(Group(g.shape, tuple(models[m] for m in g.models)) for g in groups)
