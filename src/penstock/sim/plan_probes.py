"""Probes of plans of whole engines: what share of a workload's requests meets its limits."""

from __future__ import annotations

from dataclasses import dataclass, replace
from itertools import islice

import numpy as np
from numpy.typing import NDArray

from penstock.cost.steps import StepCostModel
from penstock.errors import SpecError
from penstock.measure.run import Run
from penstock.plan.goodput.fleet import Phase
from penstock.plan.goodput.planner import Seen
from penstock.plan.plan import Plan
from penstock.sim.disaggregated.no_prompts import NoPrompts
from penstock.sim.engine_plans import simulate_engine_plan
from penstock.sim.options import SimulationOptions
from penstock.spec.workload import Request, SLOClass, Workload
from penstock.spec.workloads import with_rate

MOST_REQUESTS = 20_000


@dataclass
class SimulatedPlans:
    """``PlanProbes`` by simulation.

    A run has at least ``least_requests`` and lasts at least ``least_s``; the first
    ``warmup_share`` of its requests is not judged. A request is good when it meets all limits of
    its class and, with ``max_queue_s``, is first scheduled within that time.
    """

    cost: StepCostModel
    workload: Workload
    max_queue_s: float | None = None
    seed: int = 0
    least_requests: int = 300
    least_s: float = 30.0
    warmup_share: float = 0.1
    runs: int = 0

    def __call__(self, plan: Plan, rate_per_s: float, phase: Phase = "both") -> Seen:
        self.runs += 1
        requests = self._requests(rate_per_s, phase)
        workload = Workload(self.workload.name, 0.0, trace=requests, classes=self.workload.classes)
        cost = NoPrompts(self.cost) if phase == "decode" else self.cost
        run = simulate_engine_plan(plan, workload, cost, SimulationOptions(seed=self.seed))
        return self._judge(run, requests, phase)

    def _requests(self, rate_per_s: float, phase: Phase) -> tuple[Request, ...]:
        count = max(self.least_requests, min(MOST_REQUESTS, round(rate_per_s * self.least_s)))
        workload = with_rate(self.workload, rate_per_s)
        if not len(workload.trace):
            workload = replace(workload, duration_s=2 * count / rate_per_s + 60)
        requests = tuple(islice(workload.requests(self.seed), count))
        if not requests:
            raise SpecError(f"workload {workload.name} has no requests", key="workload")
        if phase == "prefill":
            requests = tuple(replace(one, output_tokens=1) for one in requests)
        return requests

    def _judge(self, run: Run, requests: tuple[Request, ...], phase: Phase) -> Seen:
        table = run.requests
        sent = slice(int(self.warmup_share * len(requests)), None)
        ttft = (table.first_token_s - table.arrival_s)[sent]
        # Decodes alone: waiting for room counts, as it would between the phases.
        begun = table.arrival_s if phase == "decode" else table.first_token_s
        tpot = (table.last_token_s - begun)[sent] / np.maximum(table.output_tokens[sent] - 1, 1)
        e2e = (table.last_token_s - table.arrival_s)[sent]
        limits = self._limits(requests[sent], phase)
        first, rest = _within(ttft, limits[:, 0]), _within(tpot, limits[:, 1])
        done = ~np.isnan(table.last_token_s[sent])
        queued = (table.admitted_s - table.arrival_s)[sent]
        most = np.full(len(queued), self.max_queue_s or np.inf)
        soon = done if phase == "decode" else done & _within(queued, most)
        good = first & rest & _within(e2e, limits[:, 2]) & soon
        return Seen(*(float(np.mean(part)) for part in (good, first & done, rest & done, soon)))

    def _limits(self, requests: tuple[Request, ...], phase: Phase) -> NDArray[np.float64]:
        """``[n, 3]``: limits of TTFT, TPOT and end to end of each request; infinity = none."""
        by_class = {entry.name: _limits_of(entry, phase) for entry in self.workload.classes}
        first = next(iter(by_class.values()), (np.inf,) * 3)
        return np.array([by_class.get(one.class_name, first) for one in requests])


def _limits_of(entry: SLOClass, phase: Phase) -> tuple[float, float, float]:
    slo = entry.slo
    ttft = np.inf if slo.ttft_s is None or phase == "decode" else slo.ttft_s
    tpot = np.inf if slo.tpot_s is None or phase == "prefill" else slo.tpot_s
    e2e = np.inf if slo.e2e_s is None or phase != "both" else slo.e2e_s
    return ttft, tpot, e2e


def _within(values: NDArray[np.float64], limits: NDArray[np.float64]) -> NDArray[np.bool_]:
    return (values <= limits) | np.isinf(limits)
