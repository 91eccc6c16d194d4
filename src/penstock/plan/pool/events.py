"""The event simulator: every hop of a request takes its own time, in virtual time.

A request passes HTTP to the controller, which sends it to the replica's group with the fewest
requests under way; there it is admitted by prediction from the stage clocks, passes the engine,
and waits for the stages in turn. HTTP and dispatch take |N(2.5, 0.5)| ms each, the engine
|N(5, 0.5)| ms; admission adds a fixed 4 ms. Stages take what the profile says, without the fast
simulator's surcharge for many stages.
"""

from __future__ import annotations

import heapq
from collections.abc import Sequence
from dataclasses import dataclass, field
from enum import IntEnum

import numpy as np

from penstock.plan.pool.model import Floats, PoolPlacement, PoolProblem
from penstock.plan.pool.simulate import PoolOutcome

HOP_S, HOP_SPREAD_S = 0.0025, 0.0005
ENGINE_S, ENGINE_SPREAD_S = 0.005, 0.0005
FIXED_S = 0.004
CYCLE = 2048


class _Step(IntEnum):
    CONTROLLER = 0
    GROUP = 1
    STAGE = 2


@dataclass
class _Group:
    """``predicted`` stage clocks of admission, ``free`` those of the GPUs, ``engine`` delays."""

    predicted: list[float]
    free: list[float]
    engine: Floats
    under_way: int = 0
    admitted: int = 0


@dataclass
class _Run:
    problem: PoolProblem
    placement: PoolPlacement
    groups: list[_Group]
    dispatch: Floats
    latency: list[dict[int, Sequence[float]]]
    homes: list[list[int]]
    finish: list[float]
    group: list[int]
    heap: list[tuple[float, int, _Step, int, int]] = field(default_factory=list)
    sequence: int = 0
    dispatched: int = 0

    def at(self, time_s: float, step: _Step, request: int, stage: int = 0) -> None:
        self.sequence += 1
        heapq.heappush(self.heap, (time_s, self.sequence, step, request, stage))

    def controller(self, now: float, request: int) -> None:
        homes = self.homes[request_model(self.problem, request)]
        if not homes:
            return
        g = min(homes, key=lambda home: self.groups[home].under_way)
        self.group[request] = g
        self.groups[g].under_way += 1
        delay = self.dispatch[self.dispatched % CYCLE]
        self.dispatched += 1
        self.at(now + float(delay), _Step.GROUP, request)

    def enter(self, now: float, request: int) -> None:
        """Admission at the group."""
        traffic, group = self.problem.traffic, self.groups[self.group[request]]
        clocks = []
        time = now
        for free, seconds in zip(group.predicted, self.stages(request), strict=True):
            time = max(time, free) + seconds
            clocks.append(time)
        if time + FIXED_S > traffic.arrival_s[request] + traffic.slo_s[request]:
            group.under_way -= 1
            return
        group.predicted = clocks
        delay = group.engine[group.admitted % CYCLE]
        group.admitted += 1
        self.at(now + float(delay), _Step.STAGE, request, 0)

    def stage(self, now: float, request: int, stage: int) -> None:
        """Enter ``stage``, or leave the pipeline behind the last one."""
        group, seconds = self.groups[self.group[request]], self.stages(request)
        if stage == len(seconds):
            group.under_way -= 1
            self.finish[request] = now
            return
        group.free[stage] = max(group.free[stage], now) + seconds[stage]
        self.at(group.free[stage], _Step.STAGE, request, stage + 1)

    def stages(self, request: int) -> Sequence[float]:
        return self.latency[self.group[request]][request_model(self.problem, request)]


def request_model(problem: PoolProblem, request: int) -> int:
    return int(problem.traffic.model[request])


def simulate_events(
    problem: PoolProblem, placement: PoolPlacement, random: np.random.RandomState
) -> PoolOutcome:
    """Play the traffic event by event; the delays come from ``random``.

    They are drawn as AlpaServe draws them: the dispatcher's, each group's, then HTTP.
    """
    problem.check(placement)
    traffic = problem.traffic
    count = traffic.num_requests
    dispatch = _delays(random, HOP_S, HOP_SPREAD_S, CYCLE)
    groups = [
        _Group(
            [0.0] * group.shape.pp,
            [0.0] * group.shape.pp,
            _delays(random, ENGINE_S, ENGINE_SPREAD_S, CYCLE),
        )
        for group in placement.groups
    ]
    http = _delays(random, HOP_S, HOP_SPREAD_S, count)
    latency: list[dict[int, Sequence[float]]] = [
        {m: problem.models[m].profile.timings[group.shape].latency_s for m in group.models}
        for group in placement.groups
    ]
    homes: list[list[int]] = [
        [g for g, group in enumerate(placement.groups) if m in group.models]
        for m in range(len(problem.models))
    ]
    run = _Run(
        problem, placement, groups, dispatch, latency, [*homes, []], [-1.0] * count, [-1] * count
    )
    for request in range(count):
        run.at(float(traffic.arrival_s[request] + http[request]), _Step.CONTROLLER, request)
    while run.heap:
        now, _, step, request, stage = heapq.heappop(run.heap)
        if step is _Step.CONTROLLER:
            run.controller(now, request)
        elif step is _Step.GROUP:
            run.enter(now, request)
        else:
            run.stage(now, request, stage)
    return _outcome(run)


def _delays(random: np.random.RandomState, mean: float, spread: float, count: int) -> Floats:
    drawn: Floats = np.abs(random.normal(mean, spread, count))
    return drawn


def _outcome(run: _Run) -> PoolOutcome:
    """Late requests count as misses although they were served."""
    traffic = run.problem.traffic
    finish = np.array(run.finish)
    served = finish >= 0
    latency = np.where(served, finish - traffic.arrival_s, 0.0)
    good = served & (latency <= traffic.slo_s)
    return PoolOutcome(good, latency, np.array(run.group, dtype=np.int32))


def without_ends(problem: PoolProblem, outcome: PoolOutcome, warmup_s: float = 1.0) -> float:
    """Attainment without the first and last share of requests that ``warmup_s`` stands for."""
    arrival = problem.traffic.arrival_s
    if len(arrival) < 2 or arrival[-1] == arrival[0]:
        return outcome.attainment
    skip = int(warmup_s / (arrival[-1] - arrival[0]) * len(arrival))
    inner = outcome.good[skip : len(arrival) - skip]
    return float(np.mean(inner)) if len(inner) else outcome.attainment
