"""The models and engines of a pool, and how they get from one plan to the next.

What a change of plan does, in order: engines that are not in the new plan take nothing new (once
others of their model are ready, or at once if their GPUs are wanted), hand over what only waits and
finish what runs; kept engines give up the KV memory that they are to lose; when all of these have
left a set of GPUs, new engines are loaded there and kept ones get more memory. Until a model has a
ready engine its requests wait in its queue. So no GPU ever holds more than a plan gives it.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping
from functools import partial

from penstock.measure.run import RunEvent
from penstock.plan.moves import Gpus, moves
from penstock.plan.plan import Engine
from penstock.plan.pool_plan import PoolPlan
from penstock.policy.deadline import DeadlineAdmission, within
from penstock.policy.engine_routing import admit_all, choose_able
from penstock.policy.schedulers.sequence import Sequence
from penstock.policy.sharing import TimeShare
from penstock.sim.engines.fleet import EngineSpec
from penstock.sim.engines.recorder import EngineRecorder
from penstock.sim.pools.build import Builder
from penstock.sim.pools.engine import PoolEngine, State
from penstock.sim.pools.group import Group
from penstock.sim.pools.loads import Loads
from penstock.sim.pools.model import ServedModel
from penstock.spec.workload import SLO, SLOClass

Wake = Callable[[Group, float], None]
Seat = tuple[Gpus, ...]


class PoolFleet:
    """``wake`` is told which group has something to do, and when."""

    def __init__(
        self,
        builder: Builder,
        recorder: EngineRecorder,
        classes: Mapping[str, SLOClass],
        seed: int,
        wake: Wake,
    ) -> None:
        self.engines: list[PoolEngine] = []
        self.groups: list[Group] = []
        self.group_of: list[Group] = []
        """By ``PoolEngine.index``."""
        self.loads = Loads()
        self.happened: list[RunEvent] = []
        self.unsettled = False
        """Whether the change to the plan in force is still under way."""
        self.share = TimeShare()
        self._deadline: DeadlineAdmission | None = None
        self._builder, self._recorder, self._classes = builder, recorder, classes
        self._seed = seed
        self._wake = wake
        self._models: dict[str, ServedModel] = {}
        self._seats: dict[tuple[Seat, int], Group] = {}
        self._current: dict[tuple[str, str], PoolEngine] = {}
        self._grow: dict[PoolEngine, int] = {}
        self._only = ""
        self.plan: PoolPlan | None = None

    # -- plans --------------------------------------------------------------------------------

    def adopt(self, pool: PoolPlan, now: float, *, loaded: bool = False) -> None:
        """Change to ``pool``; ``loaded``: its engines are ready at once."""
        change = moves(self.plan, pool)
        specs = self._builder.specs(pool)
        current: dict[tuple[str, str], PoolEngine] = {}
        for before, after in change.kept:
            engine = self._current[before.model, before.engine.name]
            current[after.model, after.engine.name] = engine
            self._keep(engine, specs[after.model, after.engine.name], now)
            engine.urgency.priority = pool.deployment(after.model).priority
        for placed in change.loaded:
            spec = specs[placed.model, placed.engine.name]
            engine = self._builder.engine(pool, placed, spec)
            self.engines.append(engine)
            self.group_of.append(self._group(pool, placed.engine))
            current[placed.model, placed.engine.name] = engine
        removed = [self._current[one.model, one.engine.name] for one in change.removed]
        self.plan, self._current = pool, current
        self.share = TimeShare(pool.sharing.turns)
        timed = pool.sharing.admission == "deadline"
        self._deadline = DeadlineAdmission(pool.sharing.turns) if timed else None
        for name in dict.fromkeys([*self._models, *pool.index]):
            model = self._models.setdefault(name, ServedModel(name, self._seed))
            entry = pool.deployment(name) if name in pool.index else None
            order = () if entry is None else entry.plan.engines
            model.adopt(entry, [current[name, engine.name] for engine in order])
            model.look()
        self._only = next(iter(pool.index)) if len(pool.index) == 1 else ""
        for engine in removed:
            self._remove(engine, now)
        for group in self.groups:
            # Turns go by the new plan from the next step on.
            if group.order and group.order[0].cut(now):
                self._wake(group, group.ends_s)
        if loaded:
            for engine in current.values():
                self._join(engine)
        self.unsettled = True
        self.settle(now)

    def _keep(self, engine: PoolEngine, spec: EngineSpec, now: float) -> None:
        """A kept engine gets its new share of the requests, and its KV memory when it can be."""
        assert spec.num_blocks is not None
        engine.weight = spec.weight
        # The scheduler lives on with its blocks; the plan may count in others.
        tokens = spec.num_blocks * spec.scheduler.block_size
        blocks = tokens // engine.spec.scheduler.block_size
        self._grow.pop(engine, None)
        if engine.state is not State.READY:
            engine.scheduler.resize(blocks)
        elif blocks > engine.scheduler.blocks.num_blocks:
            engine.aim(engine.scheduler.blocks.num_blocks, now)
            self._grow[engine] = blocks
        else:
            engine.aim(blocks, now)
            self._look_at(engine, now)

    def _group(self, pool: PoolPlan, engine: Engine) -> Group:
        seat = tuple(pool.gpus_of(stage.node) for stage in engine.stages)
        group = self._seats.get((seat, len(seat)))
        if group is None:
            label = "+".join(stage.node for stage in engine.stages)
            taken = {other.label for other in self.groups}
            # A node of a later plan may have the name of other GPUs of an earlier one.
            names = (label, *(f"{label}#{number}" for number in range(2, len(taken) + 3)))
            free = next(name for name in names if name not in taken)
            group = Group(len(self.groups), free, len(seat))
            self.groups.append(group)
            self._seats[seat, len(seat)] = group
        return group

    def _remove(self, engine: PoolEngine, now: float) -> None:
        model = self._models[engine.model]
        if engine.state in (State.WAITING, State.LOADING):
            if model.queue and not model.deployed:
                return  # those that have waited for it are served before it goes
            self.loads.cancel(engine, now)
            self._set(engine, State.GONE)
        elif engine.state is State.READY:
            self._set(engine, State.STAYING)
            model.look()
            if engine not in model.ready or not model.deployed:
                self._leave(engine, now)

    def _leave(self, engine: PoolEngine, now: float) -> None:
        """Take nothing new, and hand over what only waits."""
        self._set(engine, State.LEAVING)
        self._models[engine.model].look()
        self._hand_over(engine, now)

    def _hand_over(self, engine: PoolEngine, now: float) -> None:
        model = self._models[engine.model]
        if not model.ready:
            return
        for seq in engine.withdraw():
            other, _ = choose_able(model.router, seq, model.ready)
            self._add(engine if other is None else other, seq, now)

    # -- from plan to plan --------------------------------------------------------------------

    def settle(self, now: float) -> None:
        """Take all steps of the change under way that can be taken now."""
        while self._step(now):
            pass
        self.unsettled = bool(self._grow) or any(
            engine.state in (State.WAITING, State.LEAVING) or engine.target_blocks is not None
            for engine in self._alive()
        )

    def _step(self, now: float) -> bool:
        """One round; True when it may have made more possible."""
        moved = False
        wanted = {gpu for e in self._waiting_engines() for gpu in e.gpus}
        for engine in self._alive():
            state, model = engine.state, self._models[engine.model]
            if engine.target_blocks is not None and engine.settle():
                self._look_at(engine, now)
                moved = True
            if state is State.STAYING and (
                engine not in model.ready or not wanted.isdisjoint(engine.gpus)
            ):
                self._leave(engine, now)
                moved = True
            elif state is State.LEAVING and engine.empty:
                self._set(engine, State.GONE)
                self.group_of[engine.index].engines.remove(engine)
                self._note(now, "removed", engine)
                moved = True
        for engine in self._waiting_engines():
            if self._free_for(engine):
                self._set(engine, State.LOADING)
                self.loads.begin(engine, now)
                self._note(now, "loading", engine)
        for engine, blocks in list(self._grow.items()):
            if self._free_for(engine):
                del self._grow[engine]
                engine.aim(blocks, now)
                self._look_at(engine, now)
                moved = True
        return moved

    def _waiting_engines(self) -> list[PoolEngine]:
        """Those that wait for their GPUs, the most important models first."""
        found = [engine for engine in self._alive() if engine.state is State.WAITING]
        return sorted(found, key=lambda engine: (-engine.urgency.priority, engine.index))

    def _condemned(self, engine: PoolEngine) -> bool:
        return engine not in self._models[engine.model].engines

    def _free_for(self, engine: PoolEngine) -> bool:
        """Whether all that has to leave its GPUs first has left them."""
        for other in self._alive():
            if other is engine or other.gpus.isdisjoint(engine.gpus):
                continue
            # Two that are both still to be loaded for an older plan fitted together in it.
            older = self._condemned(engine) and other.state is State.WAITING
            if other.shrinks or (self._condemned(other) and not older):
                return False
        return True

    def _alive(self) -> Iterator[PoolEngine]:
        return (engine for engine in self.engines if engine.state is not State.GONE)

    def ready(self, now: float) -> None:
        """The load that is complete now: its engine serves."""
        engine = self.loads.take()
        model = self._models[engine.model]
        self._join(engine)
        self._note(now, "ready", engine)
        condemned = self._condemned(engine)
        waiting = model.queue
        model.queue = type(waiting)()
        while waiting:
            self._place(model, waiting.popleft(), [engine] if condemned else model.ready, now)
        if condemned:
            self._leave(engine, now)
        for other in model.former:
            if other.state is State.LEAVING and other is not engine:
                self._hand_over(other, now)
        self.unsettled = True
        self.settle(now)

    def _join(self, engine: PoolEngine) -> None:
        self.group_of[engine.index].join(engine)
        self._set(engine, State.READY)

    def _set(self, engine: PoolEngine, state: State) -> None:
        engine.state = state
        self._models[engine.model].look()

    def _note(self, now: float, kind: str, engine: PoolEngine) -> None:
        self.happened.append(RunEvent(now, kind, engine.spec.name))

    # -- requests -----------------------------------------------------------------------------

    def arrive(self, name: str, seq: Sequence, now: float) -> None:
        """A request for the model ``name`` has come ("" = the only one)."""
        model = self._models.get(name or self._only)
        if model is None or not model.deployed:
            self._recorder.end(seq.row, "rejected")
        elif (
            model.ready
            and model.admission is not admit_all
            and not model.admission(seq, model.ready)
        ):
            self._recorder.end(seq.row, "dropped")
        else:
            self._place(model, seq, model.ready, now)

    def _place(
        self, model: ServedModel, seq: Sequence, ready: list[PoolEngine], now: float
    ) -> None:
        in_time = None if self._deadline is None else partial(self._in_time, seq=seq, now=now)
        engine, fits = choose_able(model.router, seq, ready, in_time)
        if engine is not None:
            self._add(engine, seq, now)
        elif fits:
            self._recorder.end(seq.row, "dropped")
        elif any(other.fits(seq) for other in model.coming):
            model.queue.append(seq)
        else:
            self._recorder.end(seq.row, "rejected")

    def _in_time(self, engine: PoolEngine, seq: Sequence, now: float) -> bool:
        """Whether ``seq`` would end within its limits on ``engine``."""
        entry = self._classes.get(seq.client)
        if entry is None or entry.slo == SLO():
            return True
        assert self._deadline is not None
        group = self.group_of[engine.index]
        own = engine.neighbour(now)
        others = [
            other.neighbour(now)
            for other in group.engines
            if other is not engine and other.backlog.requests
        ]
        expected = self._deadline.estimate(
            seq,
            own.pace,
            own.work,
            others,
            free_s=group.free_s(now) - now,
            priority=engine.urgency.priority,
        )
        output_tokens = seq.total_tokens - seq.prompt_tokens
        return within(entry.slo, expected, output_tokens, now - seq.arrival_s)

    def _add(self, engine: PoolEngine, seq: Sequence, now: float) -> None:
        group = self.group_of[engine.index]
        self._recorder.engine[seq.row] = engine.index
        if group.add(engine, seq, now):
            self._wake(group, group.ends_s)
        elif group.has_room:
            self._wake(group, now)

    def _look_at(self, engine: PoolEngine, now: float) -> None:
        """Something has changed for ``engine``: its group may go on sooner."""
        group = self.group_of[engine.index]
        self._wake(group, now if group.has_room else group.ends_s)
