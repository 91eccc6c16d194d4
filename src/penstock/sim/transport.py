"""Moving iterations between vertices over links whose rates are fixed."""

from __future__ import annotations

from typing import Protocol

from penstock.policy.routing import Router
from penstock.policy.topology import Topology
from penstock.sim.link import LinkState
from penstock.sim.loop import ARRIVE, Loop
from penstock.sim.node import NodeState
from penstock.sim.sequence import Sequence


class Home(Protocol):
    """The coordinator's receiving side."""

    def receive(self, items: list[Sequence]) -> None:
        """Take iterations that have gone through all layers."""
        ...


class Transport(Protocol):
    """Carries iterations from a vertex to the next one of their path."""

    def send(self, vertex: int, items: list[Sequence], now: float) -> None: ...


class Paths:
    """Fills in the next leg of iterations whose router chooses hop by hop."""

    def __init__(self, topology: Topology, router: Router, nodes: list[NodeState]) -> None:
        self.topology = topology
        self.router = router
        self._nodes = nodes
        self._now = 0.0

    def queued(self, engine: int) -> int:
        return self._nodes[engine].queue_length(self._now)

    def observe(self, vertex: int, items: list[Sequence], now: float) -> None:
        """Tell the router how long the hops to ``vertex`` took that end now."""
        if vertex != self.topology.coordinator:
            observe = self.router.observe
            for item in items:
                observe(item.legs[item.hop], now - item.sent_s)

    def choose(self, vertex: int, item: Sequence, offered: tuple[int, ...], now: float) -> bool:
        """Extend the path of a prompt by one leg; False when it has to wait."""
        self._now = now
        leg = self.router.next_leg(vertex, offered, self.queued)
        if leg is None:
            return False
        item.legs.append(leg)
        hop = self.topology.hop(leg)
        if hop is not None:
            item.hops.append(hop)
        return True


class FixedRateTransport:
    """Each message, or with ``per_batch`` all that one batch puts on one link, in turn."""

    def __init__(
        self,
        *,
        loop: Loop,
        links: list[LinkState],
        nodes: list[NodeState],
        home: Home,
        paths: Paths | None,
        per_batch: bool,
    ) -> None:
        self._loop = loop
        self._links = links
        self._nodes = nodes
        self._receive = home.receive
        self._paths = paths
        self._per_batch = per_batch

    def send(self, vertex: int, items: list[Sequence], now: float) -> None:
        at_home = vertex == len(self._nodes)
        if self._paths is not None:
            self._choose(self._paths, vertex, items, now)
        if self._per_batch:
            self._send_batches(items, now, at_home)
        else:
            self._send_messages(items, now, at_home)

    def _choose(self, paths: Paths, vertex: int, items: list[Sequence], now: float) -> None:
        paths.observe(vertex, items, now)
        for item in items:
            if item.prefill:
                chosen = paths.choose(vertex, item, paths.topology.out[vertex], now)
                assert chosen, "a leg is always on offer at a vertex that can be reached"

    def _send_messages(self, items: list[Sequence], now: float, at_home: bool) -> None:
        links, nodes = self._links, self._nodes
        for item in items:
            hop = 0 if at_home else item.hop + 1
            item.hop = hop
            link = links[item.legs[hop]]
            item.sent_s, arrive = link.send(now, item.tokens)
            if item.prefill and not at_home:
                nodes[link.src].left(item, item.sent_s)
            if hop < len(item.hops):
                item.layer = item.hops[hop].start_layer
                nodes[link.dst].deliver(arrive, [item], link.free_s)
            else:
                self._loop.at(arrive, ARRIVE, self._receive, [item], since_s=link.free_s)

    def _send_batches(self, items: list[Sequence], now: float, at_home: bool) -> None:
        groups: dict[int, list[Sequence]] = {}
        for item in items:
            hop = 0 if at_home else item.hop + 1
            item.hop = hop
            leg = item.legs[hop]
            if hop < len(item.hops):
                item.layer = item.hops[hop].start_layer
            if leg in groups:
                groups[leg].append(item)
            else:
                groups[leg] = [item]
        for leg, group in groups.items():
            link = self._links[leg]
            tokens = 0
            for item in group:
                tokens += item.tokens
            begin, arrive = link.send(now, tokens)
            if not at_home:
                for item in group:
                    if item.prefill:
                        self._nodes[link.src].left(item, begin)
            if self._paths is not None:
                for item in group:
                    item.sent_s = begin
            if link.dst < len(self._nodes):
                self._nodes[link.dst].deliver(arrive, group, link.free_s)
            else:
                self._loop.at(arrive, ARRIVE, self._receive, group, since_s=link.free_s)
