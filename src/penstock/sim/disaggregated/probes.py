"""Probes of the fleet search: short runs that end as soon as their outcome is certain."""

from __future__ import annotations

import pickle
from collections.abc import Callable
from concurrent.futures import Future
from dataclasses import dataclass, field, replace
from functools import lru_cache
from itertools import islice
from typing import Any

import numpy as np
from numpy.typing import NDArray

from penstock.errors import SpecError
from penstock.measure.run import Run
from penstock.plan.goodput.costs import FleetCosts
from penstock.plan.goodput.fleet import Fleet, Job, Phase, Probe
from penstock.plan.settings import HandoffSettings
from penstock.sim.disaggregated.certainty import Certain
from penstock.sim.disaggregated.fleet import RoleFleet
from penstock.sim.disaggregated.no_prompts import NoPrompts
from penstock.sim.disaggregated.probe_memory import ProbeMemory
from penstock.sim.disaggregated.simulate import simulate_disaggregated
from penstock.sim.engines.fleet import EngineSpec
from penstock.sim.engines.options import EngineOptions
from penstock.spec.workload import SLO, Request, Workload
from penstock.spec.workloads import with_rate

Submit = Callable[..., "Future[Any]"]


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
        rate = job.rate_per_s
        count = max(self.least_requests, round(rate * self.least_s))
        workload = with_rate(self.workload, rate)
        if not len(workload.trace):
            workload = replace(workload, duration_s=2 * count / rate + 60)
        requests = tuple(islice(workload.requests(job.seed), count))
        if not requests:
            raise SpecError(f"workload {workload.name} has no requests", key="workload")
        if job.phase == "prefill":
            requests = tuple(replace(one, output_tokens=1) for one in requests)
        return requests


def run_probe(setting: ProbeSetting, job: Job) -> Probe:
    """Simulate one job."""
    requests = setting.requests(job)
    skipped = int(setting.warmup_share * len(requests))
    limits = _limits(setting.slo, job.phase)
    decodes = job.phase == "decode"
    max_queue_s = None if decodes else setting.max_queue_s
    watch = Certain(
        limits,
        skipped,
        len(requests),
        setting.attainment,
        from_arrival=decodes,
        max_queue_s=max_queue_s,
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
    return _judged(run, watch, slice(skipped, len(requests)), from_arrival=decodes)


def _judged(run: Run, watch: Certain, sent: slice, *, from_arrival: bool) -> Probe:
    """What the requests of ``sent`` (rows after the warm-up) met, by the limits of ``watch``."""
    table, limits = run.requests, watch.limits
    count = sent.stop - sent.start
    ttft = (table.first_token_s - table.arrival_s)[sent]
    # Decodes alone: waiting for room counts, as it would between the phases.
    begun = table.arrival_s if from_arrival else table.first_token_s
    tokens = table.output_tokens[sent]
    tpot = (table.last_token_s - begun)[sent] / np.maximum(tokens - 1, 1)
    length_s = max(float(run.header["end_s"]) - float(table.arrival_s[0]), 1e-9)  # type: ignore[arg-type]
    probe = Probe(
        watch.joint,
        watch.within(watch.late_first),
        watch.within(watch.late_rest),
        _quantile(ttft, 99),
        _quantile(tpot, 99),
        float(table.generated_tokens.sum()) / length_s,
        watch.certain,
        watch.within(watch.late_queue),
        _quantile(tpot[tokens > 1], 50),
        count,
    )
    if watch.certain:
        return probe
    done = ~np.isnan(table.last_token_s[sent])
    first, rest = _within(ttft, limits.ttft_s) & done, _within(tpot, limits.tpot_s) & done
    soon = _within((table.admitted_s - table.arrival_s)[sent], watch.max_queue_s)
    e2e = _within((table.last_token_s - table.arrival_s)[sent], limits.e2e_s)
    shares = [float(mask.sum()) / count for mask in (first & rest & e2e & soon, first, rest, soon)]
    return replace(
        probe, joint=shares[0], ttft_share=shares[1], tpot_share=shares[2], queue_share=shares[3]
    )


def _limits(slo: SLO, phase: Phase) -> SLO:
    if phase == "prefill":
        return SLO(ttft_s=slo.ttft_s)
    return SLO(tpot_s=slo.tpot_s) if phase == "decode" else slo


def _within(values: NDArray[np.float64], limit: float | None) -> NDArray[np.bool_]:
    return np.ones(len(values), bool) if limit is None else values <= limit


def _quantile(values: NDArray[np.float64], percent: float) -> float:
    known = values[~np.isnan(values)]
    return float(np.percentile(known, percent)) if len(known) else float("inf")


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


class FleetProbes:
    """``Probes`` of the fleet search, here or over a pool of ``width`` workers.

    ``submit`` is that of a pool (``concurrent.futures`` or alike); None = run at once, here.
    ``runs`` counts the simulations that were asked for, ``memory`` answers what it knows.
    """

    def __init__(
        self,
        setting: ProbeSetting,
        memory: ProbeMemory | None = None,
        submit: Submit | None = None,
        width: int = 1,
    ) -> None:
        self._setting = setting
        self._packed = b"" if submit is None else pickle.dumps(setting)
        self._memory = memory
        self._submit = submit
        self._width = width if submit is not None else 1
        self.runs = 0

    @property
    def width(self) -> int:
        return self._width

    def submit(self, job: Job) -> Future[Probe]:
        known = None if self._memory is None else self._memory.get(job)
        if known is None:
            self.runs += 1
            if self._submit is not None:
                return self._submit(run_packed, self._packed, job)
            known = run_probe(self._setting, job)
        future: Future[Probe] = Future()
        future.set_result(known)
        return future

    def keep(self, job: Job, probe: Probe) -> None:
        if self._memory is not None:
            self._memory.keep(job, probe)


def run_packed(packed: bytes, job: Job) -> Probe:
    """``run_probe`` in a worker, which unpacks the setting once."""
    return run_probe(_unpacked(packed), job)


@lru_cache(maxsize=2)
def _unpacked(packed: bytes) -> ProbeSetting:
    setting: ProbeSetting = pickle.loads(packed)
    return setting
