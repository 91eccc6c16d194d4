"""What the published planners share: legs in published order, flow, bound, plan."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import replace
from itertools import pairwise

from penstock.errors import Infeasible
from penstock.plan.bounds import work_bound
from penstock.plan.build import build_plan
from penstock.plan.fleet import Fleet
from penstock.plan.flow import max_flow
from penstock.plan.placement import Interval, Placement, PlacementProblem
from penstock.plan.plan import AdmissionName, Engine, Plan, RouterName, Routing, Unused
from penstock.plan.planner import PlannerOptions

LegList = list[tuple[int, int]]

MAX_LEGS_PER_NODE = 48
"""Published planners join a node with at most as many successors as the cluster has nodes (24 or
42); the cap keeps plans of larger fleets readable and never binds on the published ones."""


def pipeline_legs(problem: PlacementProblem, order: Sequence[int]) -> LegList:
    """Legs of one chain of nodes from the coordinator and back; missing links are left out."""
    n = problem.num_nodes
    stops = [n, *order, n]
    return [(src, dst) for src, dst in pairwise(stops) if problem.link_tokens_per_s[src, dst] > 0]


def end_legs(problem: PlacementProblem, intervals: Sequence[Interval | None]) -> LegList:
    """Legs from and to the coordinator, by node."""
    n, links = problem.num_nodes, problem.link_tokens_per_s
    found: LegList = []
    for i, interval in enumerate(intervals):
        if interval is None:
            continue
        if interval[0] == 0 and links[n, i] > 0:
            found.append((n, i))
        if interval[1] == problem.num_layers and links[i, n] > 0:
            found.append((i, n))
    return found


def published_plan(
    problem: PlacementProblem,
    placement: Placement,
    legs: LegList,
    options: PlannerOptions,
    *,
    planner: str,
    router: RouterName = "maxflow",
    admission: AdmissionName = "queue",
    unused: Sequence[Unused] = (),
    reasons: Sequence[str] = (),
    adjust_engine: Callable[[Engine], Engine] | None = None,
) -> Plan:
    """Return the plan of a fixed placement, valued by max flow.

    When another objective is asked for and an evaluator is given, the plan is scored by it; the
    placement itself does not depend on the objective.

    Raises ``Infeasible`` when no token gets through.
    """
    flow = max_flow(problem, placement, legs=legs)
    if flow.value <= 0:
        raise Infeasible(
            f"the {planner} placement carries no flow on {problem.cluster.name}",
            binding="links between successive layers",
            fix="join the nodes with links or use --planner penstock",
        )
    idle = [
        node.name
        for i, node in enumerate(problem.cluster.nodes)
        if placement.intervals[i] is not None and flow.node_flow[i] <= 0
    ]
    notes = list(reasons)
    if idle:
        notes.append(f"hold layers but carry no flow: {', '.join(idle)}")
    limit = work_bound(Fleet.of(problem))
    bound = max(limit.value, flow.value)
    plan = build_plan(
        problem,
        placement,
        flow,
        planner=planner,
        objective="maxflow",
        value=flow.value,
        bound=bound,
        max_flow_bound=bound,
        bound_method=limit.method,
        proved_optimal=flow.value >= bound * (1 - 1e-9),
        routing=Routing(router=router),
        admission=admission,
        unused=unused,
        reasons=notes,
        seed=options.seed,
    )
    if adjust_engine is not None:
        plan = replace(plan, engines=tuple(adjust_engine(engine) for engine in plan.engines))
    return scored(plan, options)


def scored(plan: Plan, options: PlannerOptions) -> Plan:
    """Return ``plan`` valued in the objective of ``options``, where an evaluator is given."""
    if options.objective == "maxflow" or options.evaluate is None:
        return plan
    score = options.evaluate([plan])[0]
    detail = (score.detail,) if score.detail else ()
    return replace(
        plan,
        objective=options.objective,
        value=score.value,
        bound=None,
        proved_optimal=False,
        reasons=(*plan.reasons, *detail),
    )
