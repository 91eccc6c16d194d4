"""Petals: nodes join one by one, each where the layers are served worst.

Source: Borzunov et al. (Petals), as the Helix artifact's baseline (specification section 3.3).
"""

from __future__ import annotations

from random import Random

import numpy as np

from penstock.errors import Infeasible
from penstock.plan.placement import Interval, Placement, PlacementProblem
from penstock.plan.plan import Plan, Unused
from penstock.plan.planner import PlannerOptions
from penstock.plan.publish import MAX_LEGS_PER_NODE, LegList, end_legs, published_plan

RESOLUTION = 1e-9
"""Throughputs are compared in this fraction of the largest."""


class PetalsPlanner:
    """Every node holds its most layers; requests may enter a node in the middle of them."""

    name = "petals"

    def plan(self, problem: PlacementProblem, options: PlannerOptions) -> Plan:
        placement = petals_placement(problem)
        return published_plan(
            problem,
            placement,
            petals_legs(problem, placement),
            options,
            planner=self.name,
            unused=[
                Unused(node.name, "its memory holds no layer of this model")
                for node, most in zip(
                    problem.cluster.nodes, problem.node_max_layers.tolist(), strict=True
                )
                if most == 0
            ],
            reasons=(
                "nodes were placed one by one, each on the layers with the least throughput",
                "requests may enter a node in the middle of its layers (partial inference)",
            ),
        )


def petals_placement(problem: PlacementProblem) -> Placement:
    """The published placement: nodes in an order shuffled with seed 0.

    A node takes the window whose accumulated layer throughputs, sorted, come first in
    lexicographic order (the first window on ties). Raises ``Infeasible`` when layers stay open.
    """
    order = list(range(problem.num_nodes))
    Random(0).shuffle(order)
    # Whole numbers, so that windows served by the same nodes tie whatever the order of the sums.
    unit = float(problem.throughput.max()) * RESOLUTION
    served = [0] * problem.num_layers
    intervals: list[Interval | None] = [None] * problem.num_nodes
    for i in order:
        width = int(problem.node_max_layers[i])
        if width == 0 or problem.throughput[problem.node_type[i], width] <= 0:
            continue
        start = min(
            range(problem.num_layers - width + 1),
            key=lambda s: sorted(served[s : s + width]),
        )
        speed = max(1, round(float(problem.throughput[problem.node_type[i], width]) / unit))
        intervals[i] = (start, start + width)
        for layer in range(start, start + width):
            served[layer] += speed
    open_layers = [layer for layer, speed in enumerate(served) if speed == 0]
    if open_layers:
        raise Infeasible(
            f"Petals leaves {len(open_layers)} of {problem.num_layers} layers without a node",
            binding="memory",
            fix="add nodes or use --planner penstock",
        )
    return Placement(tuple(intervals))


def petals_legs(
    problem: PlacementProblem, placement: Placement, *, partial: bool = True
) -> LegList:
    """Legs in published order: the coordinator's, then by node the exact and the partial ones.

    Within a node slow links come first, as published. Where the cap on legs per node binds, the
    fastest are kept (the published order would keep the slowest; there it never binds).
    """
    legs = end_legs(problem, placement.intervals)
    starts, ends = _bounds(placement)
    for i, interval in enumerate(placement.intervals):
        if interval is None:
            continue
        end = interval[1]
        joined = problem.link_tokens_per_s[i, :-1] > 0
        exact = _by_speed(problem, i, np.flatnonzero(joined & (starts == end)))
        inside = _by_speed(problem, i, np.flatnonzero(joined & (starts < end) & (end < ends)))
        legs += [(i, j) for j in (exact + inside if partial else exact)[:MAX_LEGS_PER_NODE]]
    return legs


def _bounds(placement: Placement) -> tuple[np.ndarray, np.ndarray]:
    pairs = [(-1, -1) if interval is None else interval for interval in placement.intervals]
    array = np.array(pairs, dtype=np.int64)
    return array[:, 0], array[:, 1]


def _by_speed(problem: PlacementProblem, i: int, others: np.ndarray) -> list[int]:
    """``others`` from the slowest link to the fastest; capped, with equals spread over nodes."""
    speed = problem.link_tokens_per_s[i]
    ranked = sorted(others.tolist(), key=lambda j: float(speed[j]))
    if len(ranked) <= MAX_LEGS_PER_NODE:
        return ranked
    n = problem.num_nodes
    kept = set(sorted(ranked, key=lambda j: (-float(speed[j]), (j - i) % n))[:MAX_LEGS_PER_NODE])
    return [j for j in ranked if j in kept]
