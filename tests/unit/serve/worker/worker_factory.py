"""Specs, steps and a listener for tests of workers."""

from __future__ import annotations

import asyncio
from collections.abc import Callable
from dataclasses import replace
from typing import Any

from penstock.cost.base import BatchLimits
from penstock.serve.pool import WorkerPool, WorkerSpec
from penstock.serve.wire import (
    Begin,
    Hop,
    Item,
    NodeBatch,
    Ping,
    Pong,
    Sampling,
    Step,
    StepDone,
    ToCoordinator,
)

LIMITS = BatchLimits(8, 512, 32, 100_000)
GREEDY = Sampling(0.0, 1.0, 0, 0.0, 0.0, 0.0, 1.0, 0, None, 0, (), 0)


def stage(name: str = "w", start: int = 0, end: int = 4, **changes: Any) -> WorkerSpec:
    """A null stage of a model of 4 layers with 400 pages."""
    spec = WorkerSpec(
        name=name,
        node="here",
        checkpoint="",
        start_layer=start,
        end_layer=end,
        num_layers=4,
        num_pages=400,
        page_size=4,
        piece_tokens=8,
        executor="null",
    )
    return replace(spec, **changes)


def node(name: str, start: int, end: int, **changes: Any) -> WorkerSpec:
    """A node of per-request paths."""
    return stage(name, start, end, batches=True, limits=LIMITS, **changes)


def real(checkpoint: tuple[str, Any], name: str, start: int, end: int, **more: Any) -> WorkerSpec:
    make = node if more.pop("paths", False) else stage
    return make(name, start, end, executor="torch", checkpoint=checkpoint[0], **more)


def hops(*specs: WorkerSpec) -> tuple[Hop, ...]:
    return tuple(Hop(spec.name, spec.start_layer, spec.end_layer) for spec in specs)


class Listener:
    """Collects what a pool tells; ``wait`` until something has come."""

    def __init__(self, pool: WorkerPool) -> None:
        self.messages: list[ToCoordinator] = []
        self.deaths: list[tuple[str, str]] = []
        self._changed = asyncio.Event()
        pool.listen(self._message, self._died)

    def _message(self, message: ToCoordinator) -> None:
        self.messages.append(message)
        self._changed.set()

    def _died(self, worker: str, why: str) -> None:
        self.deaths.append((worker, why))
        self._changed.set()

    async def wait(self, ready: Callable[[], object], limit_s: float = 60.0) -> None:
        async with asyncio.timeout(limit_s):
            while not ready():
                self._changed.clear()
                await self._changed.wait()

    def of(self, kind: type) -> list[Any]:
        return [message for message in self.messages if isinstance(message, kind)]

    async def done(self, count: int = 1) -> list[StepDone]:
        """The first ``count`` reports of last stages, taken out."""
        await self.wait(lambda: len(self.of(StepDone)) >= count)
        found = self.of(StepDone)[:count]
        self.messages = [message for message in self.messages if message not in found]
        return found

    async def pong(self) -> Pong:
        await self.wait(lambda: self.of(Pong))
        found: Pong = self.of(Pong)[0]
        self.messages.remove(found)
        return found

    async def pages(self, pool: WorkerPool, *workers: str) -> list[tuple[int, int]]:
        """(used, cached) of each worker, asked one after another."""
        found = []
        for worker in workers:
            pool.send(worker, Ping(0))
            pong = await self.pong()
            found.append((pong.pages_used, pong.pages_cached))
        return found

    @property
    def batches(self) -> list[NodeBatch]:
        return self.of(NodeBatch)


async def decode_over_stages(  # noqa: PLR0917
    pool: WorkerPool,
    listener: Listener,
    stages: tuple[Hop, ...],
    seq: int,
    prompt: tuple[int, ...],
    steps: int,
    *,
    chunk: int = 1_000_000,
) -> list[int]:
    """Greedy tokens of one sequence over the stages of an engine, its prompt in chunks."""
    tokens = list(prompt)
    number = 0
    at = 0
    while len(tokens) < len(prompt) + steps:
        fed = tuple(tokens[at : at + chunk]) if at < len(prompt) else (tokens[-1],)
        draw = at + len(fed) == len(tokens)
        commands = (Begin(seq, GREEDY),) if number == 0 else ()
        item = Item(seq, at, fed, draw, at < len(prompt))
        pool.send(stages[0].worker, Step(number, (item,), commands, stages))
        (done,) = await listener.done()
        assert done.number == number
        tokens.extend(token for drawn in done.drawn for token in drawn.tokens)
        at += len(fed)
        number += 1
    return tokens[len(prompt) :]
