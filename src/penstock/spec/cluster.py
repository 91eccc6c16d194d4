"""A fleet: nodes, the coordinator, and the links that join them."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from functools import cached_property

import numpy as np
from numpy.typing import NDArray

from penstock.spec.hardware import Coordinator, Node

COORDINATOR = "coordinator"


@dataclass(frozen=True, slots=True)
class Link:
    """One direction of a connection."""

    bandwidth_bytes_per_s: float
    latency_s: float


@dataclass(frozen=True)
class Cluster:
    """Nodes in a fixed order and the directed links between them.

    A pair is joined by its entry in ``pair_links`` (keys are node names or ``COORDINATOR``;
    ``None`` cuts the pair), else by the entry of its two regions in ``region_links``, else
    not at all. The order of ``pair_links`` is kept: it is the candidate order of the
    published schedulers.
    """

    name: str
    nodes: tuple[Node, ...]
    coordinator: Coordinator
    region_links: Mapping[tuple[str, str], Link]
    pair_links: Mapping[tuple[str, str], Link | None]

    @cached_property
    def index(self) -> Mapping[str, int]:
        """Position of each node by name; the coordinator comes after the last node."""
        order = {node.name: i for i, node in enumerate(self.nodes)}
        order[COORDINATOR] = len(self.nodes)
        return order

    def node(self, name: str) -> Node:
        return self.nodes[self.index[name]]

    def region_of(self, name: str) -> str:
        return self.coordinator.region if name == COORDINATOR else self.node(name).region

    def link(self, src: str, dst: str) -> Link | None:
        """The link from ``src`` to ``dst``, or None where they are not joined."""
        if src == dst:
            return None
        if (src, dst) in self.pair_links:
            return self.pair_links[src, dst]
        return self.region_links.get((self.region_of(src), self.region_of(dst)))

    def links(self) -> Iterator[tuple[str, str, Link]]:
        """Every directed link: named pairs first, in their order, then those of the regions.

        The order of the latter is that of the published clusters: coordinator to every node,
        every node to the coordinator, then for each pair i < j the links i -> j and j -> i.
        """
        for (src, dst), link in self.pair_links.items():
            if link is not None:
                yield src, dst, link
        if not self.region_links:
            return
        for src, dst in self._ordered_pairs():
            if (src, dst) not in self.pair_links:
                between = self.region_links.get((self.region_of(src), self.region_of(dst)))
                if between is not None:
                    yield src, dst, between

    def _ordered_pairs(self) -> Iterator[tuple[str, str]]:
        names = [node.name for node in self.nodes]
        yield from ((COORDINATOR, name) for name in names)
        yield from ((name, COORDINATOR) for name in names)
        for i, a in enumerate(names):
            for b in names[i + 1 :]:
                yield a, b
                yield b, a

    def link_matrices(self) -> tuple[NDArray[np.float64], NDArray[np.float64]]:
        """Bandwidth (bytes/s) and latency (s), both ``[n + 1, n + 1]``; row = source.

        The last index is the coordinator. Absent links have bandwidth 0 and latency inf.
        """
        size = len(self.nodes) + 1
        names = sorted({node.region for node in self.nodes} | {self.coordinator.region})
        number = {name: i for i, name in enumerate(names)}
        region_bandwidth = np.zeros((len(names), len(names)))
        region_latency = np.full((len(names), len(names)), np.inf)
        for (a, b), between in self.region_links.items():
            if a in number and b in number:
                region_bandwidth[number[a], number[b]] = between.bandwidth_bytes_per_s
                region_latency[number[a], number[b]] = between.latency_s
        member = np.array(
            [number[node.region] for node in self.nodes] + [number[self.coordinator.region]]
        )
        bandwidth = region_bandwidth[np.ix_(member, member)]
        latency = region_latency[np.ix_(member, member)]
        for (src, dst), link in self.pair_links.items():
            i, j = self.index[src], self.index[dst]
            bandwidth[i, j] = link.bandwidth_bytes_per_s if link else 0.0
            latency[i, j] = link.latency_s if link else np.inf
        diagonal = np.arange(size)
        bandwidth[diagonal, diagonal] = 0.0
        latency[diagonal, diagonal] = np.inf
        return bandwidth, latency
