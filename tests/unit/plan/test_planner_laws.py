"""Laws every planner keeps, on random small fleets."""

from __future__ import annotations

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from plan_fleets import problem_of

from penstock.errors import Infeasible
from penstock.plan.document import format_plan, plan_from_dict, plan_to_dict
from penstock.plan.placement import PlacementProblem
from penstock.plan.plan import Plan
from penstock.plan.planner import PlannerOptions
from penstock.plan.registry import planner
from penstock.plan.separate import full_memory_layers
from penstock.spec.cluster import COORDINATOR

MACHINES = ("A100", "H100", "L4", "T4", "L4x2")
MODELS = ("llama2-7b", "llama2-13b", "qwen2.5-32b", "llama2-70b")


@st.composite
def problems(draw: st.DrawFn) -> PlacementProblem:
    """One to three machine types, up to twelve nodes, one or two regions."""
    machines = draw(st.lists(st.sampled_from(MACHINES), min_size=1, max_size=3, unique=True))
    kinds = [(machine, draw(st.integers(1, 4))) for machine in machines]
    try:
        return problem_of(
            kinds,
            draw(st.sampled_from(MODELS)),
            regions=draw(st.integers(1, 2)),
            partial=draw(st.booleans()),
        )
    except Infeasible:
        return problem_of([("A100", 4), ("L4", 2)], "llama2-13b")


def _check(problem: PlacementProblem, plan: Plan) -> None:
    most = dict(
        zip((n.name for n in problem.cluster.nodes), full_memory_layers(problem), strict=True)
    )
    recommended = dict(
        zip((n.name for n in problem.cluster.nodes), problem.node_max_layers.tolist(), strict=True)
    )
    for engine in plan.engines:
        assert 0 <= engine.start_layer < engine.end_layer <= problem.num_layers
        limit = max(most[engine.name], recommended[engine.name])
        assert engine.num_layers <= limit
        assert engine.kv_capacity_layer_tokens > 0
        into = sum(leg.flow_tokens_per_s for leg in plan.legs if leg.dst == engine.name)
        out = sum(leg.flow_tokens_per_s for leg in plan.legs if leg.src == engine.name)
        assert into == pytest.approx(out, rel=1e-6, abs=1e-6)
    for leg in plan.legs:
        assert -1e-9 <= leg.flow_tokens_per_s <= leg.capacity_tokens_per_s * (1 + 1e-9)
    total = sum(leg.flow_tokens_per_s for leg in plan.legs if leg.src == COORDINATOR)
    assert plan.value == pytest.approx(total, rel=1e-6)
    assert plan.value > 0
    assert plan.bound is not None
    assert plan.value <= plan.bound * (1 + 1e-9)
    held = {engine.name for engine in plan.engines}
    unused = {entry.node for entry in plan.unused}
    assert held | unused == {node.name for node in problem.cluster.nodes}
    assert not held & unused


@settings(max_examples=80, deadline=None, derandomize=True)
@given(
    problem=problems(),
    name=st.sampled_from(("petals", "swarm", "homogeneous", "separate", "separate+")),
)
def test_planners_place_within_limits_and_conserve_flow(
    problem: PlacementProblem, name: str
) -> None:
    """Intervals within memory, flow conserved, value at most the bound, documents round-trip."""
    try:
        plan = planner(name).plan(problem, PlannerOptions(objective="maxflow"))
    except Infeasible as refusal:
        assert refusal.binding  # noqa: PT017 - the outcome is the point
        return
    _check(problem, plan)
    again = plan_from_dict(plan_to_dict(plan))
    assert again == plan
    assert format_plan(again) == format_plan(plan)


@settings(max_examples=4, deadline=None, derandomize=True)
@given(problem=problems())
def test_the_milp_never_falls_below_its_start(problem: PlacementProblem) -> None:
    """One second of solving keeps the laws and at least the better heuristic's flow."""
    options = PlannerOptions(objective="maxflow", time_limit_s=1.0)
    try:
        plan = planner("helix-milp").plan(problem, options)
    except Infeasible as refusal:
        assert refusal.binding  # noqa: PT017
        return
    _check(problem, plan)
    if problem.partial_inference:
        petals = planner("petals").plan(problem, options)
        assert plan.value >= petals.value * (1 - 1e-9)
