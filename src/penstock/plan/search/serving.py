"""The search for what users get: candidates from the ladder, scored, refined, scored in full.

Three filters of rising cost: the annealing's energy makes candidates, the surrogate ranks them,
the evaluator (the simulator, passed in) measures the best. Without an evaluator the surrogate
decides. Every step is counted, none is timed, so the same seed gives the same plan.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from random import Random

import numpy as np

from penstock.plan.fleet import Fleet
from penstock.plan.placement import PlacementProblem
from penstock.plan.plan import Plan
from penstock.plan.planner import Evaluator, Progress, ProgressCallback, Score
from penstock.plan.search.constructors import BlockPlanner, Intervals
from penstock.plan.search.engine import ROUND, Deadline, RunJobs
from penstock.plan.search.ladder import (
    Candidate,
    Routes,
    Rung,
    first_rungs,
    jobs_for,
    kv_tokens,
    rungs_near,
    slowness,
    with_memory,
)
from penstock.plan.surrogate import Surrogate

QUICK = 0.3
"""Share of the full measurement spent on a first look."""
_UNHURRIED = 0.9
_MOST_UNHURRIED = 30
"""Fleets up to this size get a longer first look where slow links make the start long."""
_REFINED = 2
"""Best candidates around which the ladder is refined."""
_PER_REFINEMENT = 6
_FINALISTS = 12
_WIDER_RUNS = 48
_WIDE_SHARES = (0.5, 0.85)
_WIDE_HOPS = (0.1, 0.35)
_WIDE_MEMORY = (0.0, 0.3, 0.35, 0.4, 0.45)
_SAME_RUNG = 2
_MOST_BLOCK_NODES = 150
_SHALLOW_SHARES = (0.55, 0.65, 0.74, 0.82, 0.9)
_SHALLOW_MEMORY = (0.0, 0.3, 0.4)
_SHALLOW_SEEDS = 2
_FEW_CLASSES = 4

MakePlan = Callable[[Candidate], Plan]


@dataclass(frozen=True)
class Scored:
    """A candidate, what the surrogate says, and what was measured (None = surrogate only)."""

    candidate: Candidate
    estimate: float
    score: Score | None = None

    @property
    def value(self) -> float:
        return self.estimate if self.score is None else self.score.value


@dataclass
class Serving:
    """One search for throughput or goodput; ``best`` is valid at any time."""

    problem: PlacementProblem
    fleet: Fleet
    largest: float
    seed: int
    make_plan: MakePlan
    evaluate: Evaluator | None
    progress: ProgressCallback
    deadline: Deadline
    seen: dict[tuple[object, ...], Scored] = field(default_factory=dict)
    tried: int = 0
    measured: list[Scored] = field(default_factory=list)
    final: list[Scored] = field(default_factory=list)

    def __post_init__(self) -> None:
        self._surrogate = Surrogate(self.problem)
        self._routes = Routes(self.problem)
        self._has_slow_links = bool(slowness(self.problem).any())
        unhurried = self._has_slow_links and self.problem.num_nodes <= _MOST_UNHURRIED
        self._quick = _UNHURRIED if unhurried else QUICK

    @property
    def best(self) -> Scored | None:
        for pool in (self.final, self.measured, list(self.seen.values())):
            if pool:
                return max(pool, key=lambda scored: scored.value)
        return None

    def run(self, run_jobs: RunJobs, constructed: Sequence[Intervals]) -> None:
        """Climb the ladder, refine around the best, measure the finalists in full."""
        for intervals in constructed:
            placement = self.fleet.placement(intervals, self.problem.num_nodes)
            self._keep(self._routes.whole(placement, self.largest))
        if self.fleet.num_nodes > _MOST_BLOCK_NODES:
            self._measure(_measurable(self.problem.num_nodes))
            self._finish()
            return
        self._build_shallow()
        rungs = first_rungs(self._has_slow_links)
        self._anneal(run_jobs, rungs, self._origins(len(rungs), constructed), 0.0, 0.5)
        self._measure(_measurable(self.problem.num_nodes))
        rng = Random(f"{self.seed}/refine")
        near: list[Rung] = []
        starts: list[Intervals | None] = []
        for scored in self._ranked()[:_REFINED]:
            near += rungs_near(scored.candidate.rung, _PER_REFINEMENT, rng)
            whole = scored.candidate.placement.intervals
            origin = [whole[i] for i in self.fleet.origin.tolist()]
            starts += [origin if k % 2 else None for k in range(_PER_REFINEMENT)]
        self._anneal(run_jobs, near, starts, 0.55, 0.85)
        self._measure(_measurable(self.problem.num_nodes) // 2)
        self._widen(run_jobs)
        self._finish()

    def _build_shallow(self) -> None:
        """Placements of few hops by the block program, where its conditions hold."""
        planner = BlockPlanner.of(self.fleet)
        if planner is None:
            return
        tokens = kv_tokens(self.problem, self.fleet)
        # With many classes a program takes seconds, and annealing does as well.
        many = len(self.fleet.class_node) > _FEW_CLASSES
        for share in _SHALLOW_SHARES:
            for memory in _SHALLOW_MEMORY[-1:] if many else _SHALLOW_MEMORY:
                rung = Rung(share, 0.1, 1.0, memory)
                demand = share * self.largest
                limited = with_memory(self.fleet, tokens, rung, demand)
                for number in range(1 if many else _SHALLOW_SEEDS):
                    seed = hash_free(self.seed, number)
                    for intervals in planner.shallow(demand, limited.capacity, seed):
                        placement = self.fleet.placement(intervals, self.problem.num_nodes)
                        self._keep(self._routes.serving(placement, demand, rung))

    def _origins(self, count: int, constructed: Sequence[Intervals]) -> list[Intervals | None]:
        """Where links are slow, a construction that crosses few of them is a better start."""
        if self.fleet.free_links or not constructed:
            return [None] * count
        return [constructed[-1] if k % 4 else None for k in range(count)]

    def _anneal(
        self,
        run_jobs: RunJobs,
        rungs: Sequence[Rung],
        starts: Sequence[Intervals | None],
        begin: float,
        end: float,
    ) -> None:
        seed = hash_free(self.seed, self.tried)
        jobs = jobs_for(
            self.problem, self.fleet, rungs, largest=self.largest, seed=seed, starts=starts
        )
        for first in range(0, len(jobs), ROUND):
            if self.deadline.passed and self.seen:
                return
            batch = list(zip(jobs, rungs, strict=True))[first : first + ROUND]
            for found, (_, rung) in zip(run_jobs([job for job, _ in batch]), batch, strict=True):
                self.tried += 1
                placement = self.fleet.placement(found.cheapest, self.problem.num_nodes)
                for balanced in (True, False):
                    made = self._routes.serving(placement, found.demand, rung, balanced=balanced)
                    self._keep(made)
            share = (first + len(batch)) / len(jobs)
            self._say(f"{self.tried} candidates", begin + (end - begin) * share)

    def _keep(self, made: Candidate | None) -> None:
        if made is None or _key(made) in self.seen:
            return
        estimate = self._surrogate.decode_tokens_per_s(made.placement, made.flow)
        self.seen[_key(made)] = Scored(made, estimate)

    def _measure(self, most: int) -> None:
        """Have the evaluator take a quick look at the best candidates not looked at yet."""
        done = {_key(scored.candidate) for scored in self.measured}
        fresh = [s for key, s in self.seen.items() if key not in done]
        fresh.sort(key=lambda scored: -scored.estimate)
        self._look_at(_varied(fresh, most), None)

    def _look_at(self, chosen: Sequence[Scored], fraction: float | None) -> None:
        if self.evaluate is None or (self.deadline.passed and self.measured):
            return
        plans = [self.make_plan(scored.candidate) for scored in chosen]
        for scored, score in zip(chosen, self.evaluate(plans, self._quick), strict=True):
            self.measured.append(Scored(scored.candidate, scored.estimate, score))
        self._say(f"{len(self.measured)} candidates measured", fraction)

    def _widen(self, run_jobs: RunJobs) -> None:
        """More starts with prices drawn at random: luck of the start outweighs the prices."""
        count = _WIDER_RUNS if self.problem.num_nodes <= _MOST_UNHURRIED else 0
        if self.evaluate is None or self._has_slow_links or not count:
            return
        rng = Random(f"{self.seed}/widen")
        rungs = [
            Rung(
                rng.uniform(*_WIDE_SHARES), rng.uniform(*_WIDE_HOPS), 0.0, rng.choice(_WIDE_MEMORY)
            )
            for _ in range(count)
        ]
        self._anneal(run_jobs, rungs, [None] * count, 0.6, 0.8)
        self._measure(2 * count)

    def _ranked(self) -> list[Scored]:
        pool = self.measured or list(self.seen.values())
        return sorted(pool, key=lambda scored: -scored.value)

    def _finish(self) -> None:
        """Measure the best in full."""
        if self.evaluate is None or self.deadline.passed:
            return
        chosen = self._ranked()[: _finalists(self.problem.num_nodes)]
        plans = [self.make_plan(scored.candidate) for scored in chosen]
        for scored, score in zip(chosen, self.evaluate(plans, 1.0), strict=True):
            self.final.append(Scored(scored.candidate, scored.estimate, score))
        self._say(f"best of {self.tried} candidates", 1.0)

    def _say(self, message: str, fraction: float | None) -> None:
        best = self.best
        self.progress(Progress(message, fraction, None if best is None else best.value))


def _key(made: Candidate) -> tuple[object, ...]:
    """Where the layers are and how the flow is split, to a thousandth of the whole."""
    shares = np.rint(1000 * made.flow.leg_flow / made.flow.value).astype(np.int64)
    return (made.placement.intervals, made.flow.legs.tobytes(), shares.tobytes())


def _varied(ranked: Sequence[Scored], most: int) -> list[Scored]:
    """The best ``most``, but no more than a few of one setting."""
    taken: dict[Rung, int] = {}
    chosen: list[Scored] = []
    for scored in ranked:
        rung = scored.candidate.rung
        if taken.get(rung, 0) < _SAME_RUNG and len(chosen) < most:
            taken[rung] = taken.get(rung, 0) + 1
            chosen.append(scored)
    return chosen


def _measurable(num_nodes: int) -> int:
    """How many candidates to simulate at first: fewer on large fleets, where each takes longer."""
    return max(2, min(24, 900 // num_nodes))


def _finalists(num_nodes: int) -> int:
    return max(1, min(_FINALISTS, 290 // num_nodes))


def hash_free(*parts: int) -> int:
    """A seed from several numbers that does not depend on Python's string hashing."""
    return Random("/".join(map(str, parts))).randrange(1 << 30)
