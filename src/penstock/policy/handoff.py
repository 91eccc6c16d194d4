"""What happens to a request between its prompt and its decodes when two engines serve it.

The engine of the prompt keeps its KV blocks until the transfer has ended: when no decode engine
has room, prompts pile up there and no new ones are taken (back-pressure, as in DistServe, OSDI
2024, section 3). The decode engine takes its blocks when the transfer begins.
"""

from __future__ import annotations

from collections import deque

from penstock.plan.settings import SchedulerSettings
from penstock.policy.blocks import BlockManager, blocks_for
from penstock.policy.schedulers.sequence import Batch, Sequence
from penstock.policy.schedulers.vllm import VllmV1


class HandoffDecode(VllmV1):
    """Scheduler of a decode engine: sequences come with their prompt computed.

    ``reserve`` takes the blocks of a prompt before its transfer; ``add`` lets it decode. A
    sequence that is preempted is recomputed here, in chunks, as vLLM does it.
    """

    def __init__(
        self, settings: SchedulerSettings, blocks: BlockManager, num_stages: int = 1
    ) -> None:
        super().__init__(settings, blocks, num_stages)
        self._arrived: deque[Sequence] = deque()
        self._coming: dict[int, Sequence] = {}

    def can_reserve(self, seq: Sequence, unbooked: int = 0) -> bool:
        """Whether the KV entries of ``seq`` and one step's growth have room now.

        ``unbooked`` blocks are in use already, by steps under way that ``commit`` will book.
        """
        need = blocks_for(seq.computed, self.blocks.block_size) + unbooked
        room = self.held + len(self._arrived) + len(self._coming) < self.max_num_seqs
        return room and self.blocks.can_admit(need) and not self.waiting

    def reserve(self, seq: Sequence) -> None:
        """Take the blocks of the KV entries that ``seq`` brings (``computed - 1`` of them)."""
        seq.blocks = blocks_for(seq.computed - 1, self.blocks.block_size)
        self.blocks.take(seq.blocks)
        self._coming[seq.row] = seq

    def cancel(self, seq: Sequence) -> None:
        """Give back what ``reserve`` took: the transfer will not end."""
        del self._coming[seq.row]
        self.blocks.give(seq.blocks)
        seq.blocks = 0

    def add(self, seq: Sequence) -> bool:
        if self._coming.pop(seq.row, None) is None:
            return super().add(seq)
        self._arrived.append(seq)
        return self.held < self.max_num_seqs

    def remove(self, seq: Sequence) -> bool:
        if seq in self._arrived:
            self._arrived.remove(seq)
            self.blocks.give(seq.blocks)
            seq.blocks = 0
            return True
        return super().remove(seq)

    @property
    def outstanding(self) -> int:
        return super().outstanding + len(self._arrived) + len(self._coming)

    @property
    def num_waiting(self) -> int:
        return super().num_waiting + len(self._arrived)

    def next_batch(self) -> Batch | None:
        if self._arrived:
            cohort = self._cohort()
            while self._arrived and self.held < self.max_num_seqs:
                self.held += 1
                cohort.join(self._arrived.popleft())
            self._ready = cohort
        return super().next_batch()

    def drain(self) -> list[Sequence]:
        sequences = super().drain()
        for seq in self._arrived:
            self.blocks.give(seq.blocks)
            seq.blocks = 0
            self._restart(seq)
        sequences.extend(self._arrived)
        self._arrived.clear()
        return sequences

    def _idle_blocks(self) -> int:
        arrived = sum(seq.blocks for seq in self._arrived)
        return arrived + sum(seq.blocks for seq in self._coming.values())
