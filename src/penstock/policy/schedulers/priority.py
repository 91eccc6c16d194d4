"""Urgent requests first: by priority, then by deadline (earliest first)."""

from __future__ import annotations

from collections.abc import Iterator
from heapq import heappop, heappush

from penstock.plan.settings import SchedulerSettings
from penstock.policy.blocks import BlockManager
from penstock.policy.schedulers.sequence import Batch, Sequence
from penstock.policy.schedulers.vllm import VllmV1

Urgency = tuple[int, float, float, int]


def urgency(seq: Sequence) -> Urgency:
    """The smaller the more urgent: priority, deadline, arrival."""
    return (seq.priority, seq.deadline_s, seq.arrival_s, seq.row)


class UrgencyQueue:
    """Waiting sequences, most urgent first; a preempted one goes back to its place."""

    def __init__(self) -> None:
        self._heap: list[tuple[Urgency, Sequence]] = []

    def append(self, seq: Sequence, /) -> None:
        heappush(self._heap, (urgency(seq), seq))

    appendleft = append

    def popleft(self) -> Sequence:
        return heappop(self._heap)[1]

    def __getitem__(self, index: int, /) -> Sequence:
        return self._heap[index][1]

    def __len__(self) -> int:
        return len(self._heap)

    def __iter__(self) -> Iterator[Sequence]:
        return (seq for _, seq in sorted(self._heap))


class Priority(VllmV1):
    """vLLM's token budget with urgent sequences first (lower ``priority`` values, as in vLLM).

    Within one priority the earliest deadline goes first. A waiting sequence of a strictly better
    priority preempts the least urgent running one when there is no place or no blocks for it.
    As the order never changes, nobody is preempted for a less urgent one, and over a pipeline the
    most urgent always gets on: preemption ends.
    """

    def __init__(
        self, settings: SchedulerSettings, blocks: BlockManager, num_stages: int = 1
    ) -> None:
        super().__init__(settings, blocks, num_stages)
        self.waiting: UrgencyQueue = UrgencyQueue()
        self._outranked = False

    @property
    def accepting(self) -> bool:
        return True

    def next_batch(self) -> Batch | None:
        self._outranked = False
        if self.waiting:
            self._make_room(self.waiting[0])
        return super().next_batch()

    def steady_steps(self, batch: Batch) -> int:
        # A better head that only the budget kept out may still come to need room.
        if self._outranked and self.waiting:
            return 1
        return super().steady_steps(batch)

    def _running_order(self, sequences: list[Sequence]) -> list[Sequence]:
        return sorted(sequences, key=urgency)

    def _make_room(self, head: Sequence) -> None:
        """Preempt less urgent sequences until ``head`` could enter."""
        cohort = self._cohort()
        running = sorted([*self._front, *cohort, *self._tail], key=urgency)
        blocks = self.blocks
        first = min(head.prompt_tokens, self._longest_chunk, self.max_tokens)
        need = -(-first // blocks.block_size) + cohort.need()
        while running and running[-1].priority > head.priority:
            if self.held < self.max_num_seqs and blocks.can_admit(need):
                break
            victim = running.pop()
            for group in (self._front, self._tail):
                if victim in group:
                    group.remove(victim)
            self._preempt(victim, cohort)
        self._outranked = bool(running) and running[-1].priority > head.priority
        self._ready = cohort
