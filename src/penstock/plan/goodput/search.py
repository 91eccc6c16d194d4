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

from collections.abc import Iterable, Sequence
from dataclasses import dataclass, field
from heapq import heapify, heappop, heappush
from statistics import fmean

from penstock.plan.goodput.candidates import for_gpus, for_rate, larger, offered
from penstock.plan.goodput.capacity import capacity_chain, choices
from penstock.plan.goodput.chains import Chain, run_chains
from penstock.plan.goodput.fleet import Fleet, Job, Probe, Probes
from penstock.plan.goodput.interval import Interval, attainment_interval
from penstock.plan.goodput.question import Capacity, Question, Sweep, Tried
from penstock.plan.goodput.verdict import infeasible, not_searched
from penstock.plan.planner import Progress, ProgressCallback, silent

WAVE = 4
MOST_TRIED = 60
FRONT_TRIED = 6
FRONT_PRICE = 2.0
MOST_BISECTED = 16
OPTIMISM = 1.3
"""A fleet never sustained this many times the sum of its engines in our trials."""
RATE_TOLERANCE = 0.02
STEPS_UP = 4
STEPS_DOWN = 12


def search_fleets(question: Question, probes: Probes, progress: ProgressCallback = silent) -> Sweep:
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
    probes: Probes
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
        chains = (capacity_chain(self.question, kind) for kind in kinds)
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

    def _run(self, chains: Sequence[Chain[Tried]]) -> list[Tried]:
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


def _fleet_chain(question: Question, fleet: Fleet, rate_per_s: float = 0.0) -> Chain[Tried]:
    """``fleet`` at the full rate on every seed, until one fails."""
    rate_per_s = rate_per_s or question.rate_per_s
    found: list[Probe] = []
    for seed in question.seeds:
        found.append((yield Job(fleet, rate_per_s, seed)))
        if found[-1].joint < question.attainment:
            break
    return judged(question, fleet, rate_per_s, found)


def judged(question: Question, fleet: Fleet, rate_per_s: float, found: Iterable[Probe]) -> Tried:
    """The verdict on runs of ``fleet``: it passes when every one does."""
    runs = list(found)
    worst = min(runs, key=lambda one: one.joint)
    passed = worst.joint >= question.attainment
    if worst.ended_early and not passed:
        nothing_below = Interval(0.0, worst.joint)
        return Tried(fleet, rate_per_s, worst.joint, nothing_below, worst, False, bound=True)
    shares = [one.joint for one in runs]
    interval = attainment_interval(shares, [one.requests for one in runs])
    return Tried(fleet, rate_per_s, fmean(shares), interval, worst, passed)


def _rate_chain(
    question: Question, fleet: Fleet, expected_per_s: float, floor_per_s: float
) -> Chain[Tried]:
    """The highest rate of ``fleet`` above ``floor_per_s``; failed where there is none."""
    seed = question.seeds[0]
    low = floor_per_s * (1 + RATE_TOLERANCE)
    high = max(OPTIMISM * expected_per_s, 1.1 * low)
    if low > 0:
        probe = yield Job(fleet, low, seed)
        if probe.joint < question.attainment:
            return judged(question, fleet, low, [probe])
    for _ in range(STEPS_UP):
        probe = yield Job(fleet, high, seed, verdict_only=True)
        if probe.joint < question.attainment:
            break
        low, high = high, OPTIMISM * high
    while high - low > RATE_TOLERANCE * high:
        middle = (low + high) / 2
        probe = yield Job(fleet, middle, seed, verdict_only=True)
        if probe.joint >= question.attainment:
            low = middle
        else:
            high = middle
            if high < 0.02 * expected_per_s:
                return judged(question, fleet, high, [probe])
    rate = low
    for _ in range(STEPS_DOWN):
        tried = yield from _fleet_chain(question, fleet, rate)
        if tried.passed or rate <= floor_per_s:
            return tried
        rate *= 1 - RATE_TOLERANCE
    return tried
