"""When traffic has moved enough to plan anew."""

from __future__ import annotations

import pytest
from hypothesis import given
from hypothesis import strategies as st

from penstock.errors import SpecError
from penstock.policy.replan import ReplanController, ReplanSettings, rates_of
from penstock.spec.workload import Request, Workload

SETTINGS = ReplanSettings(window_s=100.0, rest_s=50.0, factor=1.5, z=3.0)


def requests(model: str, count: int, start_s: float = 0.0, span_s: float = 100.0) -> list[Request]:
    return [Request(i, start_s + span_s * i / count, 10, 10, model, model) for i in range(count)]


def controller(**rates: float) -> ReplanController:
    return ReplanController(rates, SETTINGS)


def test_planned_traffic_moves_nothing() -> None:
    watch = controller(a=1.0)
    watch.observe(100.0, requests("a", 100))
    assert watch.moved(100.0) == ()


def test_a_rate_outside_of_its_band_is_named_with_both_figures() -> None:
    watch = controller(a=1.0, b=1.0)
    seen = sorted(requests("a", 300) + requests("b", 90), key=lambda one: one.arrival_s)
    watch.observe(100.0, seen)
    (moved,) = watch.moved(100.0)
    assert (moved.model, moved.planned_per_s, moved.seen_per_s) == ("a", 1.0, 3.0)


def test_a_rate_that_falls_counts_too() -> None:
    watch = controller(a=1.0)
    watch.observe(100.0, requests("a", 20))
    assert [one.model for one in watch.moved(100.0)] == ["a"]


def test_few_requests_more_are_chance() -> None:
    """Six for three planned is twice the rate, and within three standard deviations."""
    watch = controller(a=0.03)
    watch.observe(100.0, requests("a", 6))
    assert watch.moved(100.0) == ()


def test_nothing_is_said_before_the_first_window_is_full() -> None:
    watch = controller(a=1.0)
    watch.observe(60.0, requests("a", 300, span_s=60.0))
    assert watch.moved(60.0) == ()


def test_it_plans_for_the_window_and_rests_afterwards() -> None:
    """The trace starts at 0, and the new rates are the planned ones from then on."""
    watch = controller(a=1.0)
    like = Workload("w", 900.0)
    watch.observe(150.0, requests("a", 300, start_s=50.0))
    traffic = watch.ask(150.0, like)
    assert traffic is not None
    arrivals = [request.arrival_s for request in traffic.requests()]
    assert (len(arrivals), arrivals[0], traffic.duration_s) == (300, 0.0, 100.0)
    assert watch.rates_per_s == {"a": 3.0}
    watch.observe(160.0, requests("b", 200, start_s=150.0, span_s=10.0))
    assert watch.moved(160.0) == ()
    assert [one.model for one in watch.moved(200.0)] == ["b"]


def test_bursty_arrivals_need_a_wider_margin() -> None:
    seen = requests("a", 170)
    calm = ReplanController({"a": 1.0}, SETTINGS)
    bursty = ReplanController(
        {"a": 1.0}, ReplanSettings(100.0, 50.0, factor=1.5, z=3.0, dispersion=16.0)
    )
    for watch in (calm, bursty):
        watch.observe(100.0, seen)
    assert calm.moved(100.0)
    assert not bursty.moved(100.0)


@given(st.integers(1, 400), st.floats(0.1, 4.0))
def test_a_larger_factor_never_moves_more(count: int, rate: float) -> None:
    tight = ReplanController({"a": rate}, ReplanSettings(100.0, factor=1.2))
    wide = ReplanController({"a": rate}, ReplanSettings(100.0, factor=2.0))
    for watch in (tight, wide):
        watch.observe(100.0, requests("a", count))
    assert bool(wide.moved(100.0)) <= bool(tight.moved(100.0))


def test_rates_of_a_workload() -> None:
    trace = tuple(sorted(requests("a", 30) + requests("b", 10), key=lambda one: one.arrival_s))
    assert rates_of(Workload("w", 100.0, trace=trace)) == {"a": 0.3, "b": 0.1}


@pytest.mark.parametrize("key", ["window_s", "factor", "rest_s"])
def test_settings_that_cannot_work_are_refused(key: str) -> None:
    with pytest.raises(SpecError, match=f"replan.{key}"):
        ReplanSettings(**{key: -1.0})
