"""Placements by construction, without search: one serial chain, and the block program."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from itertools import pairwise, permutations

import numpy as np
from numpy.typing import NDArray

from penstock.plan.bounds import work_bound
from penstock.plan.fleet import Fleet
from penstock.plan.search.blocks import Block, BlockProgram, Border, Candidate, Region

Ints = NDArray[np.int64]
Floats = NDArray[np.float64]

Intervals = list[tuple[int, int] | None]
Evaluate = Callable[[Intervals], float]
"""Max flow (tokens/s) of intervals, one per node."""

_MOST_REGIONS = 4
_PRECISION = 1e-4


@dataclass(frozen=True)
class Built:
    """A constructed placement and its max flow."""

    intervals: Intervals
    value: float
    method: str


def serial_chain(fleet: Fleet, evaluate: Evaluate) -> Built:
    """One chain through the nodes: the largest F with sum_i max{k : T_i(k) >= F} >= L.

    Optimal whenever no two nodes should share a layer and links do not bind. Nodes are visited
    region by region (``link_groups``), strongest first, and those not needed are left out.
    """
    group = link_groups(fleet)
    k = np.arange(fleet.capacity.shape[1])

    def held(demand: float) -> Ints:
        most: Ints = np.where(fleet.capacity >= demand, k, 0).max(axis=1)
        return most

    levels = np.unique(fleet.capacity[fleet.capacity > 0])
    low, high = -1, len(levels)
    while high - low > 1:
        middle = (low + high) // 2
        if held(float(levels[middle])).sum() >= fleet.num_layers:
            low = middle
        else:
            high = middle
    intervals: Intervals = [None] * fleet.num_nodes
    if low < 0:
        return Built(intervals, 0.0, "serial chain")
    layers = held(float(levels[low]))
    position = 0
    for i in np.lexsort((np.arange(fleet.num_nodes), -layers, group)).tolist():
        end = min(fleet.num_layers, position + int(layers[i]))
        if end > position:
            intervals[i] = (position, end)
        position = end
    return Built(intervals, evaluate(intervals), "serial chain")


def link_groups(fleet: Fleet) -> Ints:
    """``[n]`` group of each node: nodes joined by links that cannot bind ("regions")."""
    return fleet.components(fleet.highest)


def block_placement(fleet: Fleet, evaluate: Evaluate, upper: float | None = None) -> Built | None:
    """The best placement of the block program, by bisection of F up to ``upper``.

    Needs regions in which every link is free; returns None where they are not, or are many.
    """
    group = link_groups(fleet)
    groups = int(group.max()) + 1
    if groups > _MOST_REGIONS or not _cliques(fleet, group):
        return None
    capacity = fleet.capacity[fleet.class_node]
    classes = len(fleet.class_node)
    regions = []
    for r in range(groups):
        count = np.bincount(fleet.class_of[group == r], minlength=classes)
        regions.append(Region(capacity, count.astype(np.int64), fleet.num_layers))
    top = work_bound(fleet).value if upper is None else upper
    best: Built | None = None
    low = serial_chain(fleet, evaluate).value
    for order in _orders(groups):
        found = _bisect(fleet, regions, group, order, span=(low, top), evaluate=evaluate)
        if found is not None and (best is None or found.value > best.value):
            best = found
            low = max(low, found.value)
    return best


def _cliques(fleet: Fleet, group: Ints) -> bool:
    n = fleet.num_nodes
    same = (group[:, None] == group[None, :]) & ~np.eye(n, dtype=bool)
    return bool((fleet.link[:n, :n][same] >= fleet.highest).all())


def _orders(groups: int) -> list[tuple[int, ...]]:
    """Orders in which regions can follow each other; mirror images pass the same flow."""
    return [p for p in permutations(range(groups)) if p[0] <= p[-1]]


def _bisect(
    fleet: Fleet,
    regions: Sequence[Region],
    group: Ints,
    order: tuple[int, ...],
    *,
    span: tuple[float, float],
    evaluate: Evaluate,
) -> Built | None:
    low, high = span
    best: Built | None = None
    demand = high
    while high - low > _PRECISION * high:
        borders = [Border(a, b, _pair_capacity(fleet, group, a, b)) for a, b in pairwise(order)]
        program = BlockProgram(regions, fleet.num_layers, demand, borders)
        picked = program.solve()
        built = None if picked is None else _assemble(fleet, program, picked, group, order)
        value = 0.0 if built is None else evaluate(built)
        if built is not None and value > low:
            best = Built(built, value, "block program")
            low = value
        if value < demand * (1 - 1e-9):
            high = min(high, demand)
        demand = 0.5 * (low + high)
    return best


def _pair_capacity(fleet: Fleet, group: Ints, a: int, b: int) -> float:
    """What a well chosen pair of nodes of two regions can pass: the median of their links."""
    links = fleet.link[np.ix_(np.flatnonzero(group == a), np.flatnonzero(group == b))]
    return float(np.median(links[links > 0])) if (links > 0).any() else 0.0


def _assemble(
    fleet: Fleet,
    program: BlockProgram,
    picked: Sequence[tuple[Candidate, int]],
    group: Ints,
    order: tuple[int, ...],
) -> Intervals:
    """Lay the chosen blocks one after the other and hand their places to nodes."""
    blocks: dict[int, list[Block]] = {r: [] for r in order}
    for column, times in picked:
        blocks[column.region] += [program.realise(column)] * times
    sequence: list[tuple[int, Block]] = []
    for position, r in enumerate(order):
        # The widest blocks go to the borders of the region.
        wide = sorted(blocks[r], key=lambda block: -len(block.chains))
        first = [wide.pop(0)] if position > 0 and wide else []
        last = [wide.pop(0)] if position < len(order) - 1 and wide else []
        sequence += [(r, block) for block in [*first, *wide, *last]]
    seats = [
        (r, kind, begin, end)
        for r, kind, begin, end in _seats(sequence)
        if begin < fleet.num_layers
    ]
    return _seat_nodes(fleet, seats, group)


def _seats(sequence: Sequence[tuple[int, Block]]) -> list[tuple[int, int, int, int]]:
    """(region, class, start, end) of every node a sequence of blocks asks for."""
    seats = []
    start = 0
    for r, block in sequence:
        for chain in block.chains:
            begin = start
            for kind, layers in chain:
                seats.append((r, kind, begin, begin + layers))
                begin += layers
        start += block.span
    return seats


def _seat_nodes(fleet: Fleet, seats: Sequence[tuple[int, int, int, int]], group: Ints) -> Intervals:
    """Give each seat a node of its region and class, so that legs get the widest links.

    Starts in node order, then swaps equal nodes while the sum of link capacities over the legs,
    each counted up to what its two nodes can pass, grows.
    """
    n, layers = fleet.num_nodes, fleet.num_layers
    free: dict[tuple[int, int], list[int]] = {}
    for i in range(n):
        free.setdefault((int(group[i]), int(fleet.class_of[i])), []).append(i)
    start = np.full(n, -1, dtype=np.int64)
    end = np.full(n, -2, dtype=np.int64)
    for r, kind, begin, finish in seats:
        i = free[r, kind].pop(0)
        start[i], end[i] = begin, min(finish, layers)
    useful = np.minimum(fleet.link, fleet.highest)

    def worth(i: int, s: int, e: int) -> float:
        """Link capacity of the legs of node ``i`` when it holds [s, e)."""
        others = np.arange(n) != i
        total = float(useful[i, :n][(start == e) & others].sum())
        total += float(useful[:n, i][(end == s) & others].sum())
        total += float(useful[n, i]) * (s == 0) + float(useful[i, n]) * (e == layers)
        return total

    improved = True
    while improved:
        improved = False
        for i in range(n):
            for j in range(i + 1, n):
                if fleet.class_of[i] != fleet.class_of[j] or group[i] != group[j]:
                    continue
                if (start[i], end[i]) == (start[j], end[j]):
                    continue
                before = worth(i, start[i], end[i]) + worth(j, start[j], end[j])
                start[i], end[i], start[j], end[j] = start[j], end[j], start[i], end[i]
                after = worth(i, start[i], end[i]) + worth(j, start[j], end[j])
                if after > before * (1 + 1e-9):
                    improved = True
                else:
                    start[i], end[i], start[j], end[j] = start[j], end[j], start[i], end[i]
    return [(int(s), int(e)) if s >= 0 else None for s, e in zip(start, end, strict=True)]


def fill(fleet: Fleet, intervals: Intervals) -> tuple[Ints, Ints]:
    """Start and end of each node for the annealing: nodes without layers double a weak place."""
    start = np.zeros(fleet.num_nodes, dtype=np.int64)
    end = np.zeros(fleet.num_nodes, dtype=np.int64)
    cover = np.zeros(fleet.num_layers)
    for i, interval in enumerate(intervals):
        if interval is not None:
            start[i], end[i] = interval
            cover[start[i] : end[i]] += fleet.capacity[i, end[i] - start[i]]
    for i, interval in enumerate(intervals):
        if interval is None:
            weakest = int(cover.argmin())
            start[i] = min(weakest, fleet.num_layers - 1)
            end[i] = start[i] + 1
            cover[start[i]] += fleet.capacity[i, 1]
    return start, end
