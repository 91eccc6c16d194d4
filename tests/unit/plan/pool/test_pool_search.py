"""The pool searches: their rules, their laws, and brute force on tiny pools."""

from __future__ import annotations

import numpy as np
import pytest
from hypothesis import assume, given, settings
from hypothesis import strategies as st
from pool_small import SHAPES, every_filling, placements, problem, problems

from penstock.errors import InputError
from penstock.plan.pool.evolve import Evolution, evolve
from penstock.plan.pool.greedy import (
    beam_search,
    grow_replicas,
    order_of,
    powers_of_two,
    round_robin,
    uniform,
)
from penstock.plan.pool.ilp import capability, mp_ilp, sr_ilp
from penstock.plan.pool.improve import pool_search
from penstock.plan.pool.model import Group, PoolCluster, PoolPlacement, PoolProblem, Shape
from penstock.plan.pool.search import (
    ShapeLimits,
    mp_search,
    score_bound,
    shape_mixes,
    sr_greedy,
    sr_replace,
)
from penstock.plan.pool.separate import gpu_splits, like_models, mp_search_separate
from penstock.plan.pool.simulate import score, simulate_pool

ONE = Shape(1, 1)
MIXES = ([ONE] * 4, [Shape(1, 2)] * 2, [Shape(2, 2)], [Shape(1, 2), ONE, ONE])


def greedy_by_full_replays(pool: PoolProblem, shapes: list[Shape]) -> PoolPlacement:
    """Greedy with one whole simulation for each replica."""
    placement = PoolPlacement(tuple(Group(shape) for shape in shapes))
    asked = pool.requests_of
    while True:
        found = simulate_pool(pool, placement)
        good = np.bincount(pool.traffic.model[found.good], minlength=len(pool.models))
        handled = np.bincount(found.group[found.group >= 0], minlength=len(shapes))
        unserved = [n * (1 - g / (n + 1e-6)) for n, g in zip(asked, good, strict=True)]
        pairs = (
            (g, m) for g in order_of([float(h) for h in handled]) for m in order_of(unserved)[::-1]
        )
        for g, m in pairs:
            group = placement.groups[g]
            room = pool.cluster.memory_bytes - pool.used_bytes(group)
            if m not in group.models and pool.weight_bytes(m, group.shape) <= room:
                placement = placement.adding(g, m).normalised()
                break
        else:
            return placement


@given(problems(), st.sampled_from(MIXES))
@settings(max_examples=60, deadline=None)
def test_growing_equals_full_replays(pool: PoolProblem, shapes: list[Shape]) -> None:
    """Deciding again only what a replica can change gives the placement and every latency."""
    grown = grow_replicas(pool, shapes)
    assert grown.placement == greedy_by_full_replays(pool, shapes)
    replayed = simulate_pool(pool, grown.placement)
    assert np.array_equal(grown.outcome.latency_s, replayed.latency_s)
    assert np.array_equal(grown.outcome.group, replayed.group)


@given(problems(), st.sampled_from(MIXES), st.booleans())
@settings(max_examples=15, deadline=None)
def test_growing_is_the_same_in_plain_python(
    pool: PoolProblem, shapes: list[Shape], by_seconds: bool
) -> None:
    """The compiled leaf equals its own plain form."""
    plain, compiled = (
        grow_replicas(pool, shapes, by_seconds=by_seconds, compiled=flag) for flag in (False, True)
    )
    assert plain.placement == compiled.placement
    assert np.array_equal(plain.outcome.latency_s, compiled.outcome.latency_s)
    assert plain.decided == compiled.decided


@given(st.data())
@settings(max_examples=30, deadline=None)
def test_growing_from_replicas_keeps_them(data: st.DataObject) -> None:
    """Replicas that are given stay, the result fits, and its outcome is that of a full replay."""
    pool = data.draw(problems())
    start = data.draw(placements(pool))
    assume(start.groups)
    grown = grow_replicas(
        pool,
        [group.shape for group in start.groups],
        kept=[(g, m) for g, group in enumerate(start.groups) for m in group.models],
    )
    pool.check(grown.placement)
    before = sorted((g.shape, m) for g in start.groups for m in g.models)
    after = [(g.shape, m) for g in grown.placement.groups for m in g.models]
    for one in set(before):
        assert after.count(one) >= before.count(one)
    assert np.array_equal(grown.outcome.latency_s, simulate_pool(pool, grown.placement).latency_s)


def test_growing_many_groups_equals_full_replays() -> None:
    """Forty groups and twenty-five models: more than the bits that mark groups out of step."""
    random = np.random.default_rng(3)
    models = random.integers(0, 25, 900).tolist()
    pool = problem(random.exponential(0.004, 900).tolist(), models, [0.1, 0.15] * 12 + [0.2],
                   gpus=40, memory=2.0)  # fmt: skip
    shapes = [ONE] * 40
    grown = grow_replicas(pool, shapes)
    assert grown.placement == greedy_by_full_replays(pool, shapes)
    assert grown.decided < 0.5 * 80 * 900


@given(st.lists(st.integers(0, 5), max_size=80))
def test_order_sorts(values: list[int]) -> None:
    """The order is a permutation that sorts."""
    order = order_of([float(v) for v in values])
    assert sorted(order) == list(range(len(values)))
    assert [values[i] for i in order] == sorted(values)


def test_few_equal_values_stay_in_place() -> None:
    """Up to seventeen equal values keep their order."""
    assert order_of([0.0] * 17) == list(range(17))


@given(problems(), st.sampled_from(MIXES))
@settings(max_examples=40, deadline=None)
def test_no_filling_beats_the_bound(pool: PoolProblem, shapes: list[Shape]) -> None:
    """The bound that prunes shapes holds for every placement (every filling of two models)."""
    assume(len(pool.models) <= 2)
    bound = score_bound(pool, shapes)
    for placement in every_filling(pool, list(shapes)):
        assert score(pool, placement) <= bound + 1e-12


@given(problems())
@settings(max_examples=30, deadline=None)
def test_mp_search_is_the_best_of_all_mixes(pool: PoolProblem) -> None:
    """Pruning changes nothing: the score is that of the best mix, the first of equals."""
    limits = ShapeLimits(2, 4)
    found = mp_search(pool, limits)
    every = [grow_replicas(pool, mix) for mix in shape_mixes(pool.cluster, limits)]
    best = max(every, key=lambda grown: grown.score)
    assert found.placement == best.placement
    assert found.score == best.score


@given(problems())
@settings(max_examples=20, deadline=None)
def test_our_search_is_never_worse(pool: PoolProblem) -> None:
    """It scores at least MP-search, fits, says what a replay says, and repeats itself."""
    limits = ShapeLimits(2, 4)
    found = pool_search(pool, limits, rounds=6)
    pool.check(found.placement)
    assert found.score >= mp_search(pool, limits).score
    assert score(pool, found.placement) == pytest.approx(found.score, abs=1e-12)
    assert pool_search(pool, limits, rounds=6).placement == found.placement


def test_beam_search_finds_the_best_pair() -> None:
    """On a pool small enough to try everything a wide beam finds the best placement."""
    pool = problem([0.02] * 40, [0, 0, 1, 2] * 10, [0.1, 0.1, 0.2], gpus=2, memory=2.5)
    found = beam_search(pool, [ONE, ONE], width=50)
    best = max(score(pool, one.normalised()) for one in every_filling(pool, [ONE, ONE]))
    assert score(pool, found) == pytest.approx(best, abs=1e-12)


def test_shapes_of_six_gpus() -> None:
    """Sizes are powers of two; two GPUs that are left over form one pipeline."""
    mixes = shape_mixes(PoolCluster(6, 1.0), ShapeLimits(max_op=2, max_pp=4))
    assert mixes == [
        (ONE,) * 6,
        (Shape(2, 1),) * 3,
        (Shape(1, 2),) * 3,
        (Shape(2, 2), Shape(1, 2)),
        (Shape(1, 4), Shape(1, 2)),
    ]


def test_leftovers_are_powers_of_two() -> None:
    """Seven is 1, 2 and 4."""
    assert powers_of_two(7) == [1, 2, 4]
    assert powers_of_two(0) == []


def test_round_robin_deals_in_turn() -> None:
    """Models go to groups in turn until what is next does not fit anywhere."""
    pool = problem([0.0], [0], [0.1] * 5, gpus=5, memory=0.5)
    found = round_robin(pool)
    assert [str(group.shape) for group in found.groups] == ["tp1pp4", "tp1pp1"]
    assert found.groups[0].models == (0,)
    held = round_robin(problem([0.0], [0], [0.1] * 5, gpus=8, memory=0.5)).groups
    assert [group.models for group in held] == [(0, 2), (1, 3)]


def test_uniform_turns_by_one() -> None:
    """Group i starts with model i."""
    found = uniform(problem([0.0], [0], [0.1] * 3, gpus=4, memory=2.5))
    assert [group.models for group in found.groups] == [(0, 1), (1, 2), (2, 0), (0, 1)]


def test_replacing_serves_what_one_placement_cannot() -> None:
    """Where demand moves from one model to another, windows of it serve more."""
    pool = problem([0.11] * 40, [0] * 20 + [1] * 20, [0.1, 0.1], gpus=1, memory=1.0)
    timed = sr_replace(pool, 2.2)
    assert timed.placements[0].groups[0].models == (0,)
    assert timed.placements[-1].groups[0].models == (1,)
    assert sr_greedy(pool).outcome.attainment == 0.5


def test_capability_counts_the_pipeline() -> None:
    """Deadline 0.4 s over two stages of 0.0525 s: six requests, less 1 % a stage."""
    model = problem([0.0], [0], [0.1]).models[0]
    assert capability(model, Shape(1, 2)) == pytest.approx(6 * 0.99**2)
    assert capability(model, Shape(8, 8)) == 0.0


def test_ilps_raise_the_least_served() -> None:
    """With room for one replica each, every model has one."""
    pool = problem([0.0], [0], [0.1, 0.1, 0.2], gpus=3, memory=1.0)
    assert sorted(m for g in sr_ilp(pool).groups for m in g.models) == [0, 1, 2]
    pipelines = mp_ilp(pool)
    assert pipelines.gpus == 3
    assert {m for group in pipelines.groups for m in group.models} == {0, 1, 2}


def test_ilps_need_rates() -> None:
    """A model without a rate is a mistake, not a division by zero."""
    pool = problem([0.0], [0], [0.1])
    bare = PoolProblem((type(pool.models[0])(pool.models[0].profile),), pool.cluster, pool.traffic)
    with pytest.raises(InputError, match="rate"):
        sr_ilp(bare)


def test_unlike_models_are_kept_apart() -> None:
    """Within 38 % of the first model of a cluster is alike; separation never scores less."""
    pool = problem([0.02] * 60, [0, 1, 2, 2] * 15, [0.1, 0.12, 0.25], gpus=4, memory=2.5)
    assert like_models(pool) == [[0, 1], [2]]
    found = mp_search_separate(pool, ShapeLimits(2, 4))
    pool.check(found)
    assert score(pool, found) >= mp_search(pool, ShapeLimits(2, 4)).score


def test_splits_give_every_cluster_gpus() -> None:
    """All ways for eight GPUs; for twelve only those that keep nodes of eight in step."""
    assert gpu_splits(8, 2) == [(8 - i, i) for i in range(1, 8)]
    assert gpu_splits(12, 2) == [(11, 1), (10, 2), (9, 3), (8, 4)]
    assert all(sum(split) == 16 and min(split) > 0 for split in gpu_splits(16, 3))


def test_no_shape_within_the_limits_is_said() -> None:
    """Limits of zero leave nothing to search."""
    with pytest.raises(InputError, match="limits"):
        mp_search(problem([0.0], [0], [0.1]), ShapeLimits(0, 0))


def test_shapes_start_at_one() -> None:
    """A shape without GPUs does not exist."""
    with pytest.raises(InputError):
        Shape(0, 1)
    assert all(shape.gpus == shape.op * shape.pp for shape in SHAPES)


@given(problems(), st.integers(0, 3))
@settings(max_examples=20, deadline=None)
def test_evolution_never_loses(pool: PoolProblem, seed: int) -> None:
    """What comes out fits, serves at least as much as the start, and repeats itself."""
    start = sr_greedy(pool)
    evolution = Evolution(rounds=4, population=12, mutation=0.3, merge=0.5, split=0.5, seed=seed)
    found = evolve(pool, [start.placement], evolution)
    pool.check(found)
    assert simulate_pool(pool, found).attainment >= start.outcome.attainment
    assert evolve(pool, [start.placement], evolution) == found


def test_evolution_merges_groups_that_lack_a_model() -> None:
    """Without mutation only a merge, which fills the room, lets the other model in."""
    pool = problem([0.2] * 20, [0, 1] * 10, [0.1, 0.1], gpus=2, memory=1.9)
    start = PoolPlacement((Group(ONE, (0,)), Group(ONE, (0,))))
    found = evolve(pool, [start], Evolution(rounds=20, population=20, mutation=0.0, merge=0.3))
    assert simulate_pool(pool, found).attainment == 1.0


def test_evolution_needs_a_start() -> None:
    """No placement, no evolution."""
    with pytest.raises(InputError, match="start"):
        evolve(problem([0.0], [0], [0.1]), [])
