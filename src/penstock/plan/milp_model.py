"""Columns and rows of Helix's placement program, and the way back from a solution.

Source: Helix (ASPLOS'25), section 4.4, as its artifact states it (specification section 3.2).
Node i starts at s_i and holds k layers where b_ik = 1, so it ends at e_i = s_i + sum_k k b_ik; leg
i -> j carries flow f_ij where its switch d_ij is on; L is the number of layers.
"""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from penstock.plan.flow import TOKEN_ID_BYTES, Flow
from penstock.plan.placement import Interval, Placement, PlacementProblem
from penstock.plan.solver import Program, ProgramBuilder

Terms = list[tuple[int, float]]
Edge = tuple[int, int]


@dataclass(frozen=True)
class MilpModel:
    """The program of one problem and where its variables are.

    nodes    the nodes in it: those whose memory holds a layer
    edges    legs (src, dst) in the cluster's order; index n is the coordinator
    start    column of s by node
    hold     columns of b_1 .. b_K by node
    flow, switch  columns by edge
    after, before  columns of c1 (j starts at or before the end of i) and c2 (j ends after it) by
                   edge; only with partial inference
    """

    program: Program
    num_layers: int
    nodes: tuple[int, ...]
    edges: tuple[Edge, ...]
    start: dict[int, int]
    hold: dict[int, list[int]]
    flow: dict[Edge, int]
    switch: dict[Edge, int]
    after: dict[Edge, int]
    before: dict[Edge, int]
    num_cluster_nodes: int

    @classmethod
    def of(cls, problem: PlacementProblem, *, redundant: bool = False) -> MilpModel:
        """Build the program; ``redundant`` adds the rows that force compatible switches on."""
        return _Builder(problem, redundant=redundant).build()

    def placement(self, x: NDArray[np.float64]) -> Placement:
        """The intervals of a solution, rounded to whole layers."""
        intervals: list[Interval | None] = [None] * self.num_cluster_nodes
        for i in self.nodes:
            start = max(0, round(float(x[self.start[i]])))
            held = 1 + int(np.argmax(x[self.hold[i]]))
            intervals[i] = (start, min(self.num_layers, start + held))
        return Placement(tuple(intervals))

    def vector(self, placement: Placement, flow: Flow) -> NDArray[np.float64]:
        """A complete solution: ``placement`` with ``flow``, so that a solver accepts the start."""
        x = np.zeros(self.program.num_columns)
        carried = {
            (int(a), int(b)): f
            for (a, b), f in zip(flow.legs.tolist(), flow.leg_flow.tolist(), strict=True)
        }
        bounds = self._bounds(placement)
        for i in self.nodes:
            start, end = bounds[i]
            x[self.start[i]] = start
            x[self.hold[i][end - start - 1]] = 1.0
        for edge in self.edges:
            (_, end), (start, until) = bounds.get(edge[0], (0, 0)), bounds.get(edge[1], (0, 0))
            inner = edge in self.after
            if inner:
                x[self.after[edge]] = float(start <= end)
                x[self.before[edge]] = float(end < until)
            amount = carried.get(edge, 0.0)
            if amount > 0:
                x[self.flow[edge]] = amount
                x[self.switch[edge]] = 1.0
        return x

    def _bounds(self, placement: Placement) -> dict[int, Interval]:
        """Intervals of the nodes in the program; one that holds nothing gets the first layer,
        where it carries no flow: the program wants every node to hold one."""
        return {i: placement.intervals[i] or (0, 1) for i in self.nodes}


class _Builder:
    """Adds columns and rows in the published order."""

    def __init__(self, problem: PlacementProblem, *, redundant: bool) -> None:
        self.problem = problem
        self.redundant = redundant
        self.out = ProgramBuilder()
        self.layers = float(problem.num_layers)
        self.host = problem.num_nodes
        most = np.minimum(problem.node_max_layers, problem.num_layers)
        self.most = {i: int(k) for i, k in enumerate(most.tolist()) if k > 0}
        index = problem.cluster.index
        pairs = [(index[src], index[dst]) for src, dst, _ in problem.cluster.links()]
        self.edges = [
            (src, dst)
            for src, dst in pairs
            if all(end == self.host or end in self.most for end in (src, dst))
        ]
        self.inner = [edge for edge in self.edges if self.host not in edge]
        self.start: dict[int, int] = {}
        self.hold: dict[int, list[int]] = {}
        self.flow: dict[Edge, int] = {}
        self.switch: dict[Edge, int] = {}
        self.after: dict[Edge, int] = {}
        self.before: dict[Edge, int] = {}

    def build(self) -> MilpModel:
        self._columns()
        self._node_rows()
        for edge in self.edges:
            if edge[0] == self.host:
                self._source_rows(edge)
            elif edge[1] == self.host:
                self._sink_rows(edge)
            elif self.problem.partial_inference:
                self._partial_rows(edge)
            else:
                self._exact_rows(edge)
        for edge in self.edges:
            limit = self._capacity(edge)
            self.out.row([(self.flow[edge], 1.0), (self.switch[edge], -limit)], upper=0.0)
        return MilpModel(
            self.out.build(),
            self.problem.num_layers,
            tuple(self.most),
            tuple(self.edges),
            self.start,
            self.hold,
            self.flow,
            self.switch,
            self.after,
            self.before,
            self.problem.num_nodes,
        )

    def _columns(self) -> None:
        out = self.out
        last = self.layers - 1 if self.redundant else np.inf
        for i, most in self.most.items():
            self.start[i] = out.column(last, integer=True)
            self.hold[i] = [out.column(1.0, integer=True) for _ in range(most)]
        for edge in self.edges:
            self.flow[edge] = out.column(objective=float(edge[0] == self.host))
            self.switch[edge] = out.column(1.0, integer=True)
        if self.problem.partial_inference:
            for edge in self.inner:
                self.after[edge] = out.column(1.0, integer=True)
                self.before[edge] = out.column(1.0, integer=True)

    def _wire(self) -> float:
        """Tokens/s over a link when its bytes are activations alone, relative to ours with ids."""
        activation = float(self.problem.model.activation_bytes_per_token)
        return (TOKEN_ID_BYTES + activation) / activation

    def _capacity(self, edge: Edge) -> float:
        capacity = float(self.problem.link_tokens_per_s[edge])
        return capacity if self.host in edge else capacity * self._wire()

    def _end(self, i: int, sign: float = 1.0) -> Terms:
        """Terms of ``sign * e_i``."""
        held = [(column, sign * (k + 1)) for k, column in enumerate(self.hold[i])]
        return [(self.start[i], sign), *held]

    def _node_rows(self) -> None:
        problem = self.problem
        inflow: dict[int, Terms] = {i: [] for i in self.most}
        outflow: dict[int, Terms] = {i: [] for i in self.most}
        for edge in self.edges:
            if edge[1] != self.host:
                inflow[edge[1]].append((self.flow[edge], 1.0))
            if edge[0] != self.host:
                outflow[edge[0]].append((self.flow[edge], -1.0))
        for i in self.most:
            self.out.row([(column, 1.0) for column in self.hold[i]], lower=1.0, upper=1.0)
            self.out.row(self._end(i), upper=self.layers)
        for i in self.most:
            self.out.row([*inflow[i], *outflow[i]], lower=0.0, upper=0.0)
        nic = np.minimum(problem.nic_in_tokens_per_s, problem.nic_out_tokens_per_s) * self._wire()
        for i, most in self.most.items():
            speed = problem.throughput[problem.node_type[i], 1 : most + 1]
            limits = np.minimum(speed, nic[i]).tolist()
            held = [(c, -limit) for c, limit in zip(self.hold[i], limits, strict=True)]
            self.out.row([*held, *inflow[i]], upper=0.0)

    def _source_rows(self, edge: Edge) -> None:
        start, switch = self.start[edge[1]], self.switch[edge]
        self.out.row([(start, 1.0), (switch, self.layers)], upper=self.layers)
        if self.redundant:
            self.out.row([(start, 1.0), (switch, 1.0)], lower=1.0)

    def _sink_rows(self, edge: Edge) -> None:
        switch = self.switch[edge]
        self.out.row([(switch, self.layers), *self._end(edge[0], -1.0)], upper=0.0)
        if self.redundant:
            self.out.row(
                [(switch, self.layers - 1), *self._end(edge[0], -1.0)], lower=1.0 - self.layers
            )

    def _exact_rows(self, edge: Edge) -> None:
        i, j = edge
        switch = (self.switch[edge], self.layers)
        self.out.row([(self.start[j], -1.0), *self._end(i), switch], upper=self.layers)
        self.out.row([(self.start[j], 1.0), *self._end(i, -1.0), switch], upper=self.layers)

    def _partial_rows(self, edge: Edge) -> None:
        i, j = edge
        after, before, switch = self.after[edge], self.before[edge], self.switch[edge]
        big = self.layers + 1
        gap = [(self.start[j], 1.0), *self._end(i, -1.0)]
        ahead = [*self._end(j), *self._end(i, -1.0)]
        self.out.row([*gap, (after, big)], upper=big)
        self.out.row([*ahead, (before, -big)], lower=1.0 - big)
        self.out.row([(switch, 2.0), (after, -1.0), (before, -1.0)], upper=0.0)
        if self.redundant:
            self.out.row([*gap, (after, big)], lower=1.0)
            self.out.row([(before, big), *self._end(j, -1.0), *self._end(i)], lower=0.0)
            self.out.row([(after, 1.0), (before, 1.0), (switch, -1.0)], upper=1.0)


def followers(problem: PlacementProblem, placement: Placement) -> list[Edge]:
    """Legs of the cluster whose layers follow each other, in the cluster's order, then one pass
    that drops legs into nodes that lead nowhere and one that drops legs out of nodes that nothing
    reaches (as published: not repeated until nothing changes)."""
    host, layers = problem.num_nodes, problem.num_layers
    index = problem.cluster.index
    bounds = placement.intervals
    found: list[Edge] = []
    for src_name, dst_name, _ in problem.cluster.links():
        src, dst = index[src_name], index[dst_name]
        tail = (0, 0) if src == host else bounds[src]
        head = (layers, layers) if dst == host else bounds[dst]
        if tail is None or head is None:
            continue
        inside = problem.partial_inference and host not in (src, dst)
        if tail[1] == head[0] or (inside and head[0] < tail[1] < head[1]):
            found.append((src, dst))
    leads = {src for src, _ in found}
    found = [(src, dst) for src, dst in found if dst == host or dst in leads]
    reached = {dst for _, dst in found}
    return [(src, dst) for src, dst in found if src == host or src in reached]
