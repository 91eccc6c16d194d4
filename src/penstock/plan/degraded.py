"""The max flow of a plan when some of its engines or links are gone or slow."""

from __future__ import annotations

from collections.abc import Collection, Mapping, Sequence
from dataclasses import replace

import numpy as np

from penstock.cost.base import CostModel
from penstock.plan.flow import max_flow
from penstock.plan.placement import Interval, Placement, PlacementProblem
from penstock.plan.plan import Plan
from penstock.plan.problem import placement_problem
from penstock.spec.cluster import COORDINATOR


def leg_nodes(plan: Plan, leg: int) -> tuple[str, str]:
    """The nodes that a leg of ``plan`` joins; the coordinator counts as one."""
    ends = (plan.legs[leg].src, plan.legs[leg].dst)
    src, dst = (e if e == COORDINATOR else plan.engine(e).stages[0].node for e in ends)
    return src, dst


def degraded_flow(
    plan: Plan,
    cost: CostModel,
    legs: Sequence[int],
    *,
    engines_down: Collection[int] = (),
    engine_slow: Mapping[int, float] | None = None,
    leg_slow: Mapping[int, float] | None = None,
) -> tuple[float, dict[int, float]]:
    """Return (tokens/s, tokens/s by leg) over ``legs`` of the plan, the usable ones.

    ``engine_slow`` and ``leg_slow`` are factors of time (2 = half as fast) by index. Raises
    ``PenstockError`` where the cost tables have no figures for what is left.
    """
    if not legs:
        return 0.0, {}
    problem = _problem(plan, cost, engine_slow or {}, leg_slow or {})
    index = plan.cluster.index
    pairs = [(index[a], index[b]) for a, b in (leg_nodes(plan, leg) for leg in legs)]
    flow = max_flow(problem, _placement(plan, engines_down), legs=pairs)
    return flow.value, dict(zip(legs, flow.leg_flow.tolist(), strict=True))


def _problem(
    plan: Plan, cost: CostModel, engine_slow: Mapping[int, float], leg_slow: Mapping[int, float]
) -> PlacementProblem:
    """The plan's problem with a type per node, slowed nodes and slowed links."""
    over_full = any(
        engine.num_layers > cost.max_layers(plan.cluster.node(engine.stages[0].node))
        for engine in plan.engines
    )
    problem = placement_problem(plan.cluster, cost, over_full=over_full)
    index = plan.cluster.index
    speed = np.ones(problem.num_nodes)
    for engine, factor in engine_slow.items():
        speed[index[plan.engines[engine].stages[0].node]] = 1.0 / factor
    link_tokens = problem.link_tokens_per_s.copy()
    for leg, factor in leg_slow.items():
        a, b = leg_nodes(plan, leg)
        link_tokens[index[a], index[b]] /= factor
    return replace(
        problem,
        type_names=tuple(node.name for node in plan.cluster.nodes),
        node_type=np.arange(problem.num_nodes),
        max_layers=problem.node_max_layers,
        throughput=problem.throughput[problem.node_type] * speed[:, None],
        link_tokens_per_s=link_tokens,
    )


def _placement(plan: Plan, engines_down: Collection[int]) -> Placement:
    intervals: list[Interval | None] = [None] * len(plan.cluster.nodes)
    for i, engine in enumerate(plan.engines):
        if i not in engines_down:
            node = plan.cluster.index[engine.stages[0].node]
            intervals[node] = (engine.start_layer, engine.end_layer)
    return Placement(tuple(intervals))
