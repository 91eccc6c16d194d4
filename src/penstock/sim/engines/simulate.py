"""Requests through a router to engines, in virtual time.

The only events are arrivals and ends of batches. While nothing can change the batch of an engine
(no arrival to admit, no finish, no block exhaustion) all its steps are one event.
"""

from __future__ import annotations

from heapq import heappop, heappush
from math import inf

from penstock.cost.step_provenance import cost_header
from penstock.cost.steps import StepCostModel
from penstock.errors import InputError
from penstock.measure.run import Run
from penstock.plan.planner import Progress
from penstock.policy.engine_routing import admit_all, make_router
from penstock.policy.fleet import new_sequence
from penstock.policy.schedulers import make_blocks, make_scheduler
from penstock.policy.schedulers.sequence import Sequence
from penstock.sim.engines.engine import NANOSECOND, EngineSim
from penstock.sim.engines.fleet import EngineFleet, EngineSpec
from penstock.sim.engines.options import EngineOptions
from penstock.sim.engines.recorder import EngineLog, EngineRecorder
from penstock.sim.engines.result import Ending, engine_run, fleet_entry
from penstock.sim.engines.source import Feed, behind_host, follow, open_source
from penstock.sim.engines.stages import engine_timers
from penstock.spec.workload import Request, Workload

_EVENTS_PER_REPORT = 20_000


def simulate_engines(
    fleet: EngineFleet,
    workload: Workload,
    cost: StepCostModel,
    options: EngineOptions | None = None,
) -> Run:
    """Run ``workload`` on ``fleet`` and return what happened.

    Raises ``InputError``/``SpecError`` for settings that contradict each other and ``Infeasible``
    where the weights of the model do not fit an engine. A request that no engine could ever hold
    is rejected and counted. Where the cost model knows what requests take outside of steps, they
    reach the scheduler so much after their arrival.
    """
    return _Simulation(fleet, workload, cost, options or EngineOptions()).run()


class _Simulation:
    def __init__(
        self,
        fleet: EngineFleet,
        workload: Workload,
        cost: StepCostModel,
        options: EngineOptions,
    ) -> None:
        self._fleet = fleet
        self._workload = workload
        self._options = options
        self._cost = cost
        self._classes = {entry.name: entry for entry in workload.classes}
        self._router = make_router(fleet.router, options.seed)
        self._recorder = EngineRecorder(tuple(self._classes))
        self._engines = [self._engine(i, spec) for i, spec in enumerate(fleet.engines)]
        self._active = self._engines
        source = open_source(workload, options.seed, self._kv_use)
        self._feeds = isinstance(source, Feed)
        self._source = behind_host(source, cost)
        self._heap: list[tuple[float, int, int]] = []
        self._stamp = [0] * len(self._engines)
        self._number = 0
        self._now = 0.0
        self._events = 0

    def _engine(self, index: int, spec: EngineSpec) -> EngineSim:
        if spec.role != "both":
            raise InputError(
                f"engine {spec.name} has the role {spec.role!r}; colocated engines do both phases: "
                'use role: "both"'
            )
        num_blocks = spec.num_blocks
        if num_blocks is None:
            num_blocks = self._cost.kv_capacity_tokens(spec.shape) // spec.scheduler.block_size
        make = spec.policy if spec.policy is not None else make_scheduler
        scheduler = make(
            spec.scheduler,
            make_blocks(spec.scheduler, num_blocks),
            spec.shape.pipeline_parallel_size,
        )
        return EngineSim(
            index,
            spec,
            scheduler,
            engine_timers(self._cost, spec),
            recorder=self._recorder,
            log=EngineLog() if self._options.keep_tokens else None,
            step_by_step=self._options.step_by_step,
        )

    def _kv_use(self) -> float:
        return max(engine.kv_use for engine in self._engines)

    # -- the loop -----------------------------------------------------------------------------

    def run(self) -> Run:
        end_s = self._end_s()
        if self._options.autoscaler is not None:
            self._scale(0.0)
        report = _EVENTS_PER_REPORT
        tick_s = self._options.autoscale_every_s if self._options.autoscaler else inf
        heap, source, engines, stamp = self._heap, self._source, self._engines, self._stamp
        single, feeds, check = len(engines) == 1, self._feeds, self._options.check
        while True:
            arrival_s = source.next_s
            event_s = heap[0][0] if heap else inf
            # At equal times arrivals go first: they join the batch that is formed then.
            if arrival_s <= event_s + NANOSECOND:
                if arrival_s == inf or arrival_s > end_s:
                    break
                self._arrive(source.take(), arrival_s)
            elif event_s > end_s:
                break
            else:
                event_s, number, index = heappop(heap)
                if stamp[index] == number:
                    self._now = event_s
                    self._events += 1
                    engine = engines[index]
                    ends_s, ended, completed = engine.event(event_s, arrival_s if single else inf)
                    if feeds:
                        follow(source, event_s, engine.num_waiting, completed, ended)
                    if ends_s < inf:
                        self._number = number = self._number + 1
                        stamp[index] = number
                        heappush(heap, (ends_s, number, index))
                    elif check:
                        engine.scheduler.check()
            if self._now >= tick_s:
                self._scale(self._now)
                tick_s += self._options.autoscale_every_s
            if self._events >= report:
                self._options.progress(Progress(f"simulated {self._now:.0f} s"))
                report += _EVENTS_PER_REPORT
        return self._result(end_s)

    def _end_s(self) -> float:
        if self._options.until_s is not None:
            return self._options.until_s
        return self._workload.duration_s if self._feeds else inf

    def _arrive(self, request: Request | None, now: float) -> None:
        if request is None:
            return
        self._now = now
        row = self._recorder.arrive(request, request.arrival_s)
        seq = new_sequence(row, request, self._classes)
        admission = self._options.admission
        if admission is not admit_all and not admission(seq, self._active):
            self._recorder.end(row, "dropped")
            return
        engine = self._pick(seq)
        if engine is None:
            self._recorder.end(row, "rejected")
            return
        self._recorder.engine[row] = engine.index
        moved = engine.add(seq, now)
        if moved:
            self._schedule(engine, engine.ends_s)
        elif engine.has_room:
            self._schedule(engine, now)

    def _pick(self, seq: Sequence) -> EngineSim | None:
        engines = self._active
        engine = engines[0] if len(engines) == 1 else self._choose(seq, engines)
        if engine.scheduler.fits(seq):
            return engine
        able = [other for other in engines if other.scheduler.fits(seq)]
        return self._choose(seq, able) if able else None

    def _choose(self, seq: Sequence, engines: list[EngineSim]) -> EngineSim:
        return engines[engines.index(self._router.pick(seq, engines))]  # type: ignore[arg-type]

    def _schedule(self, engine: EngineSim, at: float) -> None:
        """The engine's next event; an earlier note of it no longer counts."""
        self._number += 1
        self._stamp[engine.index] = self._number
        heappush(self._heap, (at, self._number, engine.index))

    def _scale(self, now: float) -> None:
        autoscaler = self._options.autoscaler
        assert autoscaler is not None
        wanted = autoscaler(now, len(self._active), self._engines)
        self._active = self._engines[: min(max(1, wanted), len(self._engines))]

    def _result(self, end_s: float) -> Run:
        if end_s < inf:
            for engine in self._engines:
                engine.stop(end_s)
        fleet = self._fleet
        header = {
            "router": fleet.router,
            "schedulers": sorted({spec.scheduler.name for spec in fleet.engines}),
            "model": self._cost.model.name,
            "fleet": fleet_entry(fleet.engines),
            **cost_header(self._cost, [spec.shape for spec in fleet.engines]),
        }
        ending = Ending(self._now, end_s, self._options.seed, self._events, header)
        name = f"{fleet.router}-{self._workload.name}"
        return engine_run(name, self._workload, self._recorder, self._engines, ending)
