"""Interleaved weighted round robin over the max flow (Helix section 4.1)."""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence

from penstock.plan.plan import Routing
from penstock.policy.kv import KVExpectation
from penstock.policy.route import Hop, Route
from penstock.policy.topology import Topology


class MaxFlowRouter:
    """Walks from the coordinator back to it, at each vertex to the least loaded open leg.

    The load of a leg grows by tokens / flow, so that legs are used in proportion to their flow.
    A leg is closed when it carries less than ``min_flow_share`` of its vertex's flow, when the
    prompt is longer than the next engine takes, or when the engine's expected KV would pass the
    high-water mark. The whole path is fixed before the request leaves.

    Published, a walk that ends where every leg is closed fails. With ``backtrack`` it goes back and
    tries the other legs, so that a request waits only when no path at all is open.
    """

    plans_whole_route = True
    picks_free_legs = False

    def __init__(self, topology: Topology, routing: Routing, kv: KVExpectation) -> None:
        self._kv = kv
        self._mark = routing.kv_high_water_mark
        self._min_share = routing.min_flow_share
        self._load = [0.0] * len(topology.src)
        self.rebuild(topology)

    def rebuild(self, topology: Topology) -> None:
        self._topology = topology
        self._flow = list(topology.flow)
        self._step = [1.0 / flow if flow > 0 else 0.0 for flow in self._flow]
        self._choices = []
        for legs in topology.out:
            open_legs = self._open(legs)
            self._choices.append(
                [(leg, topology.dst[leg], self._flow[leg], topology.hop(leg)) for leg in open_legs]
            )

    def _open(self, legs: tuple[int, ...]) -> list[int]:
        """The legs with enough of their vertex's flow.

        The published share would close most legs of a vertex with very many: where it closes more
        than half of the flow, half of an equal share is enough.
        """
        total = sum(self._flow[leg] for leg in legs)
        carrying = [leg for leg in legs if self._flow[leg] > 0]
        left = [leg for leg in carrying if self._flow[leg] >= self._min_share * total]
        if 2 * sum(self._flow[leg] for leg in left) >= total:
            return left
        return [leg for leg in carrying if self._flow[leg] * len(carrying) >= 0.5 * total]

    def route(
        self, prompt_tokens: int, expected_tokens: int, *, check_kv: bool, backtrack: bool = False
    ) -> Route | None:
        home = self._topology.coordinator
        limits = self._topology.limits
        load = self._load
        fits, mark = self._kv.fits, self._mark
        legs: list[int] = []
        hops: list[Hop] = []
        undo: list[float] = []
        closed: set[int] = set()
        at = home
        while True:
            best, best_hop, least = -1, None, math.inf
            for leg, dst, flow, hop in self._choices[at]:
                if dst != home and (
                    dst in closed
                    or prompt_tokens > limits[dst].max_prefill_tokens
                    or (check_kv and not fits(dst, expected_tokens, mark))
                ):
                    continue
                would_be = load[leg] + prompt_tokens / flow
                if would_be < least:
                    best, best_hop, least = leg, hop, would_be
            if best < 0 and backtrack and legs:
                closed.add(at)
                load[legs.pop()] = undo.pop()
                hops.pop()
                at = hops[-1].engine if hops else home
                continue
            if best < 0:
                for leg, before in zip(legs, undo, strict=True):
                    load[leg] = before
                return None
            undo.append(load[best])
            load[best] = least
            legs.append(best)
            if best_hop is None:
                return Route(tuple(hops), tuple(legs))
            hops.append(best_hop)
            at = best_hop.engine

    def count_decode(self, legs: Sequence[int]) -> None:
        load, step = self._load, self._step
        for leg in legs:
            load[leg] += step[leg]

    def next_leg(
        self, vertex: int, legs: Sequence[int], queued: Callable[[int], int]
    ) -> int | None:
        raise NotImplementedError("the max-flow router plans whole routes")

    def observe(self, leg: int, seconds: float) -> None:
        """Max flow does not learn from measurements."""
