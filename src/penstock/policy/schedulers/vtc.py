"""Virtual token counter: the client that got the least service goes next.

Sheng et al., "Fairness in Serving Large Language Models", OSDI 2024, algorithm 2. Clients are the
classes of the workload.
"""

from __future__ import annotations

from collections import deque
from collections.abc import Iterator
from itertools import chain

from penstock.plan.settings import SchedulerSettings
from penstock.policy.blocks import BlockManager
from penstock.policy.schedulers.base import Progress
from penstock.policy.schedulers.sequence import Batch, Sequence
from penstock.policy.schedulers.vllm import VllmV1

INPUT_WEIGHT = 1.0
OUTPUT_WEIGHT = 2.0
"""Weights of a prompt and an output token (the paper's setting)."""


class FairQueue:
    """A queue per client; the head is that of the client with the smallest counter.

    Preempted sequences come before all clients: if two of different clients took turns in
    preempting each other, neither would ever end.
    """

    def __init__(self) -> None:
        self.served: dict[str, float] = {}
        self._preempted: deque[Sequence] = deque()
        self._queues: dict[str, deque[Sequence]] = {}
        self._last_left = ""

    def append(self, seq: Sequence, /) -> None:
        self._queue(seq.client).append(seq)

    def appendleft(self, seq: Sequence, /) -> None:
        self._preempted.appendleft(seq)

    def popleft(self) -> Sequence:
        # A sequence that starts over has paid for its prompt before.
        if self._preempted:
            return self._preempted.popleft()
        client = self._next()
        queue = self._queues[client]
        seq = queue.popleft()
        if not queue:
            del self._queues[client]
            self._last_left = client
        self.served[client] += INPUT_WEIGHT * seq.prompt_tokens
        return seq

    def __getitem__(self, index: int, /) -> Sequence:
        return self._preempted[0] if self._preempted else self._queues[self._next()][index]

    def __len__(self) -> int:
        return len(self._preempted) + sum(map(len, self._queues.values()))

    def __iter__(self) -> Iterator[Sequence]:
        return chain(self._preempted, *self._queues.values())

    @property
    def num_clients(self) -> int:
        return len(self._queues)

    def _next(self) -> str:
        return min(self._queues, key=lambda client: (self.served[client], client))

    def _queue(self, client: str) -> deque[Sequence]:
        queue = self._queues.get(client)
        if queue is None:
            # Whoever was away does not come back with credit (lines 6 to 12).
            if self._queues:
                least = min(self.served[other] for other in self._queues)
            else:
                least = self.served.get(self._last_left, 0.0)
            self.served[client] = max(self.served.get(client, 0.0), least)
            queue = self._queues[client] = deque()
        return queue


class Vtc(VllmV1):
    """vLLM's token budget with a fair queue between clients."""

    def __init__(
        self, settings: SchedulerSettings, blocks: BlockManager, num_stages: int = 1
    ) -> None:
        super().__init__(settings, blocks, num_stages)
        self.waiting: FairQueue = FairQueue()

    @property
    def accepting(self) -> bool:
        return True

    def steady_steps(self, batch: Batch) -> int:
        # The counters move with every step: another client's head may come first and fit.
        if self.waiting.num_clients > 1 and self.held < self.max_num_seqs:
            return 1
        return super().steady_steps(batch)

    def commit(self, batch: Batch, steps: int = 1) -> Progress:
        served = self.waiting.served
        if batch.seqs:
            for seq in batch.cohort:
                served[seq.client] += OUTPUT_WEIGHT * steps
        progress = super().commit(batch, steps)
        for seq in progress[0]:
            served[seq.client] += OUTPUT_WEIGHT
        return progress
