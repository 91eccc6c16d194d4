"""The simulator against its oracle, its laws, and hand figures."""

from __future__ import annotations

import os
import subprocess
import sys
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
from hypothesis import HealthCheck, assume, given, settings
from hypothesis import strategies as st
from published_loop import PublishedLoop
from small import ToyCost, make_plan, plans, toy_model, traces

from penstock.errors import InputError, SpecError
from penstock.plan.plan import Routing, Stage
from penstock.sim import SimulationOptions, simulate
from penstock.spec.faults import Fault, FaultSchedule
from penstock.spec.workload import ClosedLoop, Request, Workload

LAYERWISE = SimulationOptions("layerwise", start_s=0.0)
NODEWISE = SimulationOptions(start_s=0.0)
QUICK = settings(
    max_examples=40,
    deadline=None,
    suppress_health_check=[HealthCheck.too_slow, HealthCheck.filter_too_much],
)
STATUSES = {"finished": 0, "rejected": 3}


def times_of(run, row):
    return run.tokens.times_s[run.tokens.offsets[row] : run.tokens.offsets[row + 1]]


@QUICK
@given(plans(), traces())
def test_collapsed_layers_and_messages_change_no_time(plan, workload):
    """The layerwise mode gives every iteration the time of the event-by-event loop."""
    run = simulate(plan, workload, ToyCost(plan.model), LAYERWISE)
    oracle = PublishedLoop(plan, workload, ToyCost(plan.model), 0, 0.0).run()
    assert len(oracle.times) == len(run.requests.id)
    for row, expected in enumerate(oracle.times):
        np.testing.assert_allclose(times_of(run, row), expected, rtol=0, atol=1e-9)


@QUICK
@given(plans(admission="queue"), traces(), st.sampled_from(["nodewise", "layerwise"]))
def test_every_request_ends_once_with_all_its_tokens(plan, workload, granularity):
    """With enough memory everything sent is finished, whatever the plan and router."""
    run = simulate(plan, workload, ToyCost(plan.model), SimulationOptions(granularity, start_s=0.0))
    assert run.counters["finished"] == len(workload.trace)
    assert (run.requests.generated_tokens == run.requests.output_tokens).all()
    extra = 0 if run.first_iteration_is_token else 1
    assert len(run.tokens.times_s) == sum(r.output_tokens + extra for r in workload.trace)
    per_layer = sum(r.prompt_tokens for r in workload.trace)
    entries = {a.dst for a in plan.legs if a.src == "coordinator"}
    first = [i for i, engine in enumerate(plan.engines) if engine.name in entries]
    assert sum(run.nodes.prefill_tokens[i] for i in first) == per_layer


@QUICK
@given(
    plans(kv=1800),
    traces(),
    st.sampled_from(["none", "queue"]),
    st.sampled_from(["nodewise", "layerwise"]),
)
def test_scarce_memory_is_never_exceeded_and_loses_nobody(plan, workload, admission, granularity):
    """Requests queue, are preempted or refused, and each ends exactly once."""
    plan = replace(plan, admission=admission)
    run = simulate(plan, workload, ToyCost(plan.model), SimulationOptions(granularity, start_s=0.0))
    counts = run.counters
    assert counts["finished"] + counts["rejected"] + counts["failed"] == len(workload.trace)
    assert run.nodes.peak_kv_fraction.max() <= 1.0
    assert int(run.requests.preemptions.sum()) == counts["preemptions"]


OUTAGES = st.tuples(st.floats(0.0, 5.0), st.floats(0.1, 5.0), st.integers(0, 11))


def check_outage(plan, workload, outage, granularity):
    at_s, down_s, which = outage
    node = plan.engines[which % len(plan.engines)].name
    faults = FaultSchedule((Fault(at_s, "fail", node), Fault(at_s + down_s, "recover", node)))
    options = SimulationOptions(granularity, start_s=0.0, faults=faults)
    run = simulate(plan, workload, ToyCost(plan.model), options)
    assert run.counters["finished"] == len(workload.trace)
    assert [e.kind for e in run.events] == ["fail", "flow", "recover", "flow"]


@QUICK
@given(plans(admission="queue"), traces(), OUTAGES, st.sampled_from(["nodewise", "layerwise"]))
def test_failures_lose_no_request(plan, workload, outage, granularity):
    """A node that fails and returns delays requests but loses none and no token."""
    assume(plan.routing.router in ("maxflow", "swarm"))
    check_outage(plan, workload, outage, granularity)


@QUICK
@given(plans(admission="queue"), traces(), OUTAGES, st.sampled_from(["nodewise", "layerwise"]))
def test_failures_lose_no_request_hop_by_hop(plan, workload, outage, granularity):
    """The same for routers that pick the next node only when a link is free."""
    assume(plan.routing.router in ("random", "shortest-queue"))
    check_outage(plan, workload, outage, granularity)


def chain():
    return make_plan([(0, 2), (2, 4)], {(-1, 0): 1.0, (0, 1): 1.0, (1, -1): 1.0}, layers=4)


def test_one_request_takes_the_time_one_can_add_up_by_hand():
    """Prompt latency is transfers plus layers plus the copy of inputs; the first token is there."""
    plan = chain()
    workload = Workload("one", 1.0, trace=(Request(0, 0.0, 100, 3),))
    run = simulate(plan, workload, ToyCost(plan.model), NODEWISE)
    wire = 3e-3 + (2 * 100 * 2 + 100 * (2 + 512)) / 1e8
    copy = 2 * 100 * 512 * (1 / 4e9 + 1 / 5e9)
    layers = 2 * (2e-3 + 1.37e-3) + 2 * (3e-3 + 1.37e-3)
    assert run.requests.first_token_s[0] == pytest.approx(wire + copy + layers, abs=1e-12)
    assert len(times_of(run, 0)) == 3
    assert run.nodes.busy_s.sum() == pytest.approx(
        copy + layers + 2 * (2 * (2e-3 + 1.13e-4) + 2 * (3e-3 + 1.13e-4)) + 2 * copy / 100
    )


def test_slow_nodes_take_longer_and_recover():
    """A factor of 2 doubles the time of the layers of that node."""
    plan = chain()
    workload = Workload("one", 1.0, trace=(Request(0, 0.0, 100, 1),))
    quick = simulate(plan, workload, ToyCost(plan.model), NODEWISE)
    slow = FaultSchedule((Fault(0.0, "slow", "n0", factor=2.0),))
    run = simulate(plan, workload, ToyCost(plan.model), replace(NODEWISE, faults=slow))
    more = run.requests.first_token_s[0] - quick.requests.first_token_s[0]
    assert more == pytest.approx(2 * (2e-3 + 1.37e-3))


def test_requests_wait_while_survivors_cannot_hold_the_model():
    """Nothing is refused during an outage; everything runs after the recovery."""
    plan = chain()
    workload = Workload("two", 2.0, trace=(Request(0, 0.0, 50, 4), Request(1, 0.5, 50, 4)))
    faults = FaultSchedule((Fault(0.002, "fail", "n1"), Fault(1.0, "recover", "n1")))
    run = simulate(plan, workload, ToyCost(plan.model), replace(NODEWISE, faults=faults))
    assert run.counters["finished"] == 2
    assert run.requests.first_token_s.min() > 1.0
    assert "no path" in run.events[1].detail


def test_a_request_that_can_never_fit_is_rejected_and_counted():
    """Queue admission refuses what an idle system cannot hold; without admission it fails."""
    small = replace(
        chain(), engines=tuple(replace(e, kv_capacity_layer_tokens=100) for e in chain().engines)
    )
    workload = Workload("big", 1.0, trace=(Request(0, 0.0, 80, 3), Request(1, 0.1, 4, 2)))
    queued = replace(small, admission="queue", routing=Routing(expected_output_tokens=2.0))
    run = simulate(queued, workload, ToyCost(small.model), NODEWISE)
    assert (run.counters["rejected"], run.counters["finished"]) == (1, 1)
    run = simulate(small, workload, ToyCost(small.model), NODEWISE)
    assert (run.counters["failed"], run.counters["finished"]) == (1, 1)


class FixedLengths:
    mean_prompt_tokens, mean_output_tokens = 100.0, 10.0

    def sample(self, rng):
        return rng.randint(50, 150), rng.randint(5, 15)


def test_a_closed_loop_keeps_its_number_of_requests_in_the_system():
    """Each end launches the next until the run stops."""
    plan = chain()
    workload = Workload("loop", 5.0, 1.0, lengths=FixedLengths(), arrivals=ClosedLoop(4, 0.01))
    run = simulate(plan, workload, ToyCost(plan.model), NODEWISE)
    table = run.requests
    for now in (1.0, 2.0, 3.0, 4.0):
        inside = (table.arrival_s <= now) & ~(table.last_token_s <= now - 0.011)
        assert (inside & ((table.status == 1) | (table.last_token_s > now))).sum() in (3, 4)
    assert run.window_s == (1.0, 5.0)


def test_plans_of_several_stages_in_one_engine_are_refused():
    """The message names the engine and the way out."""
    plan = chain()
    engine = replace(plan.engines[0], stages=(Stage("n0", 0, 1), Stage("n1", 1, 2)))
    plan = replace(plan, engines=(engine, plan.engines[1]))
    workload = Workload("one", 1.0, trace=(Request(0, 0.0, 10, 1),))
    with pytest.raises(InputError, match="one stage each"):
        simulate(plan, workload, ToyCost(plan.model), NODEWISE)


def test_faults_must_name_what_exists():
    """An unknown node is one line with the names there are."""
    plan = chain()
    workload = Workload("one", 1.0, trace=(Request(0, 0.0, 10, 1),))
    options = replace(NODEWISE, faults=FaultSchedule((Fault(0.0, "fail", "nO"),)))
    with pytest.raises(SpecError, match="no such node"):
        simulate(plan, workload, ToyCost(plan.model), options)


SCRIPT = """
import hashlib, sys
sys.path.insert(0, sys.argv[1])
from test_simulate import *
plan = make_plan([(0, 2), (0, 2), (2, 4), (1, 4)],
    {(-1, 0): 3.0, (-1, 1): 2.0, (0, 2): 2.0, (0, 3): 1.0, (1, 2): 1.0, (1, 3): 1.0,
     (2, -1): 3.0, (3, -1): 2.0}, layers=4, routing=Routing(sys.argv[2]))
w = Workload("loop", 5.0, lengths=FixedLengths(), arrivals=ClosedLoop(20))
run = simulate(plan, w, ToyCost(plan.model), SimulationOptions(sys.argv[3], seed=7, start_s=0.0))
print(hashlib.sha256(run.tokens.times_s.tobytes() + run.links.busy_s.tobytes()
    + repr((sorted(run.counters.items()), run.routes)).encode()).hexdigest())
"""


def test_runs_do_not_depend_on_the_hash_seed():
    """One seed, one run, byte for byte, in any process."""
    for router, granularity in (("maxflow", "nodewise"), ("random", "layerwise")):
        digests = {
            subprocess.run(
                [sys.executable, "-c", SCRIPT, str(Path(__file__).parent), router, granularity],
                env={**os.environ, "PYTHONHASHSEED": seed},
                check=True,
                capture_output=True,
            ).stdout
            for seed in ("0", "42")
        }
        assert len(digests) == 1


def test_toy_model_has_the_activation_the_hand_figures_use():
    """256 values of two bytes."""
    assert toy_model(4).activation_bytes_per_token == 512
