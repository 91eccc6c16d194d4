"""Swarm: equal stages, each node in the stage with the least throughput so far.

Source: Ryabinin et al. (SWARM parallelism), as the Helix artifact's baseline (specification
section 3.4). The artifact fixes the stages by hand (30B: 10 x 6 layers, 70B: 20 x 4);
``stage_sizes`` finds the same by rule and any other model's too.
"""

from __future__ import annotations

from itertools import pairwise
from random import Random
from statistics import median

import numpy as np

from penstock.errors import Infeasible
from penstock.plan.placement import Interval, Placement, PlacementProblem
from penstock.plan.plan import Plan, Unused
from penstock.plan.planner import PlannerOptions
from penstock.plan.publish import MAX_LEGS_PER_NODE, LegList, published_plan


class SwarmPlanner:
    """Stages of equal length, joined completely; the Swarm router picks among them."""

    name = "swarm"

    def plan(self, problem: PlacementProblem, options: PlannerOptions) -> Plan:
        sizes, left_out = stage_sizes(problem)
        stages = swarm_stages(problem, sizes)
        placement = stage_placement(problem, sizes, stages)
        largest = max(sizes)
        return published_plan(
            problem,
            placement,
            swarm_legs(problem, stages),
            options,
            planner=self.name,
            router="swarm",
            unused=[
                Unused(
                    problem.cluster.nodes[i].name,
                    f"holds at most {int(problem.node_max_layers[i])} layers, "
                    f"fewer than a stage of {largest}",
                )
                for i in left_out
            ],
            reasons=(
                f"stages: {len(sizes)} of {_text(sizes)} layers, so that the smallest useful "
                "node holds one; each node joined the stage with the least throughput so far",
            ),
        )


def _text(sizes: list[int]) -> str:
    low, high = min(sizes), max(sizes)
    return str(low) if low == high else f"{low} or {high}"


def stage_sizes(problem: PlacementProblem) -> tuple[list[int], list[int]]:
    """Layers of each stage, and the nodes too small for one.

    The stage is as long as the smallest useful node can hold: useful is a node with at least a
    quarter of the median node's layers, in a fleet where the nodes at least as large are not
    fewer than the stages. Lengths are equal where a divisor of the layer count is at least half
    of that, else they differ by one.
    """
    most = problem.node_max_layers
    holders = most[most > 0]
    if len(holders) == 0:
        raise Infeasible(
            "no node holds a layer of this model", binding="memory", fix="larger nodes"
        )
    floor = median(holders.tolist()) / 4
    for smallest in sorted(set(holders.tolist())):
        sizes = _split(problem.num_layers, smallest)
        able = np.flatnonzero(most >= max(sizes))
        if smallest >= floor and len(able) >= len(sizes):
            kept = set(able.tolist())
            return sizes, [i for i in range(problem.num_nodes) if i not in kept]
    raise Infeasible(
        f"Swarm needs a node for every stage of equal length; {problem.num_nodes} nodes of "
        f"{int(holders.min())} to {int(holders.max())} layers give none that covers "
        f"{problem.num_layers} layers",
        binding="memory",
        fix="add nodes or use --planner penstock",
    )


def _split(layers: int, most: int) -> list[int]:
    """Stage lengths of at most ``most`` layers, equal where that wastes less than half."""
    divisor = max(w for w in range(1, min(most, layers) + 1) if layers % w == 0)
    if 2 * divisor >= most or divisor == layers:
        return [divisor] * (layers // divisor)
    count = -(-layers // most)
    return [layers // count + (s < layers % count) for s in range(count)]


def swarm_stages(problem: PlacementProblem, sizes: list[int]) -> list[list[int]]:
    """Nodes of each stage, in the order they joined.

    Nodes are taken from the fastest to the slowest (the higher index first on ties); each joins
    the stage with the least total (the first on ties).
    """
    largest = max(sizes)
    speed = problem.throughput[problem.node_type, largest]
    able = [i for i in range(problem.num_nodes) if problem.node_max_layers[i] >= largest]
    order = sorted(able, key=lambda i: (float(speed[i]), i), reverse=True)
    stages: list[list[int]] = [[] for _ in sizes]
    totals = [0.0] * len(sizes)
    for i in order:
        s = min(range(len(sizes)), key=totals.__getitem__)
        stages[s].append(i)
        totals[s] += float(problem.throughput[problem.node_type[i], sizes[s]])
    return stages


def stage_placement(
    problem: PlacementProblem, sizes: list[int], stages: list[list[int]]
) -> Placement:
    """Intervals of nodes placed in consecutive stages."""
    intervals: list[Interval | None] = [None] * problem.num_nodes
    start = 0
    for size, nodes in zip(sizes, stages, strict=True):
        for i in nodes:
            intervals[i] = (start, start + size)
        start += size
    return Placement(tuple(intervals))


def swarm_legs(problem: PlacementProblem, stages: list[list[int]]) -> LegList:
    """Legs in published order: the coordinator's, then stage by stage, shuffled with seed 0."""
    n, links = problem.num_nodes, problem.link_tokens_per_s
    legs: LegList = [(n, i) for i in stages[0] if links[n, i] > 0]
    legs += [(i, n) for i in stages[-1] if links[i, n] > 0]
    rng = Random(0)
    for here, following in pairwise(stages):
        for i in here:
            joined = [j for j in following if links[i, j] > 0]
            legs += [(i, j) for j in rng.sample(joined, min(MAX_LEGS_PER_NODE, len(joined)))]
    return legs
