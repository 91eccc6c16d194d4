"""From one plan to the next: who takes requests, when weights are loaded, who waits for them."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
import pytest
from tests.unit.sim.pools.pool_runs import Holds, cluster, cost, pool, run_pool

from penstock.errors import InputError
from penstock.measure.run import STATUS, Run
from penstock.plan.pool_plan import PoolPlan
from penstock.sim.pools import PoolOptions
from penstock.spec.workload import SLO, Request, SLOClass

TWO = cluster(2)
EMPTY = pool(TWO, [])


def events(run: Run) -> list[tuple[float, str, str]]:
    return [(round(event.time_s, 6), event.kind, event.detail) for event in run.events]


def a(number: int, arrival_s: float, output: int = 3, name: str = "a") -> Request:
    """20 ms of prompt and 10 ms a step."""
    return Request(number, arrival_s, 100, output, name, name)


def test_requests_wait_for_weights() -> None:
    """By hand: loaded from 1 s to 2 s; what comes in between is served then, what came before the
    plan is refused."""
    plan = pool(TWO, [Holds("a", ("m0",))])
    run = run_pool(EMPTY, [a(0, 0.5), a(1, 1.0), a(2, 2.5)], changes=((1.0, plan),))
    assert events(run) == [(1.0, "loading", "a/e0"), (2.0, "ready", "a/e0")]
    assert run.counters["rejected"] == 1
    np.testing.assert_allclose(run.requests.last_token_s[1:], [2.040, 2.540])


def test_loads_of_one_node_share_its_disk() -> None:
    """By hand: two models on one GPU take two seconds, one on the other GPU takes one."""
    plan = pool(TWO, [Holds("a", ("m0",)), Holds("b", ("m0",)), Holds("c", ("m1",))])
    run = run_pool(EMPTY, [a(0, 0.0)], changes=((0.0, plan),))
    ready = {name: time_s for time_s, kind, name in events(run) if kind == "ready"}
    assert ready == {"a/e0": 2.0, "b/e0": 2.0, "c/e0": 1.0}


def test_a_load_that_starts_later_slows_the_first_down() -> None:
    """By hand: a is half read after 0.5 s and needs 1 s more beside b, which ends at 2 s."""
    first = pool(TWO, [Holds("a", ("m0",))])
    both = pool(TWO, [Holds("a", ("m0",)), Holds("b", ("m0",))])
    run = run_pool(EMPTY, [a(0, 0.0)], changes=((0.0, first), (0.5, both)))
    ready = {name: time_s for time_s, kind, name in events(run) if kind == "ready"}
    assert ready == {"a/e0": 1.5, "b/e0": 2.0}


def test_the_most_urgent_leaves_the_queue_first() -> None:
    """Requests that waited for their model enter in order of priority and deadline."""
    classes = (
        SLOClass("late", SLO(e2e_s=50.0)),
        SLOClass("soon", SLO(e2e_s=5.0)),
        SLOClass("vip", SLO(), priority=-1),
    )
    requests = [
        Request(i, 0.1 * i, 4000, 1, name, "a") for i, name in enumerate(("late", "soon", "vip"))
    ]
    plan = pool(TWO, [Holds("a", ("m0",))])
    run = run_pool(EMPTY, requests, classes=classes, changes=((0.0, plan),))
    assert np.argsort(run.requests.first_token_s).tolist() == [2, 1, 0]


def test_nobody_is_loaded_before_those_that_go_are_gone() -> None:
    """By hand: a runs until 1.01 s on the GPU that b wants; b is loaded from then on."""
    old, new = pool(TWO, [Holds("a", ("m0",))]), pool(TWO, [Holds("b", ("m0",))])
    requests = [a(0, 0.0, 100), a(1, 0.6), a(2, 0.6, name="b")]
    run = run_pool(old, requests, changes=((0.5, new),))
    assert events(run) == [
        (1.01, "removed", "a/e0"),
        (1.01, "loading", "b/e0"),
        (2.01, "ready", "b/e0"),
    ]
    assert [STATUS[code] for code in run.requests.status] == ["finished", "rejected", "finished"]
    np.testing.assert_allclose(run.requests.last_token_s[[0, 2]], [1.01, 2.05])


def test_a_model_that_moves_is_served_where_it_was_until_it_is_ready() -> None:
    """By hand: the new seat is ready at 1.5 s; the old one takes requests until then."""
    old, new = pool(TWO, [Holds("a", ("m0",))]), pool(TWO, [Holds("a", ("m1",))])
    run = run_pool(old, [a(0, 0.0), a(1, 1.0), a(2, 2.0)], changes=((0.5, new),))
    assert run.requests.route_index.tolist() == [0, 0, 1]
    np.testing.assert_allclose(run.requests.last_token_s, [0.04, 1.04, 2.04])
    assert events(run) == [
        (0.5, "loading", "a/e0"),
        (1.5, "ready", "a/e0"),
        (1.5, "removed", "a/e0"),
    ]


def test_a_kept_engine_goes_on() -> None:
    """Nothing is loaded and no token is late where a model keeps its seat."""
    old = pool(TWO, [Holds("a", ("m0",)), Holds("b", ("m1",))])
    new = pool(TWO, [Holds("c", ("m1",)), Holds("a", ("m0",))])
    requests = [a(0, 0.0, 50), a(1, 0.3)]
    changed = run_pool(old, requests, changes=((0.2, new),))
    alone = run_pool(old, requests)
    np.testing.assert_allclose(changed.requests.last_token_s, alone.requests.last_token_s)
    assert all("a/" not in name for _, _, name in events(changed))


def test_memory_is_given_up_before_another_model_is_loaded() -> None:
    """By hand: a request of a holds 7 blocks until 0.11 s, and a may keep 6: b is loaded from then
    on, and the next request of a begins then."""
    old = pool(TWO, [Holds("a", ("m0",), 12)])
    new = pool(TWO, [Holds("a", ("m0",), 6), Holds("b", ("m0",), 6)])
    requests = [a(0, 0.0, 10), Request(1, 0.06, 40, 3, "a", "a"), a(2, 0.2, name="b")]
    run = run_pool(old, requests, changes=((0.05, new),))
    end_s = float(run.requests.last_token_s[0])
    assert end_s == pytest.approx(0.02 + 0.09)
    assert run.requests.admitted_s[1] == pytest.approx(end_s)
    assert events(run)[0] == (round(end_s, 6), "loading", "b/e0")
    assert run.counters["rejected"] == 1  # 103 tokens for b, which has room for 96


def test_the_controller_is_asked_with_what_has_come() -> None:
    """Every ``replan_every_s``, with the requests since the last time; its plan is adopted."""
    new = pool(TWO, [Holds("a", ("m0",)), Holds("b", ("m1",))])
    asked: list[tuple[float, list[int]]] = []

    def replan(now_s: float, plan: PoolPlan, requests: Sequence[Request]) -> PoolPlan | None:
        asked.append((now_s, [request.id for request in requests]))
        return new if len(asked) == 2 else None

    old = pool(TWO, [Holds("a", ("m0",))])
    requests = [a(0, 0.1), a(1, 1.5), a(2, 2.1, name="b"), a(3, 3.5)]
    run = run_pool(
        old, requests, costs=dict.fromkeys("ab", cost()), replan=replan, replan_every_s=1.0
    )
    assert asked == [(1.0, [0]), (2.0, [1]), (3.0, [2])]
    assert events(run) == [(2.0, "loading", "b/e0"), (3.0, "ready", "b/e0")]
    assert run.requests.last_token_s[2] == pytest.approx(3.04)


def test_changes_must_be_in_order() -> None:
    """Times that go back are refused."""
    with pytest.raises(InputError, match="in order of time"):
        PoolOptions(changes=((2.0, EMPTY), (1.0, EMPTY)))


def test_the_clock_can_be_stopped() -> None:
    """By hand: at 0.075 s a has its prompt's token and five more; nothing that came is lost."""
    plan = pool(TWO, [Holds("a", ("m0",))])
    run = run_pool(plan, [a(0, 0.0, 50)], until_s=0.075)
    assert run.requests.generated_tokens.tolist() == [6]
    assert [STATUS[code] for code in run.requests.status] == ["running"]
