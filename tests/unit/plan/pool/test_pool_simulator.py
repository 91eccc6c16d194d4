"""The pool simulators against the rules written again, and against each other."""

from __future__ import annotations

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from pool_small import by_the_rules, placements, problem, problems, profile

from penstock.errors import InputError
from penstock.plan.pool.batching import simulate_batching
from penstock.plan.pool.events import simulate_events, without_ends
from penstock.plan.pool.model import (
    Group,
    PoolCluster,
    PoolModel,
    PoolPlacement,
    PoolProblem,
    PoolTraffic,
    Shape,
)
from penstock.plan.pool.simulate import TimedPlacement, simulate_changing, simulate_pool

ONE = Shape(1, 1)


@given(st.data())
@settings(max_examples=60, deadline=None)
def test_every_finish_follows_the_rules(data: st.DataObject) -> None:
    """The compiled replay gives every finish of the rules, to the last bit."""
    pool = data.draw(problems())
    placement = data.draw(placements(pool))
    found = simulate_pool(pool, placement)
    wanted = by_the_rules(pool, placement)
    assert found.good.tolist() == [finish is not None for finish in wanted]
    for latency, finish, arrival in zip(
        found.latency_s, wanted, pool.traffic.arrival_s, strict=True
    ):
        assert latency == (0.0 if finish is None else finish - arrival)


@given(st.data())
@settings(max_examples=25, deadline=None)
def test_plain_python_is_equal_to_the_compiled_form(data: st.DataObject) -> None:
    """The same code gives the same outcome without Numba."""
    pool = data.draw(problems())
    placement = data.draw(placements(pool))
    plain, compiled = (simulate_pool(pool, placement, compiled=flag) for flag in (False, True))
    assert np.array_equal(plain.latency_s, compiled.latency_s)
    assert np.array_equal(plain.group, compiled.group)


def test_two_requests_by_hand() -> None:
    """The second of two requests waits for the first, a third would be late and costs nothing."""
    pool = problem([0.0, 0.0, 0.0, 0.0, 0.0], [0] * 5, [0.1], gpus=1)
    found = simulate_pool(pool, PoolPlacement((Group(ONE, (0,)),)))
    assert found.good.tolist() == [True, True, True, False, False]
    each = 0.1 * 1.009
    assert found.latency_s[:3] == pytest.approx([k * each + 0.011 for k in (1, 2, 3)], abs=1e-7)


def test_swaps_split_the_traffic() -> None:
    """A request at the very time of a swap still goes to the old placement."""
    pool = problem([0.0, 1.0, 1.0], [0, 1, 1], [0.1, 0.1], gpus=1, memory=1.0)
    first, second = (PoolPlacement((Group(ONE, (m,)),)) for m in (0, 1))
    found = simulate_changing(pool, TimedPlacement((0.0, 1.0), (first, second)))
    assert found.good.tolist() == [True, False, True]


def test_what_does_not_fit_is_refused() -> None:
    """Too many GPUs, a model twice, an unknown model and too much weight each raise."""
    pool = problem([0.0], [0], [0.1, 0.1], gpus=1, memory=1.5)
    for groups in (
        (Group(Shape(1, 2), (0,)),),
        (Group(ONE, (0, 0)),),
        (Group(ONE, (2,)),),
        (Group(ONE, (0, 1)),),
        (Group(Shape(1, 3), (0,)),),
    ):
        with pytest.raises(InputError):
            simulate_pool(pool, PoolPlacement(groups))


def test_unordered_arrivals_are_refused() -> None:
    """Traffic must ascend in time."""
    with pytest.raises(InputError, match="ascending"):
        PoolTraffic(np.array([1.0, 0.5]), np.zeros(2, np.int32), np.ones(2))


def test_events_agree_on_an_idle_pool() -> None:
    """Requests far apart take the stages and about 10 ms of hops; all meet their deadline."""
    pool = problem([1.0] * 30, [0, 1, 0] * 10, [0.1, 0.2])
    placement = PoolPlacement((Group(ONE, (0,)), Group(Shape(1, 2), (1,))))
    found = simulate_events(pool, placement, np.random.RandomState(0))
    assert found.good.all()
    stages = np.where(pool.traffic.model == 0, 0.1, 2 * 0.2 * 1.05 / 2)
    hops = found.latency_s - stages
    assert 0.006 < hops.min() < hops.max() < 0.014
    assert without_ends(pool, found) == 1.0


def test_events_send_to_the_shorter_queue() -> None:
    """Two groups with the same model share a burst evenly."""
    pool = problem([0.0] + [0.001] * 5, [0] * 6, [0.5])
    placement = PoolPlacement((Group(ONE, (0,)), Group(ONE, (0,))))
    found = simulate_events(pool, placement, np.random.RandomState(0))
    assert np.bincount(found.group).tolist() == [3, 3]


def _batched(count: int, limit_s: float) -> tuple[PoolProblem, PoolPlacement]:
    model = PoolModel(profile("m", 0.1, 1.0, batches=(1, 2, 4)))
    traffic = PoolTraffic(np.zeros(count), np.zeros(count, np.int32), np.full(count, limit_s))
    pool = PoolProblem((model,), PoolCluster(1, 2.0), traffic)
    return pool, PoolPlacement((Group(ONE, (0,)),))


def test_batches_form_while_a_group_is_busy() -> None:
    """The first request runs alone, the four that wait run together."""
    found = simulate_batching(*_batched(5, 5.0))
    alone, four = 0.1 * 1.009, 0.1 * 2.2 * 1.009
    assert found.latency_s[0] == pytest.approx(0.011 + alone, abs=1e-6)
    assert found.latency_s[1:] == pytest.approx([0.022 + alone + four] * 4, abs=1e-6)


def test_a_batch_keeps_its_head_in_time() -> None:
    """Where four would make the head late, two run together; the rest is dropped when late."""
    found = simulate_batching(*_batched(5, 0.011 + 0.011 + 0.1 * 1.009 * 2.45))
    finish = 0.022 + 0.1 * 1.009 * (1 + 1.4)
    assert found.latency_s[1:3] == pytest.approx([finish] * 2, abs=1e-6)
    assert found.good.tolist() == [True, True, True, False, False]


@given(st.data())
@settings(max_examples=30, deadline=None)
def test_batching_answers_every_request_once(data: st.DataObject) -> None:
    """A good request was asked of a group that holds its model, and took at least its stages."""
    pool = data.draw(problems())
    placement = data.draw(placements(pool))
    found = simulate_batching(pool, placement)
    for good, group, model in zip(found.good, found.group, pool.traffic.model, strict=True):
        assert not good or model in placement.groups[group].models
    assert (found.latency_s[found.good] > 0.011).all()
    assert (found.latency_s[~found.good] == 0).all()
