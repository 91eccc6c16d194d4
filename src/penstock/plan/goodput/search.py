"""The cheapest fleet for a rate, or the highest rate of the GPUs on offer.

First every kind of engine gets a capacity: the largest rate at which enough requests meet all their
limits, by bisection. Then whole fleets are simulated. ``cheapest``: in order of price, until one
passes on every seed and some dearer ones have followed for the front; a fleet that fails comes
back with one engine more of the kind that binds. ``goodput``: in order of the rate that their
engines add up to; each is bisected unless it fails at the best rate so far.

Fleets are tried in waves of a fixed size, so that the answer does not depend on how many probes
run at once.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field
from heapq import heapify, heappop, heappush

from penstock.plan.goodput.candidates import for_gpus, for_rate, larger, offered
from penstock.plan.goodput.capacity import choices, engine_chain
from penstock.plan.goodput.chains import Chain, Probes, run_chains
from penstock.plan.goodput.fleet import Fleet, Job
from penstock.plan.goodput.question import Capacity, Question, Sweep, Tried
from penstock.plan.goodput.rates import OPTIMISM, Ask, highest_rate_chain, seeds_chain
from penstock.plan.goodput.verdict import infeasible, not_searched
from penstock.plan.planner import Progress, ProgressCallback, silent

WAVE = 4
MOST_TRIED = 60
FRONT_TRIED = 6
FRONT_PRICE = 2.0
MOST_BISECTED = 16


def search_fleets(
    question: Question, probes: Probes[Job], progress: ProgressCallback = silent
) -> Sweep:
    """Search; Ctrl-C returns what was found so far.

    Raises ``Infeasible`` with the limit that binds and the cheapest way out.
    """
    search = _Search(question, probes, progress)
    interrupted = False
    try:
        search.measure()
        search.try_fleets()
    except KeyboardInterrupt:
        interrupted = True
    capacities, tried = search.known_capacities, tuple(search.tried)
    if search.best is None and not interrupted:
        raise infeasible(question, capacities, tried)
    return Sweep(
        question, capacities, tried, search.best, not_searched(question), interrupted=interrupted
    )


@dataclass
class _Search:
    question: Question
    probes: Probes[Job]
    progress: ProgressCallback
    capacities: dict[int, Capacity] = field(default_factory=dict)
    tried: list[Tried] = field(default_factory=list)
    best: Tried | None = None

    @property
    def known_capacities(self) -> tuple[Capacity, ...]:
        return tuple(self.capacities[place] for place in sorted(self.capacities))

    def measure(self) -> None:
        """The capacity of every kind of engine."""
        kinds = choices(self.question)
        chains = (engine_chain(self.question, kind) for kind in kinds)
        for place, capacity in run_chains(chains, self.probes):
            self.capacities[place] = capacity
            share = 0.6 * len(self.capacities) / len(kinds)
            self.progress(Progress(f"capacity of {kinds[place]}", share))

    def try_fleets(self) -> None:
        if self.question.goal == "cheapest":
            self._by_price()
        else:
            self._by_rate()

    # -- the cheapest -------------------------------------------------------------------------

    def _by_price(self) -> None:
        q = self.question
        fleets = for_rate(q, self.known_capacities)
        queue = [(fleet.price_per_hour, i, fleet) for i, fleet in enumerate(fleets)]
        heapify(queue)
        number = len(queue)
        seen: set[str] = set()
        while wave := self._wave(queue, seen):
            found = self._run([_fleet_chain(q, fleet) for fleet in wave])
            for one in found:
                if one.passed:
                    self._consider(one, -one.fleet.price_per_hour)
                    continue
                for fleet in larger(one):
                    number += 1
                    heappush(queue, (fleet.price_per_hour, number, fleet))

    def _wave(self, queue: list[tuple[float, int, Fleet]], seen: set[str]) -> list[Fleet]:
        """The next fleets by price that are on offer and were not tried."""
        wave: list[Fleet] = []
        while queue and len(wave) < WAVE and len(self.tried) + len(wave) < MOST_TRIED:
            if self._enough(queue[0][0]):
                break
            fleet = heappop(queue)[2]
            name = f"{fleet} {fleet.shares}"
            if name not in seen and offered(self.question, fleet):
                seen.add(name)
                wave.append(fleet)
        return wave

    def _enough(self, price: float) -> bool:
        """Whether no cheaper fleet is left, and those for the front are too dear or enough."""
        if self.best is None or price < self.best.fleet.price_per_hour:
            return False
        least = self.best.fleet.price_per_hour
        dearer = sum(one.fleet.price_per_hour >= least for one in self.tried) - 1
        return dearer >= FRONT_TRIED or price > FRONT_PRICE * least

    # -- the highest rate ---------------------------------------------------------------------

    def _by_rate(self) -> None:
        q = self.question
        queue = [entry for entry in for_gpus(q, self.known_capacities) if offered(q, entry[1])]
        queue = queue[:MOST_BISECTED]
        while queue:
            wave, queue = queue[:WAVE], queue[WAVE:]
            floor = self.best.rate_per_s if self.best is not None else 0.0
            wave = [entry for entry in wave if OPTIMISM * entry[0] > floor]
            for one in self._run([_rate_chain(q, fleet, rate, floor) for rate, fleet in wave]):
                if one.passed:
                    self._consider(one, one.rate_per_s)

    # -- both ---------------------------------------------------------------------------------

    def _run(self, chains: Sequence[Chain[Job, Tried]]) -> list[Tried]:
        """Results in the order of ``chains``; those of a wave that is stopped are kept too."""
        found: dict[int, Tried] = {}
        try:
            for place, tried in run_chains(chains, self.probes):
                found[place] = tried
                share = 0.6 + min(0.39, 0.01 * (len(self.tried) + len(found)))
                self.progress(Progress(f"{tried.fleet}", share))
        except KeyboardInterrupt:
            for one in _in_order(found):
                self.tried.append(one)
                if one.passed:
                    self._consider(one, self._worth(one))
            raise
        self.tried += _in_order(found)
        return _in_order(found)

    def _worth(self, one: Tried) -> float:
        cheapest = self.question.goal == "cheapest"
        return -one.fleet.price_per_hour if cheapest else one.rate_per_s

    def _consider(self, one: Tried, worth: float) -> None:
        if self.best is None or worth > self._worth(self.best):
            self.best = one


def _in_order(found: dict[int, Tried]) -> list[Tried]:
    return [found[place] for place in sorted(found)]


def _ask(fleet: Fleet) -> Ask[Job]:
    return lambda rate, seed, verdict_only: Job(fleet, rate, seed, verdict_only=verdict_only)


def _fleet_chain(question: Question, fleet: Fleet) -> Chain[Job, Tried]:
    """``fleet`` at the full rate on every seed, until one fails."""
    q = question
    return Tried(fleet, (yield from seeds_chain(_ask(fleet), q.rate_per_s, q.seeds, q.attainment)))


def _rate_chain(
    question: Question, fleet: Fleet, expected_per_s: float, floor_per_s: float
) -> Chain[Job, Tried]:
    """The highest rate of ``fleet`` above ``floor_per_s``; failed where there is none."""
    q = question
    found = yield from highest_rate_chain(
        _ask(fleet), q.seeds, q.attainment, expected_per_s, floor_per_s
    )
    return Tried(fleet, found)
