"""Probes of plans of whole engines: verdicts, classes, and processes."""

from __future__ import annotations

from dataclasses import replace

import pytest

from penstock.cost.linear import DecodeLine, LinearCoefficients, LinearStepCost
from penstock.cost.steps import EngineShape
from penstock.plan.goodput.fleet import EngineChoice, Fleet
from penstock.plan.goodput.planner import PlanJob
from penstock.plan.goodput.publish import Outcome, fleet_plan
from penstock.sim.options import SimulationOptions
from penstock.sim.plan_probes import PlanProbeSetting, run_plan_probe
from penstock.sim.simulate import simulate
from penstock.spec.arrivals import PoissonArrivals
from penstock.spec.catalogue import catalogue
from penstock.spec.lengths import fixed_lengths
from penstock.spec.load import load_model
from penstock.spec.workload import SLO, SLOClass, Workload

COST = LinearStepCost(
    load_model("llama-3-8b"),
    LinearCoefficients(0.01, 6e-5, 1e-8, DecodeLine(0.01, 8e-8, 2e-4)),
    60_000,
)
SHAPE = EngineShape(catalogue().get("L40S"))
PLAN = fleet_plan(
    Fleet(((EngineChoice(SHAPE, max_num_batched_tokens=512), 2),)),
    COST,
    Outcome(10.0, 0.9, 400.0, "test"),
)
TRAFFIC = Workload(
    "test",
    60.0,
    lengths=fixed_lengths(400, 100),
    arrivals=PoissonArrivals(1.0),
    classes=(SLOClass("chat", SLO(ttft_s=0.5, tpot_s=0.05)),),
)
SETTING = PlanProbeSetting(COST, TRAFFIC, 0.9, least_requests=200, least_s=5.0, answer_s=10.0)


@pytest.mark.parametrize("rate", [4.0, 44.0, 46.0, 48.0, 50.0, 80.0])
def test_an_early_end_gives_the_verdict_of_the_whole_run(rate: float) -> None:
    """A run that ends when it is certain bounds what the same run to its end shows."""
    whole = run_plan_probe(SETTING, PlanJob(PLAN, rate, 1, effort="shares"))
    soon = run_plan_probe(SETTING, PlanJob(PLAN, rate, 1, effort="verdict"))
    assert not whole.ended_early
    assert (soon.joint >= 0.9) == (whole.joint >= 0.9)
    if soon.joint < 0.9:
        assert soon.joint >= whole.joint
    else:
        assert soon.joint <= whole.joint


def test_a_probe_shows_what_the_simulator_shows() -> None:
    """The share of good requests is that of a simulation of the same requests."""
    job = PlanJob(PLAN, 50.0, 3, effort="shares")
    requests = SETTING.requests(job)
    trace = Workload("test", 0.0, trace=requests, classes=TRAFFIC.classes)
    table = simulate(PLAN, trace, COST, SimulationOptions(seed=3)).requests
    skipped = len(requests) // 10
    ttft = (table.first_token_s - table.arrival_s)[skipped:]
    tpot = (table.last_token_s - table.first_token_s)[skipped:] / 99
    good = ((ttft <= 0.5) & (tpot <= 0.05)).mean()
    assert 0 < good < 1
    assert run_plan_probe(SETTING, job).joint == pytest.approx(good)


def test_each_request_has_the_limits_of_its_class() -> None:
    """A hopeless limit on one class spoils that class's requests and no others."""
    half = [replace(one, class_name="ab"[one.id % 2]) for one in SETTING.requests(PlanJob(PLAN, 5))]
    classes = (SLOClass("a", SLO(ttft_s=9.0)), SLOClass("b", SLO(ttft_s=1e-6)))
    mixed = Workload("mixed", 0.0, trace=tuple(half), classes=classes)
    probe = run_plan_probe(replace(SETTING, workload=mixed), PlanJob(PLAN, 5.0, effort="shares"))
    assert probe.joint == pytest.approx(0.5)
    assert probe.tpot_share == 1.0
