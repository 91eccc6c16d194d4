"""What all batch schedulers share: waiting, running, blocks, preemption by recompute.

The life of a sequence in a scheduler:

1. ``add`` puts it at the end of ``waiting``.
2. ``next_batch`` admits it: it takes blocks and its prompt, or a chunk of it, joins the batch.
3. ``commit`` books the step. Until its prompt is complete the sequence is one of ``_tail``.
4. The step that completes the prompt yields a token; the sequence joins the batch's cohort.
5. Each later step pays its blocks in ``next_batch`` and counts in ``commit``; where nothing can
   change for a while ``steady_steps`` says how long, and one ``commit`` books them all.
6. When blocks run out the last in the running order is preempted: it gives everything back and
   goes to the front of ``waiting``, to recompute prompt and output so far.
7. When the cohort's clock reaches its end it is finished and gives everything back.

With a pipeline of p stages up to p batches are in flight; a sequence belongs to one at a time.
"""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections import deque
from collections.abc import Iterable, Iterator
from typing import ClassVar, Protocol

from penstock.errors import SpecError
from penstock.plan.settings import SchedulerSettings
from penstock.policy.blocks import BlockManager
from penstock.policy.schedulers.sequence import Batch, Cohort, Sequence, Stay

Progress = tuple[list[Sequence], list[Sequence]]
"""(sequences whose prompt was completed, sequences that finished) by a step."""


class BatchScheduler(Protocol):
    """Which sequences run in the next step. Pure: no clock, no I/O.

    ``stays`` and ``preempted`` collect what happened since the driver last emptied them.
    """

    stays: list[Stay]
    preempted: list[Sequence]
    blocks: BlockManager

    def fits(self, seq: Sequence) -> bool:
        """Whether the empty engine could ever serve ``seq``; if not, it must not be added."""
        ...

    def add(self, seq: Sequence) -> bool:
        """Take a sequence in; True when it may change the batch after the current step."""
        ...

    def next_batch(self) -> Batch | None:
        """Form a batch and pay its blocks for one step; None when nothing can run now."""
        ...

    def steady_steps(self, batch: Batch) -> int:
        """For how many steps (at least 1) ``batch`` stays as it is if nothing is added."""
        ...

    def commit(self, batch: Batch, steps: int = 1) -> Progress:
        """Book ``steps`` equal steps of ``batch``, at most ``steady_steps``."""
        ...

    def drain(self) -> list[Sequence]:
        """Take everything out, blocks given back; no batch may be in flight."""
        ...

    def remove(self, seq: Sequence) -> bool:
        """Take one sequence out (cancelled); False while it is in the batch in flight."""
        ...

    def check(self) -> None:
        """Recount the blocks; no batch may be in flight."""
        ...

    @property
    def accepting(self) -> bool:
        """Whether a sequence added now may change the batch after the current step."""
        ...

    @property
    def outstanding(self) -> int:
        """Sequences added and not finished."""
        ...

    @property
    def num_waiting(self) -> int: ...


class Waiting(Protocol):
    """A waiting queue; ``collections.deque`` is the first come, first served one."""

    def append(self, seq: Sequence, /) -> None: ...
    def appendleft(self, seq: Sequence, /) -> None:
        """Take a preempted sequence back."""
        ...

    def popleft(self) -> Sequence:
        """Take the head out."""
        ...

    def __getitem__(self, index: int, /) -> Sequence: ...
    def __len__(self) -> int: ...
    def __iter__(self) -> Iterator[Sequence]: ...


class Scheduler(ABC):
    """Base of the schedulers. Subclasses write ``next_batch`` with the parts below."""

    MAX_NUM_SEQS: ClassVar[int] = 256
    MAX_NUM_BATCHED_TOKENS: ClassVar[int] = 2048
    WATERMARK: ClassVar[float] = 0.0
    SPARE_BLOCKS: ClassVar[int] = 0
    """Blocks that must be free for a decode even when it needs none (1 in Vidur)."""
    GROWS: ClassVar[bool] = True
    """Whether decodes take blocks as they go; if not, all are reserved at admission."""
    CACHES_PREFIXES: ClassVar[bool] = False

    def __init__(
        self, settings: SchedulerSettings, blocks: BlockManager, num_stages: int = 1
    ) -> None:
        if settings.enable_prefix_caching and not self.CACHES_PREFIXES:
            raise SpecError(
                f"{settings.name} has no prefix cache",
                key="scheduler.enable_prefix_caching",
                value=True,
                fix="use the scheduler vllm, priority or vtc",
            )
        self.settings = settings
        self.blocks = blocks
        self._most_tokens = self.most_tokens(blocks.num_blocks)
        self.max_num_seqs = settings.max_num_seqs or self.MAX_NUM_SEQS
        self.max_tokens = settings.max_num_batched_tokens or self.MAX_NUM_BATCHED_TOKENS
        self.max_batch_seqs = self.max_num_seqs
        self.num_stages = num_stages
        self.waiting: Waiting = deque()
        self.stays: list[Stay] = []
        self.preempted: list[Sequence] = []
        self.held = 0
        self._ready: Cohort | None = None
        self._spare: list[Cohort] = []
        self._tracks = 0
        self._front: list[Sequence] = []
        self._tail: list[Sequence] = []
        self._loose: set[int] = set()
        self._unsteady = False

    # -- the protocol -------------------------------------------------------------------------

    def fits(self, seq: Sequence) -> bool:
        return seq.total_tokens <= self._most_tokens

    def most_tokens(self, num_blocks: int) -> int:
        """Prompt and output of the longest sequence that ``num_blocks`` hold."""
        spare = max(self.SPARE_BLOCKS, int(self.blocks.watermark * num_blocks))
        # The last token of a sequence is never fed, so it needs no entry.
        return (num_blocks - spare) * self.blocks.block_size + 1

    def resize(self, num_blocks: int) -> bool:
        """Have ``num_blocks`` KV blocks from now on; no batch may be in flight.

        False, and nothing has changed, while what is here needs more to be served.
        """
        most = self.most_tokens(num_blocks)
        decoding = () if self._ready is None else self._ready
        here = (*self._front, *self._tail, *decoding, *self.waiting)
        if any(seq.total_tokens > most for seq in here) or not self.blocks.resize(num_blocks):
            return False
        self._most_tokens = most
        return True

    def add(self, seq: Sequence) -> bool:
        matters = self.accepting
        self.waiting.append(seq)
        return matters

    @property
    def accepting(self) -> bool:
        # While others wait, or all places are taken, a new one cannot join before an event.
        return not self.waiting and self.held < self.max_num_seqs

    @abstractmethod
    def next_batch(self) -> Batch | None: ...

    def steady_steps(self, batch: Batch) -> int:
        # What a preemption freed may let somebody in at the next step.
        if batch.prefill or self._unsteady or self._loose:
            return 1
        return batch.cohort.steady_steps(self.blocks.free - self.SPARE_BLOCKS)

    def commit(self, batch: Batch, steps: int = 1) -> Progress:
        cohort = batch.cohort
        completed: list[Sequence] = []
        if batch.seqs:
            taken, finished = cohort.advance(steps)
            if taken:
                self.blocks.take(taken)
            for seq in finished:
                self.stays.append(cohort.finish(seq))
                self._release(seq)
        else:
            finished = []
        ready = self._ready
        if ready is not None and (cohort.seqs or not ready.seqs):
            # Decodes that come back from another stage of the pipeline join those that wait.
            if ready.seqs:
                order = [*ready.members, *cohort.members]
                for seq in list(ready):
                    self.stays.append(ready.leave(seq))
                    cohort.join(seq)
                cohort.reorder(order)
            self._spare.append(ready)
        elif ready is not None:
            self._spare.append(cohort)
            cohort = ready
        self._ready = cohort
        for seq, tokens in batch.prefill:
            before = seq.computed
            seq.computed = n = before + tokens
            if seq.hashes:
                self._store_pieces(seq, before)
            if n < seq.prompt_tokens:
                self._tail.append(seq)
                continue
            seq.computed = n + 1
            completed.append(seq)
            if n + 1 < seq.total_tokens:
                cohort.join(seq)
            else:
                finished.append(seq)
                self._release(seq)
        return completed, finished

    def drain(self) -> list[Sequence]:
        cohort = self._ready
        running = self._front + (list(cohort) if cohort is not None else []) + self._tail
        self._front, self._tail = [], []
        self._loose.clear()
        for seq in running:
            if cohort is not None and seq in cohort:
                self.stays.append(cohort.leave(seq))
            self._release(seq)
            self._restart(seq)
        while len(self.waiting):
            running.append(self.waiting.popleft())
        return running

    def remove(self, seq: Sequence) -> bool:
        cohort = self._ready
        if cohort is not None and seq in cohort:
            self.stays.append(cohort.leave(seq))
        elif seq in self._front or seq in self._tail:
            for group in (self._front, self._tail):
                if seq in group:
                    group.remove(seq)
            self._loose.discard(seq.row)
        else:
            return self._remove_waiting(seq)
        self._release(seq)
        return True

    @property
    def outstanding(self) -> int:
        return self.held + len(self.waiting)

    @property
    def num_waiting(self) -> int:
        return len(self.waiting)

    def check(self) -> None:
        cohort = self._ready
        if cohort is None:
            members: list[Sequence] = []
            held = 0
        else:
            members = list(cohort)
            size = self.blocks.block_size
            held = sum(seq.blocks for seq in members)
            if self.GROWS:
                for seq in members:
                    joined = seq.offset + seq.joined
                    held += (cohort.computed(seq) - 2) // size - (joined - 2) // size
        others = self._front + self._tail
        everyone = members + others
        assert len(everyone) == self.held, f"{len(everyone)} run, {self.held} are counted"
        held += sum(seq.blocks for seq in others) + self._idle_blocks()
        self.blocks.check(held, [seq.shared for seq in everyone])

    def _idle_blocks(self) -> int:
        """Blocks that are taken for no sequence."""
        return 0

    # -- parts for subclasses -----------------------------------------------------------------

    def _cohort(self) -> Cohort:
        """The decodes that are not in flight, as a cohort (perhaps an empty one)."""
        cohort = self._ready
        self._ready = None
        return cohort if cohort is not None else self._empty_cohort()

    def _empty_cohort(self) -> Cohort:
        if self._spare:
            return self._spare.pop()
        self._tracks += 1
        return Cohort(self._tracks - 1, self.blocks.block_size, grows=self.GROWS)

    def _pay_decodes(self) -> tuple[Cohort, list[Sequence]]:
        """Take the blocks of one step of all ready decodes, preempting where they run out.

        Returns the cohort to run and the unfinished prompts that are ready, in running order.
        """
        cohort = self._cohort()
        self._unsteady = False
        if not self._loose and cohort.seqs <= self.max_batch_seqs:
            need = cohort.need()
            blocks = self.blocks
            if need + self.SPARE_BLOCKS <= blocks.free or not cohort.seqs:
                if need:
                    blocks.take(need)
                prompts = self._tail
                if self._front:
                    prompts = self._front + prompts
                    self._front = []
                if prompts:
                    self._tail = []
                return cohort, prompts
        return cohort, self._pay_one_by_one(cohort)

    def _running_order(self, sequences: list[Sequence]) -> list[Sequence]:
        """The order in which sequences get blocks; the last is preempted first."""
        return sequences

    def _pay_one_by_one(self, cohort: Cohort) -> list[Sequence]:
        """Walk the running order: each decode gets its block, at the cost of the last ones.

        Where the batch is full the rest stay behind, in order of arrival (Vidur's rule).
        """
        order = deque(self._running_order([*self._front, *cohort, *self._tail]))
        self._front, self._tail = [], []
        chosen: list[Sequence] = []
        prompts: list[Sequence] = []
        while order and len(chosen) < self.max_batch_seqs:
            seq = order.popleft()
            if seq not in cohort and seq.row not in self._loose:
                prompts.append(seq)
            elif self._pay(seq, cohort, order):
                chosen.append(seq)
        for seq in order:
            if seq in cohort:
                self.stays.append(cohort.leave(seq))
                self._loose.add(seq.row)
        for seq in chosen:
            if seq.row in self._loose:
                self._loose.remove(seq.row)
                cohort.join(seq)
        cohort.reorder(seq.row for seq in chosen)
        self._leave_behind(order)
        return prompts

    def _pay(self, seq: Sequence, cohort: Cohort, order: deque[Sequence]) -> bool:
        """Take the block of one decode; False when the sequence itself had to go."""
        n = cohort.computed(seq) if seq in cohort else seq.computed
        need = int(self.GROWS and (n - 1) % self.blocks.block_size == 0)
        while not self.blocks.can_take(max(need, self.SPARE_BLOCKS)):
            victim = order.pop() if order else seq
            self._preempt(victim, cohort)
            if victim is seq:
                return False
        if need:
            self.blocks.take(need)
        return True

    def _leave_behind(self, sequences: Iterable[Sequence]) -> None:
        """Keep ready sequences that this batch does not run, in order of arrival."""
        front = [*self._front, *sequences]
        front.sort(key=_by_arrival)
        self._front = front

    def _batch(
        self,
        cohort: Cohort,
        prefill: list[tuple[Sequence, int]],
        admitted: list[Sequence],
    ) -> Batch | None:
        if not prefill and not cohort.seqs:
            self._ready = cohort
            return None
        return Batch(cohort, prefill, admitted)

    def _preempt(self, seq: Sequence, cohort: Cohort) -> None:
        """Send a running sequence back to the waiting queue, to recompute what it had."""
        if seq in cohort:
            self.stays.append(cohort.leave(seq))
        self._loose.discard(seq.row)
        self._release(seq)
        self._restart(seq)
        seq.preemptions += 1
        self._unsteady = True
        self.preempted.append(seq)
        self.waiting.appendleft(seq)

    def _restart(self, seq: Sequence) -> None:
        """What a sequence has to compute when it starts over: all tokens it has so far."""
        seq.prompt_tokens = max(seq.prompt_tokens, seq.computed)
        seq.computed = 0

    def _release(self, seq: Sequence) -> None:
        self.held -= 1
        blocks = self.blocks
        blocks.free += seq.blocks
        seq.blocks = 0
        if seq.shared:
            blocks.unshare(seq.shared)
            seq.shared = ()

    def _store_pieces(self, seq: Sequence, before: int) -> None:
        """Put the prompt pieces completed since ``before`` tokens into the prefix cache."""
        if not self.settings.enable_prefix_caching:
            return
        blocks = self.blocks
        size = blocks.piece_tokens
        for index in range(before // size, min(seq.computed // size, len(seq.hashes))):
            # A piece after a private copy could never be found again: keep the chain whole.
            if len(seq.shared) == index and blocks.store(seq.hashes[index]):
                seq.blocks -= blocks.piece_blocks
                seq.shared = (*seq.shared, seq.hashes[index])

    def _remove_waiting(self, seq: Sequence) -> bool:
        kept = [other for other in self.waiting if other is not seq]
        if len(kept) == len(self.waiting):
            return False
        while len(self.waiting):
            self.waiting.popleft()
        for other in kept:
            self.waiting.append(other)
        return True


def _by_arrival(seq: Sequence) -> float:
    return seq.arrival_s
