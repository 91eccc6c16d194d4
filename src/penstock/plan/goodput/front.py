"""What none beats: throughput against speed, and cost against p99 TTFT."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass
from math import inf
from typing import TypeVar

from penstock.plan.goodput.fleet import Probe
from penstock.plan.goodput.question import Sweep, Tried

T = TypeVar("T")


@dataclass(frozen=True, slots=True)
class Point:
    """An engine or a fleet at a rate that it sustains.

    ``tokens_per_s_per_gpu``: output tokens; ``tokens_per_s_per_user``: 1 / median TPOT.
    """

    name: str
    num_gpus: int
    rate_per_s: float
    tokens_per_s_per_gpu: float
    tokens_per_s_per_user: float


def pareto(
    items: Iterable[T], cost: Callable[[T], float], other: Callable[[T], float]
) -> tuple[T, ...]:
    """The items that none equals or beats in both (smaller is better), by rising ``cost``."""
    front: list[T] = []
    for item in sorted(items, key=lambda one: (cost(one), other(one))):
        if not front or other(item) < other(front[-1]):
            front.append(item)
    return tuple(front)


def money(sweep: Sweep) -> Callable[[Tried], float]:
    """What a fleet costs: dollars per hour, or per million output tokens where rates differ."""
    if sweep.question.goal == "cheapest":
        return lambda one: one.fleet.price_per_hour
    return lambda one: one.price_per_million_tokens


def cost_front(sweep: Sweep) -> tuple[Tried, ...]:
    """Fleets that passed and that none beats in both cost and p99 TTFT."""
    passed = [one for one in sweep.tried if one.passed]
    return pareto(passed, money(sweep), lambda one: one.probe.ttft_p99_s)


def throughput_points(sweep: Sweep) -> tuple[Point, ...]:
    """Every single engine for both phases at every rate that passed, and the fleets that did."""
    found = [
        _point(str(one.choice), one.choice.num_gpus, measured.rate_per_s, measured.probe)
        for one in sweep.capacities
        if one.choice.role == "both"
        for measured in one.points
    ]
    found += [
        _point(str(one.fleet), one.fleet.num_gpus, one.rate_per_s, one.probe)
        for one in sweep.tried
        if one.passed
    ]
    return tuple(point for point in found if 0 < point.tokens_per_s_per_user < inf)


def throughput_front(points: Sequence[Point]) -> tuple[Point, ...]:
    """Points that none beats in both tokens/s per GPU and per user, by falling speed."""
    return pareto(
        points, lambda one: -one.tokens_per_s_per_user, lambda one: -one.tokens_per_s_per_gpu
    )


def _point(name: str, gpus: int, rate_per_s: float, probe: Probe) -> Point:
    speed = 1 / probe.tpot_p50_s if probe.tpot_p50_s > 0 else inf
    return Point(name, gpus, rate_per_s, probe.output_tokens_per_s / gpus, speed)
