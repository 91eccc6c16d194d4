"""The independent checker accepts real plans and names what is wrong with broken ones."""

from __future__ import annotations

from dataclasses import replace

import pytest
from plan_fleets import problem_of

from penstock.plan.checker import check_plan
from penstock.plan.penstock_planner import PenstockPlanner
from penstock.plan.plan import Plan, Stage
from penstock.plan.planner import PlannerOptions


@pytest.fixture(scope="module")
def plan() -> Plan:
    """The largest flow of a small mixed fleet."""
    problem = problem_of([("A100", 2), ("L4", 4), ("T4", 2)], "llama2-13b")
    return PenstockPlanner().plan(problem, PlannerOptions(objective="maxflow"))


def test_a_plan_of_ours_holds(plan: Plan) -> None:
    """Nothing to complain about, and the LP finds the stated max flow."""
    assert check_plan(plan) == []


def test_a_flow_that_vanishes_is_found(plan: Plan) -> None:
    """Halving one leg breaks conservation."""
    first = replace(plan.legs[0], flow_tokens_per_s=0.5 * plan.legs[0].flow_tokens_per_s)
    broken = check_plan(replace(plan, legs=(first, *plan.legs[1:])))
    assert any("differ by" in line for line in broken)


def test_a_gap_between_layers_is_found(plan: Plan) -> None:
    """Moving an engine by a layer leaves legs whose layers do not follow each other."""
    engine = plan.engines[0]
    stage = engine.stages[0]
    step = 1 if stage.end_layer < plan.model.num_hidden_layers else -1
    moved = replace(
        engine, stages=(Stage(stage.node, stage.start_layer + step, stage.end_layer + step),)
    )
    broken = check_plan(replace(plan, engines=(moved, *plan.engines[1:])))
    assert any("do not follow" in line for line in broken)


def test_a_wrong_figure_is_found(plan: Plan) -> None:
    """A max flow that the engines cannot carry is refused."""
    broken = check_plan(replace(plan, max_flow_tokens_per_s=2 * plan.max_flow_tokens_per_s))
    assert any("an LP finds" in line for line in broken)


def test_a_bound_below_the_value_is_found(plan: Plan) -> None:
    """A bound must not be under the flow that exists."""
    low = 0.5 * plan.max_flow_tokens_per_s
    broken = check_plan(replace(plan, max_flow_bound_tokens_per_s=low))
    assert any("above the stated bound" in line for line in broken)
