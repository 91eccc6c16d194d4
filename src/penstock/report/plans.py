"""The section of one plan: figures, proof, drawing, what is unused and why."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass

from penstock.plan.plan import Plan
from penstock.report.numbers import figure
from penstock.report.placement_drawing import is_aggregated, placement_drawing
from penstock.report.provenance import Fact


@dataclass(frozen=True)
class PlanSection:
    anchor: str
    title: str
    facts: tuple[Fact, ...]
    proof: str
    drawing: str
    caption: str
    ramp: bool
    unused: tuple[tuple[str, str], ...]
    reasons: tuple[str, ...]


def plan_section(index: int, plan: Plan, utilisation: Mapping[str, float] | None) -> PlanSection:
    """Return the section of ``plan``; ``utilisation`` by node colours the drawing."""
    unit = {"maxflow": "tok/s", "throughput": "tok/s", "goodput": "req/s"}[plan.objective]
    used = len({stage.node for engine in plan.engines for stage in engine.stages})
    facts = (
        Fact("Max flow", figure(plan.max_flow_tokens_per_s, "tok/s")),
        Fact(f"Objective: {plan.objective}", figure(plan.value, unit)),
        Fact("Nodes used", f"{used:,} of {len(plan.cluster.nodes):,}"),
        Fact("Engines, legs", f"{len(plan.engines):,}, {len(plan.legs):,}"),
        Fact("Router", _router(plan)),
        Fact("Seed", str(plan.seed)),
    )
    return PlanSection(
        anchor=f"plan-{index}",
        title=plan.planner,
        facts=facts,
        proof=proof_line(plan),
        drawing=placement_drawing(plan, name=f"placement-{index}", utilisation=utilisation),
        caption=_drawing_caption(plan, busy=bool(utilisation)),
        ramp=not is_aggregated(plan),
        unused=_unused(plan),
        reasons=plan.reasons,
    )


def _router(plan: Plan) -> str:
    if plan.whole_engines:
        return plan.routing.engine_router
    return f"{plan.routing.router}, admission {plan.admission}"


def _drawing_caption(plan: Plan, *, busy: bool) -> str:
    if is_aggregated(plan):
        return (
            "One row for each region and type: the height is the number of nodes that hold "
            "a layer, relative to the largest of the row."
        )
    by = (
        "share of the window the node was busy"
        if busy
        else "planned flow through the node, relative to the largest"
    )
    return f"Each bar is one stage, labelled with its number of layers. Colour: {by}."


def proof_line(plan: Plan) -> str:
    """Say how far the plan can be from the best possible, and how that is known."""
    method = f" ({plan.bound_method})" if plan.bound_method else ""
    flow, bound = plan.max_flow_tokens_per_s, plan.max_flow_bound_tokens_per_s
    if bound is None:
        return "No bound was computed: how far this plan is from the best possible is not known."
    line = f"Max flow {figure(flow, 'tok/s')}, bound {figure(bound, 'tok/s')}{method}"
    if plan.proved_optimal:
        return f"{line}: proved optimal."
    gap = f"{bound / flow - 1:.2%}" if flow > 0 else "unbounded"
    return f"{line}: gap {gap}."


def _unused(plan: Plan) -> tuple[tuple[str, str], ...]:
    """Unused nodes by reason: (names, reason), in the order of the plan."""
    by_reason: dict[str, list[str]] = {}
    for entry in plan.unused:
        by_reason.setdefault(entry.reason, []).append(entry.node)
    result = []
    for reason, names in by_reason.items():
        shown = ", ".join(names[:12])
        more = f" and {len(names) - 12:,} more" if len(names) > 12 else ""
        result.append((shown + more, reason))
    return tuple(result)
