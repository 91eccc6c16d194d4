"""A placement problem as searches and bounds see it: capacities, classes of equal nodes, links."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from functools import cached_property

import numpy as np
from numpy.typing import NDArray

from penstock.plan.placement import Interval, Placement, PlacementProblem

Ints = NDArray[np.int64]
Floats = NDArray[np.float64]


@dataclass(frozen=True)
class Fleet:
    """n nodes that can hold a layer, c classes of nodes with equal figures, K most layers of any.

    capacity   [n, K + 1]    tokens/s of a node with k layers: T(k) and NICs, whichever is less
    work       [n, K + 1]    T(k) alone: never below what a node can do, for bounds
    max_layers [n]
    link       [n+1, n+1]    tokens/s; index n is the coordinator
    partial    a request may enter a node inside its interval
    origin     [n]           position of each node in the problem
    """

    num_layers: int
    capacity: Floats
    work: Floats
    max_layers: Ints
    link: Floats
    partial: bool
    origin: Ints

    @classmethod
    def of(cls, problem: PlacementProblem) -> Fleet:
        work = problem.throughput[problem.node_type].astype(np.float64)
        most = problem.node_max_layers
        beyond = np.arange(work.shape[1])[None, :] > most[:, None]
        work = np.where(beyond, 0.0, work)
        nic = np.minimum(problem.nic_in_tokens_per_s, problem.nic_out_tokens_per_s)
        whole = cls(
            num_layers=problem.num_layers,
            capacity=np.minimum(work, nic[:, None]),
            work=work,
            max_layers=np.minimum(most, problem.num_layers).astype(np.int64),
            link=problem.link_tokens_per_s.astype(np.float64),
            partial=problem.partial_inference,
            origin=np.arange(problem.num_nodes),
        )
        able = np.flatnonzero((whole.max_layers > 0) & (whole.capacity > 0).any(axis=1))
        return whole if len(able) == problem.num_nodes else whole.subset(able)

    @property
    def num_nodes(self) -> int:
        return len(self.max_layers)

    @cached_property
    def class_of(self) -> Ints:
        """``[n]`` class number of each node; classes are numbered by first appearance."""
        seen: dict[bytes, int] = {}
        rows = np.concatenate([self.capacity, self.work, self.max_layers[:, None]], axis=1)
        return np.array([seen.setdefault(row.tobytes(), len(seen)) for row in rows], dtype=np.int64)

    @cached_property
    def class_node(self) -> Ints:
        """``[c]`` the first node of each class."""
        return np.unique(self.class_of, return_index=True)[1].astype(np.int64)

    @cached_property
    def class_count(self) -> Ints:
        """``[c]`` nodes in each class."""
        return np.bincount(self.class_of).astype(np.int64)

    @cached_property
    def highest(self) -> float:
        """The most tokens/s any single node can pass on."""
        return float(self.capacity.max(initial=0.0))

    @cached_property
    def free_links(self) -> bool:
        """Whether every pair is joined by a link that can never bind."""
        off_diagonal = ~np.eye(self.num_nodes + 1, dtype=bool)
        return bool((self.link[off_diagonal] >= self.highest).all())

    def components(self, least: float) -> Ints:
        """``[n]`` component of each node when only links of at least ``least`` tokens/s count.

        A link counts in whichever direction it runs; the coordinator does not join nodes.
        """
        n = self.num_nodes
        joined = self.link[:n, :n] >= least
        joined |= joined.T
        component = np.full(n, -1, dtype=np.int64)
        count = 0
        for i in range(n):
            if component[i] >= 0:
                continue
            component[i] = count
            frontier = np.array([i])
            while len(frontier):
                frontier = np.flatnonzero(joined[frontier].any(axis=0) & (component < 0))
                component[frontier] = count
            count += 1
        return component

    def subset(self, nodes: Ints) -> Fleet:
        """The fleet of some nodes and the coordinator."""
        with_host = np.append(nodes, self.num_nodes)
        return Fleet(
            num_layers=self.num_layers,
            capacity=self.capacity[nodes],
            work=self.work[nodes],
            max_layers=self.max_layers[nodes],
            link=self.link[np.ix_(with_host, with_host)],
            partial=self.partial,
            origin=self.origin[nodes],
        )

    def placement(self, intervals: Sequence[Interval | None], num_nodes: int) -> Placement:
        """The placement, over all ``num_nodes`` nodes of the problem, of this fleet's intervals."""
        everywhere: list[Interval | None] = [None] * num_nodes
        for i, interval in zip(self.origin.tolist(), intervals, strict=True):
            everywhere[i] = interval
        return Placement(tuple(everywhere))
