"""The batch rules of DistServe's simulator, for runs that must agree with its figures.

After simdistserve's worker (LLMServe/DistServe 82831f1, OSDI 2024): a step is either prompts or
decodes. Prompts go first, first come first served, as many as one KV memory holds; KV memory is
otherwise never reserved, freed or checked. Decodes wait in a queue; a step takes them from its
head until their contexts, the fed token counted, would pass 50,000 tokens; those that have more to
do go to its end.
"""

from __future__ import annotations

from collections import deque

from penstock.plan.settings import SchedulerSettings
from penstock.policy.blocks import BlockManager
from penstock.policy.schedulers.base import Progress, Scheduler
from penstock.policy.schedulers.sequence import Batch, Cohort, Sequence

MAX_DECODE_CONTEXT_TOKENS = 50_000
UNCOUNTED_BLOCKS = 2**40


class DistServeRules(Scheduler):
    """Prompts before decodes; decodes in turns of at most ``MAX_DECODE_CONTEXT_TOKENS``.

    ``max_num_batched_tokens`` of the settings is the prompt tokens that KV memory holds. A
    sequence that is added with its prompt computed goes straight to the decodes.
    """

    GROWS = False

    def __init__(self, settings: SchedulerSettings, num_stages: int = 1) -> None:
        super().__init__(settings, BlockManager(UNCOUNTED_BLOCKS), num_stages)
        self._queue: deque[Cohort] = deque()
        self._queued = 0
        self._queued_tokens = 0

    def fits(self, seq: Sequence) -> bool:
        return (
            seq.prompt_tokens <= self.max_tokens and seq.total_tokens <= MAX_DECODE_CONTEXT_TOKENS
        )

    @property
    def accepting(self) -> bool:
        return True

    @property
    def num_waiting(self) -> int:
        return len(self.waiting) + self._queued

    def add(self, seq: Sequence) -> bool:
        if seq.computed:
            self.held += 1
            self._enqueue_one(seq)
        else:
            self.waiting.append(seq)
        return True

    def next_batch(self) -> Batch | None:
        if self.waiting:
            left = self.max_tokens
            prompts: list[Sequence] = []
            while self.waiting and self.waiting[0].prompt_tokens <= left:
                seq = self.waiting.popleft()
                left -= seq.prompt_tokens
                prompts.append(seq)
            self.held += len(prompts)
            return Batch(self._empty_cohort(), [(s, s.prompt_tokens) for s in prompts], prompts)
        if not self._queue:
            return None
        return Batch(self._turn(), [], [])

    def steady_steps(self, batch: Batch) -> int:
        if batch.prefill or self._queue:
            return 1
        room = MAX_DECODE_CONTEXT_TOKENS - batch.kv_tokens - batch.seqs
        return min(batch.cohort.steady_steps(0), max(1, 1 + room // batch.seqs))

    def commit(self, batch: Batch, steps: int = 1) -> Progress:
        cohort = batch.cohort
        if batch.prefill:
            self._spare.append(cohort)
            return self._commit_prompts(batch)
        _, finished = cohort.advance(steps)
        for seq in finished:
            self.stays.append(cohort.finish(seq))
            self._release(seq)
        self._enqueue(cohort)
        return [], finished

    def drain(self) -> list[Sequence]:
        sequences: list[Sequence] = []
        for cohort in self._queue:
            for seq in list(cohort):
                self.stays.append(cohort.leave(seq))
                self._release(seq)
                self._restart(seq)
                sequences.append(seq)
            self._spare.append(cohort)
        self._queue.clear()
        self._queued = self._queued_tokens = 0
        sequences.extend(self.waiting)
        self.waiting = deque()
        return sequences

    def check(self) -> None:
        assert self._queued == sum(cohort.seqs for cohort in self._queue) == self.held
        assert self._queued_tokens == sum(cohort.kv_tokens for cohort in self._queue)

    def _commit_prompts(self, batch: Batch) -> Progress:
        completed = [seq for seq, _ in batch.prefill]
        finished = []
        for seq in completed:
            seq.computed = seq.prompt_tokens + 1
            if seq.computed < seq.total_tokens:
                self._enqueue_one(seq)
            else:
                finished.append(seq)
                self._release(seq)
        return completed, finished

    # -- the queue of decodes -----------------------------------------------------------------

    def _enqueue_one(self, seq: Sequence) -> None:
        cohort = self._empty_cohort()
        cohort.join(seq)
        self._enqueue(cohort)

    def _enqueue(self, cohort: Cohort) -> None:
        if not cohort.seqs:
            self._spare.append(cohort)
            return
        self._queue.append(cohort)
        self._queued += cohort.seqs
        self._queued_tokens += cohort.kv_tokens

    def _turn(self) -> Cohort:
        """Take the head of the queue as far as the limit goes, as one cohort."""
        queue = self._queue
        everybody = self._queued_tokens + self._queued <= MAX_DECODE_CONTEXT_TOKENS
        taken = queue.popleft()
        if everybody:
            while queue:
                taken = self._joined(taken, queue.popleft())
        else:
            while queue and taken.kv_tokens + taken.seqs <= MAX_DECODE_CONTEXT_TOKENS:
                taken = self._joined(taken, queue.popleft())
            behind = self._cut(taken)
            if behind.seqs:
                queue.appendleft(behind)
            else:
                self._spare.append(behind)
        self._queued -= taken.seqs
        self._queued_tokens -= taken.kv_tokens
        return taken

    def _joined(self, head: Cohort, tail: Cohort) -> Cohort:
        """One cohort of both, in order; the smaller one moves."""
        if head.seqs >= tail.seqs:
            for seq in list(tail):
                self.stays.append(tail.leave(seq))
                head.join(seq)
            self._spare.append(tail)
            return head
        first = list(head)
        for seq in first:
            self.stays.append(head.leave(seq))
            tail.join(seq)
        tail.members = {seq.row: seq for seq in first} | tail.members
        self._spare.append(head)
        return tail

    def _cut(self, cohort: Cohort) -> Cohort:
        """Move what lies beyond the limit out of the end of ``cohort``; at least one stays."""
        behind = self._empty_cohort()
        dropped: list[Sequence] = []
        while cohort.kv_tokens + cohort.seqs > MAX_DECODE_CONTEXT_TOKENS and cohort.seqs > 1:
            seq = cohort.members[next(reversed(cohort.members))]
            self.stays.append(cohort.leave(seq))
            dropped.append(seq)
        for seq in reversed(dropped):
            behind.join(seq)
        return behind

    def _release(self, seq: Sequence) -> None:
        self.held -= 1
