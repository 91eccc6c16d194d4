"""Admission by deadline: a request that cannot end within its limits is refused on arrival.

The estimate is for an engine as it is now, nobody else coming: what is ahead of the request there,
the turns of other engines on the same nodes, its own prompt, and its decodes in a batch of the
present size. It needs a cost model and a few counts, so that simulator and runtime can make it.
"""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from typing import NamedTuple

from penstock.cost.steps import StepTimer
from penstock.plan.pool_plan import TurnRule
from penstock.policy.schedulers import sequence
from penstock.policy.sharing import NANOSECOND, Turn
from penstock.spec.workload import SLO


class Backlog:
    """What an engine still has to do, kept up by its driver.

    ``prompt_tokens`` of ``prompts`` prompts that are not complete, ``decode_tokens`` after them,
    ``requests`` in all; ``context_tokens`` they will hold on the average of their lives.
    """

    def __init__(self) -> None:
        self.requests = 0
        self.prompt_tokens = 0
        self.decode_tokens = 0
        self._left: dict[int, int] = {}
        self._twice: dict[int, int] = {}
        self._twice_held = 0

    @property
    def prompts(self) -> int:
        return len(self._left)

    @property
    def context_tokens(self) -> float:
        return self._twice_held / 2

    def add(self, seq: sequence.Sequence) -> None:
        """A request has come, with its prompt to compute."""
        self.requests += 1
        self._left[seq.row] = seq.prompt_tokens
        self.prompt_tokens += seq.prompt_tokens
        self.decode_tokens += seq.total_tokens - seq.prompt_tokens - 1
        self._twice[seq.row] = held = seq.prompt_tokens + seq.total_tokens
        self._twice_held += held

    def computed(self, prefill: Iterable[tuple[sequence.Sequence, int]], decoded: int) -> None:
        """A batch has ended: chunks of prompts, and ``decoded`` tokens beside them."""
        self.decode_tokens -= decoded
        for seq, tokens in prefill:
            if seq.row in self._left:
                self._left[seq.row] -= tokens
                self.prompt_tokens -= tokens

    def first(self, seq: sequence.Sequence) -> None:
        """A prompt is complete; what the prefix cache had of it was not computed."""
        self.prompt_tokens -= self._left.pop(seq.row, 0)

    def preempted(self, seq: sequence.Sequence) -> None:
        """A request has to compute all its tokens so far again."""
        if seq.row not in self._left:
            self.decode_tokens -= 1
        self.prompt_tokens += seq.prompt_tokens - self._left.get(seq.row, 0)
        self._left[seq.row] = seq.prompt_tokens

    def end(self, seq: sequence.Sequence, undone_tokens: int = 0) -> None:
        """A request has ended, or goes elsewhere with ``undone_tokens`` decodes left."""
        self.requests -= 1
        self.prompt_tokens -= self._left.pop(seq.row, 0)
        self.decode_tokens -= undone_tokens
        self._twice_held -= self._twice.pop(seq.row)


@dataclass(frozen=True, slots=True)
class Pace:
    """How fast an engine is: a timer a stage, and its scheduler's limits."""

    timers: tuple[StepTimer, ...]
    max_num_seqs: int
    max_num_batched_tokens: int

    def decode_s(self, seqs: int, context_tokens: float) -> float:
        """Seconds of one token for each of ``seqs`` sequences of that many tokens each, spread
        over as many batches as there are stages."""
        batch = -(-seqs // len(self.timers))
        context = int(batch * context_tokens)
        return sum(timer.decode_s(batch, context) for timer in self.timers)

    def prompt_s(self, tokens: int, seqs: int, context_tokens: float) -> float:
        """Seconds of one prompt, chunk by chunk, in steps that also decode for ``seqs`` others."""
        seqs = min(seqs, self.max_num_batched_tokens - 1)
        chunk = min(tokens, max(1, self.max_num_batched_tokens - seqs))
        context = int(seqs * context_tokens)
        seconds, done = 0.0, 0
        while done < tokens:
            piece = min(chunk, tokens - done)
            seconds += sum(t.step_s(((piece, done),), seqs, context) for t in self.timers)
            done += piece
        return seconds

    def prompts_s(self, prompts: int, tokens: int) -> float:
        """Seconds of ``prompts`` prompts of ``tokens`` in all, as many a step as fit."""
        if prompts < 1 or tokens < 1:
            return 0.0
        mean = max(1, tokens // prompts)
        together = min(prompts, self.max_num_seqs, max(1, self.max_num_batched_tokens // mean))
        return prompts / together * self._together_s(mean, together)

    def _together_s(self, tokens: int, prompts: int) -> float:
        if prompts == 1:
            return self.prompt_s(tokens, 0, 0.0)
        chunks = ((tokens, 0),) * prompts
        return sum(timer.step_s(chunks, 0, 0) for timer in self.timers)

    def drain_s(self, work: Backlog) -> float:
        """Seconds until all of ``work`` is done, nothing else running."""
        if not work.requests:
            return 0.0
        seqs = min(work.requests, self.max_num_seqs)
        step_s = self.decode_s(seqs, work.context_tokens / work.requests)
        return self.prompts_s(work.prompts, work.prompt_tokens) + work.decode_tokens / seqs * step_s


class Neighbour(NamedTuple):
    """An engine on the same nodes that has work, and the turn it would ask for."""

    pace: Pace
    work: Backlog
    turn: Turn


class Estimate(NamedTuple):
    """Seconds from now until the first and the last token."""

    first_s: float
    last_s: float


@dataclass(frozen=True, slots=True)
class DeadlineAdmission:
    """Whether a request would end within its limits, where engines take turns by ``rule``."""

    rule: TurnRule

    def estimate(
        self,
        seq: sequence.Sequence,
        pace: Pace,
        work: Backlog,
        others: Sequence[Neighbour] = (),
        *,
        free_s: float = 0.0,
        priority: int = 0,
    ) -> Estimate:
        """When ``seq`` gets its tokens on an engine with ``work`` ahead of it.

        ``free_s``: seconds until a batch can enter the first stage. A place in the batch is free
        at once, or when as many requests have ended as are too many.
        """
        ahead, most = work.requests, pace.max_num_seqs
        context = work.context_tokens / ahead if ahead else 0.0
        if ahead < most:
            wait_s, beside = pace.prompts_s(work.prompts, work.prompt_tokens), ahead
        else:
            wait_s, beside = pace.drain_s(work) * (ahead - most + 1) / ahead, most - 1
        steps = seq.total_tokens - seq.prompt_tokens - 1
        prompt_s = pace.prompt_s(seq.prompt_tokens, beside, context)
        together = (beside * context + (seq.prompt_tokens + seq.total_tokens) / 2) / (beside + 1)
        decodes_s = steps * pace.decode_s(beside + 1, together)
        first_s, last_s = free_s + wait_s + prompt_s, free_s + wait_s + prompt_s + decodes_s
        chunks = -(-seq.prompt_tokens // pace.max_num_batched_tokens)
        mine = Turn(deadline_s=seq.deadline_s, priority=priority, arrival_s=seq.arrival_s)
        for other in others:
            # In a pipeline others are in one stage while this one is in the next.
            busy_s = other.pace.drain_s(other.work) / len(other.pace.timers)
            if self._goes_first(other.turn, mine):
                first_s, last_s = first_s + busy_s, last_s + busy_s
            elif self.rule == "round-robin" and other.turn.priority == mine.priority:
                batch = min(other.work.requests, other.pace.max_num_seqs)
                mean = other.work.context_tokens / other.work.requests
                step_s = other.pace.decode_s(batch, mean) / len(other.pace.timers)
                first_s += min(busy_s, chunks * step_s)
                last_s += min(busy_s, (chunks + steps) * step_s)
        return Estimate(first_s, last_s)

    def _goes_first(self, other: Turn, mine: Turn) -> bool:
        """Whether all that the other engine has goes before this request."""
        if other.priority != mine.priority:
            return other.priority > mine.priority
        if self.rule == "round-robin":
            return False
        if self.rule == "first-come":
            return other.arrival_s <= mine.arrival_s
        return not other.late and other.deadline_s <= mine.deadline_s


def within(slo: SLO, expected: Estimate, output_tokens: int, waited_s: float = 0.0) -> bool:
    """Whether ``expected`` keeps all limits of ``slo``, ``waited_s`` after the arrival."""
    first_s, last_s = waited_s + expected.first_s, waited_s + expected.last_s
    if slo.ttft_s is not None and first_s > slo.ttft_s + NANOSECOND:
        return False
    if slo.e2e_s is not None and last_s > slo.e2e_s + NANOSECOND:
        return False
    if slo.tpot_s is None or output_tokens < 2:
        return True
    return (last_s - first_s) / (output_tokens - 1) <= slo.tpot_s + NANOSECOND
