"""Homogeneous: fill pipelines with nodes at their most layers, one type after another.

Source: the tutorial heuristic of the Helix artifact (specification section 3.5).
"""

from __future__ import annotations

from random import Random

from penstock.errors import Infeasible
from penstock.plan.placement import Interval, Placement, PlacementProblem
from penstock.plan.plan import Plan, Unused
from penstock.plan.planner import PlannerOptions
from penstock.plan.publish import pipeline_legs, published_plan

Pipeline = list[tuple[int, Interval]]


class HomogeneousPlanner:
    """Pipelines of nodes of one type where possible; types meet only at a seam."""

    name = "homogeneous"

    def plan(self, problem: PlacementProblem, options: PlannerOptions) -> Plan:
        pipelines = homogeneous_pipelines(problem)
        intervals: list[Interval | None] = [None] * problem.num_nodes
        for pipeline in pipelines:
            for i, interval in pipeline:
                intervals[i] = interval
        legs = [
            leg
            for pipeline in pipelines
            for leg in pipeline_legs(problem, [i for i, _ in pipeline])
        ]
        rest = [i for i, interval in enumerate(intervals) if interval is None]
        room = int(problem.node_max_layers[rest].sum()) if rest else 0
        return published_plan(
            problem,
            Placement(tuple(intervals)),
            sorted(legs, key=lambda leg: leg[0] != problem.num_nodes),
            options,
            planner=self.name,
            unused=[
                Unused(
                    problem.cluster.nodes[i].name,
                    f"left over: the last {len(rest)} nodes hold {room} of "
                    f"{problem.num_layers} layers, too few for another pipeline",
                )
                for i in rest
            ],
            reasons=(f"pipelines filled type by type at full layer counts: {len(pipelines)}",),
        )


def homogeneous_pipelines(problem: PlacementProblem) -> list[Pipeline]:
    """Complete pipelines, each a list of (node, interval).

    Types come by falling ``K * T(K)``, nodes of a type in an order shuffled with seed 0 (one
    generator for all types); the last node of a pipeline takes what is left of the layers.

    Raises ``Infeasible`` when not even one pipeline is complete.
    """
    most, layers = problem.max_layers, problem.num_layers
    work = [float(k * problem.throughput[t, k]) for t, k in enumerate(most.tolist())]
    rng = Random(0)
    pipelines: list[Pipeline] = []
    current: Pipeline = []
    start = 0
    for kind in sorted(range(len(most)), key=lambda t: -work[t]):
        members = [i for i in range(problem.num_nodes) if problem.node_type[i] == kind]
        rng.shuffle(members)
        for i in members if most[kind] > 0 else []:
            end = min(start + int(most[kind]), layers)
            current.append((i, (start, end)))
            start = end
            if end == layers:
                pipelines.append(current)
                current, start = [], 0
    if not pipelines:
        raise Infeasible(
            f"all nodes together hold {start} of {layers} layers at their recommended counts",
            binding="memory",
            fix="add nodes or a quantised model",
        )
    return pipelines
