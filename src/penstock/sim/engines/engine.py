"""One engine in virtual time: it asks its scheduler for batches and its cost model for seconds."""

from __future__ import annotations

from collections.abc import Sequence as SequenceOf
from math import inf

from penstock.cost.steps import StepTimer
from penstock.policy.fleet import EngineView
from penstock.policy.schedulers.base import BatchScheduler
from penstock.policy.schedulers.sequence import Batch, Sequence
from penstock.sim.engines.fleet import EngineSpec
from penstock.sim.engines.recorder import FINISHED, QUEUED, RUNNING, EngineLog, EngineRecorder

NANOSECOND = 1e-9
"""Times closer than this are equal: what arrives with a batch's end joins the next one, whatever
rounding says, so that spans and single steps decide alike."""

InFlight = tuple[float, Batch, float, int]
"""(end, batch, start, steps): a batch on its way through the stages."""


class EngineSim(EngineView):
    """Batches of one engine and when they end. ``ends_s`` is the end of the oldest in flight.

    ``completed`` (prompts) and ``finished`` are of the batch that ended last.
    """

    def __init__(
        self,
        index: int,
        spec: EngineSpec,
        scheduler: BatchScheduler,
        timers: SequenceOf[StepTimer],
        *,
        recorder: EngineRecorder,
        log: EngineLog | None,
        step_by_step: bool = False,
    ) -> None:
        super().__init__(index, scheduler, spec.weight)
        self.spec = spec
        self.timers = timers
        self.busy_s = 0.0
        self.batches = 0
        self.prefill_tokens = 0
        self.decode_tokens = 0
        self.prompt_visits = 0
        self.prompt_residence_s = 0.0
        self.completed: list[Sequence] = []
        self.finished: list[Sequence] = []
        self._timer = timers[0]
        self._stages = len(timers)
        self._free_s = [0.0] * len(timers)
        self._recorder = recorder
        self.log = log
        self._step_by_step = step_by_step
        self._flight: list[InFlight] = []
        self._cut = False

    # -- events -------------------------------------------------------------------------------

    @property
    def idle(self) -> bool:
        return not self._flight

    @property
    def has_room(self) -> bool:
        """Whether another batch may enter the pipeline."""
        return len(self._flight) < self._stages

    @property
    def ends_s(self) -> float:
        return self._flight[0][0]

    def add(self, seq: Sequence, now: float) -> bool:
        """Take a request; True when the end of the batch in flight has moved."""
        return self.scheduler.add(seq) and self.cut(now)

    def cut(self, now: float) -> bool:
        """Let a span under way end with its present step; True when its end has moved.

        What it may use has changed, so that it must be looked at again.
        """
        if self._cut or not self._flight:
            return False
        end, batch, start, steps = self._flight[0]
        if steps == 1 or end <= now:
            return False
        self._cut = True
        seqs, kv_tokens = batch.seqs, batch.kv_tokens
        fewer = self._timer.steps_within(seqs, kv_tokens, now - start - NANOSECOND, steps)
        if fewer >= steps:
            return False
        fewer = max(fewer, 1)
        self.busy_s -= end
        end = start + self._timer.decode_span_s(seqs, kv_tokens, fewer)
        self.busy_s += end
        self._flight[0] = (end, batch, start, fewer)
        return True

    def step_end_s(self, now: float) -> float:
        """The end of the step that runs at ``now``; ``now`` if none does."""
        if not self._flight:
            return now
        end, batch, start, steps = self._flight[0]
        if steps == 1:
            return end
        seqs, kv_tokens = batch.seqs, batch.kv_tokens
        done = self._timer.steps_within(seqs, kv_tokens, now - start, steps)
        return start + self._timer.decode_span_s(seqs, kv_tokens, max(1, done))

    def start(self, now: float, arrival_s: float, until_s: float = inf) -> bool:
        """Form a batch and send it off; False when there is nothing to run.

        ``arrival_s``: the next request of the run, if it can only come here (else infinity): a
        span need not be computed beyond it. ``until_s``: it ends with its first step that
        reaches this time.
        """
        scheduler = self.scheduler
        batch = scheduler.next_batch()
        if scheduler.preempted:
            self._preempted()
        if batch is None:
            return False
        timer = self._timer
        seqs, kv_tokens = batch.seqs, batch.kv_tokens
        steps = 1
        if self._stages > 1:
            self._flight.append((self._through_stages(batch, now), batch, now, 1))
        else:
            if batch.prefill:
                end = now + timer.step_s(batch.chunks, seqs, kv_tokens)
            elif self._step_by_step or until_s <= now:
                end = now + timer.decode_s(seqs, kv_tokens)
            else:
                steps = scheduler.steady_steps(batch)
                self._cut = False
                if steps > 1 and until_s < inf:
                    least_s = until_s - now - NANOSECOND
                    steps = max(1, timer.steps_within(seqs, kv_tokens, least_s, steps))
                if steps > 1 and arrival_s < inf and scheduler.accepting:
                    fewer = timer.steps_within(seqs, kv_tokens, arrival_s - now - NANOSECOND, steps)
                    if fewer < steps:
                        steps = max(fewer, 1)
                        self._cut = True
                end = now + (
                    timer.decode_s(seqs, kv_tokens)
                    if steps == 1
                    else timer.decode_span_s(seqs, kv_tokens, steps)
                )
            self.busy_s += end - now
            self._flight.append((end, batch, now, steps))
        if batch.admitted:
            recorder = self._recorder
            for seq in batch.admitted:
                row = seq.row
                recorder.status[row] = RUNNING
                if not seq.preemptions:
                    recorder.admitted[row] = max(now, seq.arrival_s)
        return True

    def event(self, now: float, arrival_s: float) -> tuple[float, int, int]:
        """End the batch that is due and form the next ones; see ``start`` and ``finish_batch``.

        Returns (end of the oldest batch in flight or infinity, requests ended, prompts completed).
        """
        flight = self._flight
        ended, completed = self.finish_batch() if flight and flight[0][0] <= now else (0, 0)
        while len(flight) < self._stages and self.start(now, arrival_s):
            pass
        return flight[0][0] if flight else inf, ended, completed

    def finish_batch(self) -> tuple[int, int]:
        """Book the oldest batch in flight; returns (requests that ended, prompts completed)."""
        now, batch, start, steps = self._flight.pop(0)
        scheduler, recorder, log = self.scheduler, self._recorder, self.log
        self.batches += steps
        prefill_tokens = 0
        if batch.prefill:
            for tokens, _ in batch.chunks:
                prefill_tokens += tokens
            self.prefill_tokens += prefill_tokens
        self.decode_tokens += batch.seqs * steps
        if log is not None:
            log.segments.extend(
                (
                    batch.cohort.track,
                    steps,
                    start,
                    now,
                    batch.seqs,
                    batch.kv_tokens,
                    prefill_tokens,
                )
            )
        completed, finished = scheduler.commit(batch, steps)
        self.completed, self.finished = completed, finished
        for seq in completed:
            row = seq.row
            if seq.preemptions and recorder.first[row] == recorder.first[row]:
                if log is not None:
                    log.prompt_token(row, now)
            else:
                recorder.first[row] = now
                self.prompt_visits += 1
                self.prompt_residence_s += now - seq.arrival_s
        for seq in finished:
            row = seq.row
            recorder.last[row] = now
            recorder.generated[row] = recorder.output[row]
            recorder.status[row] = FINISHED
        if scheduler.stays:
            if log is not None:
                log.stays(scheduler.stays)
            scheduler.stays.clear()
        return len(finished), len(completed)

    def stop(self, now: float) -> None:
        """Book how far the requests came that are still here when the clock stops."""
        for end, batch, start, steps in self._flight:
            if self._stages == 1:
                self.busy_s -= max(0.0, end - now)
            done = self._steps_done(batch, start, steps, now)
            if done:
                self._flight[0] = (now, batch, start, done)
                self.finish_batch()
                break
            # The step that runs now is lost: its decodes stay where they are.
            self.scheduler.commit(Batch(batch.cohort, [], []), 0)
            for seq, _ in batch.prefill:
                self._generated(seq)
        self._flight.clear()
        for seq in self.scheduler.drain():
            self._generated(seq)
        if self.log is not None:
            self.log.stays(self.scheduler.stays)
        self.scheduler.stays.clear()

    def _steps_done(self, batch: Batch, start: float, steps: int, now: float) -> int:
        """Whole steps of a span that have ended by ``now``."""
        if steps == 1:
            return 0
        seqs, kv_tokens = batch.seqs, batch.kv_tokens
        done = self._timer.steps_within(seqs, kv_tokens, now - start, steps)
        while done and start + self._timer.decode_span_s(seqs, kv_tokens, done) > now:
            done -= 1
        return done

    def _through_stages(self, batch: Batch, now: float) -> float:
        """Send a batch down the pipeline; each stage runs one batch at a time, first come first."""
        free_s = self._free_s
        seqs, kv_tokens, chunks = batch.seqs, batch.kv_tokens, batch.chunks
        at = now
        for stage, timer in enumerate(self.timers):
            if chunks:
                seconds = timer.step_s(chunks, seqs, kv_tokens)
            else:
                seconds = timer.decode_s(seqs, kv_tokens)
            begin = free_s[stage]
            at = (begin if begin > at else at) + seconds
            free_s[stage] = at
            self.busy_s += seconds / self._stages
        return at

    def _preempted(self) -> None:
        recorder = self._recorder
        for seq in self.scheduler.preempted:
            recorder.preemptions[seq.row] += 1
            recorder.status[seq.row] = QUEUED
        self.scheduler.preempted.clear()

    def _generated(self, seq: Sequence) -> None:
        recorder = self._recorder
        tokens = seq.prompt_tokens - recorder.prompt[seq.row]
        recorder.generated[seq.row] = max(0, tokens)
