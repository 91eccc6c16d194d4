"""Placements by construction, without search: one serial chain, and the block program."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from itertools import pairwise, permutations

import numpy as np
from numpy.typing import NDArray

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


class BlockPlanner:
    """Placements by the block program on one fleet; None where its conditions do not hold.

    It needs regions in which every link is free, and not too many of them.
    """

    @classmethod
    def of(cls, fleet: Fleet) -> BlockPlanner | None:
        group = link_groups(fleet)
        if int(group.max()) + 1 > _MOST_REGIONS or not _cliques(fleet, group):
            return None
        return cls(fleet, group)

    def __init__(self, fleet: Fleet, group: Ints) -> None:
        self.fleet, self.group = fleet, group
        self.orders = _orders(int(group.max()) + 1)

    def _regions(self, capacity: Floats) -> list[Region]:
        """``capacity`` [n, K + 1] may be less than the fleet's."""
        rows = capacity[self.fleet.class_node]
        classes = len(self.fleet.class_node)
        regions = []
        for r in range(int(self.group.max()) + 1):
            count = np.bincount(self.fleet.class_of[self.group == r], minlength=classes)
            regions.append(Region(rows, count.astype(np.int64), self.fleet.num_layers))
        return regions

    def _program(
        self, regions: Sequence[Region], demand: float, order: tuple[int, ...]
    ) -> BlockProgram:
        borders = [
            Border(a, b, _pair_capacity(self.fleet, self.group, a, b)) for a, b in pairwise(order)
        ]
        return BlockProgram(regions, self.fleet.num_layers, demand, borders)

    def largest(self, evaluate: Evaluate, upper: float, low: float = 0.0) -> Built | None:
        """The largest flow above ``low`` the program finds, by bisection up to ``upper``."""
        regions = self._regions(self.fleet.capacity)
        best: Built | None = None
        for order in self.orders:
            high = upper
            demand = high
            while high - low > _PRECISION * high:
                program = self._program(regions, demand, order)
                picked = program.solve()
                built = None if picked is None else self._assemble(program, picked, order)
                value = 0.0 if built is None else evaluate(built)
                if built is not None and value > low:
                    best = Built(built, value, "block program")
                    low = value
                if value < demand * (1 - 1e-9):
                    high = min(high, demand)
                demand = 0.5 * (low + high)
        return best

    def shallow(self, demand: float, capacity: Floats, seed: int) -> list[Intervals]:
        """Placements that carry ``demand`` in few hops, one per order of the regions.

        ``capacity`` [n, K + 1] replaces the fleet's (less where KV memory should count).
        """
        regions = self._regions(capacity)
        found = []
        for order in self.orders:
            program = self._program(regions, demand, order)
            picked = program.solve_shallow(seed)
            if picked is not None:
                found.append(self._assemble(program, picked, order))
        return found

    def _assemble(
        self,
        program: BlockProgram,
        picked: Sequence[tuple[Candidate, int]],
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
        seats = [seat for seat in _seats(sequence) if seat[2] < self.fleet.num_layers]
        return _seat_nodes(self.fleet, seats, self.group)


def _cliques(fleet: Fleet, group: Ints) -> bool:
    """Whether, inside every group, all nodes are joined by links that cannot bind."""
    n = fleet.num_nodes
    same = (group[:, None] == group[None, :]) & ~np.eye(n, dtype=bool)
    return bool((fleet.link[:n, :n][same] >= fleet.highest).all())


def _orders(groups: int) -> list[tuple[int, ...]]:
    """Orders in which regions can follow each other; mirror images pass the same flow."""
    return [p for p in permutations(range(groups)) if p[0] <= p[-1]]


def _pair_capacity(fleet: Fleet, group: Ints, a: int, b: int) -> float:
    """What a well chosen pair of nodes of two regions can pass: the median of their links."""
    links = fleet.link[np.ix_(np.flatnonzero(group == a), np.flatnonzero(group == b))]
    return float(np.median(links[links > 0])) if (links > 0).any() else 0.0


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
