"""vLLM version 1: one token budget a step, decodes first, prompts in chunks, blocks as needed.

After vLLM's ``v1/core/sched/scheduler.py``. Under pipeline parallelism a batch takes all
sequences that are not in flight.
"""

from __future__ import annotations

from collections import deque

from penstock.errors import InputError
from penstock.plan.settings import SchedulerSettings
from penstock.policy.blocks import BlockManager
from penstock.policy.schedulers.base import Scheduler
from penstock.policy.schedulers.sequence import Batch, Cohort, Sequence


class VllmV1(Scheduler):
    """Running sequences first, then waiting ones, until the budget or the blocks are used up.

    After a step that had to preempt, nothing new is admitted in that step. With
    ``enable_prefix_caching`` an admission skips the cached pieces of its prompt; at least one
    token is always computed.
    """

    CACHES_PREFIXES = True

    def __init__(
        self, settings: SchedulerSettings, blocks: BlockManager, num_stages: int = 1
    ) -> None:
        super().__init__(settings, blocks, num_stages)
        if self.max_tokens < self.max_num_seqs:
            raise InputError(
                f"max_num_batched_tokens ({self.max_tokens}) must be at least max_num_seqs "
                f"({self.max_num_seqs}): each running sequence needs one token a step"
            )
        self._chunked = settings.enable_chunked_prefill
        self._longest_chunk = settings.long_prefill_token_threshold or self.max_tokens
        self._caching = settings.enable_prefix_caching

    def fits(self, seq: Sequence) -> bool:
        too_long = not self._chunked and seq.prompt_tokens > self.max_tokens
        return seq.total_tokens <= self._most_tokens and not too_long

    def next_batch(self) -> Batch | None:
        cohort, prompts = self._pay_decodes()
        left = self.max_tokens - cohort.seqs
        prefill: list[tuple[Sequence, int]] = []
        admitted: list[Sequence] = []
        if prompts:
            left = self._continue(deque(self._running_order(prompts)), cohort, prefill, left)
        waiting = self.waiting
        if waiting and not self._unsteady:
            while waiting and left > 0 and self.held < self.max_num_seqs:
                seq = waiting[0]
                tokens = self._admit(seq, left)
                if not tokens:
                    break
                waiting.popleft()
                self.held += 1
                prefill.append((seq, tokens))
                admitted.append(seq)
                left -= tokens
            if self._caching and waiting and self.held < self.max_num_seqs:
                # Decodes evict idle pieces; a head that would have shared them then asks for less.
                self._unsteady = bool(self.blocks.idle_blocks and waiting[0].hashes)
        if prefill or cohort.seqs:
            return Batch(cohort, prefill, admitted)
        self._ready = cohort
        return None

    def _running_order(self, sequences: list[Sequence]) -> list[Sequence]:
        # One stage keeps the order of admission by itself. Batches that land one by one do not:
        # without a fixed order two prompts could each preempt the other for ever.
        return sorted(sequences, key=_turn) if self.num_stages > 1 else sequences

    def _chunk(self, seq: Sequence, computed: int, left: int) -> int:
        """Prompt tokens of ``seq`` in this step; 0 when it has to wait."""
        rest = seq.prompt_tokens - computed
        if self._chunked:
            return min(rest, left, self._longest_chunk)
        # A preempted sequence may have outgrown the budget: it then takes all of it.
        alone = seq.preemptions > 0 and left == self.max_tokens
        return rest if rest <= left else left if alone or computed else 0

    def _continue(
        self,
        prompts: deque[Sequence],
        cohort: Cohort,
        prefill: list[tuple[Sequence, int]],
        left: int,
    ) -> int:
        """Next chunks of unfinished prompts; returns the budget left."""
        blocks = self.blocks
        size = blocks.block_size
        while prompts:
            seq = prompts.popleft()
            tokens = self._chunk(seq, seq.computed, left)
            if not tokens:
                self._leave_behind([seq])
                continue
            need = -(-(seq.computed + tokens) // size) - seq.blocks
            if seq.shared:
                need -= len(seq.shared) * blocks.piece_blocks
            while not blocks.can_take(need):
                if not prompts and self._others_in_flight(seq, cohort, prefill):
                    # Giving up its blocks now, it would come back to take those of the batch in
                    # flight, which would do the same in turn: neither would ever end.
                    self._leave_behind([seq])
                    break
                victim = prompts.pop() if prompts else seq
                self._preempt(victim, cohort)
                if victim is seq:
                    break
            else:
                blocks.take(need)
                seq.blocks += need
                prefill.append((seq, tokens))
                left -= tokens
        return left

    def _others_in_flight(
        self, seq: Sequence, cohort: Cohort, prefill: list[tuple[Sequence, int]]
    ) -> bool:
        """Whether a batch of other sequences is on its way through the pipeline."""
        here = cohort.seqs + len(prefill) + len(self._front) + len(self._tail) + 1
        return self.held > here

    def _admit(self, seq: Sequence, left: int) -> int:
        """Take the blocks of the first chunk; returns its tokens, 0 if it cannot enter now."""
        blocks = self.blocks
        if self._caching and seq.hashes:
            return self._admit_cached(seq, left)
        tokens = self._chunk(seq, 0, left)
        need = -(-tokens // blocks.block_size)
        if not tokens or blocks.free - need < blocks.watermark_blocks:
            return 0
        blocks.take(need)
        seq.blocks = need
        return tokens

    def _admit_cached(self, seq: Sequence, left: int) -> int:
        blocks = self.blocks
        most = (seq.prompt_tokens - 1) // blocks.piece_tokens
        pieces = seq.hashes[: blocks.cached_pieces(seq.hashes[:most])]
        hit = len(pieces) * blocks.piece_tokens
        tokens = self._chunk(seq, hit, left)
        need = -(-tokens // blocks.block_size)
        if not tokens or not blocks.can_admit(need + blocks.idle_of(pieces)):
            return 0
        blocks.share(pieces)
        blocks.take(need)
        blocks.count_query(seq.prompt_tokens, hit)
        seq.shared = pieces
        seq.blocks = need
        seq.computed = hit
        return tokens


def _turn(seq: Sequence) -> tuple[float, int]:
    return (seq.arrival_s, seq.row)
