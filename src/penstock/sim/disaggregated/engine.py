"""An engine that knows its role: it hands over what it prefills and can be stopped at any time."""

from __future__ import annotations

from collections.abc import Sequence as SequenceOf
from math import inf, nan

from penstock.cost.steps import StepTimer
from penstock.policy.distserve_rules import DistServeRules
from penstock.policy.schedulers.base import Scheduler
from penstock.policy.schedulers.sequence import Batch, Sequence
from penstock.sim.engines.engine import NANOSECOND, EngineSim
from penstock.sim.engines.fleet import EngineSpec
from penstock.sim.engines.recorder import QUEUED, RUNNING, EngineLog, EngineRecorder


class RoleEngine(EngineSim):
    """``EngineSim`` of one role.

    ``handed`` collects sequences whose prompt was completed here and whose decodes run elsewhere;
    the driver empties it. Under DistServe's rules a pipeline has a queue in front of its first
    stage, and a batch is formed when that stage falls idle.
    """

    def __init__(
        self,
        index: int,
        spec: EngineSpec,
        scheduler: Scheduler,
        timers: SequenceOf[StepTimer],
        *,
        recorder: EngineRecorder,
        log: EngineLog | None,
        step_by_step: bool = False,
        extra_decode_steps: int = 0,
    ) -> None:
        super().__init__(
            index, spec, scheduler, timers, recorder=recorder, log=log, step_by_step=step_by_step
        )
        self._extra = extra_decode_steps
        self.rules = scheduler
        self.handed: list[Sequence] = []
        self.last_step_s = 0.0
        self._queue_first = isinstance(scheduler, DistServeRules) and len(timers) > 1

    def can_start(self, now: float) -> bool:
        if self._queue_first:
            return self._free_s[0] <= now + NANOSECOND
        return self.has_room

    def next_s(self, now: float) -> float:
        """When something happens here next; infinity if nothing is under way."""
        if not self._flight:
            return inf
        ends_s = self._flight[0][0]
        if self._queue_first and self.scheduler.num_waiting:
            free_s = self._free_s[0]
            if now < free_s < ends_s:
                return free_s
        return ends_s

    def unbooked_blocks(self, now: float) -> int:
        """Blocks that the steps of the span under way have taken and nobody has booked yet."""
        if not self._flight:
            return 0
        _, batch, start, steps = self._flight[0]
        if steps == 1:
            return 0
        seqs, kv_tokens = batch.seqs, batch.kv_tokens
        step = self._timer.steps_within(seqs, kv_tokens, now - start - NANOSECOND, steps)
        return batch.cohort._need_after(step - 1) if step > 1 else 0

    def finish_batch(self) -> tuple[int, int]:
        end, batch, start, _ = self._flight[0]
        ended, completed = super().finish_batch()
        if self.spec.role != "prefill" or not batch.prefill:
            return ended, completed
        self.last_step_s = end - start
        recorder = self._recorder
        for seq, _ in batch.prefill:
            row = seq.row
            if seq.computed == seq.total_tokens and seq.total_tokens < self.goal(row):
                recorder.status[row] = RUNNING
                recorder.last[row] = nan
                recorder.generated[row] = 0
                self.handed.append(seq)
                ended -= 1
        return ended, completed

    def goal(self, row: int) -> int:
        """Tokens of the whole request, as ``Sequence.total_tokens`` counts them."""
        return self._recorder.prompt[row] + self._recorder.output[row] + self._extra

    def halt(self, now: float) -> list[Sequence]:
        """Stop at once; return all sequences as they have to start over elsewhere.

        ``prompt_tokens`` of each then counts its tokens so far. The step that runs is lost.
        """
        flight, unfinished = list(self._flight), list[Sequence]()
        self._flight.clear()
        for end, batch, start, steps in flight:
            if self._stages == 1:
                self.busy_s -= max(0.0, end - now)
            done = self._steps_done(batch, start, steps, now)
            if done:
                self._flight.append((now, batch, start, done))
                self.finish_batch()
                continue
            self.rules.commit(Batch(batch.cohort, [], []), 0)
            unfinished.extend(seq for seq, _ in batch.prefill)
        self._free_s = [now] * self._stages
        for seq in unfinished:
            seq.computed = 0
        unfinished.extend(self.rules.drain())
        if self.log is not None:
            self.log.stays(self.rules.stays)
        self.rules.stays.clear()
        for seq in unfinished:
            seq.blocks = 0
            self._recorder.status[seq.row] = QUEUED
        return unfinished
