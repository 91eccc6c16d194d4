"""Large fleets: region by region, groups of like composition, one pipeline program per group.

With many nodes one pipeline over all of them gains nothing over several side by side. Nodes of a
region (links that cannot bind) are dealt into groups of equal composition, small enough for the
block program; each distinct composition is planned once. What is left over in every region is
dealt into a last group, joined with the leftovers of other regions when it cannot hold the model.
"""

from __future__ import annotations

from collections.abc import Callable
from functools import partial

import numpy as np
from numpy.typing import NDArray

from penstock.plan.bounds import work_bound
from penstock.plan.fleet import Fleet
from penstock.plan.search.constructors import (
    BlockPlanner,
    Built,
    Intervals,
    link_groups,
    serial_chain,
)

Ints = NDArray[np.int64]

GROUP_SIZES = (32, 48)
_SPARE_LAYERS = 1.3
"""A group should hold the model's layers this many times over."""

EvaluateGroup = Callable[[Fleet, Intervals], float]
"""Max flow (tokens/s) of the intervals of a sub-fleet."""


def hierarchical(fleet: Fleet, evaluate: EvaluateGroup) -> list[Built]:
    """One placement per group size: every group planned by constructions, side by side.

    ``evaluate`` gets a sub-fleet; the value of a placement is the sum over its groups.
    """
    region = link_groups(fleet)
    return [_side_by_side(fleet, region, size, evaluate) for size in GROUP_SIZES]


def _side_by_side(fleet: Fleet, region: Ints, size: int, evaluate: EvaluateGroup) -> Built:
    intervals: Intervals = [None] * fleet.num_nodes
    total = 0.0
    planned: dict[tuple[tuple[int, int], ...], tuple[Intervals, float]] = {}
    for group in _groups(fleet, region, size):
        # Equal compositions inside a region get equal plans, node for node.
        order = group[np.lexsort((group, fleet.class_of[group]))]
        counts = np.unique(fleet.class_of[order], return_counts=True)
        one_region = len(set(region[order].tolist())) == 1
        key = tuple(zip(counts[0].tolist(), counts[1].tolist(), strict=True))
        if not one_region or key not in planned:
            part = fleet.subset(order)
            found = _plan_group(part, partial(evaluate, part))
            if one_region:
                planned[key] = found
        else:
            found = planned[key]
        total += found[1]
        for i, interval in zip(order.tolist(), found[0], strict=True):
            intervals[i] = interval
    return Built(intervals, total, f"groups of about {size} nodes")


def _plan_group(part: Fleet, evaluate: Callable[[Intervals], float]) -> tuple[Intervals, float]:
    best = serial_chain(part, evaluate)
    upper = work_bound(part).value
    planner = BlockPlanner.of(part)
    if planner is not None and upper > best.value * (1 + 1e-9):
        blocks = planner.largest(evaluate, upper, best.value)
        best = blocks if blocks is not None else best
    return best.intervals, best.value


def _groups(fleet: Fleet, region: Ints, size: int) -> list[Ints]:
    """Deal the nodes of each region into groups of like composition that can hold the model."""
    groups: list[Ints] = []
    rest: list[Ints] = []
    for r in range(int(region.max()) + 1):
        nodes = np.flatnonzero(region == r)
        layers = int(fleet.max_layers[nodes].sum())
        most = int(layers / (_SPARE_LAYERS * fleet.num_layers))
        count = min(most, max(1, round(len(nodes) / size)))
        if count == 0:
            rest.append(nodes)
            continue
        groups += _deal(fleet, nodes, count)
    if rest:
        together = np.concatenate(rest)
        if fleet.max_layers[together].sum() >= fleet.num_layers:
            groups.append(together)
    return groups


def _deal(fleet: Fleet, nodes: Ints, count: int) -> list[Ints]:
    """Deal nodes, sorted by class, like cards: every group gets its share of every class."""
    order = nodes[np.lexsort((nodes, fleet.class_of[nodes]))]
    return [order[first::count] for first in range(count)]
