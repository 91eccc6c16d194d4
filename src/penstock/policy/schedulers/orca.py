"""Orca: iteration-level batching with memory reserved for the longest possible sequence.

Yu et al., OSDI 2022. Whole prompts run beside decodes; there is no token budget.
"""

from __future__ import annotations

from penstock.policy.blocks import blocks_for
from penstock.policy.schedulers.base import Scheduler
from penstock.policy.schedulers.sequence import Batch, Sequence


class Orca(Scheduler):
    """Running sequences, then new ones while a slot of ``max_model_len`` tokens is free."""

    MAX_NUM_SEQS = 128
    GROWS = False

    def fits(self, seq: Sequence) -> bool:
        return (
            seq.total_tokens <= self.settings.max_model_len
            and self._slot() <= self.blocks.num_blocks - self.blocks.watermark_blocks
        )

    def next_batch(self) -> Batch | None:
        cohort, _ = self._pay_decodes()
        admitted: list[Sequence] = []
        waiting, blocks, slot = self.waiting, self.blocks, self._slot()
        while waiting and self.held < self.max_num_seqs and blocks.can_admit(slot):
            if cohort.seqs + len(admitted) == self.max_batch_seqs:
                break
            seq = waiting.popleft()
            blocks.take(slot)
            seq.blocks = slot
            self.held += 1
            admitted.append(seq)
        return self._batch(cohort, [(seq, seq.prompt_tokens) for seq in admitted], admitted)

    def _slot(self) -> int:
        return blocks_for(self.settings.max_model_len, self.blocks.block_size)
