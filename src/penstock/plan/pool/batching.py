"""The batching variant: requests wait in a queue per model, and an idle group takes a batch.

A request looks at the group of its model whose last stage is free first. If that group's first
stage is idle it takes the model at once; otherwise the request waits, and a group that becomes
idle takes the model whose oldest request has waited longest. Heads that can no longer finish alone
are dropped. The batch is the largest of 1, 2, 4, 8, 16 that is there and keeps the head in time.
"""

from __future__ import annotations

import heapq
from collections import deque

import numpy as np

from penstock.plan.pool.kernel import OVERHEAD_S
from penstock.plan.pool.model import PoolPlacement, PoolProblem
from penstock.plan.pool.simulate import PoolOutcome
from penstock.plan.pool.tables import requests_of, tables_of

BATCHES = (1, 2, 4, 8, 16)


def simulate_batching(problem: PoolProblem, placement: PoolPlacement) -> PoolOutcome:
    """Play the traffic with batches; a batch that a profile lacks is not formed."""
    problem.check(placement)
    return _Batching(problem, placement).run()


class _Batching:
    def __init__(self, problem: PoolProblem, placement: PoolPlacement) -> None:
        shapes = [group.shape for group in placement.groups]
        self.requests = requests_of(problem)
        most = max((shape.pp for shape in shapes), default=1)
        tables = [tables_of(problem.models, shapes, batch, most) for batch in BATCHES]
        # stages[batch][group][model] seconds
        self.stages = [
            [
                [table.latency[m, table.shape[g], : shape.pp].tolist()
                 for m in range(len(problem.models))]
                for g, shape in enumerate(shapes)
            ]
            for table in tables
        ]  # fmt: skip
        self.models = [sorted(group.models) for group in placement.groups]
        self.homes = [
            [g for g, held in enumerate(self.models) if m in held]
            for m in range(len(problem.models))
        ]
        self.clocks = [[0.0] * shape.pp for shape in shapes]
        self.idle_at = [0.0] * len(shapes)
        self.idle: list[tuple[float, int]] = []
        self.queues: list[deque[int]] = [deque() for _ in problem.models]
        count = problem.traffic.num_requests
        self.latency = np.zeros(count)
        self.good = np.zeros(count, dtype=bool)
        self.group = np.full(count, -1, dtype=np.int32)

    def run(self) -> PoolOutcome:
        arrival = self.requests.arrival.tolist()
        for request, model in enumerate(self.requests.model.tolist()):
            now = arrival[request]
            self._wake(now)
            if model < 0 or not self.homes[model]:
                continue
            g = min(self.homes[model], key=lambda home: self.clocks[home][-1])
            self.queues[model].append(request)
            if now >= self.idle_at[g]:
                self._serve(now, model, g)
        while self.idle:
            now, g = heapq.heappop(self.idle)
            found = self._oldest(g)
            if found is not None:
                self._serve(now, found, g)
        return PoolOutcome(self.good, self.latency, self.group)

    def _wake(self, now: float) -> None:
        """Let groups that fell idle take waiting requests; one without any ends the round."""
        while self.idle and self.idle[0][0] <= now:
            since, g = heapq.heappop(self.idle)
            found = self._oldest(g)
            if found is None:
                return
            self._serve(since, found, g)

    def _oldest(self, g: int) -> int | None:
        waiting = [m for m in self.models[g] if self.queues[m]]
        arrival = self.requests.arrival
        return min(waiting, key=lambda m: arrival[self.queues[m][0]], default=None)

    def _serve(self, now: float, model: int, g: int) -> None:
        """Take a batch of ``model``, or of the next model where all its requests are too late."""
        chosen: int | None = model
        while chosen is not None:
            batch, size = self._batch(now, chosen, g)
            if batch:
                self._run_batch(now, (chosen, g, size), batch)
                return
            chosen = self._oldest(g)

    def _batch(self, now: float, model: int, g: int) -> tuple[list[int], int]:
        queue = self.queues[model]
        while queue:
            head = queue.popleft()
            self.group[head] = g
            deadline = self.requests.arrival[head] + self.requests.limit[head]
            if self._finish(now, model, g, 0) + OVERHEAD_S <= deadline:
                break
        else:
            return [], 0
        size = 0
        for i, batch in enumerate(BATCHES[1:], start=1):
            late = self._finish(now, model, g, i) + OVERHEAD_S > deadline
            if batch - 1 > len(queue) or late:
                break
            size = i
        return [head, *(queue.popleft() for _ in range(BATCHES[size] - 1))], size

    def _finish(self, now: float, model: int, g: int, size: int) -> float:
        time = now
        for free, seconds in zip(self.clocks[g], self.stages[size][g][model], strict=True):
            time = max(time, free) + seconds
        return time

    def _run_batch(self, now: float, what: tuple[int, int, int], batch: list[int]) -> None:
        model, g, size = what
        time = now + OVERHEAD_S
        for s, seconds in enumerate(self.stages[size][g][model]):
            time = max(time, self.clocks[g][s]) + seconds
            self.clocks[g][s] = time
        for request in batch:
            self.good[request] = True
            self.latency[request] = time - self.requests.arrival[request]
            self.group[request] = g
        self.idle_at[g] = self.clocks[g][0]
        heapq.heappush(self.idle, (self.idle_at[g], g))
