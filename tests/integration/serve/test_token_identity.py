"""Whatever the plan, greedy answers are those of transformers, token for token."""

from __future__ import annotations

import asyncio
from collections.abc import Callable
from dataclasses import replace
from typing import Any

import pytest
from tiny_runtime import PLAN, TINY, ask, ask_all, engines, expected, prompts, with_runtime

from penstock.plan.document import read_plan
from penstock.plan.plan import Plan
from penstock.plan.settings import SpeculationSettings
from penstock.serve.inline import InlinePool
from penstock.serve.local import LocalShape, fitted
from penstock.serve.processes import ProcessPool
from penstock.serve.protocol import SamplingParams

DRAFT = str(TINY.parent / "tiny-draft")


def small_chunks() -> Plan:
    """Prompts are cut into chunks of 24 tokens, no caching."""
    return engines(LocalShape(max_num_seqs=16, max_num_batched_tokens=24, prefix_caching=False))


def scarce() -> Plan:
    """KV memory for a few requests only: many are preempted."""
    plan = engines(LocalShape(prefix_caching=False))
    few = tuple(replace(e, kv_capacity_layer_tokens=28 * 16 * 6) for e in plan.engines)
    return replace(plan, engines=few)


def speculating(method: Any) -> Plan:
    settings = SpeculationSettings(method, DRAFT, max_num_seqs=8, max_model_len=256)
    return engines(LocalShape(prefix_caching=False), speculation=settings)


PLANS: dict[str, Callable[[], Plan]] = {
    "one engine with prefix cache": engines,
    "pipeline of 2": lambda: engines(LocalShape(stages=2)),
    "pipeline of 3": lambda: engines(LocalShape(stages=3)),
    "paths over five machines": lambda: fitted(read_plan(PLAN), TINY, None),
    "2 prefill, 2 decode": lambda: engines(
        LocalShape(engines=4), ("prefill", "prefill", "decode", "decode")
    ),
    "pipelines apart": lambda: engines(LocalShape(engines=2, stages=2), ("prefill", "decode")),
    "chunked prefill": small_chunks,
    "preemption": scarce,
    "chain": lambda: speculating("chain"),
    "adaserve": lambda: speculating("adaserve"),
    "penstock": lambda: speculating("penstock"),
}


@pytest.mark.parametrize("name", PLANS)
def test_32_requests_at_once_are_answered_as_by_transformers(name: str) -> None:
    """Every token of every request, under each kind of plan."""
    answers, counters = with_runtime(PLANS[name](), lambda runtime, _pool: both(runtime))
    assert answers == expected()
    assert counters["requests_restarted"] == 0
    if name == "preemption":
        assert counters["preemptions"] > 0
    if name == "one engine with prefix cache":
        assert counters["prefix_hit_tokens"] > 0
    if "prefill," in name:
        assert counters["kv_transfers"] >= 30


async def both(runtime: Any) -> tuple[Any, Any]:
    return await ask_all(runtime), runtime.counters()


@pytest.mark.parametrize("name", ["paths over five machines", "tensor parallel"])
def test_worker_processes_answer_alike(name: str) -> None:
    """The same through processes and sockets, and with the weights of a layer split over two."""
    plan = engines(LocalShape(tensor=2)) if name == "tensor parallel" else PLANS[name]()
    answers, _ = with_runtime(plan, lambda runtime, _pool: both(runtime), ProcessPool)
    assert answers == expected()


@pytest.mark.parametrize("name", ["one engine with prefix cache", "paths over five machines"])
def test_seeded_draws_survive_the_loss_of_a_worker(name: str) -> None:
    """What is drawn depends on the seed and the position, not on where it is computed."""
    params = SamplingParams(40, temperature=0.9, top_p=0.95, seed=11, ignore_eos=True)
    prompt = prompts()[0][0]

    async def undisturbed(runtime: Any, pool: InlinePool) -> tuple[int, ...]:
        return await ask(runtime, prompt, params)

    async def disturbed(runtime: Any, pool: InlinePool) -> tuple[tuple[int, ...], Any]:
        asking = asyncio.ensure_future(ask(runtime, prompt, params))
        generated = 0
        while generated < 8:
            await asyncio.sleep(0)
            generated = max(engine.generation_tokens for engine in runtime.engines())
        for engine in runtime.engines():
            pool.kill(engine.name)
        return await asking, runtime.counters()

    plan = PLANS[name]()
    wanted = with_runtime(plan, undisturbed)
    got, counters = with_runtime(plan, disturbed)
    assert got == wanted
    assert counters["requests_restarted"] >= 1
