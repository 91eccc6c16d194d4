"""Tokens per second a placement can carry: max flow, and the cheapest flow of a given size.

The network is Helix's (Mei et al., ASPLOS'25, section 3): a node is an arc whose capacity is the
least of its inbound NIC, T(k) of the k layers it holds, and its outbound NIC; a leg is an arc of
the link's capacity between nodes whose layers follow each other; the coordinator is both ends.
Everything is in tokens/s. Where no single link between a group of nodes and a group of successors
can bind, the group shares one junction vertex, so that a thousand nodes need no million arcs.
"""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from penstock.errors import SpecError
from penstock.plan.network import Network
from penstock.plan.placement import Interval, Placement, PlacementProblem

TOKEN_ID_BYTES = 2.0
_JUNCTION_SAVES = 4
"""A junction is used when the pairs outnumber the nodes they join by this factor."""

Legs = NDArray[np.int64]
Floats = NDArray[np.float64]


@dataclass(frozen=True)
class Flow:
    """A flow over the legs of a placement; m legs, n nodes, index n is the coordinator.

    legs           [m, 2]  (src, dst)
    leg_flow       [m]     tokens/s
    leg_capacity   [m]     tokens/s
    node_flow      [n]     tokens/s through each node
    node_capacity  [n]     tokens/s, 0 for nodes without layers
    """

    value: float
    legs: Legs
    leg_flow: Floats
    leg_capacity: Floats
    node_flow: Floats
    node_capacity: Floats

    def used(self, least: float = 0.0) -> Flow:
        """Return the same flow with only the legs that carry more than ``least`` tokens/s."""
        keep = self.leg_flow > least
        return Flow(
            self.value,
            self.legs[keep],
            self.leg_flow[keep],
            self.leg_capacity[keep],
            self.node_flow,
            self.node_capacity,
        )


def compatible_legs(problem: PlacementProblem, placement: Placement) -> Legs:
    """Return every leg a request could take, ``[m, 2]``, ordered by source then destination.

    The coordinator comes first as a source and last as a destination. A leg needs a link and
    layers that follow each other: exactly, or (``partial_inference``) starting inside the next
    node's interval.
    """
    n = problem.num_nodes
    link = problem.link_tokens_per_s
    starts, ends = _bounds(placement)
    first = np.flatnonzero((starts == 0) & (link[n, :n] > 0))
    blocks = [np.stack([np.full_like(first, n), first], axis=1)]
    for boundary in sorted({e for e in ends.tolist() if 0 < e < problem.num_layers}):
        outs, ins = _meeting(problem, starts, ends, boundary)
        i, j = np.nonzero(link[np.ix_(outs, ins)] > 0)
        blocks.append(np.stack([outs[i], ins[j]], axis=1))
    last = np.flatnonzero((ends == problem.num_layers) & (link[:n, n] > 0))
    blocks.append(np.stack([last, np.full_like(last, n)], axis=1))
    legs = np.concatenate(blocks)
    return legs[np.lexsort((legs[:, 1], np.where(legs[:, 0] == n, -1, legs[:, 0])))]


def node_capacities(problem: PlacementProblem, placement: Placement, legs: Legs) -> Floats:
    """``[n]`` tokens/s of each node: NIC in, T(k), NIC out, whichever is least.

    A NIC whose legs all touch the coordinator carries token ids only (2 bytes a token).
    """
    n = problem.num_nodes
    starts, ends = _bounds(placement)
    held = ends - starts
    columns = problem.throughput.shape[1]
    if held.max(initial=0) >= columns:
        name = problem.cluster.nodes[int(held.argmax())].name
        raise SpecError(
            f"node {name} holds more layers than its table covers",
            value=int(held.max()),
            fix=f"give it at most {columns - 1} layers",
        )
    limit = np.where(held > 0, problem.throughput[problem.node_type, held], 0.0)
    activation = TOKEN_ID_BYTES + problem.model.activation_bytes_per_token
    ratio = activation / TOKEN_ID_BYTES
    for side, nic in ((1, problem.nic_in_tokens_per_s), (0, problem.nic_out_tokens_per_s)):
        between = legs[(legs[:, 1 - side] != n)][:, side]
        carries_activations = np.zeros(n + 1, dtype=bool)
        carries_activations[between] = True
        scale = np.where(carries_activations[:n], 1.0, ratio)
        limit = np.minimum(limit, nic * scale)
    return limit


def max_flow(
    problem: PlacementProblem,
    placement: Placement,
    *,
    legs: Sequence[tuple[int, int]] | Legs | None = None,
) -> Flow:
    """Return the most tokens/s the placement can carry, and one flow that does.

    ``legs``: the links to consider, in the order of the answer (``n`` = coordinator); they may
    start inside the next node's interval. Default: ``compatible_legs``.
    Raises ``SpecError`` for a leg whose layers do not follow each other.
    """
    model = _FlowNetwork(problem, placement, legs, None)
    value = model.network.max_flow(model.source, model.sink)
    return model.answer(value)


def cheapest_flow(
    problem: PlacementProblem,
    placement: Placement,
    demand: float,
    price: Floats,
    *,
    legs: Sequence[tuple[int, int]] | Legs | None = None,
) -> Flow:
    """Return a flow of ``demand`` tokens/s (or the max flow, if less) at the least total price.

    ``price``: ``[n+1, n+1]``, at least 0, per token on the leg i -> j. Used for router weights:
    of all flows of one size, prefer few hops and near links.
    """
    model = _FlowNetwork(problem, placement, legs, price)
    value = model.network.cheapest_flow(model.source, model.sink, demand)
    return model.answer(value)


def _bounds(placement: Placement) -> tuple[NDArray[np.int64], NDArray[np.int64]]:
    """Start and end of each node's interval; (-1, -1) where it holds nothing."""
    pairs = [(-1, -1) if interval is None else interval for interval in placement.intervals]
    array = np.array(pairs, dtype=np.int64).reshape(-1, 2)
    return array[:, 0], array[:, 1]


def _meeting(
    problem: PlacementProblem, starts: NDArray[np.int64], ends: NDArray[np.int64], boundary: int
) -> tuple[NDArray[np.int64], NDArray[np.int64]]:
    """Nodes that end at ``boundary``, and nodes that can continue from it."""
    follows = starts == boundary
    if problem.partial_inference:
        follows |= (starts >= 0) & (starts < boundary) & (boundary < ends)
    return np.flatnonzero(ends == boundary), np.flatnonzero(follows)


def check_leg(problem: PlacementProblem, placement: Placement, src: int, dst: int) -> None:
    """Raise ``SpecError`` when layers do not follow each other from ``src`` to ``dst``."""
    n = problem.num_nodes
    tail: Interval | None = (0, 0) if src == n else placement.intervals[src]
    layers = problem.num_layers
    head: Interval | None = (layers, layers + 1) if dst == n else placement.intervals[dst]
    if tail is not None and head is not None:
        exact = tail[1] == head[0]
        if exact or (n not in (src, dst) and head[0] < tail[1] < head[1]):
            return
    names = [*(node.name for node in problem.cluster.nodes), "coordinator"]
    raise SpecError(
        f"layers do not follow each other on the leg {names[src]} -> {names[dst]}",
        value=(tail, head),
        fix="remove the leg or change the intervals",
    )


class _FlowNetwork:
    """The network of one placement, and how to read leg flows back from it."""

    def __init__(
        self,
        problem: PlacementProblem,
        placement: Placement,
        legs: Sequence[tuple[int, int]] | Legs | None,
        price: Floats | None,
    ) -> None:
        self.problem, self.placement = problem, placement
        self.price = price
        n = problem.num_nodes
        if legs is None:
            self.legs = compatible_legs(problem, placement)
        else:
            self.legs = np.array(legs, dtype=np.int64).reshape(-1, 2)
            for src, dst in self.legs.tolist():
                check_leg(problem, placement, src, dst)
        self.capacity = problem.link_tokens_per_s[self.legs[:, 0], self.legs[:, 1]]
        self.node_capacity = node_capacities(problem, placement, self.legs)
        # Vertices: 2 i and 2 i + 1 are the two ends of node i, then the coordinator's four.
        self.network = Network(2 * n + 4)
        self.source, self.source_out, self.sink_in, self.sink = range(2 * n, 2 * n + 4)
        self.node_arc = [self.network.arc(2 * i, 2 * i + 1, c) for i, c in self._nodes()]
        host = problem.cluster.coordinator
        self.network.arc(self.source, self.source_out, host.nic_out_bytes_per_s / TOKEN_ID_BYTES)
        self.network.arc(self.sink_in, self.sink, host.nic_in_bytes_per_s / TOKEN_ID_BYTES)
        self.explicit: list[tuple[int, int]] = []
        self.junctions: list[tuple[list[tuple[int, int]], list[tuple[int, int]]]] = []
        if legs is None:
            self._add_by_boundary()
        else:
            self._add_explicit(range(len(self.legs)))

    def _nodes(self) -> Iterable[tuple[int, float]]:
        return enumerate(self.node_capacity.tolist())

    def _add_explicit(self, positions: Iterable[int]) -> None:
        n = self.problem.num_nodes
        for position in positions:
            src, dst = self.legs[position].tolist()
            tail = self.source_out if src == n else 2 * src + 1
            head = self.sink_in if dst == n else 2 * dst
            price = 0.0 if self.price is None else float(self.price[src, dst])
            arc = self.network.arc(tail, head, float(self.capacity[position]), price)
            self.explicit.append((position, arc))

    def _add_by_boundary(self) -> None:
        """Add all compatible legs, with junctions where links between groups cannot bind."""
        n = self.problem.num_nodes
        src, dst = self.legs[:, 0], self.legs[:, 1]
        _, ends = _bounds(self.placement)
        boundary = np.where(src == n, 0, ends[np.minimum(src, n - 1)])
        boundary[dst == n] = -1
        for here in sorted(set(boundary.tolist())):
            positions = np.flatnonzero(boundary == here)
            outs, ins = np.unique(src[positions]), np.unique(dst[positions])
            if here in (0, -1) or len(positions) <= _JUNCTION_SAVES * (len(outs) + len(ins)):
                self._add_explicit(positions.tolist())
            else:
                self._add_junctions(positions, outs, ins)

    def _add_junctions(
        self, positions: NDArray[np.int64], outs: NDArray[np.int64], ins: NDArray[np.int64]
    ) -> None:
        src, dst = self.legs[positions, 0], self.legs[positions, 1]
        binds = self.capacity[positions] < np.minimum(
            self.node_capacity[src], self.node_capacity[dst]
        )
        self._add_explicit(positions[binds].tolist())
        pattern = np.full((len(outs), len(ins)), -1.0)
        free_src, free_dst = src[~binds], dst[~binds]
        pattern[np.searchsorted(outs, free_src), np.searchsorted(ins, free_dst)] = (
            0.0 if self.price is None else self.price[free_src, free_dst]
        )
        groups: dict[bytes, list[int]] = {}
        for row in range(len(outs)):
            groups.setdefault(pattern[row].tobytes(), []).append(row)
        for rows in groups.values():
            shared = pattern[rows[0]]
            for price in sorted(set(shared[shared >= 0].tolist())):
                columns = np.flatnonzero(shared == price)
                self._add_junction(outs[rows].tolist(), ins[columns].tolist(), price)

    def _add_junction(self, tails: list[int], heads: list[int], price: float) -> None:
        hub = self.network.vertex()
        capacity = self.node_capacity
        into = [(i, self.network.arc(2 * i + 1, hub, float(capacity[i]), price)) for i in tails]
        out = [(j, self.network.arc(hub, 2 * j, float(capacity[j]))) for j in heads]
        self.junctions.append((into, out))

    def answer(self, value: float) -> Flow:
        n = self.problem.num_nodes
        flow = np.zeros(len(self.legs))
        for position, arc in self.explicit:
            flow[position] = self.network.flow(arc)
        if self.junctions:
            where = {(i, j): p for p, (i, j) in enumerate(self.legs.tolist())}
            for into, out in self.junctions:
                self._share(flow, where, into, out)
        node_flow = np.array([self.network.flow(arc) for arc in self.node_arc])
        return Flow(value, self.legs, flow, self.capacity, node_flow[:n], self.node_capacity)

    def _share(
        self,
        flow: Floats,
        where: dict[tuple[int, int], int],
        into: list[tuple[int, int]],
        out: list[tuple[int, int]],
    ) -> None:
        """Turn a junction's inflows and outflows into leg flows, with as few legs as possible."""
        gives = [(i, self.network.flow(arc)) for i, arc in into]
        takes = [(j, self.network.flow(arc)) for j, arc in out]
        gives = [(i, f) for i, f in gives if f > 0]
        takes = [(j, f) for j, f in takes if f > 0]
        a = b = 0
        while a < len(gives) and b < len(takes):
            (i, supply), (j, need) = gives[a], takes[b]
            amount = min(supply, need)
            flow[where[i, j]] += amount
            gives[a], takes[b] = (i, supply - amount), (j, need - amount)
            # Advance both on a tie, so that no leg of flow zero appears.
            a += supply <= need
            b += need <= supply
