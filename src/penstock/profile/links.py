"""Seconds between two workers of this machine: KV memory pushed, hidden states handed on.

Both go through the pool, the worker loop and the sockets that serving uses.
"""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator, Callable
from contextlib import asynccontextmanager
from dataclasses import dataclass
from itertools import count

import numpy as np

from penstock.errors import InputError
from penstock.plan.plan import Plan
from penstock.profile.fit import Line, line
from penstock.serve.pool import WorkerPool, WorkerSpec
from penstock.serve.processes import ProcessPool
from penstock.serve.wire import (
    Free,
    Hop,
    Item,
    KVReceived,
    PushKV,
    Step,
    StepDone,
    ToCoordinator,
    ToWorker,
)

_PAGE = 16
_ANSWER_S = 60.0
_REPEAT = 7


@dataclass(frozen=True, slots=True)
class Links:
    """Seconds over bytes of a push of KV memory and of a hand-over of hidden states."""

    kv: Line
    hidden: Line


class _Post:
    """Sends to workers and waits for their answers. Raises ``InputError`` where one dies."""

    def __init__(self, pool: WorkerPool) -> None:
        self._pool = pool
        self.numbers = count(100)
        """Of transfers and of sequences at their targets: none is ever used again."""
        self._answers: asyncio.Queue[ToCoordinator | str] = asyncio.Queue()
        pool.listen(self._answers.put_nowait, self._died)

    def _died(self, worker: str, why: str) -> None:
        self._answers.put_nowait(f"{worker}: {why}")

    def tell(self, worker: str, message: ToWorker) -> None:
        """Send what has no answer."""
        self._pool.send(worker, message)

    async def ask(self, worker: str, message: ToWorker, kind: type[ToCoordinator]) -> float:
        """Seconds until an answer of ``kind``."""
        clock: Callable[[], float] = asyncio.get_running_loop().time
        start_s = clock()
        self._pool.send(worker, message)
        while True:
            try:
                answer = await asyncio.wait_for(self._answers.get(), _ANSWER_S)
            except TimeoutError:
                raise InputError(f"worker {worker} did not answer in {_ANSWER_S:g} s") from None
            if isinstance(answer, str):
                raise InputError(answer)
            if isinstance(answer, KVReceived) and answer.problem:
                raise InputError(f"worker {answer.worker}: {answer.problem}")
            if isinstance(answer, kind):
                return clock() - start_s


async def measure_links(plan: Plan, *, dtype: str, device: str, threads: int) -> Links:
    """Measure with the model of ``plan``: prompts of 16 to 512 tokens, several times each."""
    model, layers = plan.model, plan.model.num_hidden_layers
    sizes = [n for n in (16, 64, 128, 256, 512) if n <= model.max_position_embeddings]

    def spec(name: str, start: int, end: int) -> WorkerSpec:
        return WorkerSpec(
            name=name,
            node="here",
            checkpoint=plan.checkpoint,
            start_layer=start,
            end_layer=end,
            num_layers=layers,
            num_pages=(end - start) * (2 * max(sizes) // _PAGE + 8),
            page_size=_PAGE,
            dtype=dtype,
            device=device,
            threads=threads,
            kv_bytes_per_token_per_layer=model.kv_bytes_per_token_per_layer,
        )

    kv: list[tuple[float, float]] = []
    whole: dict[int, float] = {}
    async with _workers(spec("a", 0, layers), spec("b", 0, layers)) as post:
        for size in sizes:
            whole[size] = await _steps_s(post, (Hop("a", 0, layers),), size)
            seconds = await _pushes_s(post, layers, size)
            kv.append((float(size * layers * model.kv_bytes_per_token_per_layer), seconds))
    hidden: list[tuple[float, float]] = []
    if layers > 1:
        cut = layers // 2
        stages = (Hop("a", 0, cut), Hop("b", cut, layers))
        async with _workers(spec("a", 0, cut), spec("b", cut, layers)) as post:
            for size in sizes:
                more = await _steps_s(post, stages, size) - whole[size]
                hidden.append((float(size * model.activation_bytes_per_token), max(0.0, more)))
    return Links(line(kv), line(hidden) if hidden else Line(0.0, 0.0))


@asynccontextmanager
async def _workers(*specs: WorkerSpec) -> AsyncIterator[_Post]:
    pool = ProcessPool()
    post = _Post(pool)
    try:
        await asyncio.gather(*(pool.start(spec) for spec in specs))
        yield post
    finally:
        await pool.close()


def _prompt(number: int, size: int, stages: tuple[Hop, ...]) -> Step:
    item = Item(1, 0, tuple(range(5, 5 + size)), False, True)
    return Step(number, (item,), (Free(1),), stages)


async def _steps_s(post: _Post, stages: tuple[Hop, ...], size: int) -> float:
    """Median seconds of a prompt through ``stages``, warm-up left out."""
    times = [
        await post.ask(stages[0].worker, _prompt(number, size, stages), StepDone)
        for number in range(1, _REPEAT + 2)
    ]
    return float(np.median(times[1:]))


async def _pushes_s(post: _Post, layers: int, size: int) -> float:
    """Median seconds until ``b`` confirms the KV entries of a prompt of ``a``."""
    stage = (Hop("a", 0, layers),)
    target = (Hop("b", 0, layers),)
    await post.ask("a", _prompt(1, size, stage), StepDone)
    times = []
    for _ in range(_REPEAT + 1):
        number = next(post.numbers)
        push = PushKV(number, 1, number, size, target)
        times.append(await post.ask("a", push, KVReceived))
        # No items: only the command counts, so that the pages are free for the next push.
        post.tell("b", Step(0, (), (Free(number),), target))
    return float(np.median(times[1:]))
