"""Skip-join multi-level feedback queues, as in FastServe.

Wu et al., "Fast Distributed Inference Serving for Large Language Models", 2023. Service is
counted in steps: a decode step is one, a prompt counts one step per ``PROMPT_TOKENS_PER_STEP``
tokens. Sequences that lose their turn keep their KV blocks while there are any.
"""

from __future__ import annotations

from dataclasses import dataclass

from penstock.plan.settings import SchedulerSettings
from penstock.policy.blocks import BlockManager
from penstock.policy.schedulers.base import Progress
from penstock.policy.schedulers.sequence import Batch, Cohort, Sequence
from penstock.policy.schedulers.vllm import VllmV1

PROMPT_TOKENS_PER_STEP = 128
STARVING_STEPS = 1000
"""A sequence that got no turn for so many steps of the engine goes to the first queue."""


@dataclass(slots=True)
class _Standing:
    level: int
    left: int
    waits_since: int


class Mlfq(VllmV1):
    """A new sequence joins the highest queue whose quantum covers its prompt (skip-join).

    Each step runs the best ``max_num_seqs`` sequences by queue, then by arrival. Who has used up
    its quantum goes one queue down; who starves goes to the first.
    """

    MAX_NUM_SEQS = 64
    CACHES_PREFIXES = False

    def __init__(
        self, settings: SchedulerSettings, blocks: BlockManager, num_stages: int = 1
    ) -> None:
        super().__init__(settings, blocks, num_stages)
        self._standing: dict[int, _Standing] = {}
        self._steps = 0

    @property
    def accepting(self) -> bool:
        return True

    def add(self, seq: Sequence) -> bool:
        cost = -(-seq.prompt_tokens // PROMPT_TOKENS_PER_STEP)
        level = 0
        while level < self.settings.mlfq_levels - 1 and self._quantum(level) < cost:
            level += 1
        self._standing[seq.row] = _Standing(level, self._quantum(level), self._steps)
        return super().add(seq)

    def next_batch(self) -> Batch | None:
        cohort = self._cohort()
        self._unsteady = False
        running = {seq.row for seq in (*self._front, *cohort, *self._tail)}
        order = sorted([*self._front, *cohort, *self._tail, *self.waiting], key=self._rank)
        decodes = {*self._loose, *(seq.row for seq in cohort)}
        self._front, self._tail = [], []
        chosen: list[Sequence] = []
        prefill: list[tuple[Sequence, int]] = []
        admitted: list[Sequence] = []
        behind: list[Sequence] = []
        left = self.max_tokens
        place = 0
        while place < len(order):
            seq = order[place]
            place += 1
            is_decode = seq.row in decodes
            tokens = 0
            if left > 0 and len(chosen) + len(prefill) < self.max_num_seqs:
                tokens = 1 if is_decode else self._chunk(seq, seq.computed, left)
            if tokens and self._turn(
                seq, tokens, cohort, is_decode=is_decode, rest=(order, place), running=running
            ):
                left -= tokens
                if is_decode:
                    chosen.append(seq)
                else:
                    prefill.append((seq, tokens))
                    if seq.row not in running:
                        admitted.append(seq)
            elif seq.row in running:
                behind.append(seq)
        self._settle(cohort, chosen, behind, decodes)
        for seq in admitted:
            self._remove_waiting(seq)
            self.held += 1
        return self._batch(cohort, prefill, admitted)

    def steady_steps(self, batch: Batch) -> int:
        if batch.prefill or self._unsteady:
            return 1
        standing, last = self._standing, self.settings.mlfq_levels - 1
        steps = batch.cohort.steady_steps(self.blocks.free)
        for seq in batch.cohort:
            if standing[seq.row].level < last:
                steps = min(steps, standing[seq.row].left)
        for seq in (*self._front, *self._tail, *self.waiting):
            if standing[seq.row].level:
                waited = self._steps - standing[seq.row].waits_since
                steps = min(steps, STARVING_STEPS - waited)
        return max(1, steps)

    def commit(self, batch: Batch, steps: int = 1) -> Progress:
        self._steps += steps
        if batch.seqs:
            for seq in batch.cohort:
                self._serve(seq, steps)
        for seq, tokens in batch.prefill:
            self._serve(seq, -(-tokens // PROMPT_TOKENS_PER_STEP))
        progress = super().commit(batch, steps)
        for seq in progress[1]:
            del self._standing[seq.row]
        return progress

    def remove(self, seq: Sequence) -> bool:
        removed = super().remove(seq)
        if removed:
            del self._standing[seq.row]
        return removed

    def drain(self) -> list[Sequence]:
        self._standing.clear()
        return super().drain()

    def _quantum(self, level: int) -> int:
        return self.settings.mlfq_quantum << level

    def _rank(self, seq: Sequence) -> tuple[int, float, int]:
        standing = self._standing[seq.row]
        if standing.level and self._steps - standing.waits_since >= STARVING_STEPS:
            standing.level, standing.left = 0, self._quantum(0)
        return (standing.level, seq.arrival_s, seq.row)

    def _serve(self, seq: Sequence, steps: int) -> None:
        standing = self._standing[seq.row]
        standing.waits_since = self._steps
        if standing.level < self.settings.mlfq_levels - 1:
            standing.left -= steps
            if standing.left <= 0:
                standing.level += 1
                standing.left = self._quantum(standing.level)

    def _turn(
        self,
        seq: Sequence,
        tokens: int,
        cohort: Cohort,
        *,
        is_decode: bool,
        rest: tuple[list[Sequence], int],
        running: set[int],
    ) -> bool:
        """Take the blocks of this turn, at the cost of running sequences behind it in ``rest``."""
        order, place = rest
        blocks, size = self.blocks, self.blocks.block_size
        if is_decode:
            n = cohort.computed(seq) if seq in cohort else seq.computed
            need = int((n - 1) % size == 0)
        else:
            need = -(-(seq.computed + tokens) // size) - seq.blocks
        while not blocks.can_take(need):
            victims = [i for i in range(len(order) - 1, place - 1, -1) if order[i].row in running]
            if not victims:
                return False
            victim = order.pop(victims[0])
            running.discard(victim.row)
            self._preempt(victim, cohort)
        blocks.take(need)
        if not is_decode:
            seq.blocks += need
        return True

    def _settle(
        self, cohort: Cohort, chosen: list[Sequence], behind: list[Sequence], decodes: set[int]
    ) -> None:
        """Make ``chosen`` the cohort; who stays behind keeps its blocks."""
        for seq in behind:
            if seq in cohort:
                self.stays.append(cohort.leave(seq))
                self._loose.add(seq.row)
        for seq in chosen:
            if seq.row in self._loose:
                self._loose.remove(seq.row)
                cohort.join(seq)
        cohort.reorder(seq.row for seq in chosen)
        for seq in behind:
            (self._front if seq.row in decodes else self._tail).append(seq)
