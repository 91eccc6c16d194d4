"""What an engine's requests want of it and what is left to do for them: turns and admission ask."""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence

from penstock.policy.backlog import Backlog
from penstock.policy.deadline import Neighbour, Pace
from penstock.policy.schedulers.sequence import Batch
from penstock.policy.schedulers.sequence import Sequence as Served
from penstock.policy.sharing import Turn, Urgency
from penstock.spec.workload import SLOClass


class Standing:
    """Kept up by the driver of the engine. ``pace`` is None where nobody estimates its times."""

    def __init__(
        self, classes: Mapping[str, SLOClass], priority: int, pace: Pace | None = None
    ) -> None:
        self.urgency = Urgency(classes, priority)
        self.backlog = Backlog()
        self.pace = pace
        self._rows: set[int] = set()

    def turn(self, now: float) -> Turn:
        return self.urgency.turn(now)

    def neighbour(self, now: float, under_way: Iterable[Batch]) -> Neighbour:
        """What it has to do beside the batches ``under_way``; it must have a pace."""
        assert self.pace is not None
        return Neighbour(self.pace, self.backlog.load(under_way), self.turn(now))

    def first_stage_s(self, batch: Batch) -> float:
        """Seconds of ``batch`` in the first stage, by estimate."""
        if self.pace is None:
            return 0.0
        timer = self.pace.timers[0]
        if batch.chunks:
            return timer.step_s(batch.chunks, batch.seqs, batch.kv_tokens)
        return timer.decode_s(batch.seqs, batch.kv_tokens)

    # -- what happens -------------------------------------------------------------------------

    def add(self, seq: Served) -> None:
        self._rows.add(seq.row)
        self.urgency.add(seq)
        self.backlog.add(seq)

    def sent(self, batch: Batch) -> None:
        """A step enters a pipeline: those that end with it want no further turn."""
        for seq in batch.ending:
            self.urgency.end(seq)

    def ran(
        self, batch: Batch, prompts: Sequence[Served], finished: Sequence[Served], now: float
    ) -> None:
        """A step has ended; it has completed ``prompts``, and ``finished`` requests."""
        self.urgency.stepped(now)
        self.backlog.computed(batch.prefill, batch.seqs)
        for seq in prompts:
            self.urgency.first(seq)
            self.backlog.first(seq)
        for seq in finished:
            self.end(seq)

    def end(self, seq: Served) -> None:
        """A request has ended or goes elsewhere; said again it does nothing."""
        if seq.row in self._rows:
            self._rows.remove(seq.row)
            self.urgency.end(seq)
            done = max(seq.computed, seq.prompt_tokens + 1)
            self.backlog.end(seq, max(0, seq.total_tokens - done))

    def clear(self, seqs: Iterable[Served]) -> None:
        """All requests are gone at once."""
        for seq in seqs:
            self.urgency.end(seq)
        self._rows.clear()
        self.backlog = Backlog()
