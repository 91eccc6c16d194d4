"""Admission by deadline: a request that cannot end within its limits is refused on arrival.

The estimate is for an engine as it is now, nobody else coming: what is ahead of the request there,
the turns of other engines on the same nodes, its own prompt, and its decodes in a batch of the
present size. It needs a cost model and a few counts, so that simulator and runtime can make it.
Work ahead passes through a pipeline in batches that overlap, one behind the other; a request's own
passes take all stages in turn.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import NamedTuple

from penstock.cost.steps import StepTimer
from penstock.plan.pool_plan import TurnRule
from penstock.policy.backlog import Load
from penstock.policy.schedulers import sequence
from penstock.policy.sharing import NANOSECOND, Turn
from penstock.spec.workload import SLO


class Held(NamedTuple):
    """Seconds of the slowest stage, in all and in one pass of all that is ``abreast``: batches
    that may be in the stages at once."""

    all_s: float
    turn_s: float
    abreast: float


class Pass(NamedTuple):
    """Seconds of one batch in all stages together, and in the slowest one."""

    all_s: float
    slowest_s: float


@dataclass(frozen=True, slots=True)
class Pace:
    """How fast an engine is: a timer a stage, and its scheduler's limits."""

    timers: tuple[StepTimer, ...]
    max_num_seqs: int
    max_num_batched_tokens: int

    def decodes(self, seqs: int, context_tokens: float) -> Pass:
        """One token for each of the sequences of one batch, where ``seqs`` of ``context_tokens``
        each are spread over as many batches as there are stages."""
        batch = -(-seqs // len(self.timers))
        context = int(batch * context_tokens)
        each = [timer.decode_s(batch, context) for timer in self.timers]
        return Pass(sum(each), max(each))

    def decode_s(self, seqs: int, context_tokens: float) -> float:
        """Seconds from token to token of each of ``seqs`` sequences."""
        once = self.decodes(seqs, context_tokens)
        return max(once.all_s, min(seqs, len(self.timers)) * once.slowest_s)

    def prompt(self, tokens: int, seqs: int, context_tokens: float) -> Pass:
        """One prompt, chunk after chunk, in steps that also decode for ``seqs`` others."""
        seqs = min(seqs, self.max_num_batched_tokens - 1)
        chunk = min(tokens, max(1, self.max_num_batched_tokens - seqs))
        context = int(seqs * context_tokens)
        all_s, slowest_s, done = 0.0, 0.0, 0
        while done < tokens:
            piece = min(chunk, tokens - done)
            each = [timer.step_s(((piece, done),), seqs, context) for timer in self.timers]
            all_s, slowest_s = all_s + sum(each), slowest_s + max(each)
            done += piece
        return Pass(all_s, slowest_s)

    def prompts(self, load: Load) -> tuple[float, int, Pass]:
        """Batches of prompts to come, as many prompts each as fit; how many of these batches the
        places allow in the stages at once; and one of them."""
        if load.prompts < 1 or load.prompt_tokens < 1:
            return 0.0, 0, Pass(0.0, 0.0)
        mean = max(1, load.prompt_tokens // load.prompts)
        together = min(load.prompts, self.max_num_seqs, max(1, self.max_num_batched_tokens // mean))
        most = min(len(self.timers), max(1, self.max_num_seqs // together))
        if together == 1:
            return float(load.prompts), most, self.prompt(mean, 0, 0.0)
        each = [timer.step_s(((mean, 0),) * together, 0, 0) for timer in self.timers]
        return load.prompts / together, most, Pass(sum(each), max(each))

    def enter_s(self, load: Load) -> float:
        """Seconds until the prompts of ``load`` have entered the first stage.

        A batch enters when the slowest stage has done the one before it (AlpaServe's stage
        clocks), or when one has left where the places are too few to fill the stages.
        """
        stages = len(self.timers)
        if load.prompts < stages:
            # The later chunks of a prompt come a whole pass after the first.
            most_tokens = load.prompts * self.max_num_batched_tokens
            load = load._replace(prompt_tokens=min(load.prompt_tokens, most_tokens))
        return self._prompts_s(load)

    def _prompts_s(self, load: Load) -> float:
        batches, most, once = self.prompts(load)
        return batches * max(once.slowest_s, once.all_s / most) if batches else 0.0

    def drain_s(self, load: Load) -> float:
        """Seconds until all of ``load`` is done, nothing else running."""
        if not load.requests:
            return 0.0
        seconds = self._prompts_s(load)
        if load.decode_tokens:
            seqs = min(load.requests, self.max_num_seqs)
            step_s = self.decode_s(seqs, load.context_tokens / load.requests)
            seconds += load.decode_tokens / seqs * step_s
        return seconds

    def place_s(self, load: Load) -> float:
        """Seconds from a free first stage until one more request has a place."""
        need = load.requests - self.max_num_seqs + 1
        if need <= 0:
            return 0.0
        left = load.requests - load.ending
        wait_s = self.drain_s(load) * max(0, need - load.ending) / left if left else 0.0
        if load.batches and len(self.timers) > 1:
            # Batches under way leave one slowest stage after the other, the last one when it has
            # been through the stages behind the first.
            once = self._under_way(load)
            later = max(0, load.ending - need) * load.batches // load.ending if load.ending else 0
            wait_s += max(0.0, once.all_s - (1 + later) * once.slowest_s)
        return wait_s

    def _under_way(self, load: Load) -> Pass:
        """A batch under way: like a prompt where one ends with it, else of decodes."""
        mean = max(1.0, load.context_tokens / load.requests)
        if load.ending:
            return self.prompt(min(int(mean), self.max_num_batched_tokens), 0, 0.0)
        return self.decodes(min(load.requests, self.max_num_seqs), mean)

    def held(self, load: Load) -> Held:
        """What ``load`` takes of the slowest stage."""
        if not load.requests:
            return Held(0.0, 0.0, 0.0)
        batches, most, once = self.prompts(load)
        seqs, stages = min(load.requests, self.max_num_seqs), len(self.timers)
        all_s, abreast = batches * once.slowest_s, min(batches, most)
        turn_s = abreast * once.slowest_s
        if load.decode_tokens:
            step, side = self.decodes(seqs, load.context_tokens / load.requests), min(seqs, stages)
            all_s += load.decode_tokens / seqs * side * step.slowest_s
            turn_s, abreast = max(turn_s, side * step.slowest_s), max(abreast, side)
        return Held(all_s, turn_s, abreast)


class Neighbour(NamedTuple):
    """An engine on the same nodes that has work, and the turn it would ask for."""

    pace: Pace
    work: Load
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
        work: Load,
        others: Sequence[Neighbour] = (),
        *,
        free_s: float = 0.0,
        priority: int = 0,
    ) -> Estimate:
        """When ``seq`` gets its tokens on an engine with ``work`` ahead of it.

        ``free_s``: seconds until a batch can enter the first stage. A place in the batch is free
        at once, or when as many requests have ended as are too many.
        """
        ahead = work.requests
        context = work.context_tokens / ahead if ahead else 0.0
        wait_s = max(pace.enter_s(work), pace.place_s(work))
        beside = min(ahead, pace.max_num_seqs - 1, work.decode_tokens)
        steps = seq.total_tokens - seq.prompt_tokens - 1
        # Those beside it are spread over the batches of the pipeline.
        with_it = beside // len(pace.timers)
        prompt_s = pace.prompt(seq.prompt_tokens, with_it, context).all_s
        together = (beside * context + (seq.prompt_tokens + seq.total_tokens) / 2) / (beside + 1)
        decodes_s = steps * pace.decode_s(beside + 1, together) if steps else 0.0
        first_s, last_s = free_s + wait_s + prompt_s, free_s + wait_s + prompt_s + decodes_s
        chunks = -(-seq.prompt_tokens // pace.max_num_batched_tokens)
        mine = Turn(deadline_s=seq.deadline_s, priority=priority, arrival_s=seq.arrival_s)
        taken = [other.pace.held(other.work) for other in others]
        first = [self._goes_first(other.turn, mine) for other in others]
        abreast = sum(held.abreast for held, goes in zip(taken, first, strict=True) if goes)
        # Where those that go first fill the stages, no gap is left before they are done.
        full = abreast >= len(pace.timers)
        for other, held, goes_first in zip(others, taken, first, strict=True):
            busy_s = held.all_s
            if goes_first:
                first_s += busy_s if full else min(busy_s, chunks * held.turn_s)
                last_s += busy_s if full else min(busy_s, (chunks + steps) * held.turn_s)
            elif self.rule == "round-robin" and other.turn.priority == mine.priority:
                batch = min(other.work.requests, other.pace.max_num_seqs)
                mean = other.work.context_tokens / other.work.requests
                step_s = other.pace.decodes(batch, mean).slowest_s
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
