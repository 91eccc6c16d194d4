"""AlpaServe's evolutionary search: mutated, merged and split groups, resampled by attainment."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np

from penstock.errors import InputError
from penstock.plan.pool.greedy import order_of
from penstock.plan.pool.model import Floats, Group, PoolPlacement, PoolProblem, Shape
from penstock.plan.pool.simulate import simulate_pool

TRIES = 10


@dataclass(frozen=True, slots=True)
class Evolution:
    """How long and how wildly to search; the defaults are AlpaServe's."""

    rounds: int = 200
    population: int = 1024
    mutation: float = 0.05
    merge: float = 0.08
    split: float = 0.08
    seed: int = 0

    def __post_init__(self) -> None:
        if self.rounds < 1 or self.population < 1:
            raise InputError("an evolution needs at least one round and one candidate")


@dataclass(frozen=True)
class _Candidate:
    """``unserved`` [models] shares of all missed requests; even where none was missed."""

    placement: PoolPlacement
    attainment: float
    unserved: Floats


def evolve(
    problem: PoolProblem, start: Sequence[PoolPlacement], evolution: Evolution | None = None
) -> PoolPlacement:
    """The placement of highest attainment that was met; never worse than the best of ``start``.

    Every candidate fits: a mutation that does not is not made. Raises ``InputError`` without a
    start.
    """
    if not start:
        raise InputError("an evolution needs a placement to start from")
    settings = evolution or Evolution()
    random = np.random.default_rng(settings.seed)
    known: dict[PoolPlacement, _Candidate] = {}
    best: _Candidate | None = None
    current = list(start)
    for round_number in range(settings.rounds):
        for placement in current:
            if placement not in known:
                known[placement] = _judge(problem, placement)
        judged = [known[placement] for placement in current]
        for candidate in judged:
            if best is None or candidate.attainment > best.attainment:
                best = candidate
        if best is None or best.attainment >= 1.0 or round_number == settings.rounds - 1:
            break
        known = {candidate.placement: candidate for candidate in judged}
        weights = np.array([candidate.attainment for candidate in judged])
        if not weights.any():
            weights[:] = 1.0
        parents = random.choice(len(judged), settings.population, p=weights / weights.sum())
        current = [_child(problem, judged[p], settings, random) for p in parents.tolist()]
        current.append(best.placement)
    return best.placement if best else start[0]


def _judge(problem: PoolProblem, placement: PoolPlacement) -> _Candidate:
    outcome = simulate_pool(problem, placement)
    models = problem.traffic.model
    missed = models[~outcome.good & (models >= 0)]
    unserved = np.bincount(missed, minlength=len(problem.models)).astype(np.float64)
    total = unserved.sum()
    even = np.full(len(unserved), 1 / len(unserved))
    return _Candidate(placement, outcome.attainment, unserved / total if total else even)


def _child(
    problem: PoolProblem, parent: _Candidate, settings: Evolution, random: np.random.Generator
) -> PoolPlacement:
    groups = list(parent.placement.groups)
    if random.random() < settings.merge:
        _merge(problem, groups, parent.unserved, random)
    if random.random() < settings.split:
        _split(problem, groups, parent.unserved, random)
    groups = [_mutated(problem, group, parent.unserved, settings.mutation, random)
              for group in groups]  # fmt: skip
    return PoolPlacement(tuple(groups)).normalised()


def _mutated(
    problem: PoolProblem,
    group: Group,
    unserved: Floats,
    share: float,
    random: np.random.Generator,
) -> Group:
    """About ``share`` of the replicas become models that miss many requests."""
    for place in np.flatnonzero(random.random(len(group.models)) < share).tolist():
        model = int(random.choice(len(unserved), p=unserved))
        if model in group.models:
            continue
        held = list(group.models)
        held[place] = model
        changed = Group(group.shape, tuple(held))
        if problem.used_bytes(changed) <= problem.cluster.memory_bytes:
            group = changed
    return group


def _merge(
    problem: PoolProblem, groups: list[Group], unserved: Floats, random: np.random.Generator
) -> None:
    """Two groups of one shape become one of twice the stages."""
    for _ in range(TRIES):
        a, b = (int(i) for i in random.integers(len(groups), size=2))
        if a != b and groups[a].shape == groups[b].shape:
            break
    else:
        return
    wider = Shape(groups[a].shape.op, 2 * groups[a].shape.pp)
    merged = _fitted(problem, wider, {*groups[a].models, *groups[b].models}, unserved)
    if merged.models:
        groups[a] = merged
        del groups[b]


def _split(
    problem: PoolProblem, groups: list[Group], unserved: Floats, random: np.random.Generator
) -> None:
    """A group becomes two of half the stages; its models are dealt in turn."""
    for _ in range(TRIES):
        g = int(random.integers(len(groups)))
        if groups[g].shape.pp % 2 == 0:
            break
    else:
        return
    half = Shape(groups[g].shape.op, groups[g].shape.pp // 2)
    ranked = sorted(groups[g].models, key=lambda m: unserved[m])
    first = _fitted(problem, half, set(ranked[::2]), unserved)
    second = _fitted(problem, half, set(ranked[1::2]), unserved)
    groups[g] = first
    groups.append(second)


def _fitted(problem: PoolProblem, shape: Shape, models: set[int], unserved: Floats) -> Group:
    """Drop the least missed models until the rest fits, then add the most missed while they do."""
    memory = problem.cluster.memory_bytes
    held = sorted(models, key=lambda m: (unserved[m], m))
    while held and problem.used_bytes(Group(shape, tuple(held))) > memory:
        del held[0]
    for m in order_of(unserved)[::-1]:
        if m in held:
            continue
        if problem.used_bytes(Group(shape, (*held, m))) > memory:
            break
        held.append(m)
    return Group(shape, tuple(held))
