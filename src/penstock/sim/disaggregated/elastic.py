"""Pools whose engines come, go and change roles while requests run: no request is ever lost.

A GPU that is lost takes its KV memory with it: its requests compute prompt and output so far again
elsewhere. A role change lets an engine finish what it has (``drain_s`` at most), then opens it in
its new role. With a notice period a GPU that will be lost takes nothing new from the notice on,
and with ``kv_rescue`` its decodes move to other engines over the links instead of starting over.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field, replace
from math import inf

import numpy as np

from penstock.cost.steps import StepCostModel
from penstock.errors import InputError, SpecError
from penstock.measure.run import Run, RunEvent
from penstock.plan.settings import HandoffSettings
from penstock.policy.roles import Gpu, PoolRole, rebalance
from penstock.sim.disaggregated.changing import ChangingSimulation
from penstock.sim.disaggregated.engine import RoleEngine
from penstock.sim.disaggregated.fleet import RoleFleet
from penstock.sim.disaggregated.transfers import Handoff
from penstock.sim.engines.fleet import EngineSpec
from penstock.sim.engines.options import EngineOptions
from penstock.sim.engines.recorder import QUEUED, RUNNING
from penstock.spec.availability import AvailabilityEvent, Operation
from penstock.spec.workload import Workload


@dataclass(frozen=True, slots=True)
class PoolChange:
    """At ``time_s``: GPUs that are gone at once, and the roles that others take.

    ``leaves`` finish what they have (an operation ``remove``); ``roles`` opens or changes.
    """

    time_s: float
    lost: tuple[int, ...] = ()
    leaves: tuple[int, ...] = ()
    roles: Mapping[int, PoolRole] = field(default_factory=dict)


@dataclass(frozen=True, slots=True)
class Pool:
    """Equal engines, one per GPU. ``engine`` is their pattern, ``initial`` the roles at time 0.

    ``drain_s`` is how long an engine that leaves may finish what it has (75 s in SDS).
    """

    engine: EngineSpec
    initial: Mapping[int, PoolRole]
    changes: tuple[PoolChange, ...] = ()
    handoff: HandoffSettings = field(default_factory=HandoffSettings)
    prefill_router: str = "least-outstanding"
    decode_router: str = "least-outstanding"
    notice_s: float = 0.0
    drain_s: float = 75.0
    kv_rescue: bool = False
    extra_decode_steps: int = 0

    def __post_init__(self) -> None:
        for name in ("notice_s", "drain_s"):
            if not 0 <= getattr(self, name) < inf:
                raise SpecError("must be 0 or more", key=f"pool.{name}", value=getattr(self, name))


@dataclass(frozen=True, slots=True)
class EventEffect:
    """What one change did. ``retried`` requests started over, none is ever lost."""

    time_s: float
    live: int
    prefill: int
    decode: int
    role_changes: int
    retried: int
    reprefilled_tokens: int
    rescued: int


@dataclass(frozen=True)
class ElasticRun:
    run: Run
    effects: tuple[EventEffect, ...]
    gpu_seconds: float


def changes_by_policy(
    events: Sequence[AvailabilityEvent], a: float, initial: Mapping[int, PoolRole] | None = None
) -> tuple[PoolChange, ...]:
    """SDS's policy over a trace: after every event the pool is at the optimum of ``T(P, D)``."""
    live = {gpu: Gpu(gpu, role) for gpu, role in (initial or {}).items()}
    changes = []
    last = 0.0
    for event in events:
        passed = event.time_s - last
        last = event.time_s
        live = {g: replace(gpu, age_s=gpu.age_s + passed) for g, gpu in live.items()}
        for gpu in event.lost:
            live.pop(gpu, None)
        for gpu in event.returned:
            live[gpu] = Gpu(gpu, None)
        roles = rebalance(list(live.values()), a)
        moved = {g: roles[g] for g in sorted(live) if live[g].role != roles[g]}
        live = {g: replace(gpu, role=roles[g]) for g, gpu in live.items()}
        changes.append(PoolChange(event.time_s, event.lost, (), moved))
    return tuple(changes)


def changes_by_operations(operations: Sequence[Operation]) -> tuple[PoolChange, ...]:
    """An operations file: a ``remove`` drains; followed by an ``add`` it is a role change."""
    times = sorted({operation.time_s for operation in operations})
    changes = []
    for time_s in times:
        now = [operation for operation in operations if operation.time_s == time_s]
        roles = {one.gpu: one.role for one in now if one.role is not None}
        leaves = tuple(one.gpu for one in now if one.role is None and one.gpu not in roles)
        changes.append(PoolChange(time_s, (), leaves, roles))
    return tuple(changes)


def simulate_elastic(
    pool: Pool, workload: Workload, cost: StepCostModel, options: EngineOptions | None = None
) -> ElasticRun:
    """Run ``workload`` while the pool changes.

    Requests wait while nobody has the role they need. Raises ``InputError`` when the pool ends
    in a state in which some can never be served.
    """
    return _Elastic(pool, workload, cost, options or EngineOptions()).replay()


class _Elastic(ChangingSimulation):
    def __init__(
        self, pool: Pool, workload: Workload, cost: StepCostModel, options: EngineOptions
    ) -> None:
        initial = sorted(pool.initial.items())
        specs = [replace(pool.engine, name=f"gpu{g}-{r}-0", role=r) for g, r in initial]
        opening = tuple(specs) or (replace(pool.engine, role="prefill"),)
        fleet = _Pattern(
            opening,
            pool.handoff,
            pool.prefill_router,
            pool.decode_router,
            pool.extra_decode_steps,
        )
        super().__init__(fleet, workload, cost, options)
        self._pool = pool
        self._at: dict[int, RoleEngine] = {}
        self._since: dict[int, float] = {}
        self._next_role: dict[int, PoolRole] = {}
        self._gpu_of: dict[int, int] = {}
        self._opened = 0
        self._gpu_seconds = 0.0
        self._effects: list[EventEffect] = []
        if not specs:
            # The pattern engine only says what fits; nobody is there yet.
            self._prefillers.clear()
        for (gpu, _), engine in zip(initial, list(self._engines), strict=False):
            self._at[gpu] = engine
            self._gpu_of[engine.index] = gpu
            self._since[gpu] = 0.0
        for change in pool.changes:
            if pool.notice_s and change.lost:
                notice = max(0.0, change.time_s - pool.notice_s)
                self.at(notice, lambda now, c=change: self._notice(c, now))  # type: ignore[misc]
            self.at(change.time_s, lambda now, c=change: self._change(c, now))  # type: ignore[misc]

    def replay(self) -> ElasticRun:
        run = self.run()
        waiting = run.counters["requests"] - sum(
            run.counters[name] for name in ("finished", "rejected", "dropped")
        )
        if waiting and self._options.until_s is None:
            raise InputError(
                f"{waiting} requests wait for a role that nobody has at the end of the trace; "
                "give the pool at least two GPUs there"
            )
        for gpu, since in self._since.items():
            if gpu in self._at:
                self._gpu_seconds += max(0.0, self._ended_s(run) - since)
        return ElasticRun(run, tuple(self._effects), self._gpu_seconds)

    @staticmethod
    def _ended_s(run: Run) -> float:
        last = run.requests.last_token_s
        return float(np.nanmax(last)) if np.isfinite(last).any() else 0.0

    # -- changes ------------------------------------------------------------------------------

    def _notice(self, change: PoolChange, now: float) -> None:
        for gpu in change.lost:
            engine = self._at.get(gpu)
            if engine is not None and not self._over():
                self._withdraw(engine, now, rescue=self._pool.kv_rescue)

    def _over(self) -> bool:
        """Whether all requests have ended: what happens to the pool later is nobody's."""
        if self._source.next_s < inf:
            return False
        status = self._recorder.status[: len(self._recorder)]
        return QUEUED not in status and RUNNING not in status

    def _change(self, change: PoolChange, now: float) -> None:
        if self._over():
            self._stopped = True
            return
        before = (self._retried, self._reprefilled, self._rescued)
        changed = 0
        for gpu in change.lost:
            self._lose(gpu, now)
        for gpu in change.leaves:
            self._leave(gpu, now)
        for gpu, role in change.roles.items():
            engine = self._at.get(gpu)
            if engine is None:
                self._open_gpu(gpu, role, now)
            elif engine.index in self._draining or engine.spec.role != role:
                changed += engine.spec.role != role
                self._next_role[gpu] = role
                self._leave(gpu, now)
        retried, reprefilled, rescued = before
        self._effects.append(
            EventEffect(
                now,
                len(self._at),
                sum(e.spec.role == "prefill" for e in self._at.values()),
                sum(e.spec.role == "decode" for e in self._at.values()),
                changed,
                self._retried - retried,
                self._reprefilled - reprefilled,
                self._rescued - rescued,
            )
        )
        text = f"{len(change.lost)} lost, {len(change.leaves)} leave, {len(change.roles)} roles"
        self._happened.append(RunEvent(now, "pool", text))

    def _open_gpu(self, gpu: int, role: PoolRole, now: float) -> None:
        self._opened += 1
        name = f"gpu{gpu}-{role}-{self._opened}"
        engine = self._open(replace(self._pool.engine, name=name, role=role))
        self._at[gpu] = engine
        self._gpu_of[engine.index] = gpu
        self._since.setdefault(gpu, now)
        self._resume(now)

    def _lose(self, gpu: int, now: float) -> None:
        engine = self._at.pop(gpu, None)
        self._next_role.pop(gpu, None)
        if engine is None:
            return
        self._gpu_seconds += now - self._since.pop(gpu)
        self._stop(engine, now)

    def _leave(self, gpu: int, now: float) -> None:
        engine = self._at.get(gpu)
        if engine is None or engine.index in self._draining:
            return
        self._withdraw(engine, now, rescue=self._pool.kv_rescue)
        deadline = now + self._pool.drain_s
        self.at(deadline, lambda at: self._deadline(engine, at))
        self._draining.add(engine.index)
        self._look(engine, now)

    def _deadline(self, engine: RoleEngine, now: float) -> None:
        if engine.index in self._draining:
            self._stop(engine, now)
            self._drained(engine, now)

    def _look(self, engine: RoleEngine, now: float) -> None:
        """Close an engine that drains once nothing is left on it."""
        if engine.index not in self._draining or engine.rules.outstanding or not engine.idle:
            return
        if any(engine in (handoff.source, handoff.target) for handoff in self._handoffs):
            return
        self._drained(engine, now)

    def _drained(self, engine: RoleEngine, now: float) -> None:
        self._draining.discard(engine.index)
        gpu = self._gpu_of[engine.index]
        if self._at.get(gpu) is engine:
            del self._at[gpu]
            role = self._next_role.pop(gpu, None)
            if role is None:
                self._gpu_seconds += now - self._since.pop(gpu)
            else:
                self._open_gpu(gpu, role, now)

    def _engine_event(self, engine: RoleEngine, now: float) -> None:
        super()._engine_event(engine, now)
        if self._draining:
            self._look(engine, now)

    def _received(self, handoff: Handoff, now: float) -> None:
        super()._received(handoff, now)
        if self._draining and not handoff.cancelled:
            self._look(handoff.source, now)


class _Pattern(RoleFleet):
    """A fleet that may lack a role for a while."""

    def __post_init__(self) -> None:
        return
