"""Whole runtimes on a virtual clock: null workers, random load, random trouble."""

from __future__ import annotations

import asyncio
import random
from collections.abc import Callable, Coroutine
from dataclasses import dataclass, field
from itertools import pairwise
from typing import Any

from penstock.cost.base import BatchLimits
from penstock.plan.plan import Engine, Plan, Role, Routing, Stage
from penstock.plan.settings import SchedulerSettings
from penstock.serve.coordinator.fleet import Fleet
from penstock.serve.coordinator.options import ServeOptions
from penstock.serve.coordinator.runtime import Runtime
from penstock.serve.inline import InlinePool
from penstock.serve.protocol import GenerationRequest, ModelCard, SamplingParams, ServeError
from penstock.serve.virtual_time import VirtualTimeLoop
from penstock.spec.load import load_cluster, load_model

PIECE = 16
CARD = ModelCard("m", 4096, 1000, "")


class LineTimer:
    """20 ms a step and 0.1 ms a token."""

    def decode_s(self, seqs: int, context_tokens: int) -> float:
        return 0.02 + 1e-4 * seqs

    def step_s(self, prefill: list[tuple[int, int]], seqs: int, context_tokens: int) -> float:
        return 0.02 + 1e-4 * (seqs + sum(tokens for tokens, _ in prefill))


class LineCost:
    """``LineTimer`` on any shape."""

    def step_timer(self, shape: object) -> LineTimer:
        return LineTimer()


def fleet_plan(
    roles: tuple[Role, ...],
    *,
    stages: int = 1,
    blocks: int = 400,
    caching: bool = False,
    router: str = "least-outstanding",
) -> Plan:
    """Engines of ``stages`` nodes each, with ``blocks`` KV blocks of 16 tokens."""
    cluster, model = load_cluster("single24"), load_model("llama2-70b")
    layers = model.num_hidden_layers
    nodes = iter(cluster.nodes)
    engines = []
    for i, role in enumerate(roles):
        cuts = [layers * k // stages for k in range(stages + 1)]
        settings = SchedulerSettings(
            "vllm",
            max_num_batched_tokens=256,
            enable_prefix_caching=caching and role != "decode",
            prefix_piece_tokens=PIECE,
        )
        parts = tuple(Stage(next(nodes).name, a, b) for a, b in pairwise(cuts))
        limits = BatchLimits(1, 1, 1, 1)
        engines.append(Engine(f"e{i}", parts, blocks * 16 * layers, limits, role, settings))
    return Plan(
        cluster=cluster,
        model=model,
        engines=tuple(engines),
        legs=(),
        planner="test",
        objective="goodput",
        value=1.0,
        max_flow_tokens_per_s=0.0,
        routing=Routing(engine_router=router),
    )


@dataclass
class Rig:
    """A runtime under load.

    ``outputs`` counts the tokens of requests that were answered, ``refused`` holds what others
    were told, ``gone`` those whose client went away.
    """

    runtime: Runtime
    pool: InlinePool
    rng: random.Random
    outputs: dict[int, int] = field(default_factory=dict)
    refused: dict[int, str] = field(default_factory=dict)
    gone: set[int] = field(default_factory=set)

    @property
    def fleet(self) -> Fleet:
        assert isinstance(self.runtime.domain, Fleet)
        return self.runtime.domain

    async def ask(self, number: int, prompt_tokens: int, tokens: int, **more: Any) -> None:
        """One request to its end; its tokens must be exactly as many as it asked for."""
        shared = tuple(range(100))[: 20 * (number % 5)]
        prompt = shared + tuple(self.rng.randrange(1000) for _ in range(prompt_tokens))
        params = SamplingParams(max_tokens=tokens)
        got = 0
        try:
            async for delta in self.runtime.generate(
                GenerationRequest(str(number), prompt, params, **more)
            ):
                got += len(delta.tokens)
        except ServeError as error:
            self.refused[number] = str(error)
            return
        assert got == tokens
        self.outputs[number] = got

    async def ask_in_vain(
        self, number: int, prompt_tokens: int, tokens: int, after_s: float
    ) -> None:
        """A request whose client goes after ``after_s``."""
        task = asyncio.ensure_future(self.ask(number, prompt_tokens, tokens))
        await asyncio.sleep(after_s)
        if not task.done():
            task.cancel()
            self.gone.add(number)
        await asyncio.gather(task, return_exceptions=True)
        assert task.cancelled() or task.exception() is None

    async def load(self, count: int, over_s: float, cancel_every: int = 0) -> None:
        """``count`` requests of random lengths at random times."""

        async def one(number: int) -> None:
            await asyncio.sleep(self.rng.random() * over_s)
            lengths = self.rng.randrange(1, 400), self.rng.randrange(1, 90)
            if cancel_every and number % cancel_every == 0:
                await self.ask_in_vain(number, *lengths, after_s=self.rng.random() * 4)
            else:
                await self.ask(number, *lengths)

        async with asyncio.TaskGroup() as group:
            for number in range(count):
                group.create_task(one(number))

    async def kill(self, times: int, every_s: float) -> None:
        """Lose random workers that are up."""
        for _ in range(times):
            await asyncio.sleep(self.rng.random() * 2 * every_s)
            up = [hop.worker for e in self.fleet.engines if e.alive for hop in e.stages]
            if up:
                self.pool.kill(self.rng.choice(up))

    async def check_idle(self) -> None:
        """Nothing is held anywhere: no request, no block, no page."""
        await asyncio.sleep(5)
        assert self.runtime.domain.outstanding == 0
        for engine in self.fleet.engines:
            assert engine.alive
            assert engine.idle
            engine.scheduler.check()
            blocks = engine.scheduler.blocks
            cached = 0
            for hop in engine.stages:
                count = self.pool.worker(hop.worker).executor.pages()
                assert count.used == 0
                cached = count.cached // (hop.end_layer - hop.start_layer)
            assert blocks.used == 0 or engine.scheduler.settings.enable_prefix_caching
            assert cached == len(engine._pieces)


def run(
    plan: Plan,
    body: Callable[[Rig], Coroutine[Any, Any, None]],
    *,
    seed: int = 1,
    timers: Any = None,
    **options: Any,
) -> Rig:
    """Run ``body`` on a runtime of ``plan`` and close it."""

    async def main() -> Rig:
        pool = InlinePool(timers, strict=True)
        settings = ServeOptions(executor="null", record=True, trace=True, **options)
        runtime = Runtime(plan, pool, CARD, settings, cost=LineCost())
        rig = Rig(runtime, pool, random.Random(seed))
        await runtime.start()
        try:
            await body(rig)
        finally:
            await runtime.close()
        return rig

    with asyncio.Runner(loop_factory=VirtualTimeLoop) as runner:
        return runner.run(main())
