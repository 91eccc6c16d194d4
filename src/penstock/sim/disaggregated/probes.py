"""Probes of the fleet search: short runs that end as soon as their outcome is certain."""

from __future__ import annotations

import json
from collections.abc import Sequence
from dataclasses import asdict, dataclass, field, replace
from itertools import islice
from pathlib import Path

import numpy as np
from numpy.typing import NDArray

from penstock.cost.steps import EngineShape, PrefillChunk, StepCostModel, StepTimer, stage_timers
from penstock.errors import SpecError, StorageError
from penstock.plan.goodput.fleet import Fleet, Phase, Probe
from penstock.plan.settings import HandoffSettings, SchedulerSettings
from penstock.sim.disaggregated.fleet import RoleFleet
from penstock.sim.disaggregated.simulate import simulate_disaggregated
from penstock.sim.engines.fleet import EngineSpec
from penstock.sim.engines.options import EngineOptions
from penstock.sim.engines.recorder import EngineRecorder
from penstock.spec.model import ModelSpec
from penstock.spec.workload import SLO, Request, Workload
from penstock.spec.workloads import with_rate


@dataclass
class FleetProbes:
    """Simulates fleets under one workload; ``Probes`` of ``plan.goodput.fleet``.

    A run sends at least ``least_requests`` and lasts at least ``least_s``; the first
    ``warmup_share`` of the requests is not counted. ``memory``: a file that keeps results, so that
    a search that was stopped goes on where it was.
    """

    cost: StepCostModel
    workload: Workload
    slo: SLO
    attainment: float
    handoff: HandoffSettings = field(default_factory=HandoffSettings)
    least_requests: int = 300
    least_s: float = 60.0
    warmup_share: float = 0.1
    memory: Path | None = None
    max_queue_s: float | None = None
    runs: int = 0
    known: dict[str, Probe] = field(default_factory=dict)

    def __call__(self, fleet: Fleet, rate_per_s: float, seed: int, phase: Phase) -> Probe:
        key = f"{fleet}|{fleet.shares}|{rate_per_s:.9g}|{seed}|{phase}|{self._about()}"
        found = self.known.get(key)
        if found is None:
            found = self.known[key] = self._run(fleet, rate_per_s, seed, phase)
            self._keep(key, found)
        return found

    def _about(self) -> str:
        limits = f"{self.slo}|{self.max_queue_s}|{self.attainment}"
        return f"{self.cost.model.name}|{self.workload.name}|{limits}"

    def _run(self, fleet: Fleet, rate_per_s: float, seed: int, phase: Phase) -> Probe:
        self.runs += 1
        requests = self._requests(rate_per_s, seed, phase)
        skipped = int(self.warmup_share * len(requests))
        limits = _limits(self.slo, phase)
        watch = _Certain(
            limits, skipped, len(requests), self.attainment, from_arrival=phase == "decode"
        )
        cost = _NoPrompts(self.cost) if phase == "decode" else self.cost
        run = simulate_disaggregated(
            role_fleet(fleet, self.handoff),
            Workload(self.workload.name, 0.0, trace=requests),
            cost,
            EngineOptions(seed=seed, keep_tokens=False),
            watch,
        )
        table = run.requests
        count = len(requests) - skipped
        sent = slice(skipped, None)
        done = ~np.isnan(table.last_token_s[sent])
        ttft = (table.first_token_s - table.arrival_s)[sent]
        steps = np.maximum(table.output_tokens[sent] - 1, 1)
        # Decodes alone: waiting for room counts, as it would between the phases.
        begun = table.arrival_s if phase == "decode" else table.first_token_s
        tpot = (table.last_token_s - begun)[sent] / steps
        e2e = (table.last_token_s - table.arrival_s)[sent]
        first, rest = _within(ttft, limits.ttft_s), _within(tpot, limits.tpot_s)
        queued = (table.admitted_s - table.arrival_s)[sent]
        soon = _within(queued, None if phase == "decode" else self.max_queue_s)
        both = first & rest & _within(e2e, limits.e2e_s) & soon & done
        length_s = max(float(run.header["end_s"]) - float(table.arrival_s[0]), 1e-9)  # type: ignore[arg-type]
        return Probe(
            float(both.sum()) / count,
            1 - watch.late_first / count if watch.certain else float(first.sum()) / count,
            1 - watch.late_rest / count if watch.certain else float((rest & done).sum()) / count,
            _p99(ttft),
            _p99(tpot),
            float(table.generated_tokens.sum()) / length_s,
            watch.certain,
            float(soon.sum()) / count,
        )

    def _requests(self, rate_per_s: float, seed: int, phase: Phase) -> tuple[Request, ...]:
        count = max(self.least_requests, round(rate_per_s * self.least_s))
        workload = with_rate(self.workload, rate_per_s)
        if not len(workload.trace):
            workload = replace(workload, duration_s=2 * count / rate_per_s + 60)
        requests = tuple(islice(workload.requests(seed), count))
        if not requests:
            raise SpecError(f"workload {workload.name} has no requests", key="workload")
        if phase == "prefill":
            requests = tuple(replace(one, output_tokens=1) for one in requests)
        return requests

    # -- what was probed before ---------------------------------------------------------------

    def remember(self) -> int:
        """Read ``memory``; returns the number of probes found. Raises ``SpecError``."""
        if self.memory is None or not self.memory.exists():
            return 0
        try:
            for line in self.memory.read_text(encoding="utf-8").splitlines():
                entry = json.loads(line)
                self.known[entry["key"]] = Probe(**entry["probe"])
        except (ValueError, KeyError, TypeError) as error:
            raise SpecError(
                f"is not a file of probes ({error})",
                source=self.memory,
                fix="name another file, or delete this one",
            ) from error
        return len(self.known)

    def _keep(self, key: str, probe: Probe) -> None:
        if self.memory is None:
            return
        try:
            with self.memory.open("a", encoding="utf-8") as stream:
                stream.write(json.dumps({"key": key, "probe": asdict(probe)}) + "\n")
        except OSError as error:
            raise StorageError(f"{self.memory}: {error.strerror}; name another file") from error


def role_fleet(fleet: Fleet, handoff: HandoffSettings) -> RoleFleet:
    """The engines of ``fleet``, one by one. Kinds that share prompts get theirs by weight."""
    specs = []
    shares = fleet.shares or (1.0,) * len(fleet.engines)
    for kind, ((choice, count), share) in enumerate(zip(fleet.engines, shares, strict=True)):
        settings = SchedulerSettings(
            choice.scheduler,
            max_num_batched_tokens=choice.max_num_batched_tokens,
            max_num_seqs=min(256, choice.max_num_batched_tokens),
        )
        specs += [
            EngineSpec(
                f"{choice.role}-{kind}-{i}", choice.shape, settings, choice.role, None, share
            )
            for i in range(count)
        ]
    router = "flow-weighted" if fleet.shares else "least-outstanding"
    return RoleFleet(tuple(specs), handoff, router, "least-outstanding")


def _limits(slo: SLO, phase: Phase) -> SLO:
    if phase == "prefill":
        return SLO(ttft_s=slo.ttft_s)
    return SLO(tpot_s=slo.tpot_s) if phase == "decode" else slo


def _within(values: NDArray[np.float64], limit: float | None) -> NDArray[np.bool_]:
    return np.ones(len(values), bool) if limit is None else values <= limit


def _p99(values: NDArray[np.float64]) -> float:
    known = values[~np.isnan(values)]
    return float(np.percentile(known, 99)) if len(known) else float("inf")


class _Certain:
    """Ends a run when too many requests are late for the share that must be good."""

    def __init__(
        self, limits: SLO, skipped: int, count: int, attainment: float, *, from_arrival: bool
    ) -> None:
        self._limits = limits
        self._skipped = skipped
        self._most_late = (1 - attainment) * (count - skipped)
        self._from_arrival = from_arrival
        self.certain = False
        self.late_first = 0
        self.late_rest = 0

    def __call__(self, recorder: EngineRecorder, now_s: float) -> bool:
        n, skip, limits = len(recorder), self._skipped, self._limits
        arrival = np.array(recorder.arrival)[skip:]
        first = np.array(recorder.first[:n])[skip:]
        begun = ~np.isnan(first)
        late = np.zeros(len(arrival), bool)
        if limits.ttft_s is not None:
            late = np.where(begun, first, now_s) - arrival > limits.ttft_s
            self.late_first = int(np.count_nonzero(late))
        if limits.tpot_s is not None:
            last = np.array(recorder.last[:n])[skip:]
            steps = np.maximum(np.array(recorder.output)[skip:] - 1, 1)
            until = np.where(np.isnan(last), now_s, last)
            if self._from_arrival:
                first, begun = arrival, np.ones(len(arrival), bool)
            slow = begun & ((until - first) / steps > limits.tpot_s)
            self.late_rest = int(np.count_nonzero(slow))
            late |= slow
        self.certain = int(np.count_nonzero(late)) > self._most_late
        return self.certain


class _NoPrompts:
    """A cost model whose prompts cost nothing: the decode phase alone."""

    def __init__(self, cost: StepCostModel) -> None:
        self._cost = cost
        self.model: ModelSpec = cost.model
        self.provenance = cost.provenance

    def step_timer(self, shape: EngineShape) -> StepTimer:
        return self.stage_timers(shape)[0]

    def stage_timers(self, shape: EngineShape) -> tuple[StepTimer, ...]:
        return tuple(_DecodeTimer(timer) for timer in stage_timers(self._cost, shape))

    def kv_capacity_tokens(self, shape: EngineShape) -> int:
        return self._cost.kv_capacity_tokens(shape)

    def to_dict(self) -> dict[str, object]:
        return self._cost.to_dict()


class _DecodeTimer:
    def __init__(self, timer: StepTimer) -> None:
        self.decode_s = timer.decode_s
        self.decode_span_s = timer.decode_span_s
        self.decode_span_times_s = timer.decode_span_times_s
        self.steps_within = timer.steps_within

    def step_s(self, prefill: Sequence[PrefillChunk], seqs: int, context_tokens: int) -> float:
        return self.decode_s(seqs, context_tokens) if seqs else 0.0
