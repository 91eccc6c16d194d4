"""Steps of a whole engine: run in the order they come, sent on to the next stage."""

from __future__ import annotations

import msgspec

from penstock.serve.pool import WorkerSpec
from penstock.serve.wire import COORDINATOR, Step, StepDone
from penstock.serve.worker.core import Running
from penstock.serve.worker.executor import Buffer, Executor, Job, Outcome, Send, Work


class StageSteps:
    """The duty of one stage of an engine."""

    def __init__(self, spec: WorkerSpec, executor: Executor, send: Send) -> None:
        self._spec = spec
        self._executor = executor
        self._send = send

    def take(self, step: Step, buffer: Buffer | None) -> Running | None:
        for command in step.commands:
            self._executor.apply(command)
        if not step.items:
            self._pass_on(step, None)
            return None
        start, end = self._spec.start_layer, self._spec.end_layer
        jobs = [
            Job(item.seq, item.context, item.tokens, start, end, item.draw) for item in step.items
        ]
        work = Work(
            jobs,
            hidden=() if buffer is None else (buffer,),
            null_s=step.null_s[step.stage] if step.null_s else 0.0,
            decoding=step.decoding,
        )
        outcome = self._executor.run(work)
        return Running(outcome.wait_s, lambda _queued: self._finish(step, outcome))

    def next(self) -> Running | None:
        return None

    def release(self, seqs: tuple[int, ...]) -> None:
        return

    def _finish(self, step: Step, outcome: Outcome) -> None:
        if not self._pass_on(step, outcome.hidden):
            done = StepDone(
                step.number,
                self._spec.name,
                outcome.drawn,
                outcome.busy_s,
                verified=outcome.verified,
            )
            self._send(COORDINATOR, done)

    def _pass_on(self, step: Step, hidden: Buffer | None) -> bool:
        """Send ``step`` to the next stage; False where this is the last one."""
        stage = step.stage + 1
        if stage >= len(step.stages):
            return False
        onward = msgspec.structs.replace(step, stage=stage)
        self._send(step.stages[stage].worker, onward, hidden)
        return True
