"""Static batching as in FasterTransformer: a batch keeps its members until all have finished."""

from __future__ import annotations

from penstock.plan.settings import SchedulerSettings
from penstock.policy.blocks import BlockManager
from penstock.policy.schedulers.base import Progress
from penstock.policy.schedulers.orca import Orca
from penstock.policy.schedulers.sequence import Batch, Sequence


class Static(Orca):
    """One batch per pipeline stage, formed from the queue, never refilled.

    The slots of members that finish early are free again only when the whole batch is done.
    """

    MAX_NUM_SEQS = 8

    def __init__(
        self, settings: SchedulerSettings, blocks: BlockManager, num_stages: int = 1
    ) -> None:
        super().__init__(settings, blocks, num_stages)
        self._share = max(1, self.max_num_seqs // num_stages)
        self._left_blocks = 0
        self._idle_slots: dict[int, int] = {}

    @property
    def accepting(self) -> bool:
        return False

    def next_batch(self) -> Batch | None:
        cohort = self._cohort()
        admitted: list[Sequence] = []
        if not cohort.seqs:
            waiting, blocks, slot = self.waiting, self.blocks, self._slot()
            while waiting and len(admitted) < self._share and blocks.can_admit(slot):
                seq = waiting.popleft()
                blocks.take(slot)
                seq.blocks = slot
                self.held += 1
                admitted.append(seq)
        return self._batch(cohort, [(seq, seq.prompt_tokens) for seq in admitted], admitted)

    def commit(self, batch: Batch, steps: int = 1) -> Progress:
        progress = super().commit(batch, steps)
        cohort = batch.cohort
        idle = self._idle_slots.pop(cohort.track, 0) + self._left_blocks
        self._left_blocks = 0
        if cohort.seqs:
            self._idle_slots[cohort.track] = idle
        else:
            self.blocks.give(idle)
        return progress

    def drain(self) -> list[Sequence]:
        sequences = super().drain()
        self.blocks.give(self._left_blocks + sum(self._idle_slots.values()))
        self._left_blocks = 0
        self._idle_slots.clear()
        return sequences

    def _release(self, seq: Sequence) -> None:
        self.held -= 1
        self._left_blocks += seq.blocks
        seq.blocks = 0

    def _idle_blocks(self) -> int:
        return sum(self._idle_slots.values())
