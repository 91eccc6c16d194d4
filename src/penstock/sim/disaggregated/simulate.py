"""Requests through engines with roles, in virtual time.

The life of a request: it goes to an engine for prompts; when its prompt is complete its KV blocks
stay there until a decode engine has room and the transfer has ended; then it decodes. Engines of
role ``both`` keep it to its end.
"""

from __future__ import annotations

from collections import deque
from collections.abc import Callable
from heapq import heappop, heappush
from math import inf
from typing import Protocol

from penstock.cost.step_provenance import cost_header
from penstock.cost.steps import StepCostModel
from penstock.measure.run import Run, RunEvent
from penstock.policy.engine_routing import make_router
from penstock.policy.fleet import (
    enter,
    has_room,
    hold,
    new_sequence,
    reserve,
    role_scheduler,
    servable,
)
from penstock.policy.schedulers.sequence import Sequence
from penstock.sim.disaggregated.engine import RoleEngine
from penstock.sim.disaggregated.fleet import RoleFleet
from penstock.sim.disaggregated.transfers import Handoff, Transfers
from penstock.sim.engines.engine import NANOSECOND
from penstock.sim.engines.fleet import EngineSpec
from penstock.sim.engines.options import EngineOptions
from penstock.sim.engines.recorder import EngineLog, EngineRecorder
from penstock.sim.engines.result import Ending, engine_run, fleet_entry
from penstock.sim.engines.source import Feed, behind_host, open_source
from penstock.sim.engines.stages import engine_timers
from penstock.spec.workload import Request, Workload

_EVENTS_PER_LOOK = 64
Action = Callable[[float], None]


class Watch(Protocol):
    """Looks at the columns now and then; True ends the run (its outcome is certain)."""

    def __call__(self, recorder: EngineRecorder, now_s: float) -> bool: ...


def simulate_disaggregated(
    fleet: RoleFleet,
    workload: Workload,
    cost: StepCostModel,
    options: EngineOptions | None = None,
    watch: Watch | None = None,
) -> Run:
    """Run ``workload`` (a trace or open-loop arrivals) on ``fleet``.

    Raises ``InputError``/``SpecError`` for settings that contradict each other and ``Infeasible``
    where weights do not fit an engine. Requests that no engine could ever hold are rejected.
    """
    return RoleSimulation(fleet, workload, cost, options or EngineOptions(), watch).run()


class RoleSimulation:
    """The event loop. Subclasses add events of their own with ``at``."""

    def __init__(
        self,
        fleet: RoleFleet,
        workload: Workload,
        cost: StepCostModel,
        options: EngineOptions,
        watch: Watch | None = None,
    ) -> None:
        self._fleet = fleet
        self._workload = workload
        self._cost = cost
        self._options = options
        self._watch = watch
        self._classes = {entry.name: entry for entry in workload.classes}
        self._recorder = EngineRecorder(tuple(self._classes))
        self._prefill_router = make_router(fleet.prefill_router, options.seed)
        self._decode_router = make_router(fleet.decode_router, options.seed)
        model = cost.model
        per_token = float(model.kv_bytes_per_token_per_layer * model.num_hidden_layers)
        self._transfers = Transfers(fleet.handoff, per_token, model.num_hidden_layers)
        self._engines: list[RoleEngine] = []
        self._prefillers: list[RoleEngine] = []
        self._decoders: list[RoleEngine] = []
        self._homeless: deque[Sequence] = deque()
        self._handoffs: list[Handoff] = []
        self._pending: deque[Handoff] = deque()
        self._heap: list[tuple[float, int, RoleEngine | None, Action | None]] = []
        self._stamp: list[int] = []
        self._due_s: list[float] = []
        self._number = 0
        self._now = 0.0
        self._events = 0
        self._next_look = _EVENTS_PER_LOOK
        self._stopped = False
        self._happened: list[RunEvent] = []
        source = open_source(workload, options.seed, self._kv_use)
        self._feeds = isinstance(source, Feed)
        self._source = behind_host(source, cost)
        for spec in fleet.engines:
            self._open(spec)

    # -- engines ------------------------------------------------------------------------------

    def _open(self, spec: EngineSpec) -> RoleEngine:
        """Start an engine and let requests come to it."""
        settings = spec.scheduler
        num_blocks = spec.num_blocks
        if num_blocks is None:
            num_blocks = self._cost.kv_capacity_tokens(spec.shape) // settings.block_size
        timers = engine_timers(self._cost, spec)
        scheduler = role_scheduler(
            settings, spec.role, num_blocks, spec.shape.pipeline_parallel_size
        )
        engine = RoleEngine(
            len(self._engines),
            spec,
            scheduler,
            timers,
            recorder=self._recorder,
            log=EngineLog() if self._options.keep_tokens else None,
            step_by_step=self._options.step_by_step,
            extra_decode_steps=self._fleet.extra_decode_steps,
        )
        self._engines.append(engine)
        self._stamp.append(0)
        self._due_s.append(inf)
        (self._decoders if spec.role == "decode" else self._prefillers).append(engine)
        return engine

    # -- the loop -----------------------------------------------------------------------------

    def at(self, time_s: float, action: Action) -> None:
        """Call ``action(time_s)`` at ``time_s``."""
        self._number += 1
        heappush(self._heap, (time_s, self._number, None, action))

    def run(self) -> Run:
        heap, source = self._heap, self._source
        end_s = self._end_s()
        while not self._stopped:
            arrival_s = source.next_s
            event_s = heap[0][0] if heap else inf
            if arrival_s <= event_s + NANOSECOND:
                if arrival_s == inf or arrival_s > end_s:
                    break
                self._arrive(source.take(), arrival_s)
                continue
            if event_s > end_s:
                break
            event_s, number, engine, action = heappop(heap)
            if action is not None:
                self._now = event_s
                action(event_s)
            elif engine is not None and self._stamp[engine.index] == number:
                self._now = event_s
                self._due_s[engine.index] = inf
                self._engine_event(engine, event_s)
        return self._result(end_s)

    def _end_s(self) -> float:
        if self._options.until_s is not None:
            return self._options.until_s
        return self._workload.duration_s if self._feeds else inf

    def _kv_use(self) -> float:
        return max(engine.kv_use for engine in self._engines)

    def _arrive(self, request: Request | None, now: float) -> None:
        if request is None:
            return
        self._now = now
        row = self._recorder.arrive(request, request.arrival_s)
        seq = new_sequence(row, request, self._classes)
        if not self._possible(seq):
            self._recorder.end(row, "rejected")
            return
        if not self._options.admission(seq, self._prefillers):
            self._recorder.end(row, "dropped")
            return
        self._send(seq, now)

    def _goal(self, row: int) -> int:
        recorder = self._recorder
        return recorder.prompt[row] + recorder.output[row] + self._fleet.extra_decode_steps

    def _possible(self, seq: Sequence) -> bool:
        """Whether some engine could hold the prompt, and some the whole request."""
        engines = ((engine.spec.role, engine.rules) for engine in self._engines)
        return servable(seq, self._goal(seq.row), engines)

    def _send(self, seq: Sequence, now: float) -> None:
        """Bring a sequence to an engine that computes its prompt, if there is one now."""
        goal = self._goal(seq.row)
        able = []
        for engine in self._prefillers:
            enter(seq, engine.spec.role, goal)
            if engine.rules.fits(seq):
                able.append(engine)
        if not able:
            self._homeless.append(seq)
            return
        chosen = self._prefill_router.pick(seq, able)
        engine = self._engines[chosen.index]
        enter(seq, engine.spec.role, goal)
        self._recorder.engine[seq.row] = engine.index
        self._add(engine, seq, now)

    def _add(self, engine: RoleEngine, seq: Sequence, now: float) -> None:
        engine.add(seq, now)
        self._schedule(engine, now if engine.can_start(now) else engine.next_s(now))

    def _schedule(self, engine: RoleEngine, at: float) -> None:
        """The engine's next event; an earlier note of another time no longer counts.

        Who is woken twice for one moment keeps the place of the first time.
        """
        if self._due_s[engine.index] == at:
            return
        self._number += 1
        self._due_s[engine.index] = at
        self._stamp[engine.index] = self._number
        heappush(self._heap, (at, self._number, engine, None))

    def _engine_event(self, engine: RoleEngine, now: float) -> None:
        self._events += 1
        finished = prompts = 0
        while not engine.idle and engine.ends_s <= now:
            ended, completed = engine.finish_batch()
            finished += ended
            prompts += completed
        if self._feeds:
            for _ in range(prompts):
                self._source.prompt_completed(now, engine.num_waiting)
            for _ in range(finished):
                self._source.ended(now, engine.num_waiting)
        if engine.handed:
            handed, engine.handed = engine.handed, []
            for seq in handed:
                self._hand_over(engine, seq, now)
        if finished and self._pending:
            self._retry(now)
        while engine.can_start(now) and engine.start(now, inf):
            pass
        next_s = engine.next_s(now)
        if next_s < inf:
            self._schedule(engine, next_s)
        elif self._options.check and not self._handoffs:
            engine.rules.check()
        if self._watch is not None and self._events >= self._next_look:
            self._stopped = self._watch(self._recorder, now)
            # A look costs time in proportion to the requests so far.
            self._next_look = self._events + max(_EVENTS_PER_LOOK, len(self._recorder) // 4)

    # -- from prompt to decodes ---------------------------------------------------------------

    def _hand_over(self, engine: RoleEngine, seq: Sequence, now: float) -> None:
        """Keep the blocks of a completed prompt and look for an engine that decodes it."""
        seq.total_tokens = self._goal(seq.row)
        held = hold(engine.rules, seq)
        handoff = Handoff(seq, engine, held, engine.last_step_s)
        self._handoffs.append(handoff)
        if self._pending or not self._begin(handoff, now):
            handoff.prefill_s = 0.0
            self._pending.append(handoff)

    def _begin(self, handoff: Handoff, now: float) -> bool:
        """Start the transfer; False while no decode engine has room."""
        seq = handoff.seq
        able = [e for e in self._decoders if has_room(e.rules, seq, e.unbooked_blocks(now))]
        if not able:
            return False
        target = self._engines[self._decode_router.pick(seq, able).index]
        handoff.target = target
        if reserve(target.rules, seq) and target.cut(now):
            self._schedule(target, target.next_s(now))
        end = self._transfers.begin(handoff, now)
        if end <= now:
            self._received(handoff, now)
        else:
            self.at(end, lambda at: self._received(handoff, at))
        return True

    def _received(self, handoff: Handoff, now: float) -> None:
        if handoff.cancelled:
            return
        source, target = handoff.source, handoff.target
        assert target is not None
        self._handoffs.remove(handoff)
        self._give_back(handoff, now)
        self._recorder.engine[handoff.seq.row] = target.index
        self._add(target, handoff.seq, now)
        if source is not target and source.can_start(now) and source.rules.num_waiting:
            self._schedule(source, now)

    def _give_back(self, handoff: Handoff, now: float) -> None:
        handoff.source.rules.blocks.give(handoff.held_blocks)
        handoff.held_blocks = 0

    def _retry(self, now: float) -> None:
        """Prompts that wait for room, in their order, until one finds none."""
        while self._pending and self._begin(self._pending[0], now):
            self._pending.popleft()

    # -- the result ---------------------------------------------------------------------------

    def _result(self, end_s: float) -> Run:
        if end_s < inf:
            for engine in self._engines:
                engine.stop(end_s)
        fleet = self._fleet
        header = {
            "router": f"{fleet.prefill_router}/{fleet.decode_router}",
            "schedulers": sorted({spec.scheduler.name for spec in fleet.engines}),
            "model": self._cost.model.name,
            "fleet": fleet_entry(fleet.engines),
            **cost_header(self._cost, [spec.shape for spec in fleet.engines]),
        }
        ending = Ending(
            self._now,
            end_s,
            self._options.seed,
            self._events,
            header,
            {"transfers": self._transfers.count},
            self._transfers.totals(),
            tuple(self._happened),
        )
        name = f"roles-{self._workload.name}"
        return engine_run(name, self._workload, self._recorder, self._engines, ending)
