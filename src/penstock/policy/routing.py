"""Which path a request takes: the protocol of routers and the factory.

A router either plans the whole path when the request is admitted (max flow) or names the next
leg each time a request leaves a vertex (Swarm, random, shortest queue). Decode iterations always
repeat the path of their prompt, because their KV lies there.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from random import Random
from typing import Protocol

from penstock.plan.plan import Routing
from penstock.policy.hop_routers import RandomRouter, ShortestQueueRouter, SwarmRouter
from penstock.policy.iwrr import MaxFlowRouter
from penstock.policy.kv import KVExpectation
from penstock.policy.route import Route
from penstock.policy.topology import Topology

QueueLength = Callable[[int], int]
"""Iterations that wait for the first layer of an engine."""


class Router(Protocol):
    """Decides paths; keeps its own loads and averages, never looks at a clock."""

    @property
    def plans_whole_route(self) -> bool: ...

    @property
    def picks_free_legs(self) -> bool:
        """Whether the published form decides only among legs that are idle at that moment."""
        ...

    def route(
        self, prompt_tokens: int, expected_tokens: int, *, check_kv: bool, backtrack: bool = False
    ) -> Route | None:
        """Return a path for a new request, or None when every one is closed to it.

        Without ``backtrack`` a walk may give up although another path is open, as published.

        Hop-by-hop routers return an empty route.
        """
        ...

    def next_leg(self, vertex: int, legs: Sequence[int], queued: QueueLength) -> int | None:
        """Return the leg a prompt takes from ``vertex``, out of ``legs``; None = wait."""
        ...

    def count_decode(self, legs: Sequence[int]) -> None:
        """Note that a decode iteration runs over ``legs``."""
        ...

    def observe(self, leg: int, seconds: float) -> None:
        """Note how long a hop took, from its start on the leg to the end of its work there."""
        ...

    def rebuild(self, topology: Topology) -> None:
        """Route over ``topology`` from now on (something failed or came back)."""
        ...


def make_router(topology: Topology, routing: Routing, kv: KVExpectation, rng: Random) -> Router:
    """Build the router a plan names."""
    if routing.router == "maxflow":
        return MaxFlowRouter(topology, routing, kv)
    if routing.router == "swarm":
        return SwarmRouter(topology)
    if routing.router == "random":
        return RandomRouter(topology, rng)
    return ShortestQueueRouter(topology, rng)
