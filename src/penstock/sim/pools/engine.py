"""One engine of a pool: an ``EngineSim`` that may share its nodes, be loaded, and go."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from enum import Enum
from math import inf

from penstock.cost.steps import StepTimer
from penstock.plan.moves import Gpus
from penstock.policy.backlog import Backlog
from penstock.policy.deadline import Neighbour, Pace
from penstock.policy.schedulers.base import Scheduler
from penstock.policy.schedulers.sequence import Sequence as Served
from penstock.policy.sharing import Turn, Urgency
from penstock.sim.engines.engine import NANOSECOND, EngineSim
from penstock.sim.engines.fleet import EngineSpec
from penstock.sim.engines.recorder import EngineLog, EngineRecorder
from penstock.spec.workload import SLOClass


class State(Enum):
    """The life of an engine. One that is not in the plan any more is ``STAYING`` until others of
    its model are ready, unless somebody wants its GPUs, then ``LEAVING`` until it is empty."""

    WAITING = "waiting for its GPUs"
    LOADING = "loading"
    READY = "ready"
    STAYING = "staying"
    LEAVING = "leaving"
    GONE = "gone"


class PoolEngine(EngineSim):
    """``EngineSim`` of one model of a pool.

    ``target_blocks``: the KV blocks of the plan in force, where they are not what it has yet.
    While it has to shrink, requests that have not begun stand in ``parked``.
    """

    scheduler: Scheduler

    def __init__(
        self,
        index: int,
        spec: EngineSpec,
        scheduler: Scheduler,
        timers: Sequence[StepTimer],
        *,
        model: str,
        gpus: Gpus,
        load_s: float,
        priority: int,
        classes: Mapping[str, SLOClass],
        recorder: EngineRecorder,
        log: EngineLog | None,
        step_by_step: bool,
    ) -> None:
        super().__init__(
            index, spec, scheduler, timers, recorder=recorder, log=log, step_by_step=step_by_step
        )
        self.model = model
        self.gpus = gpus
        self.load_s = load_s
        self.state = State.WAITING
        self.target_blocks: int | None = None
        self.parked: list[Served] = []
        self.urgency = Urgency(classes, priority)
        self.backlog = Backlog()
        self._booked = 0
        self.pace = Pace(tuple(timers), scheduler.max_num_seqs, scheduler.max_tokens)

    # -- what it has --------------------------------------------------------------------------

    @property
    def outstanding(self) -> int:
        return self.scheduler.outstanding + len(self.parked)

    @property
    def num_waiting(self) -> int:
        return self.scheduler.num_waiting + len(self.parked)

    @property
    def in_flight(self) -> int:
        return len(self._flight)

    @property
    def empty(self) -> bool:
        return not (self._flight or self.parked or self.scheduler.outstanding)

    @property
    def shrinks(self) -> bool:
        return self.target_blocks is not None and (
            self.target_blocks < self.scheduler.blocks.num_blocks
        )

    def fits(self, seq: Served) -> bool:
        """Whether it could serve ``seq``, now and with the KV blocks it is to have."""
        if not self.scheduler.fits(seq):
            return False
        target = self.target_blocks
        return target is None or seq.total_tokens <= self.scheduler.most_tokens(target)

    def turn(self, now: float) -> Turn:
        return self.urgency.turn(now)

    def neighbour(self, now: float) -> Neighbour:
        """What it has to do beside the steps under way; those of a span that are done count."""
        if self._flight:
            _, batch, start, steps = self._flight[0]
            if steps > 1:
                done = batch.seqs * self._steps_done(batch, start, steps, now - NANOSECOND)
                self.backlog.computed((), done - self._booked)
                self._booked = done
        load = self.backlog.load(batch for _, batch, _, _ in self._flight)
        return Neighbour(self.pace, load, self.turn(now))

    # -- requests -----------------------------------------------------------------------------

    def on_stages(self, free_s: list[float]) -> None:
        """Use the stage clocks that all engines on the same nodes share."""
        self._free_s = free_s

    def add(self, seq: Served, now: float) -> bool:
        self.urgency.add(seq)
        self.backlog.add(seq)
        if self._recorder.first[seq.row] == self._recorder.first[seq.row]:
            self.urgency.first(seq)
        if self.shrinks:
            self.parked.append(seq)
            return False
        return super().add(seq, now)

    def withdraw(self) -> list[Served]:
        """Take out all that waits for its first batch, or for its next after a preemption."""
        waiting, queue = self.parked, self.scheduler.waiting
        self.parked = []
        while len(queue):
            waiting.append(queue.popleft())
        for seq in waiting:
            self.urgency.end(seq)
            self.backlog.end(seq, seq.total_tokens - seq.prompt_tokens - 1)
        return waiting

    def start(self, now: float, arrival_s: float, until_s: float = inf) -> bool:
        started = super().start(now, arrival_s, until_s)
        if started and self._stages > 1:
            for seq in self._flight[-1][1].ending:
                # It wants no further turn, though it stays here for some stages.
                self.urgency.end(seq)
        return started

    def finish_batch(self) -> tuple[int, int]:
        end, batch, _, steps = self._flight[0]
        decoded, self._booked = batch.seqs * steps - self._booked, 0
        ended = super().finish_batch()
        urgency, backlog = self.urgency, self.backlog
        urgency.stepped(end)
        backlog.computed(batch.prefill, decoded)
        for seq in self.completed:
            urgency.first(seq)
            backlog.first(seq)
        for seq in self.finished:
            urgency.end(seq)
            backlog.end(seq)
        return ended

    def _preempted(self) -> None:
        for seq in self.scheduler.preempted:
            self.backlog.preempted(seq)
        super()._preempted()

    # -- KV memory ----------------------------------------------------------------------------

    def aim(self, num_blocks: int, now: float) -> None:
        """Have ``num_blocks`` KV blocks as soon as no batch is in flight and so many will do."""
        changes = num_blocks != self.scheduler.blocks.num_blocks
        self.target_blocks = num_blocks if changes else None
        if changes:
            self.cut(now)
        if self.shrinks:
            self._park(self.scheduler.most_tokens(num_blocks))
        else:
            self._unpark()

    def settle(self) -> bool:
        """Take the KV blocks it is to have; False while that has to wait."""
        target = self.target_blocks
        if target is None:
            return True
        if self._flight or not self.scheduler.resize(target):
            return False
        self.target_blocks = None
        self._unpark()
        return True

    def _park(self, most_tokens: int) -> None:
        """Let those that have not begun wait outside, but for those that need the old memory."""
        queue = self.scheduler.waiting
        waiting = []
        while len(queue):
            waiting.append(queue.popleft())
        for seq in waiting:
            begun = seq.preemptions > 0 or seq.total_tokens > most_tokens
            (queue if begun else self.parked).append(seq)

    def _unpark(self) -> None:
        for seq in self.parked:
            self.scheduler.add(seq)
        self.parked = []
