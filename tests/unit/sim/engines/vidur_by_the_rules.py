"""Vidur's rules written down once more, plainly: lists, one event per batch, no shortcuts.

The oracle for pipelines, replicas and restarts, for which no published run is at hand. It follows
the description of the schedulers, not our code: every list is walked in full at every step.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from heapq import heappop, heappush
from math import ceil

Seconds = Callable[[list[tuple[int, int]], int, int], float]


@dataclass
class Job:
    id: int
    arrival: float
    prefill: int
    decode: int
    done: int = 0
    complete: bool = False
    blocks: int = 0
    first: float | None = None
    last: float | None = None
    restarts: int = 0

    @property
    def total(self) -> int:
        return self.prefill + self.decode

    def restart(self) -> None:
        total = self.total
        self.prefill, self.decode = self.done, total - self.done
        self.done, self.complete = 0, False
        self.restarts += 1


@dataclass
class Replica:
    """One replica's lists: ``queue`` waits, ``running`` is neither waiting nor in a batch."""

    kind: str
    cap: int
    tokens: int
    num_blocks: int
    block: int
    watermark: int
    stages: int
    seconds: list[Seconds]
    queue: list[Job] = field(default_factory=list)
    running: list[Job] = field(default_factory=list)
    flight: int = 0
    allocated: int = 0
    used: int = 0
    batches: int = 0
    free_at: list[float] = field(default_factory=list)

    def can(self, job: Job) -> bool:
        if not job.blocks:
            need = ceil(job.prefill / self.block)
            return self.num_blocks - self.used - need >= self.watermark
        return self.num_blocks - self.used >= 1

    def take(self, job: Job) -> None:
        if not job.blocks:
            self.allocated += 1
            need = ceil(job.prefill / self.block)
        else:
            need = 1 if job.done > job.blocks * self.block else 0
        job.blocks += need
        self.used += need

    def free(self, job: Job) -> None:
        self.used -= job.blocks
        job.blocks = 0
        self.allocated -= 1

    def decodes(self, batch: list[tuple[Job, int]], job: Job) -> None:
        while not self.can(job):
            victim = self.running.pop() if self.running else job
            victim.restart()
            self.free(victim)
            self.queue.insert(0, victim)
            if victim is job:
                return
        self.take(job)
        batch.append((job, 1))

    def sarathi(self) -> list[tuple[Job, int]]:
        micro = self.cap // self.stages
        batch: list[tuple[Job, int]] = []
        aside, skipped = [], []
        while self.running and len(batch) != micro:
            job = self.running.pop(0)
            if job.complete:
                self.decodes(batch, job)
            else:
                aside.append(job)
        for job in aside:
            share = min(job.prefill - job.done, self.tokens - sum(n for _, n in batch))
            if share > 0:
                batch.append((job, share))
            else:
                skipped.append(job)
        self.running = sorted(skipped + self.running, key=lambda job: job.arrival)
        while self.queue and self.allocated != self.cap and len(batch) != micro:
            job = self.queue[0]
            share = min(job.prefill - job.done, self.tokens - sum(n for _, n in batch))
            if not self.can(job) or share <= 0:
                break
            self.queue.pop(0)
            self.take(job)
            batch.append((job, share))
        return batch

    def vllm(self) -> list[tuple[Job, int]]:
        micro = self.cap // self.stages
        batch: list[tuple[Job, int]] = []
        while self.queue:
            job = self.queue[0]
            lengths = [n for _, n in batch] + [job.prefill]
            if not self.can(job) or len(lengths) * max(lengths) > self.tokens:
                break
            if self.allocated == self.cap or len(batch) == micro:
                break
            self.queue.pop(0)
            self.take(job)
            batch.append((job, job.prefill))
        if batch:
            return batch
        self.running.sort(key=lambda job: job.arrival)
        while self.running and len(batch) != micro:
            self.decodes(batch, self.running.pop(0))
        return batch

    def form(self, now: float) -> tuple[float, list[tuple[Job, int]]] | None:
        batch = self.sarathi() if self.kind == "vidur-sarathi" else self.vllm()
        if not batch:
            return None
        chunks = [(n, job.done) for job, n in batch if not job.complete]
        contexts = [job.done - 1 for job, _ in batch if job.complete]
        at = now
        for stage, seconds in enumerate(self.seconds):
            at = max(at, self.free_at[stage]) + seconds(chunks, len(contexts), sum(contexts))
            self.free_at[stage] = at
        self.flight += 1
        self.batches += 1
        return at, batch

    def end(self, batch: list[tuple[Job, int]], now: float) -> None:
        self.flight -= 1
        for job, n in batch:
            job.done += n
            if job.done == job.prefill:
                job.complete = True
                job.done += 1
                job.first = now if job.first is None else job.first
            if job.done == job.total:
                job.last = now
                self.free(job)
            else:
                self.running.append(job)


def simulate(jobs: Sequence[Job], replicas: Sequence[Replica], router: str) -> None:
    """Run ``jobs`` (ascending arrivals); least waiting or round robin."""
    for replica in replicas:
        replica.free_at = [0.0] * replica.stages
    heap: list[tuple[float, int, int, int, object]] = []
    number = 0
    for job in jobs:
        heappush(heap, (job.arrival, 0, job.id, -1, job))
    count = 0
    while heap:
        now, rank, _, place, what = heappop(heap)
        if rank == 0:
            if router == "least-waiting":
                place = min(range(len(replicas)), key=lambda i: len(replicas[i].queue))
            else:
                place = count % len(replicas)
            count += 1
            replicas[place].queue.append(what)  # type: ignore[arg-type]
        elif rank == 1:
            replicas[place].end(what, now)  # type: ignore[arg-type]
        else:
            replica = replicas[place]
            while replica.flight < replica.stages:
                formed = replica.form(now)
                if formed is None:
                    break
                number += 1
                heappush(heap, (formed[0], 1, number, place, formed[1]))
            continue
        number += 1
        heappush(heap, (now, 2, number, place, None))
