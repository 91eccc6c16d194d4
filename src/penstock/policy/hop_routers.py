"""Routers that choose one leg at a time: Swarm, random, shortest queue (Helix 4.2 and 4.3)."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from heapq import heapify, heappop, heappush
from random import Random

from penstock.policy.route import Route
from penstock.policy.topology import Topology

SWARM_INITIAL_PRIORITY = 0.05
SWARM_NEW_SHARE = 0.8
"""Weight of the newest observation in Swarm's moving average."""


class _HopRouter:
    """What the hop-by-hop routers share: empty routes, nothing to count."""

    plans_whole_route = False
    picks_free_legs = False

    def __init__(self, topology: Topology) -> None:
        self._topology = topology

    def route(
        self, prompt_tokens: int, expected_tokens: int, *, check_kv: bool, backtrack: bool = False
    ) -> Route | None:
        return Route() if self._topology.connected else None

    def count_decode(self, legs: Sequence[int]) -> None:
        """Paths of decode iterations do not weigh on later choices."""

    def observe(self, leg: int, seconds: float) -> None:
        """Nothing is learned from measurements."""

    def rebuild(self, topology: Topology) -> None:
        self._topology = topology


class SwarmRouter(_HopRouter):
    """Stochastic wiring of SWARM parallelism: legs in turn, by the average time they take.

    Each vertex keeps its legs in a priority queue; a prompt takes the leg of least priority, which
    then goes back with its moving average added.
    """

    def __init__(self, topology: Topology) -> None:
        super().__init__(topology)
        self._average = [SWARM_INITIAL_PRIORITY] * len(topology.src)
        self._queues = [[(SWARM_INITIAL_PRIORITY, leg) for leg in legs] for legs in topology.out]

    def next_leg(
        self, vertex: int, legs: Sequence[int], queued: Callable[[int], int]
    ) -> int | None:
        queue = self._queues[vertex]
        if not queue:
            return None
        priority, leg = heappop(queue)
        heappush(queue, (priority + self._average[leg], leg))
        return leg

    def observe(self, leg: int, seconds: float) -> None:
        share = SWARM_NEW_SHARE
        self._average[leg] = share * seconds + (1 - share) * self._average[leg]

    def rebuild(self, topology: Topology) -> None:
        super().rebuild(topology)
        for vertex, legs in enumerate(topology.out):
            known = {leg: priority for priority, leg in self._queues[vertex]}
            newest = min(known.values(), default=SWARM_INITIAL_PRIORITY)
            queue = [(known.get(leg, newest), leg) for leg in legs]
            heapify(queue)
            self._queues[vertex] = queue


class RandomRouter(_HopRouter):
    """Any of the offered legs, with equal chances."""

    picks_free_legs = True

    def __init__(self, topology: Topology, rng: Random) -> None:
        super().__init__(topology)
        self._rng = rng

    def next_leg(
        self, vertex: int, legs: Sequence[int], queued: Callable[[int], int]
    ) -> int | None:
        if not legs:
            return None
        order = list(legs)
        self._rng.shuffle(order)
        return order[0]


class ShortestQueueRouter(RandomRouter):
    """Any of the offered legs whose engine has the shortest queue of all the vertex's legs.

    Returns None where those engines' legs are not offered at the moment.
    """

    def next_leg(
        self, vertex: int, legs: Sequence[int], queued: Callable[[int], int]
    ) -> int | None:
        home = self._topology.coordinator
        dst = self._topology.dst
        length = {
            leg: 0 if dst[leg] == home else queued(dst[leg]) for leg in self._topology.out[vertex]
        }
        if not length:
            return None
        shortest = min(length.values())
        return super().next_leg(
            vertex, [leg for leg in legs if length.get(leg) == shortest], queued
        )
