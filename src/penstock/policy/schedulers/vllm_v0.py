"""vLLM before its version 1: prompts first, whole, and apart from decodes.

Kwon et al., SOSP 2023, and vLLM 0.4. Whenever waiting prompts fit, a batch of nothing but prompts
runs and all decodes stall for it.
"""

from __future__ import annotations

from penstock.policy.blocks import blocks_for
from penstock.policy.schedulers.base import Scheduler
from penstock.policy.schedulers.sequence import Batch, Sequence


class PrefillFirst(Scheduler):
    """A batch of waiting prompts if any fits, else a step of all decodes."""

    MAX_NUM_BATCHED_TOKENS = 4096
    WATERMARK = 0.01

    def fits(self, seq: Sequence) -> bool:
        return seq.prompt_tokens <= self.max_tokens and super().fits(seq)

    def next_batch(self) -> Batch | None:
        if self.waiting:
            admitted = self._admit()
            if admitted:
                # The decodes keep their cohort: they stand still.
                cohort = self._empty_cohort()
                return Batch(cohort, [(seq, seq.prompt_tokens) for seq in admitted], admitted)
        cohort, _ = self._pay_decodes()
        return self._batch(cohort, [], [])

    def _admit(self) -> list[Sequence]:
        waiting, blocks = self.waiting, self.blocks
        admitted: list[Sequence] = []
        total = longest = 0
        while waiting:
            seq = waiting[0]
            prompt = seq.prompt_tokens
            need = blocks_for(prompt, blocks.block_size)
            if not blocks.can_admit(need):
                break
            total += prompt
            longest = max(longest, prompt)
            tokens = self._batch_tokens(len(admitted) + 1, total, longest)
            # A preempted sequence may have outgrown the limit: it then runs alone.
            if tokens > self.max_tokens and (admitted or not seq.preemptions):
                break
            if self.held == self.max_num_seqs or len(admitted) == self.max_batch_seqs:
                break
            waiting.popleft()
            blocks.take(need)
            seq.blocks = need
            self.held += 1
            admitted.append(seq)
        return admitted

    def _batch_tokens(self, seqs: int, total: int, longest: int) -> int:
        """What counts against ``max_num_batched_tokens``."""
        return total

    def _running_order(self, sequences: list[Sequence]) -> list[Sequence]:
        return sorted(sequences, key=lambda seq: seq.arrival_s)
