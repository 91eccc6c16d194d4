"""Seconds between two workers of this machine: KV memory pushed, hidden states handed on.

Both go through the pool, the worker loop and the sockets that serving uses.
"""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np

from penstock.plan.plan import Plan
from penstock.profile.fit import Line, line
from penstock.profile.workers import Post, workers
from penstock.serve.pool import WorkerSpec
from penstock.serve.wire import (
    Free,
    Hop,
    Item,
    KVReceived,
    PushKV,
    Step,
    StepDone,
)

_PAGE = 16
_REPEAT = 7


@dataclass(frozen=True, slots=True)
class Links:
    """Seconds over bytes of a push of KV memory and of a hand-over of hidden states."""

    kv: Line
    hidden: Line


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
    async with workers(spec("a", 0, layers), spec("b", 0, layers)) as post:
        for size in sizes:
            whole[size] = await _steps_s(post, (Hop("a", 0, layers),), size)
            seconds = await _pushes_s(post, layers, size)
            kv.append((float(size * layers * model.kv_bytes_per_token_per_layer), seconds))
    hidden: list[tuple[float, float]] = []
    if layers > 1:
        cut = layers // 2
        stages = (Hop("a", 0, cut), Hop("b", cut, layers))
        async with workers(spec("a", 0, cut), spec("b", cut, layers)) as post:
            for size in sizes:
                more = await _steps_s(post, stages, size) - whole[size]
                hidden.append((float(size * model.activation_bytes_per_token), max(0.0, more)))
    return Links(line(kv), line(hidden) if hidden else Line(0.0, 0.0))


def _prompt(number: int, size: int, stages: tuple[Hop, ...]) -> Step:
    item = Item(1, 0, tuple(range(5, 5 + size)), False, True)
    return Step(number, (item,), (Free(1),), stages)


async def _steps_s(post: Post, stages: tuple[Hop, ...], size: int) -> float:
    """Median seconds of a prompt through ``stages``, warm-up left out."""
    times = [
        await post.ask(stages[0].worker, _prompt(number, size, stages), StepDone)
        for number in range(1, _REPEAT + 2)
    ]
    return float(np.median(times[1:]))


async def _pushes_s(post: Post, layers: int, size: int) -> float:
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
