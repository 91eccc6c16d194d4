"""Probes of the fleet search: short runs that end as soon as their outcome is certain."""

from __future__ import annotations

from concurrent.futures import Future
from dataclasses import dataclass, field

import numpy as np

from penstock.plan.goodput.costs import FleetCosts
from penstock.plan.goodput.fleet import Fleet, Job, Probe
from penstock.plan.settings import HandoffSettings
from penstock.sim.disaggregated.certainty import Certain
from penstock.sim.disaggregated.fleet import RoleFleet
from penstock.sim.disaggregated.judging import (
    PooledProbes,
    Submit,
    answered,
    first_requests,
    judged,
    limits_of,
)
from penstock.sim.disaggregated.no_prompts import NoPrompts
from penstock.sim.disaggregated.probe_memory import ProbeMemory
from penstock.sim.disaggregated.simulate import simulate_disaggregated
from penstock.sim.engines.fleet import EngineSpec
from penstock.sim.engines.options import EngineOptions
from penstock.spec.workload import SLO, Request, Workload


@dataclass(frozen=True)
class ProbeSetting:
    """What all probes of a search share.

    A run sends at least ``least_requests`` and lasts at least ``least_s``; the first
    ``warmup_share`` of the requests is not counted.
    """

    costs: FleetCosts
    workload: Workload
    slo: SLO
    attainment: float
    handoff: HandoffSettings = field(default_factory=HandoffSettings)
    max_queue_s: float | None = None
    least_requests: int = 300
    least_s: float = 60.0
    warmup_share: float = 0.1

    def requests(self, job: Job) -> tuple[Request, ...]:
        """What ``job`` sends. Raises ``SpecError`` for a workload without requests."""
        count = max(self.least_requests, round(job.rate_per_s * self.least_s))
        return first_requests(self.workload, job.rate_per_s, count, job.seed, job.phase)


def run_probe(setting: ProbeSetting, job: Job) -> Probe:
    """Simulate one job."""
    requests = setting.requests(job)
    decodes = job.phase == "decode"
    watch = Certain(
        np.array([limits_of(setting.slo, job.phase)] * len(requests)),
        int(setting.warmup_share * len(requests)),
        setting.attainment,
        from_arrival=decodes,
        max_queue_s=None if decodes else setting.max_queue_s,
        verdict_only=job.verdict_only,
    )
    cost = setting.costs.of(*job.fleet.engines[0][0].variant)
    run = simulate_disaggregated(
        role_fleet(job.fleet, setting.handoff),
        Workload(setting.workload.name, 0.0, trace=requests),
        NoPrompts(cost) if decodes else cost,
        EngineOptions(seed=job.seed, keep_tokens=False),
        watch,
    )
    return judged(run, watch)


def role_fleet(fleet: Fleet, handoff: HandoffSettings) -> RoleFleet:
    """The engines of ``fleet``, one by one. Kinds that share prompts get theirs by weight."""
    specs = []
    shares = fleet.shares or (1.0,) * len(fleet.engines)
    for kind, ((choice, count), share) in enumerate(zip(fleet.engines, shares, strict=True)):
        specs += [
            EngineSpec(
                f"{choice.role}-{kind}-{i}", choice.shape, choice.settings, choice.role, None, share
            )
            for i in range(count)
        ]
    router = "flow-weighted" if fleet.shares else "least-outstanding"
    return RoleFleet(tuple(specs), handoff, router, "least-outstanding")


class FleetProbes(PooledProbes[ProbeSetting, Job]):
    """``Probes`` of the fleet search; ``memory`` answers what it knows."""

    def __init__(
        self,
        setting: ProbeSetting,
        memory: ProbeMemory | None = None,
        submit: Submit | None = None,
        width: int = 1,
    ) -> None:
        super().__init__(run_probe, setting, submit, width)
        self._memory = memory

    def submit(self, job: Job) -> Future[Probe]:
        known = None if self._memory is None else self._memory.get(job)
        return super().submit(job) if known is None else answered(known)

    def keep(self, job: Job, probe: Probe) -> None:
        if self._memory is not None:
            self._memory.keep(job, probe)
