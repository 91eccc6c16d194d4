"""Whole engines behind routers, in real time, as the simulator of engines has them in virtual."""

from __future__ import annotations

import asyncio
from collections.abc import Callable, Coroutine, Iterable, Mapping
from dataclasses import replace
from itertools import count

from penstock.cost.steps import StepCostModel
from penstock.errors import InputError
from penstock.plan.plan import Engine, Plan, Role, Routing
from penstock.policy import fleet as rules
from penstock.policy.schedulers.sequence import Sequence
from penstock.serve.coordinator.build import Build
from penstock.serve.coordinator.elastic import Elastic
from penstock.serve.coordinator.engine import Attempt, Decision, EngineDriver
from penstock.serve.coordinator.external import ExternalDriver
from penstock.serve.coordinator.handover import Handover
from penstock.serve.coordinator.live import Live
from penstock.serve.coordinator.moment import together, when_settled
from penstock.serve.coordinator.options import ServeOptions
from penstock.serve.coordinator.picking import InTime, pick
from penstock.serve.coordinator.speculative import SpeculativeDriver
from penstock.serve.coordinator.stages import hops_of, worker_specs
from penstock.serve.pool import WorkerPool
from penstock.serve.protocol import EngineStatus, RequestTooLong, Unavailable
from penstock.serve.wire import KVReceived, StepDone, ToCoordinator
from penstock.spec.workload import Request, SLOClass


class Fleet:
    """All engines of a plan. ``ended`` is called once with every request that is over.

    While ``holding``, requests wait for an engine without a limit: one is being put in place.
    """

    def __init__(
        self,
        plan: Plan,
        pool: WorkerPool,
        options: ServeOptions,
        *,
        classes: Mapping[str, SLOClass],
        ended: Callable[[Live], None],
        clock: Callable[[], float],
        cost: StepCostModel | None = None,
    ) -> None:
        self.engines: list[EngineDriver] = []
        self.decisions: list[Decision] = []
        self.restarts = 0
        self.restarted_requests = 0
        self.holding = False
        self.in_time: InTime | None = None
        self.build = Build(plan.cluster, plan.model, plan.checkpoint, options.dtype, cost)
        self._routing, self._pool, self._options = plan.routing, pool, options
        self._classes, self._ended, self._clock = classes, ended, clock
        self._routers = rules.engine_routers(plan.routing, options.seed)
        self._handover = Handover(
            self._routers.decode, self._receivers, pool.send, self._restart, self._pump
        )
        self._rows = count()
        self._attempts: dict[int, Attempt] = {}
        self._homeless: dict[Live, asyncio.TimerHandle] = {}
        self._lost: dict[str, str] = {}
        self._workers: dict[str, EngineDriver] = {}
        self._builds: dict[EngineDriver, Build] = {}
        self._elastic = Elastic(self)
        self._tasks: set[asyncio.Task[None]] = set()
        self._pumps: set[str] = set()
        weights = rules.engine_weights(plan)
        for engine, weight in zip(plan.engines, weights, strict=True):
            self._driver(engine, weight, self.build)
        self._elastic.number(plan.engines)

    # -- workers ------------------------------------------------------------------------------

    def _driver(self, engine: Engine, weight: float, build: Build) -> EngineDriver:
        if engine.url:
            return self._external(engine, weight, build)
        stages = hops_of(engine)
        options = self._options
        kind = EngineDriver if engine.speculation is None else SpeculativeDriver
        driver = kind(
            len(self.engines),
            engine,
            weight,
            model=build.model.name,
            stages=stages,
            send=self._pool.send,
            clock=self._clock,
            timers=build.timers(engine),
            time_scale=options.time_scale,
            trace=self.decisions if options.trace else None,
        )
        self.engines.append(driver)
        self._builds[driver] = build
        for hop in stages:
            self._workers[hop.worker] = driver
        return driver

    def _external(self, engine: Engine, weight: float, build: Build) -> EngineDriver:
        driver = ExternalDriver(
            len(self.engines),
            engine,
            weight,
            model=build.model.name,
            checkpoint=build.checkpoint,
            clock=self._clock,
            settled=self._settle,
            lost=self._gone,
        )
        self.engines.append(driver)
        self._builds[driver] = build
        return driver

    async def start(self) -> None:
        """Start all workers. Raises ``InputError`` for the first one that cannot be built."""
        await together(self._start(engine) for engine in self.engines)

    async def _start(self, engine: EngineDriver) -> None:
        """Start the workers of an engine. Raises ``InputError`` where one is missing at the end."""
        if isinstance(engine, ExternalDriver):
            await engine.open()
            return
        build, first = self._builds[engine], self._handover.next_number
        specs = worker_specs(engine, build, self._options, first)
        self._lost.pop(engine.name, None)
        await together(self._pool.start(spec) for spec in specs)
        if engine.name in self._lost:
            # One stage has died while another was loading.
            raise InputError(self._lost.pop(engine.name))
        engine.reset()
        engine.alive = True

    # -- requests -----------------------------------------------------------------------------

    @property
    def outstanding(self) -> int:
        return len(self._attempts) + len(self._homeless)

    @property
    def num_waiting(self) -> int:
        waiting = sum(engine.num_waiting for engine in self.engines)
        return waiting + len(self._homeless) + self._handover.waiting

    def submit(self, live: Live) -> None:
        """Take a request in. Raises ``RequestTooLong`` where no engine could ever hold it."""
        seq = self._sequence(live)
        total = seq.total_tokens
        open_ones = ((e.engine.role, e) for e in self.engines if not e.draining)
        if not self.holding and not rules.servable(seq, total, open_ones):
            raise RequestTooLong(
                f"{live.prompt_tokens} prompt tokens and up to {live.request.params.max_tokens} "
                "output tokens exceed the KV memory of every engine"
            )
        self._place(Attempt(live, seq), total, self.in_time)

    def cancel(self, live: Live) -> None:
        """Free what a request holds, wherever it is."""
        timer = self._homeless.pop(live, None)
        if timer is not None:
            timer.cancel()
            return
        attempt = self._attempts.pop(live.row, None)
        if attempt is None or self._handover.cancel(attempt.seq.row):
            return
        for engine in self.engines:
            if attempt.seq.row in engine.attempts:
                engine.cancel(attempt.seq.row)
                self._pump(engine)

    def _sequence(self, live: Live) -> Sequence:
        request = Request(
            next(self._rows),
            live.arrival_s,
            len(live.tokens),
            max(1, live.left),
            live.request.class_name,
            prefix_hashes=live.hashes,
        )
        seq = rules.new_sequence(request.id, request, self._classes)
        if live.request.priority:
            seq.priority = live.request.priority
        return seq

    def _place(self, attempt: Attempt, total: int, in_time: InTime | None = None) -> None:
        """Bring a request to an engine that computes its prompt, if there is one now.

        Raises ``Overloaded`` where no engine is ``in_time``.
        """
        seq = attempt.seq
        able: list[EngineDriver] = []
        for engine in self.engines:
            if engine.accepting and engine.engine.role != "decode":
                rules.enter(seq, engine.engine.role, total)
                if engine.fits(seq):
                    able.append(engine)
        if not able:
            self._wait_for_engine(attempt.live)
            return
        engine = pick(self._routers.first, seq, able, in_time)
        rules.enter(seq, engine.engine.role, total)
        self._attempts[attempt.live.row] = attempt
        engine.add(attempt)
        self._pump(engine)

    def _wait_for_engine(self, live: Live) -> None:
        loop = asyncio.get_running_loop()
        self._homeless[live] = loop.call_later(self._options.unavailable_s, self._give_up, live)

    def _give_up(self, live: Live) -> None:
        if self.holding:
            self._wait_for_engine(live)
            return
        del self._homeless[live]
        live.fail(Unavailable("no engine can serve this request now"))
        self._ended(live)

    def _pump(self, engine: EngineDriver) -> None:
        """Form steps once everything that happens at this moment is done."""
        if engine.name not in self._pumps:
            self._pumps.add(engine.name)
            when_settled(self._pump_now, engine)

    def _pump_now(self, engine: EngineDriver) -> None:
        self._pumps.discard(engine.name)
        engine.pump()

    def _receivers(self) -> list[EngineDriver]:
        return [e for e in self.engines if e.accepting and e.engine.role == "decode"]

    # -- messages -----------------------------------------------------------------------------

    def receive(self, message: ToCoordinator) -> None:
        if isinstance(message, StepDone):
            engine = self._workers.get(message.worker)
            if engine is not None and engine.alive:
                self._step_done(engine, message)
        elif isinstance(message, KVReceived):
            self._handover.received(message)

    def _step_done(self, engine: EngineDriver, message: StepDone) -> None:
        engine.receive(message)
        self._settle(engine)

    def _settle(self, engine: EngineDriver) -> None:
        """Book what an engine has done."""
        ended, engine.ended = engine.ended, []
        handed, engine.handed = engine.handed, []
        for attempt in handed:
            self._handover.begin(attempt, engine)
        for live in ended:
            del self._attempts[live.row]
            self._ended(live)
        if ended:
            self._handover.retry()
        self._pump(engine)

    def died(self, worker: str, why: str) -> None:
        """A worker is gone: its engine's requests start over elsewhere, from what they have."""
        engine = self._workers.get(worker)
        if engine is not None and not engine.alive:
            self._lost[engine.name] = why
        elif engine is not None:
            self._gone(engine)

    def _gone(self, engine: EngineDriver) -> None:
        self._lose(engine)
        if self._options.restart:
            self._spawn(self._revive(engine))

    def _lose(self, engine: EngineDriver) -> None:
        engine.alive = False
        attempts = [attempt for attempt in engine.attempts.values() if not attempt.cancelled]
        engine.reset()
        if engine.turns is not None:
            # The others need not wait for its steps.
            self._pump(engine)
        self._handover.lost(engine)
        for attempt in attempts:
            self._restart(attempt)

    def _restart(self, attempt: Attempt) -> None:
        """Serve a request anew from its prompt and the tokens its client already has."""
        live = attempt.live
        known = self._attempts.pop(live.row, None)
        if live.ended:
            if known is not None:
                self._ended(live)
            return
        live.attempts += 1
        self.restarted_requests += 1
        seq = self._sequence(live)
        self._place(Attempt(live, seq), seq.total_tokens)

    async def _revive(self, engine: EngineDriver) -> None:
        """Start the workers of an engine anew until it stands."""
        self.restarts += 1
        await self._stop(engine)
        while engine in self.engines and not engine.alive:
            try:
                await self._start(engine)
            except InputError:
                await asyncio.sleep(self._options.restart_delay_s)
        if engine not in self.engines:
            await self._stop(engine)
        self._retry_homeless()
        self._handover.retry()

    async def _stop(self, engine: EngineDriver) -> None:
        if isinstance(engine, ExternalDriver):
            await engine.close()
        await together(self._pool.stop(hop.worker) for hop in engine.stages)

    def _retry_homeless(self) -> None:
        waiting, self._homeless = self._homeless, {}
        for live, timer in waiting.items():
            timer.cancel()
            seq = self._sequence(live)
            self._place(Attempt(live, seq), seq.total_tokens)

    def _spawn(self, work: Coroutine[object, object, None]) -> None:
        task = asyncio.get_running_loop().create_task(work)
        self._tasks.add(task)
        task.add_done_callback(self._tasks.discard)

    async def administer(self, action: str, body: Mapping[str, object]) -> Mapping[str, object]:
        return await self._elastic.administer(action, body)

    def counters(self) -> Mapping[str, float]:
        blocks = [engine.scheduler.blocks for engine in self.engines]
        return {
            "worker_restarts": self.restarts,
            "requests_restarted": self.restarted_requests,
            "kv_transfers": self._handover.done,
            "prefix_queried_tokens": sum(one.queried_tokens for one in blocks),
            "prefix_hit_tokens": sum(one.hit_tokens for one in blocks),
            **self._speculated(),
        }

    def _speculated(self) -> Mapping[str, float]:
        """What was drafted, where some engine drafts at all."""
        drafting = [engine for engine in self.engines if engine.engine.speculation is not None]
        names = ("drafts", "draft_tokens", "accepted_tokens") if drafting else ()
        return {name: sum(getattr(engine, name) for engine in drafting) for name in names}

    # -- changes of the pool ------------------------------------------------------------------

    def named(self, name: str) -> EngineDriver:
        """Raises ``InputError`` for an unknown engine."""
        for engine in self.engines:
            if engine.name == name:
                return engine
        known = ", ".join(engine.name for engine in self.engines)
        raise InputError(f"no engine is called {name!r}; there are {known}")

    def check_roles(self, without: EngineDriver | None = None, more: Iterable[Role] = ()) -> None:
        """Raises ``InputError`` where a phase of the requests would be left to nobody."""
        roles = {e.engine.role for e in self.engines if e is not without and not e.draining}
        roles |= set(more)
        if not roles:
            raise InputError("the last engine cannot go; add another one first")
        for phase, other in (("prefill", "decode"), ("decode", "prefill")):
            if phase in roles and other not in roles:
                raise InputError(f"that would leave no engine of the role {other}")

    async def add(
        self,
        engine: Engine,
        weight: float,
        build: Build | None = None,
        opened: Callable[[EngineDriver], None] = lambda _driver: None,
    ) -> EngineDriver:
        """Start one more engine; ``opened`` is called before its first step.

        Raises ``InputError``, and changes nothing, where it fails.
        """
        driver = self._driver(engine, weight, build or self.build)
        try:
            await self._start(driver)
            opened(driver)
        except BaseException:
            self._forget(driver)
            await self._stop(driver)
            raise
        self._retry_homeless()
        self._handover.retry()
        return driver

    async def remove(self, engine: EngineDriver, drain_s: float | None) -> int:
        """Drain and end an engine; returns how many requests had to start over elsewhere."""
        moved = await self._drain(engine, drain_s)
        self._forget(engine)
        await self._stop(engine)
        return moved

    async def change_role(self, engine: EngineDriver, role: Role, drain_s: float | None) -> None:
        """Drain an engine and open it in another role, with empty KV memory."""
        await self._drain(engine, drain_s)
        engine.engine = replace(engine.engine, role=role)
        if engine.alive:
            engine.empty()
        engine.draining = False
        self._retry_homeless()
        self._handover.retry()

    async def _drain(self, engine: EngineDriver, drain_s: float | None) -> int:
        """Let an engine finish what it has, for ``drain_s`` at most; the rest starts over."""
        engine.draining = True
        end_s = self._clock() + (self._options.drain_s if drain_s is None else drain_s)
        left: list[Attempt] = []
        while engine.alive and (not engine.idle or self._handover.uses(engine)):
            if self._clock() >= end_s:
                self._handover.recall(engine)
                more = [a for a in engine.attempts.values() if not a.cancelled]
                for attempt in more:
                    engine.cancel(attempt.seq.row)
                left += more
                engine.pump()
            await asyncio.sleep(_LOOK_S)
        # Only now: a step under way still brings them tokens.
        for attempt in left:
            self._restart(attempt)
        return len(left)

    def _forget(self, engine: EngineDriver) -> None:
        engine.alive = False
        self.engines.remove(engine)
        for i, other in enumerate(self.engines):
            other.index = i
        for hop in engine.stages:
            del self._workers[hop.worker]
        del self._builds[engine]

    def reroute(self, routing: Routing) -> None:
        """Send requests by ``routing`` from now on."""
        if routing != self._routing:
            self._routing = routing
            self._routers = rules.engine_routers(routing, self._options.seed)
            self._handover.router = self._routers.decode

    def status(self) -> tuple[EngineStatus, ...]:
        return tuple(engine.status() for engine in self.engines)

    def ready(self) -> bool:
        """Whether some engine takes prompts now, and some decodes where roles are apart."""
        roles = {engine.engine.role for engine in self.engines if engine.accepting}
        return "both" in roles or {"prefill", "decode"} <= roles

    async def close(self) -> None:
        for engine in self.engines:
            engine.alive = False
        for task in tuple(self._tasks):
            task.cancel()
        await asyncio.gather(*self._tasks, return_exceptions=True)
        await together(e.close() for e in self.engines if isinstance(e, ExternalDriver))
        for timer in self._homeless.values():
            timer.cancel()
        lives = [*self._homeless, *(attempt.live for attempt in self._attempts.values())]
        self._homeless.clear()
        self._attempts.clear()
        for live in lives:
            live.fail(Unavailable("the server has stopped"))
            self._ended(live)


_LOOK_S = 0.01
