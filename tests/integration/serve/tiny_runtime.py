"""The trained tiny model under a runtime, and what transformers says it should answer."""

from __future__ import annotations

import asyncio
import random
from collections.abc import Callable, Coroutine
from dataclasses import replace
from functools import cache
from pathlib import Path
from typing import Any

import torch

from penstock.plan.plan import Plan, Routing
from penstock.serve.coordinator.options import ServeOptions
from penstock.serve.coordinator.runtime import Runtime
from penstock.serve.inline import InlinePool
from penstock.serve.local import LocalShape, local_plan
from penstock.serve.pool import WorkerPool
from penstock.serve.protocol import GenerationRequest, ModelCard, SamplingParams

ROOT = Path(__file__).parents[3]
TINY = ROOT / "models" / "tiny"
DRAFT = ROOT / "models" / "tiny-draft"
PLAN = ROOT / "examples" / "tiny-mixed" / "plan.yaml"
KV_BYTES = 24e6
COUNT = 32

Prompt = tuple[int, ...]


@cache
def prompts() -> tuple[tuple[Prompt, int], ...]:
    """32 prompts with the length of their answers; many share their first tokens."""
    rng = random.Random(5)
    shared = [tuple(rng.randrange(2, 4096) for _ in range(96)) for _ in range(3)]
    found = []
    for _ in range(COUNT):
        head = rng.choice(shared)[: rng.choice((0, 16, 48, 96))]
        own = tuple(rng.randrange(2, 4096) for _ in range(rng.randrange(1, 90)))
        found.append((head + own, rng.randrange(1, 28)))
    return tuple(found)


@cache
def expected() -> tuple[tuple[int, ...], ...]:
    """Greedy answers of transformers in float32, EOS not special."""
    from transformers import AutoModelForCausalLM  # noqa: PLC0415 - slow to import

    torch.set_num_threads(1)
    model = AutoModelForCausalLM.from_pretrained(TINY, dtype=torch.float32).eval()
    answers = []
    for prompt, count in prompts():
        out = model.generate(
            torch.tensor([prompt]),
            attention_mask=torch.ones(1, len(prompt), dtype=torch.int64),
            max_new_tokens=count,
            min_new_tokens=count,
            do_sample=False,
            eos_token_id=4095,
            suppress_tokens=None,
            pad_token_id=0,
        )
        answers.append(tuple(out[0, len(prompt) :].tolist()))
    return tuple(answers)


def engines(shape: LocalShape | None = None, roles: tuple[str, ...] = (), **more: Any) -> Plan:
    """Engines of the tiny model, with ``roles`` where they are apart."""
    plan = local_plan(TINY, shape, kv_memory_bytes=KV_BYTES, **more)
    if not roles:
        return plan
    apart = tuple(
        replace(engine, role=role) for engine, role in zip(plan.engines, roles, strict=True)
    )
    return replace(plan, engines=apart, routing=Routing(engine_router="least-outstanding"))


async def ask(
    runtime: Runtime, prompt: Prompt, params: SamplingParams, number: int = 0
) -> tuple[int, ...]:
    """The tokens of one request."""
    tokens: list[int] = []
    async for delta in runtime.generate(GenerationRequest(str(number), prompt, params)):
        tokens += delta.tokens
    return tuple(tokens)


async def ask_all(runtime: Runtime) -> tuple[tuple[int, ...], ...]:
    """All prompts at once, greedy."""
    return tuple(
        await asyncio.gather(
            *(
                ask(runtime, prompt, SamplingParams(count, temperature=0, ignore_eos=True), i)
                for i, (prompt, count) in enumerate(prompts())
            )
        )
    )


def with_runtime(
    plan: Plan,
    body: Callable[[Runtime, Any], Coroutine[Any, Any, Any]],
    pool: Callable[[], WorkerPool] = InlinePool,
) -> Any:
    """Run ``body(runtime, pool)`` and end everything."""

    async def main() -> Any:
        workers = pool()
        options = ServeOptions(dtype="float32", record=True)
        runtime = Runtime(plan, workers, ModelCard("tiny", 2048, 4096, str(TINY)), options)
        try:
            await runtime.start()
            async with asyncio.timeout(240):
                return await body(runtime, workers)
        finally:
            await runtime.close()

    return asyncio.run(main())
