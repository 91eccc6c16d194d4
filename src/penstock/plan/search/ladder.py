"""Candidates for throughput: demands x hop prices x slow-link prices, annealed and made plans of.

Deep pipelines and slow links cost latency, and with the KV memory of a fleet fixed, latency costs
throughput. So the search asks for less than the largest flow and pays for every hop and every
slow link; which demand and which prices are best depends on the traffic, hence the ladder.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, replace
from random import Random

import numpy as np
from numpy.typing import NDArray

from penstock.plan.fleet import Fleet
from penstock.plan.flow import Flow, cheapest_flow, max_flow
from penstock.plan.placement import Placement, PlacementProblem
from penstock.plan.search.constructors import Intervals, fill
from penstock.plan.search.engine import (
    HOT,
    UNIT,
    Job,
    instance,
    proposals_per_run,
    random_start,
)
from penstock.plan.surrogate import OUTPUT_TOKENS, PROMPT_TOKENS

Floats = NDArray[np.float64]
Ints = NDArray[np.int64]

_SLOW = 3.0
"""A link is slow when a request spends this many times longer on it than on the fastest."""
_DETOUR_OVER_SLOW = 3.0
_LEAST_SHARE = 0.05
"""The router leaves out legs with less of a vertex's outflow; so do our plans."""
_LEAST_NODE_SHARE = 0.005
_BALANCE_STEPS = 6


@dataclass(frozen=True)
class Rung:
    """One setting of the ladder: share of the largest flow, prices in layers.

    ``memory`` asks that KV memory, too, lets that share of what the fleet could hold at most run
    at once: a node then carries no more of the flow than its KV memory has of the requests.
    """

    share: float
    hop_price: float
    slow_price: float
    memory: float = 0.0


def first_rungs(has_slow_links: bool) -> list[Rung]:
    """The ladder tried first."""
    slow = (0.5, 1.0, 2.0) if has_slow_links else (0.0,)
    settings = ((0.2, 0.4), (0.35, 0.35), (0.2, 0.3), (0.3, 0.0))
    rungs: list[Rung] = []
    for share in (0.6, 0.68, 0.75, 0.82, 0.9):
        for hop, memory in settings:
            rungs.append(Rung(share, hop, slow[len(rungs) % len(slow)], memory))
    return rungs


def rungs_near(rung: Rung, count: int, rng: Random) -> list[Rung]:
    """Settings close to one that did well."""
    return [
        Rung(
            share=min(1.0, rung.share * rng.uniform(0.94, 1.06)),
            hop_price=rung.hop_price * rng.uniform(0.6, 1.5),
            slow_price=rung.slow_price * rng.uniform(0.6, 1.5),
            memory=rung.memory * rng.uniform(0.9, 1.1),
        )
        for _ in range(count)
    ]


def leg_seconds(problem: PlacementProblem) -> Floats:
    """``[n+1, n+1]`` seconds a typical request spends on each link in all its iterations."""
    with np.errstate(divide="ignore"):
        transfer = (PROMPT_TOKENS + OUTPUT_TOKENS) / problem.link_tokens_per_s
    return np.asarray((1 + OUTPUT_TOKENS) * problem.link_latency_s + transfer)


def slowness(problem: PlacementProblem) -> Floats:
    """``[n+1, n+1]`` 0 for fast and absent links, about 1 for slow ones (between nodes)."""
    n = problem.num_nodes
    seconds = leg_seconds(problem)
    between = seconds[:n, :n]
    present = between[np.isfinite(between)]
    if len(present) == 0:
        return np.zeros_like(seconds)
    fastest = float(present.min())
    slow = present[present > _SLOW * fastest]
    if len(slow) == 0:
        return np.zeros_like(seconds)
    relative = np.where(np.isfinite(seconds), seconds - fastest, 0.0) / (slow.mean() - fastest)
    relative[seconds <= _SLOW * fastest] = 0.0
    return np.asarray(relative)


def kv_tokens(problem: PlacementProblem, fleet: Fleet) -> Floats:
    """``[n, K + 1]`` tokens whose KV a node keeps for each of the k layers it holds."""
    rows: dict[int, Floats] = {}
    for kind, node in zip(
        problem.node_type[fleet.origin].tolist(), fleet.origin.tolist(), strict=True
    ):
        if kind not in rows:
            row = np.zeros(fleet.capacity.shape[1])
            for k in range(1, int(problem.max_layers[kind]) + 1):
                entries = problem.cost.kv_capacity_layer_tokens(problem.cluster.nodes[node], k)
                row[k] = entries / k
            rows[kind] = row
    return np.array([rows[kind] for kind in problem.node_type[fleet.origin].tolist()])


def most_requests(fleet: Fleet, tokens: Floats) -> float:
    """Tokens of context that all nodes together can keep, over L layers."""
    layers = np.arange(tokens.shape[1])
    return float((tokens * layers).max(axis=1).sum() / fleet.num_layers)


def with_memory(fleet: Fleet, tokens: Floats, rung: Rung, demand: float) -> Fleet:
    """The fleet whose nodes also carry no larger share of ``demand`` than of the KV memory.

    The most requests the fleet could keep at once is what all nodes together hold, over L layers.
    """
    if rung.memory <= 0:
        return fleet
    limit = demand * tokens / (rung.memory * most_requests(fleet, tokens))
    return replace(fleet, capacity=np.minimum(fleet.capacity, limit))


def jobs_for(
    problem: PlacementProblem,
    fleet: Fleet,
    rungs: Sequence[Rung],
    *,
    largest: float,
    seed: int,
    starts: Sequence[Intervals | None],
) -> list[Job]:
    """One annealing run per rung; a start of None is random, others continue from a placement."""
    ends = np.append(fleet.origin, problem.num_nodes)
    slow = slowness(problem)[np.ix_(ends, ends)]
    tokens = kv_tokens(problem, fleet)
    jobs = []
    for number, (rung, origin) in enumerate(zip(rungs, starts, strict=True)):
        rng = Random(f"{seed}/{number}")
        start, end = random_start(fleet, rng) if origin is None else fill(fleet, origin)
        price = np.rint(slow * rung.slow_price * UNIT).astype(np.int64)
        jobs.append(
            Job(
                instance(with_memory(fleet, tokens, rung, rung.share * largest), price),
                demand=rung.share * largest,
                start=start,
                end=end,
                proposals=_proposals(fleet, origin is None),
                seed=rng.randrange(1 << 30),
                hop_price=rung.hop_price,
                detour_price=max(2.0, _DETOUR_OVER_SLOW * rung.slow_price),
                hot=HOT if origin is None else 0.3 * HOT,
            )
        )
    return jobs


def _proposals(fleet: Fleet, random: bool) -> int:
    """Links make a proposal dearer and a random start worse; what continues needs less."""
    return proposals_per_run(fleet.num_nodes) // (2 if random and fleet.free_links else 4)


@dataclass(frozen=True)
class Candidate:
    """A placement with the flow its router should follow, and where it came from."""

    placement: Placement
    flow: Flow
    rung: Rung


class Routes:
    """Chooses the flow that the router of a placement should follow."""

    def __init__(self, problem: PlacementProblem) -> None:
        self.problem = problem
        self._slowness = slowness(problem)
        fleet = Fleet.of(problem)
        tokens = kv_tokens(problem, fleet)
        self._most = most_requests(fleet, tokens)
        self._tokens = np.zeros_like(problem.throughput)
        self._tokens[problem.node_type[fleet.origin]] = tokens

    def _price(self, rung: Rung) -> Floats:
        return np.maximum(rung.hop_price + rung.slow_price * self._slowness, 1e-3)

    def whole(self, placement: Placement, demand: float) -> Candidate | None:
        """Carry ``demand`` over few hops and near links, nodes up to T(k); drop idle ones."""
        rung = Rung(1.0, 0.1, 1.0)
        flow = cheapest_flow(self.problem, placement, demand, self._price(rung))
        return self._without_idle(self.problem, placement, flow, rung, least=1e-9)

    def serving(
        self, placement: Placement, demand: float, rung: Rung, *, balanced: bool = True
    ) -> Candidate | None:
        """Carry ``demand`` over few hops and near links; ``balanced``: fill KV memory evenly first.

        Legs that the router would leave out as too weak are dropped, at up to 2 % of the flow.
        """
        limited = self._balanced(placement, demand) if balanced else self.problem
        price = self._price(rung)
        flow = cheapest_flow(limited, placement, demand, price)
        if flow.value <= 0:
            return None
        for _ in range(4):
            weak = weak_legs(self.problem.num_nodes, flow)
            if not weak.any():
                break
            kept = flow.legs[(flow.leg_flow > 0) & ~weak]
            thinner = cheapest_flow(limited, placement, demand, price, legs=kept)
            if thinner.value < 0.98 * flow.value:
                break
            flow = thinner
        return self._without_idle(limited, placement, flow, rung, least=_LEAST_NODE_SHARE)

    def _balanced(self, placement: Placement, demand: float) -> PlacementProblem:
        """The problem with nodes limited to their share of KV memory, as tightly as possible."""
        reachable = min(demand, max_flow(self.problem, placement).value)
        low, high = 0.0, 1.0
        best = self.problem
        for _ in range(_BALANCE_STEPS):
            middle = 0.5 * (low + high)
            limit = demand * self._tokens / (0.97 * middle * self._most)
            limited = replace(self.problem, throughput=np.minimum(self.problem.throughput, limit))
            if max_flow(limited, placement).value >= 0.999 * reachable:
                low, best = middle, limited
            else:
                high = middle
        return best

    def _without_idle(
        self,
        problem: PlacementProblem,
        placement: Placement,
        flow: Flow,
        rung: Rung,
        *,
        least: float,
    ) -> Candidate | None:
        if flow.value <= 0:
            return None
        busy = flow.node_flow > least * flow.value
        intervals = tuple(
            interval if used else None
            for interval, used in zip(placement.intervals, busy.tolist(), strict=True)
        )
        ends = np.append(busy, True)
        kept = flow.legs[(flow.leg_flow > 0) & ends[flow.legs[:, 0]] & ends[flow.legs[:, 1]]]
        final = Placement(intervals)
        flow = cheapest_flow(problem, final, flow.value, self._price(rung), legs=kept)
        return Candidate(final, flow.used(), rung) if flow.value > 0 else None


def weak_legs(num_nodes: int, flow: Flow) -> NDArray[np.bool_]:
    """``[m]`` legs with flow, but less than ``_LEAST_SHARE`` of what leaves their source."""
    out = np.bincount(flow.legs[:, 0], weights=flow.leg_flow, minlength=num_nodes + 1)
    return (flow.leg_flow > 0) & (flow.leg_flow < _LEAST_SHARE * out[flow.legs[:, 0]])
