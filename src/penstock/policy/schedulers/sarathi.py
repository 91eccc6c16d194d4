"""Sarathi-Serve: prompts in chunks beside the decodes, which never stall.

Agrawal et al., OSDI 2024; the rules are those of Vidur's Sarathi scheduler (microsoft/vidur
7d47513), which ``vidur.py`` takes to the digit.
"""

from __future__ import annotations

from penstock.policy.blocks import blocks_for
from penstock.policy.schedulers.base import Scheduler
from penstock.policy.schedulers.sequence import Batch, Sequence


class Sarathi(Scheduler):
    """Decodes first, then unfinished prompts, then new ones, up to a chunk of tokens.

    A sequence gets the blocks of its whole prompt when it is admitted. The head of the queue is
    never overtaken.
    """

    MAX_NUM_SEQS = 128
    MAX_NUM_BATCHED_TOKENS = 512
    WATERMARK = 0.01

    def next_batch(self) -> Batch | None:
        cohort, prompts = self._pay_decodes()
        left = self.max_tokens - cohort.seqs
        prefill: list[tuple[Sequence, int]] = []
        admitted: list[Sequence] = []
        if prompts:
            skipped = []
            for seq in prompts:
                share = min(seq.prompt_tokens - seq.computed, left)
                if share > 0:
                    prefill.append((seq, share))
                    left -= share
                else:
                    skipped.append(seq)
            if skipped:
                self._leave_behind(skipped)
        waiting = self.waiting
        if waiting:
            seqs = cohort.seqs + len(prefill)
            while waiting and left > 0:
                if self.held == self.max_num_seqs or seqs == self.max_batch_seqs:
                    break
                seq = waiting[0]
                if not self._admit(seq):
                    break
                waiting.popleft()
                self.held += 1
                share = min(seq.prompt_tokens - seq.computed, left)
                prefill.append((seq, share))
                admitted.append(seq)
                left -= share
                seqs += 1
        return self._batch(cohort, prefill, admitted)

    def _admit(self, seq: Sequence) -> bool:
        """Take the blocks of the whole prompt if the watermark allows it."""
        blocks = self.blocks
        need = blocks_for(seq.prompt_tokens, blocks.block_size)
        if blocks.free - need < blocks.watermark_blocks:
            return False
        blocks.take(need)
        seq.blocks = need
        return True
