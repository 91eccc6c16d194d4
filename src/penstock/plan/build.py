"""From a placement and a flow to a plan: one engine per node that holds layers."""

from __future__ import annotations

from collections.abc import Sequence

from penstock import __version__
from penstock.plan.flow import Flow
from penstock.plan.placement import Placement, PlacementProblem
from penstock.plan.plan import AdmissionName, Engine, Leg, Plan, Routing, Stage, Unused
from penstock.plan.planner import Objective
from penstock.spec.cluster import COORDINATOR

HOLDS_NOTHING = "holds no layers in this plan"


def build_plan(
    problem: PlacementProblem,
    placement: Placement,
    flow: Flow,
    *,
    planner: str,
    objective: Objective,
    value: float,
    bound: float | None = None,
    max_flow: float | None = None,
    max_flow_bound: float | None = None,
    bound_method: str = "",
    proved_optimal: bool = False,
    routing: Routing | None = None,
    admission: AdmissionName = "queue",
    unused: Sequence[Unused] = (),
    reasons: Sequence[str] = (),
    seed: int = 0,
) -> Plan:
    """Return the plan of one engine per node with layers (engine name = node name).

    KV capacity and batch limits come from ``problem.cost``; legs keep the order of ``flow.legs``.
    ``max_flow`` (tokens/s) is stated when ``flow`` carries less than the placement could.
    Nodes without layers that ``unused`` does not name are added to it with a plain reason.
    """
    return Plan(
        cluster=problem.cluster,
        model=problem.model,
        engines=engines(problem, placement),
        legs=legs(problem, flow),
        planner=planner,
        objective=objective,
        value=value,
        bound=bound,
        max_flow_tokens_per_s=flow.value if max_flow is None else max_flow,
        max_flow_bound_tokens_per_s=max_flow_bound,
        bound_method=bound_method,
        proved_optimal=proved_optimal,
        routing=Routing() if routing is None else routing,
        admission=admission,
        unused=all_unused(problem, placement, unused),
        reasons=tuple(reasons),
        seed=seed,
        cost=problem.cost.to_dict(),
        version=__version__,
    )


def engines(problem: PlacementProblem, placement: Placement) -> tuple[Engine, ...]:
    """One engine per node with layers, in node order."""
    cost = problem.cost
    built = []
    for node, interval in zip(problem.cluster.nodes, placement.intervals, strict=True):
        if interval is None:
            continue
        start, end = interval
        built.append(
            Engine(
                name=node.name,
                stages=(Stage(node.name, start, end),),
                kv_capacity_layer_tokens=cost.kv_capacity_layer_tokens(node, end - start),
                limits=cost.batch_limits(node, end - start),
            )
        )
    return tuple(built)


def legs(problem: PlacementProblem, flow: Flow) -> tuple[Leg, ...]:
    """The legs of ``flow`` by name, in its order."""
    names = [*(node.name for node in problem.cluster.nodes), COORDINATOR]
    rows = zip(flow.legs.tolist(), flow.leg_flow.tolist(), flow.leg_capacity.tolist(), strict=True)
    return tuple(
        Leg(names[src], names[dst], carried, capacity) for (src, dst), carried, capacity in rows
    )


def all_unused(
    problem: PlacementProblem, placement: Placement, named: Sequence[Unused]
) -> tuple[Unused, ...]:
    """Every node without layers, in node order, with its reason."""
    reason = {entry.node: entry.reason for entry in named}
    return tuple(
        Unused(node.name, reason.get(node.name, HOLDS_NOTHING))
        for node, interval in zip(problem.cluster.nodes, placement.intervals, strict=True)
        if interval is None or node.name in reason
    )
