"""Relative limits: the baseline is what a request takes alone, and a multiple becomes seconds."""

from __future__ import annotations

from dataclasses import replace

import numpy as np
import pytest
from tests.unit.sim.engines.engine_runs import COST, run_engine, shape

from penstock import api
from penstock.errors import SpecError
from penstock.measure.metrics import summarise
from penstock.plan.plan import Plan
from penstock.plan.settings import SchedulerSettings
from penstock.policy.baseline import (
    CONTEXT_TOKENS,
    absolute_limits,
    engines_baseline_s,
    has_relative_limits,
    plan_baseline_s,
    with_absolute_limits,
)
from penstock.spec.workload import SLO, Request, SLOClass, Workload
from penstock.spec.workload_file import workload_from_dict, workload_to_dict

ALONE = Request(0, 0.0, CONTEXT_TOKENS - 20, 40)


@pytest.mark.parametrize("stages", [1, 2])
def test_an_engine_alone_takes_the_baseline(stages: int) -> None:
    """The TPOT of one request in an empty engine is the baseline."""
    run = run_engine([ALONE], SchedulerSettings(), stages=stages)
    table = run.requests
    tpot_s = (table.last_token_s - table.first_token_s)[0] / (ALONE.output_tokens - 1)
    assert engines_baseline_s(COST, [shape(stages)]) == pytest.approx(tpot_s, rel=1e-4)


@pytest.fixture(scope="module")
def plan() -> Plan:
    return api.plan("quality10", "llama-30b", planner="swarm", objective="maxflow")


def test_a_request_alone_on_a_plan_takes_no_less(plan: Plan) -> None:
    """On a plan of mixed nodes each request alone takes the baseline or, on a slower path, more;
    the fastest of many comes close to it."""
    cost = api.cost_of(plan)
    baseline_s = plan_baseline_s(plan, cost)
    alone = [replace(ALONE, id=i, arrival_s=1000.0 * i) for i in range(40)]
    run = api.simulate(plan, Workload("alone", 40_000.0, trace=tuple(alone)))
    table = run.requests
    tpot_s = (table.last_token_s - table.first_token_s) / (ALONE.output_tokens - 1)
    assert (tpot_s >= baseline_s * (1 - 1e-3)).all()
    assert float(np.min(tpot_s)) == pytest.approx(baseline_s, rel=0.05)


def test_multiples_become_seconds() -> None:
    """Relative limits follow the baseline; absolute ones and best effort stay as they are."""
    classes = (
        SLOClass("urgent", SLO(ttft_s=1.0, tpot_multiple=1.2), 0.6),
        SLOClass("chat", SLO(tpot_s=0.05), 0.2),
        SLOClass("batch", SLO(), 0.2),
    )
    assert has_relative_limits(classes)
    found = absolute_limits(classes, 0.03)
    assert found[0] == replace(classes[0], slo=SLO(ttft_s=1.0, tpot_s=0.036))
    assert found[1:] == classes[1:]
    assert not has_relative_limits(found)


def test_a_run_is_judged_by_seconds(plan: Plan) -> None:
    """The run of a workload with relative limits carries them as seconds of its own plan."""
    data = {
        "lengths": {"prompt": 40, "output": 8},
        "arrivals": {"uniform": {"rate": 1}},
        "duration": "20 s",
        "classes": [{"name": "urgent", "tpot": "1.2x"}, {"name": "rest", "tpot": "best effort"}],
    }
    workload = workload_from_dict(data, "w.yaml")
    run = api.simulate(plan, workload)
    baseline_s = plan_baseline_s(plan, api.cost_of(plan))
    document = run.header["workload"]
    assert document == workload_to_dict(with_absolute_limits(workload, baseline_s))
    groups = api.compare(run).summaries[0].classes
    assert groups[0].slo == SLO(tpot_s=1.2 * baseline_s)


def test_goodput_needs_seconds_before_there_is_a_plan() -> None:
    """A planner cannot be judged by a limit that depends on what it plans; others ignore limits."""
    data = {
        "lengths": {"prompt": 40, "output": 8},
        "arrivals": {"saturating": {}},
        "duration": "20 s",
        "slo": {"tpot": "1.2x"},
    }
    workload = workload_from_dict(data, "w.yaml")
    with pytest.raises(SpecError, match="known only once there is a plan"):
        api.plan("quality10", "llama-30b", workload, planner="swarm", objective="goodput")
    found = api.plan("quality10", "llama-30b", workload, planner="swarm", objective="throughput")
    assert found.value > 0


def test_an_unresolved_multiple_is_no_missing_limit(plan: Plan) -> None:
    """Metrics refuse a limit that nobody turned into seconds, rather than ignore it."""
    run = api.simulate(plan, Workload("one", 100.0, trace=(ALONE,)))
    with pytest.raises(SpecError, match="not a time yet"):
        summarise(run, [SLOClass("all", SLO(tpot_multiple=1.2))])


def test_a_time_and_a_multiple_contradict() -> None:
    """A limit is one of both."""
    with pytest.raises(SpecError, match="one of them"):
        SLO(tpot_s=0.05, tpot_multiple=1.2)
