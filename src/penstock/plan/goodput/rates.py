"""Chains that find what rate something sustains: a kind of engine, a fleet or a plan."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from statistics import fmean
from typing import TypeVar

from penstock.plan.goodput.chains import Chain
from penstock.plan.goodput.fleet import Probe
from penstock.plan.goodput.interval import Interval, attainment_interval

J = TypeVar("J")
Ask = Callable[[float, int, bool], J]
"""The job of a rate (requests/s), a seed, and whether the verdict is all that counts."""

TOLERANCE = 0.08
SMALLEST_SHARE = 0.01
OPTIMISM = 1.3
"""A fleet never sustained this many times the sum of its engines in our trials."""
RATE_TOLERANCE = 0.02
STEPS_UP = 4
STEPS_DOWN = 12
MOST_STEP = 0.06
LEAST_SHARE = 0.2


@dataclass(frozen=True, slots=True)
class Judged:
    """Runs at ``rate_per_s``: attainment over the seeds with its 95 % interval.

    Where ``bound`` is set, the run was stopped when it was certain to fail: ``attainment`` is
    then the most it could have reached. ``probe`` is the worst run.
    """

    rate_per_s: float
    attainment: float
    interval: Interval
    probe: Probe
    passed: bool
    bound: bool = False


def judge(rate_per_s: float, runs: Sequence[Probe], attainment: float) -> Judged:
    """The verdict on runs of one thing: it passes when every one does."""
    worst = min(runs, key=lambda one: one.joint)
    passed = worst.joint >= attainment
    if worst.ended_early and not passed:
        nothing_below = Interval(0.0, worst.joint)
        return Judged(rate_per_s, worst.joint, nothing_below, worst, passed=False, bound=True)
    shares = [one.joint for one in runs]
    interval = attainment_interval(shares, [one.requests for one in runs])
    return Judged(rate_per_s, fmean(shares), interval, worst, passed)


def capacity_chain(
    ask: Ask[J], most_per_s: float, seed: int, attainment: float
) -> Chain[J, tuple[list[tuple[float, Probe]], Probe]]:
    """Bisection below ``most_per_s``: (sustained rates with their runs, rising; the last run)."""
    low, high = 0.0, most_per_s
    good: list[tuple[float, Probe]] = []
    while True:
        rate = (low + high) / 2
        probe = yield ask(rate, seed, True)
        if probe.joint >= attainment:
            low = rate
            good.append((rate, probe))
        else:
            high = rate
        if high - low <= TOLERANCE * high or high <= SMALLEST_SHARE * most_per_s:
            return good, probe


def seeds_chain(
    ask: Ask[J],
    rate_per_s: float,
    seeds: Sequence[int],
    attainment: float,
    known: Sequence[Probe] = (),
) -> Chain[J, Judged]:
    """The full rate on every seed, until one fails; ``known`` are runs of the first seeds."""
    found = list(known)
    for seed in seeds[len(known) :]:
        found.append((yield ask(rate_per_s, seed, False)))
        if found[-1].joint < attainment:
            break
    return judge(rate_per_s, found, attainment)


def short_rate_chain(
    ask: Ask[J], seed: int, attainment: float, expected_per_s: float, floor_per_s: float = 0.0
) -> Chain[J, tuple[float, Probe]]:
    """(highest rate by runs for the verdict alone, the last run that decided it).

    The rate is 0 where nothing above ``floor_per_s`` passes.
    """
    low = floor_per_s
    high = max(OPTIMISM * expected_per_s, 1.1 * low)
    if low > 0:
        probe = yield ask(low, seed, True)
        if probe.joint < attainment:
            return 0.0, probe
    for _ in range(STEPS_UP):
        probe = yield ask(high, seed, True)
        if probe.joint < attainment:
            break
        low, high = high, OPTIMISM * high
    while high - low > RATE_TOLERANCE * high:
        middle = (low + high) / 2
        last = yield ask(middle, seed, True)
        if last.joint >= attainment:
            low = middle
        else:
            high, probe = middle, last
            if high < 0.02 * expected_per_s:
                return 0.0, probe
    return low, probe


def answer_chain(
    ask: Ask[J],
    seeds: Sequence[int],
    attainment: float,
    short_per_s: float,
    floor_per_s: float = 0.0,
) -> Chain[J, Judged]:
    """The highest rate below ``short_per_s`` that passes full runs on every seed.

    Goes down in growing steps until the first seed passes, then back up by bisection; failed
    where nothing above ``floor_per_s`` passes.
    """
    floor = floor_per_s * (1 + RATE_TOLERANCE)
    rate, high, step = max(short_per_s, floor), 0.0, RATE_TOLERANCE
    while True:
        passed = yield ask(rate, seeds[0], False)
        if passed.joint >= attainment:
            break
        if rate <= floor or rate < LEAST_SHARE * short_per_s:
            return judge(rate, [passed], attainment)
        rate, high = max(floor, rate * (1 - step)), rate
        step = min(2 * step, MOST_STEP)
    while high - rate > RATE_TOLERANCE * high:
        middle = (rate + high) / 2
        probe = yield ask(middle, seeds[0], False)
        if probe.joint >= attainment:
            rate, passed = middle, probe
        else:
            high = middle
    found = yield from seeds_chain(ask, rate, seeds, attainment, [passed])
    for _ in range(STEPS_DOWN):
        if found.passed or rate <= floor:
            break
        rate *= 1 - RATE_TOLERANCE
        found = yield from seeds_chain(ask, rate, seeds, attainment)
    return found


def highest_rate_chain(
    ask: Ask[J],
    seeds: Sequence[int],
    attainment: float,
    expected_per_s: float,
    floor_per_s: float,
) -> Chain[J, Judged]:
    """The highest rate above ``floor_per_s`` on every seed; failed where there is none."""
    rate, probe = yield from short_rate_chain(
        ask, seeds[0], attainment, expected_per_s, floor_per_s
    )
    if rate <= 0:
        return judge(max(floor_per_s, 0.02 * expected_per_s), [probe], attainment)
    return (yield from answer_chain(ask, seeds, attainment, rate, floor_per_s))
