"""Probes of plans of whole engines: what share of a workload's requests meets its limits."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from penstock.cost.steps import StepCostModel
from penstock.plan.goodput.fleet import Phase, Probe
from penstock.plan.goodput.planner import PlanJob
from penstock.policy.fleet import plan_admission
from penstock.sim.disaggregated.certainty import Certain
from penstock.sim.disaggregated.judging import first_requests, judged, limits_of
from penstock.sim.disaggregated.no_prompts import NoPrompts
from penstock.sim.disaggregated.simulate import simulate_disaggregated
from penstock.sim.engine_plans import plan_fleet
from penstock.sim.engines.options import EngineOptions
from penstock.spec.workload import SLO, Request, Workload

MOST_REQUESTS = 30_000


@dataclass(frozen=True)
class PlanProbeSetting:
    """What all probes of a search share.

    A run has at least ``least_requests`` and lasts at least ``least_s``, or ``answer_s`` where it
    is the answer; it never has more than 30,000 requests. The first ``warmup_share`` of its
    requests is not judged. A request is good when it meets all limits of its class and, with
    ``max_queue_s``, is first scheduled within that time.
    """

    cost: StepCostModel
    workload: Workload
    attainment: float
    max_queue_s: float | None = None
    least_requests: int = 300
    least_s: float = 20.0
    answer_s: float = 150.0
    warmup_share: float = 0.1

    def requests(self, job: PlanJob) -> tuple[Request, ...]:
        """What ``job`` sends. Raises ``SpecError`` for a workload without requests."""
        length_s = self.answer_s if job.effort == "answer" else self.least_s
        wanted = min(MOST_REQUESTS, round(job.rate_per_s * length_s))
        count = max(self.least_requests, wanted)
        return first_requests(self.workload, job.rate_per_s, count, job.seed, job.phase)

    def limits(self, requests: tuple[Request, ...], phase: Phase) -> NDArray[np.float64]:
        """``[n, 3]``: limits of TTFT, TPOT and end to end of each request; infinity = none."""
        by_class = {entry.name: limits_of(entry.slo, phase) for entry in self.workload.classes}
        first = next(iter(by_class.values()), limits_of(SLO(), phase))
        return np.array([by_class.get(one.class_name, first) for one in requests])


def run_plan_probe(setting: PlanProbeSetting, job: PlanJob) -> Probe:
    """Simulate one job."""
    requests = setting.requests(job)
    decodes = job.phase == "decode"
    watch = Certain(
        setting.limits(requests, job.phase),
        int(setting.warmup_share * len(requests)),
        # Below 0: never certain.
        -1.0 if job.effort == "shares" else setting.attainment,
        from_arrival=decodes,
        max_queue_s=None if decodes else setting.max_queue_s,
        verdict_only=job.effort == "verdict",
    )
    run = simulate_disaggregated(
        plan_fleet(job.plan),
        Workload(setting.workload.name, 0.0, trace=requests, classes=setting.workload.classes),
        NoPrompts(setting.cost) if decodes else setting.cost,
        EngineOptions(seed=job.seed, keep_tokens=False, admission=plan_admission(job.plan)),
        watch,
    )
    return judged(run, watch)
