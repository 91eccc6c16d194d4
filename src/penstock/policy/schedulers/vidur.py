"""Vidur's schedulers to the digit (microsoft/vidur 7d47513), for comparison with its results.

They differ from what they model in ways that show: a decode wants a free block even in a step in
which it needs none; a preempted sequence counts what it had computed as its prompt even when the
prompt was unfinished; a batch holds at most its share of the cap under pipeline parallelism.
"""

from __future__ import annotations

from penstock.plan.settings import SchedulerSettings
from penstock.policy.blocks import BlockManager
from penstock.policy.schedulers.sarathi import Sarathi
from penstock.policy.schedulers.sequence import Sequence
from penstock.policy.schedulers.vllm_v0 import PrefillFirst


class VidurSarathi(Sarathi):
    """Vidur's ``sarathi``."""

    SPARE_BLOCKS = 1

    def __init__(
        self, settings: SchedulerSettings, blocks: BlockManager, num_stages: int = 1
    ) -> None:
        super().__init__(settings, blocks, num_stages)
        self.max_batch_seqs = max(1, self.max_num_seqs // num_stages)

    def _restart(self, seq: Sequence) -> None:
        seq.prompt_tokens = seq.computed
        seq.computed = 0


class VidurVllm(PrefillFirst):
    """Vidur's ``vllm``: batches of prompts are counted as padded to the longest."""

    MAX_NUM_SEQS = 128
    MAX_NUM_BATCHED_TOKENS = 4096
    SPARE_BLOCKS = 1

    def __init__(
        self, settings: SchedulerSettings, blocks: BlockManager, num_stages: int = 1
    ) -> None:
        super().__init__(settings, blocks, num_stages)
        self.max_batch_seqs = max(1, self.max_num_seqs // num_stages)

    def _batch_tokens(self, seqs: int, total: int, longest: int) -> int:
        return seqs * longest

    def _restart(self, seq: Sequence) -> None:
        seq.prompt_tokens = seq.computed
        seq.computed = 0
