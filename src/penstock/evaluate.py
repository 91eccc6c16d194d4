"""Candidates scored by the simulator: what planners receive, so that they never import it."""

from __future__ import annotations

import multiprocessing
import signal
from collections.abc import Iterator, Sequence
from concurrent.futures import ProcessPoolExecutor
from contextlib import contextmanager
from dataclasses import dataclass, replace
from typing import Any

from penstock.cost.base import CostModel
from penstock.cost.steps import StepCostModel
from penstock.measure.metrics import summarise
from penstock.measure.run import Run
from penstock.plan.plan import Plan
from penstock.plan.planner import Evaluator, Objective, Score
from penstock.sim.options import Granularity, SimulationOptions
from penstock.sim.simulate import simulate
from penstock.spec.workload import Workload

AnyCost = CostModel | StepCostModel
GRANULARITIES: tuple[Granularity, ...] = ("nodewise", "layerwise")


@dataclass(frozen=True)
class SimulatedScore:
    """Scores plans by simulating ``workload``; one process per plan when a pool is given.

    ``fidelity`` below 1 shortens the measured window: cheap first looks for many candidates. A
    full look simulates both granularities and counts the lower figure, so that the choice does
    not rest on how an engine forms its batches.
    """

    workload: Workload
    cost: AnyCost
    objective: Objective
    options: SimulationOptions
    pool: ProcessPoolExecutor | None = None

    def __call__(self, plans: Sequence[Plan], fidelity: float = 1.0) -> list[Score]:
        warmup_s = self.workload.warmup_s
        measured_s = (self.workload.duration_s - warmup_s) * fidelity
        workload = replace(self.workload, duration_s=warmup_s + measured_s)
        jobs = []
        for plan in plans:
            both = fidelity >= 1.0 and not plan.whole_engines
            looks = GRANULARITIES if both else GRANULARITIES[:1]
            options = [replace(self.options, granularity=look) for look in looks]
            jobs.append((plan, workload, self.cost, self.objective, options))
        if self.pool is None or len(jobs) == 1:
            return [_score(job) for job in jobs]
        return list(self.pool.map(_score, jobs))


def _score(job: tuple[Plan, Workload, AnyCost, Objective, list[SimulationOptions]]) -> Score:
    plan, workload, cost, objective, looks = job
    scores = [score_of(simulate(plan, workload, cost, o), workload, objective) for o in looks]
    lowest = min(scores, key=lambda score: score.value)
    if len(scores) == 1:
        return lowest
    each = zip(looks, scores, strict=True)
    values = ", ".join(f"{look.granularity} {score.value:,.1f}" for look, score in each)
    return Score(lowest.value, f"{values}; {lowest.detail}")


def simulate_all(
    plans: Sequence[Plan],
    workload: Workload,
    cost: AnyCost,
    options: SimulationOptions,
    processes: int,
) -> list[Run]:
    """Run every plan under the same workload, in order, over several processes."""
    jobs = [(plan, workload, cost, options) for plan in plans]
    with worker_pool(min(processes, len(jobs))) as pool:
        if pool is None:
            return [simulate(*job) for job in jobs]
        return list(pool.map(_simulate, jobs))


def _simulate(job: tuple[Plan, Workload, AnyCost, SimulationOptions]) -> Run:
    return simulate(*job)


def score_of(run: Run, workload: Workload, objective: Objective) -> Score:
    """The objective's value in a run: decode tokens/s, or good requests/s."""
    overall = summarise(run, classes=workload.classes).overall
    if objective == "goodput":
        share = 100 * (overall.slo_attainment or 0.0)
        return Score(overall.goodput_requests_per_s or 0.0, f"{share:.1f} % within limits")
    return Score(
        overall.decode_throughput_tokens_per_s,
        f"{overall.rejected} rejected, {overall.preemptions} preempted",
    )


@contextmanager
def worker_pool(processes: int) -> Iterator[ProcessPoolExecutor | None]:
    """Yield a pool of fresh processes, or None when one process is enough.

    Workers leave Ctrl-C to the parent, which keeps the best result so far.
    """
    if processes <= 1:
        yield None
        return
    context: Any = multiprocessing.get_context("spawn")
    pool = ProcessPoolExecutor(processes, mp_context=context, initializer=_ignore_interrupt)
    try:
        yield pool
    finally:
        pool.shutdown(wait=False, cancel_futures=True)


def _ignore_interrupt() -> None:
    signal.signal(signal.SIGINT, signal.SIG_IGN)


@contextmanager
def simulated_evaluator(
    workload: Workload,
    cost: AnyCost,
    objective: Objective,
    options: SimulationOptions,
    processes: int,
) -> Iterator[Evaluator]:
    """Yield the evaluator that planners call, with its processes alive."""
    with worker_pool(processes) as pool:
        yield SimulatedScore(workload, cost, objective, options, pool)
