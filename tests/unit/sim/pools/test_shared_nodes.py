"""Models that share nodes: turns, stage clocks, and what one model alone would do."""

from __future__ import annotations

from random import Random

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from tests.unit.sim.engines.test_step_skipping import requests as random_requests
from tests.unit.sim.engines.test_step_skipping import tight_settings
from tests.unit.sim.pools.pool_runs import Holds, cluster, cost, pool, run_pool, workload

from penstock.plan.pool_plan import Sharing
from penstock.sim.engine_plans import engine_specs
from penstock.sim.engines import EngineFleet, EngineOptions, simulate_engines
from penstock.spec.workload import SLO, Request, SLOClass

CLASSES = (SLOClass("slow", SLO(ttft_s=5.0), priority=1), SLOClass("quick", SLO(ttft_s=0.5)))


@pytest.mark.parametrize("stages", [1, 2])
@pytest.mark.parametrize("replicas", [1, 2])
@settings(max_examples=25, deadline=None)
@given(seed=st.integers(0, 2**32))
def test_a_pool_of_one_model_is_a_fleet_of_engines(stages: int, replicas: int, seed: int) -> None:
    """One model on nodes of its own runs exactly as in the simulator of engines."""
    rng = Random(seed)
    chosen = tight_settings(rng, rng.choice(["vllm", "priority", "sarathi"]))
    blocks = rng.randint(14, 120)
    fleet = cluster(replicas * stages)
    holds = [
        Holds("a", tuple(f"m{stages * i + k}" for k in range(stages)), blocks)
        for i in range(replicas)
    ]
    plan = pool(fleet, holds, settings=chosen)
    arrivals = random_requests(rng)
    price = cost(0.0107, 8.3e-8, 3.7e-5)
    ours = run_pool(plan, arrivals, classes=CLASSES, costs={"a": price})
    theirs = simulate_engines(
        EngineFleet(engine_specs(plan.deployments[0].plan), "least-outstanding"),
        workload(arrivals, CLASSES),
        price,
        EngineOptions(),
    )
    for column in ("admitted_s", "first_token_s", "last_token_s", "generated_tokens", "status"):
        np.testing.assert_array_equal(
            getattr(ours.requests, column), getattr(theirs.requests, column)
        )
    np.testing.assert_array_equal(ours.requests.route_index, theirs.requests.route_index)
    np.testing.assert_array_equal(ours.tokens.times_s, theirs.tokens.times_s)
    assert ours.nodes is not None
    assert theirs.nodes is not None
    np.testing.assert_array_equal(ours.nodes.busy_s, theirs.nodes.busy_s)
    assert ours.counters == theirs.counters


def two(turns: str, **more: object) -> list[float]:
    """Last tokens of a request for a (3 tokens, at 0 s) and one for b (3 tokens, at 1 ms)."""
    plan = pool(
        cluster(1),
        [Holds("a", ("m0",)), Holds("b", ("m0",))],
        sharing=Sharing(turns),  # type: ignore[arg-type]
        priorities=more.get("priorities"),  # type: ignore[arg-type]
    )
    classes = (SLOClass("a", SLO(e2e_s=9.0)), SLOClass("b", SLO(e2e_s=3.0)))
    requests = [Request(0, 0.0, 100, 3, "a", "a"), Request(1, 0.001, 100, 3, "b", "b")]
    run = run_pool(plan, requests, classes=classes)
    return [round(float(last), 9) for last in run.requests.last_token_s]


def test_the_most_urgent_has_all_turns() -> None:
    """By hand: prompts take 20 ms, steps 10; b, due first, waits for the step that runs only."""
    assert two("earliest-deadline") == [0.080, 0.060]


def test_the_oldest_has_all_turns() -> None:
    """By hand: a ends after 20 + 2 x 10 ms, and b begins then."""
    assert two("first-come") == [0.040, 0.080]


def test_turns_in_a_round() -> None:
    """By hand: prompt a, prompt b, step a, step b, step a, step b."""
    assert two("round-robin") == [0.070, 0.080]


def test_a_higher_priority_goes_first_whatever_the_rule() -> None:
    """With priority 1 model b overtakes a, which came first and has begun."""
    assert two("first-come", priorities={"b": 1}) == [0.080, 0.060]


def test_batches_of_two_models_fill_a_pipeline() -> None:
    """By hand: 2.5 ms a stage; b is in the first stage while a is in the second."""
    plan = pool(cluster(2), [Holds("a", ("m0", "m1")), Holds("b", ("m0", "m1"))])
    prices = dict.fromkeys("ab", cost(0.005, token_s=0.0))
    requests = [Request(0, 0.0, 10, 2, model="a"), Request(1, 0.0, 10, 2, model="b")]
    run = run_pool(plan, requests, costs=prices)
    np.testing.assert_allclose(run.requests.first_token_s, [0.0050, 0.0075])
    np.testing.assert_allclose(run.requests.last_token_s, [0.0100, 0.0125])


def test_a_model_the_pool_does_not_hold_is_refused() -> None:
    """Its requests are rejected and counted; the others are served."""
    plan = pool(cluster(2), [Holds("a", ("m0",)), Holds("b", ("m1",))])
    requests = [Request(i, 0.1 * i, 10, 2, model=name) for i, name in enumerate("acab")]
    run = run_pool(plan, [*requests, Request(4, 1.0, 10, 2)])
    assert run.counters["rejected"] == 2
    assert run.counters["finished"] == 3


def test_late_requests_do_not_hold_up_those_that_can_still_be_in_time() -> None:
    """By hand: a cannot meet 1 ms; b, due later, goes first once a's prompt is through."""
    plan = pool(cluster(1), [Holds("a", ("m0",)), Holds("b", ("m0",))])
    classes = (SLOClass("a", SLO(e2e_s=0.001)), SLOClass("b", SLO(e2e_s=3.0)))
    requests = [Request(0, 0.0, 100, 3, "a", "a"), Request(1, 0.001, 100, 3, "b", "b")]
    run = run_pool(plan, requests, classes=classes)
    np.testing.assert_allclose(run.requests.last_token_s, [0.080, 0.060])
