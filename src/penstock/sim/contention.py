"""The published transport of the baselines, where links and NICs are shared as messages come.

Helix artifact specification, sections 4.3 and 5: a vertex that has something to send goes through
its waiting iterations in order. A decode iteration goes when its leg is free; a prompt of the
random and shortest-queue schedulers takes one of the legs that are free at that moment.
"""

from __future__ import annotations

from penstock.plan.plan import Plan
from penstock.sim.link import LinkState, degrees, nic_bytes_per_s
from penstock.sim.loop import ARRIVE, Loop
from penstock.sim.node import NodeState
from penstock.sim.sequence import Sequence
from penstock.sim.transport import Home, Paths

USABLE_BYTES_PER_S = 10.0
"""A link with less bandwidth left is not used (published)."""


class ContendedTransport:
    """Waiting iterations per vertex, and the bandwidth left on links and NICs."""

    def __init__(
        self,
        *,
        plan: Plan,
        loop: Loop,
        links: list[LinkState],
        nodes: list[NodeState],
        home: Home,
        paths: Paths,
    ) -> None:
        self._loop = loop
        self._links = links
        self._nodes = nodes
        self._receive = home.receive
        self._paths = paths
        inbound, outbound = nic_bytes_per_s(plan)
        out_degree, _ = degrees(paths.topology)
        self._in_free, self._out_free = list(inbound), list(outbound)
        self._share = [
            nic / count if count else 0.0 for nic, count in zip(outbound, out_degree, strict=True)
        ]
        self._link_free = [link.rate_bytes_per_s for link in links]
        self._waiting: list[dict[int, Sequence]] = [{} for _ in range(len(nodes) + 1)]

    def send(self, vertex: int, items: list[Sequence], now: float) -> None:
        paths = self._paths
        at_home = vertex == len(self._nodes)
        paths.observe(vertex, items, now)
        for item in items:
            item.hop = 0 if at_home else item.hop + 1
            _enter(item)
            self._waiting[vertex][id(item)] = item
        self._round(vertex, now)

    def _round(self, vertex: int, now: float) -> None:
        waiting = self._waiting[vertex]
        if not waiting:
            return
        paths = self._paths
        free = [leg for leg in paths.topology.out[vertex] if self._bandwidth(leg)]
        for key, item in list(waiting.items()):
            if item.dead:
                del waiting[key]
                continue
            if len(item.legs) == item.hop and not self._pick(vertex, item, free, now):
                continue
            leg = item.legs[item.hop]
            if leg in free:
                free.remove(leg)
                del waiting[key]
                self._start(leg, item, now)

    def _pick(self, vertex: int, item: Sequence, free: list[int], now: float) -> bool:
        paths = self._paths
        offered = tuple(free) if paths.router.picks_free_legs else paths.topology.out[vertex]
        if not offered or not paths.choose(vertex, item, offered, now):
            return False
        _enter(item)
        return True

    def _bandwidth(self, leg: int) -> float:
        """Bytes/s the leg could have now; 0 when that is too little to be used."""
        link = self._links[leg]
        free = self._link_free[leg]
        rate = min(
            self._share[link.src] - (link.rate_bytes_per_s - free),
            self._out_free[link.src],
            free,
            self._in_free[link.dst],
        )
        return rate if rate > USABLE_BYTES_PER_S else 0.0

    def _start(self, leg: int, item: Sequence, now: float) -> None:
        link = self._links[leg]
        rate = self._bandwidth(leg)
        self._reserve(leg, rate)
        size = item.tokens * link.token_bytes
        duration = link.latency_s + size / rate * link.slow
        sent = now + duration - link.latency_s
        link.busy_s += sent - now
        link.sent_bytes += size
        item.sent_s = now
        if item.prefill and link.src < len(self._nodes):
            self._nodes[link.src].left(item, now)
        self._loop.at(sent, ARRIVE, self._sent, (leg, rate, item))

    def _reserve(self, leg: int, rate: float) -> None:
        link = self._links[leg]
        self._link_free[leg] -= rate
        self._out_free[link.src] -= rate
        self._in_free[link.dst] -= rate

    def _sent(self, what: tuple[int, float, Sequence]) -> None:
        leg, rate, item = what
        now = self._loop.now
        link = self._links[leg]
        self._reserve(leg, -rate)
        if item.hop < len(item.hops):
            self._nodes[link.dst].deliver(now + link.latency_s, [item], now)
        else:
            self._loop.at(now + link.latency_s, ARRIVE, self._receive, [item])
        self._round(link.src, now)


def _enter(item: Sequence) -> None:
    """Note the first layer of the next hop, once it is known: the KV memory held follows it."""
    if item.hop < len(item.hops):
        item.layer = item.hops[item.hop].start_layer
