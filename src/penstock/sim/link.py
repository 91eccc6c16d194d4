"""Links that send one message after the other at a fixed rate, and where that rate comes from."""

from __future__ import annotations

import math
from collections.abc import Sequence as SequenceOf

from penstock.cost.network import hop_bytes_per_token
from penstock.errors import SpecError
from penstock.plan.plan import Plan
from penstock.policy.topology import Topology
from penstock.spec.cluster import COORDINATOR, Link


class LinkState:
    """One direction of a connection: first come, first served, at ``rate_bytes_per_s``.

    Because the rates of all links of a NIC add up to no more than the NIC, links do not disturb
    each other, and the time a message leaves and arrives is known when it joins the queue.
    """

    __slots__ = (
        "busy_s",
        "dst",
        "free_s",
        "latency_s",
        "rate_bytes_per_s",
        "sent_bytes",
        "slow",
        "src",
        "token_bytes",
    )

    def __init__(
        self, src: int, dst: int, latency_s: float, rate_bytes_per_s: float, token_bytes: int
    ) -> None:
        self.src = src
        self.dst = dst
        self.latency_s = latency_s
        self.rate_bytes_per_s = rate_bytes_per_s
        self.token_bytes = token_bytes
        self.slow = 1.0
        self.free_s = 0.0
        self.busy_s = 0.0
        self.sent_bytes = 0

    def send(self, now: float, tokens: int) -> tuple[float, float]:
        """Queue a message of ``tokens`` tokens; return when it starts and when it arrives."""
        begin = self.free_s if self.free_s > now else now
        size = tokens * self.token_bytes
        duration = self.latency_s + size / self.rate_bytes_per_s * self.slow
        # In the published order of operations, so that times agree to the last bit.
        sent = begin + duration - self.latency_s
        self.free_s = sent
        self.busy_s += sent - begin
        self.sent_bytes += size
        return begin, sent + self.latency_s


def make_links(plan: Plan, topology: Topology) -> list[LinkState]:
    """One state per leg of the plan, without a rate yet. ``SpecError`` where a link is missing."""
    states = []
    for leg, src, dst in zip(plan.legs, topology.src, topology.dst, strict=True):
        link = link_of(plan, leg.src, leg.dst)
        home = COORDINATOR in (leg.src, leg.dst)
        token_bytes = hop_bytes_per_token(plan.model, coordinator=home)
        states.append(LinkState(src, dst, link.latency_s, link.bandwidth_bytes_per_s, token_bytes))
    return states


def link_of(plan: Plan, src: str, dst: str) -> Link:
    """The link under a leg, by the nodes of its engines' last and first stages."""
    a = src if src == COORDINATOR else plan.engine(src).stages[-1].node
    b = dst if dst == COORDINATOR else plan.engine(dst).stages[0].node
    link = plan.cluster.link(a, b)
    if link is None:
        raise SpecError(f"the plan uses a link from {a} to {b} that the cluster does not have")
    return link


def nic_bytes_per_s(plan: Plan) -> tuple[list[float], list[float]]:
    """Inbound and outbound NIC of every vertex, the coordinator last."""
    first = [plan.cluster.node(engine.stages[0].node) for engine in plan.engines]
    last = [plan.cluster.node(engine.stages[-1].node) for engine in plan.engines]
    home = plan.cluster.coordinator
    inbound = [node.nic_in_bytes_per_s for node in first] + [home.nic_in_bytes_per_s]
    outbound = [node.nic_out_bytes_per_s for node in last] + [home.nic_out_bytes_per_s]
    return inbound, outbound


def planned_rates(plan: Plan, topology: Topology) -> list[float]:
    """Bytes/s of each leg as the max-flow scheduler assigns them (Helix section 4.1, last lines).

    floor(min(link, sender NIC x share, receiver NIC x share)); the share of a leg is its part of
    the planned bytes/s of all legs on that NIC. A leg without flow gets 0.
    """
    inbound, outbound = nic_bytes_per_s(plan)
    planned = [
        flow * hop_bytes_per_token(plan.model, coordinator=topology.coordinator in (a, b))
        for flow, a, b in zip(topology.flow, topology.src, topology.dst, strict=True)
    ]
    sent, received = [0.0] * len(outbound), [0.0] * len(inbound)
    for amount, a, b in zip(planned, topology.src, topology.dst, strict=True):
        sent[a] += amount
        received[b] += amount
    rates = []
    for i, leg in enumerate(plan.legs):
        a, b = topology.src[i], topology.dst[i]
        if planned[i] <= 0:
            rates.append(0.0)
            continue
        bandwidth = link_of(plan, leg.src, leg.dst).bandwidth_bytes_per_s
        shares = (outbound[a] * (planned[i] / sent[a]), inbound[b] * (planned[i] / received[b]))
        rate = min(bandwidth, *shares)
        rates.append(float(math.floor(rate)) if rate >= 1 else rate)
    return rates


def equal_rates(plan: Plan, topology: Topology) -> list[float]:
    """Bytes/s of each leg when every NIC is shared equally among its legs."""
    inbound, outbound = nic_bytes_per_s(plan)
    out_degree, in_degree = degrees(topology)
    return [
        min(
            link_of(plan, leg.src, leg.dst).bandwidth_bytes_per_s,
            outbound[topology.src[i]] / out_degree[topology.src[i]],
            inbound[topology.dst[i]] / in_degree[topology.dst[i]],
        )
        for i, leg in enumerate(plan.legs)
    ]


def published_rates(plan: Plan, topology: Topology) -> list[float] | None:
    """Bytes/s of each leg under the baselines' published rule, where that rule gives constants.

    The rule is min(NIC / outdegree - link in use, sender free, link free, receiver free). As long
    as no NIC can bind this is min(NIC / outdegree, link), one message at a time; else None.
    """
    inbound, outbound = nic_bytes_per_s(plan)
    out_degree, _ = degrees(topology)
    rates = [
        min(
            outbound[topology.src[i]] / out_degree[topology.src[i]],
            link_of(plan, leg.src, leg.dst).bandwidth_bytes_per_s,
        )
        for i, leg in enumerate(plan.legs)
    ]
    received = [0.0] * len(inbound)
    for rate, dst in zip(rates, topology.dst, strict=True):
        received[dst] += rate
    binds = any(total > limit for total, limit in zip(received, inbound, strict=True))
    return None if binds else rates


def degrees(topology: Topology) -> tuple[list[int], list[int]]:
    """Number of the plan's legs out of and into every vertex."""
    return _count(topology.src, topology), _count(topology.dst, topology)


def _count(ends: SequenceOf[int], topology: Topology) -> list[int]:
    count = [0] * (topology.coordinator + 1)
    for end in ends:
        count[end] += 1
    return count
