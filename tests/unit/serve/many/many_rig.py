"""Several models on null workers and a virtual clock."""

from __future__ import annotations

import asyncio
import random
from collections.abc import Callable, Coroutine, Mapping
from dataclasses import dataclass, field, replace
from typing import Any

from tests.unit.serve.coordinator.runtime_rig import LineCost

from penstock.cost.base import BatchLimits
from penstock.plan.parts import Parts, cut
from penstock.plan.plan import Engine, Leg, Plan, Routing, Stage
from penstock.plan.pool_plan import Deployment, PoolPlan, Sharing
from penstock.plan.settings import SchedulerSettings
from penstock.serve.coordinator.options import ServeOptions
from penstock.serve.inline import InlinePool
from penstock.serve.many.member import Making
from penstock.serve.many.runtime import ManyRuntime
from penstock.serve.protocol import GenerationRequest, SamplingParams, ServeError
from penstock.serve.virtual_time import VirtualTimeLoop
from penstock.spec.cluster import Cluster
from penstock.spec.load import cluster_from_dict, load_model
from penstock.spec.served import in_precision
from penstock.spec.variants import Precision
from penstock.spec.workload import SLOClass

MODEL = "llama2-7b"
FP16, INT8 = Precision("float16"), Precision("int8")


def machine(gpus: int = 4, accelerator: str = "A100-40GB") -> Cluster:
    """One machine."""
    return cluster_from_dict(
        {
            "name": "one",
            "nodes": [
                {
                    "name": "box",
                    "accelerator": accelerator,
                    "accelerators_per_node": gpus,
                    "region": "here",
                    "nic": "10 Gbit/s",
                }
            ],
            "coordinator": {"region": "here", "nic": "10 Gbit/s"},
            "network": {"in_region": {"bandwidth": "10 Gbit/s", "latency": "1 ms"}},
        }
    )


Where = Mapping[str, tuple[tuple[int, ...], ...]]
"""Model name -> engines, each by the GPUs of its stages."""


def pool(
    where: Where,
    *,
    blocks: int = 200,
    precisions: Mapping[str, Precision] | None = None,
    sharing: Sharing | None = None,
    priorities: Mapping[str, int] | None = None,
    caching: bool = False,
    gpus: int = 4,
) -> PoolPlan:
    """Models on single GPUs of one machine, with ``blocks`` KV blocks an engine."""
    cluster = machine(gpus)
    parts = (Parts("box", (1,) * gpus),)
    nodes = cut(cluster, parts)
    entries = []
    for name, engines in where.items():
        precision = (precisions or {}).get(name, FP16)
        model = in_precision(load_model(MODEL), precision)
        layers = model.num_hidden_layers
        made = []
        for i, gpus_of in enumerate(engines):
            ends = [layers * k // len(gpus_of) for k in range(len(gpus_of) + 1)]
            stages = tuple(
                Stage(f"box.{gpu}", ends[k], ends[k + 1]) for k, gpu in enumerate(gpus_of)
            )
            scheduler = SchedulerSettings(
                "vllm",
                max_num_batched_tokens=256,
                enable_prefix_caching=caching,
                prefix_piece_tokens=16,
            )
            limits = BatchLimits(1, 1, 1, 1)
            made.append(Engine(f"e{i}", stages, blocks * 16 * layers, limits, scheduler=scheduler))
        plan = Plan(
            cluster=nodes,
            model=model,
            engines=tuple(made),
            legs=tuple(
                leg
                for engine in made
                for leg in (
                    Leg("coordinator", engine.name, 1, 1),
                    Leg(engine.name, "coordinator", 1, 1),
                )
            ),
            planner="test",
            objective="goodput",
            value=1.0,
            max_flow_tokens_per_s=float(len(made)),
            routing=Routing(engine_router="least-outstanding"),
        )
        entries.append(Deployment(name, plan, precision, priority=(priorities or {}).get(name, 0)))
    return PoolPlan(cluster, parts, tuple(entries), "test", 1.0, sharing or Sharing())


@dataclass
class Rig:
    """Answers by request: tokens of those that were served, and what others were told."""

    many: ManyRuntime
    workers: InlinePool
    rng: random.Random
    answers: dict[int, tuple[int, ...]] = field(default_factory=dict)
    refused: dict[int, str] = field(default_factory=dict)

    async def ask(
        self, number: int, model: str, prompt_tokens: int, tokens: int, **more: Any
    ) -> None:
        prompt = tuple((number * 31 + i) % 1000 for i in range(prompt_tokens))
        request = GenerationRequest(
            str(number), prompt, SamplingParams(max_tokens=tokens), model, **more
        )
        got: list[int] = []
        try:
            async for delta in self.many.generate(request):
                got += delta.tokens
        except ServeError as error:
            self.refused[number] = f"{error.status}: {error}"
            return
        assert len(got) == tokens
        self.answers[number] = tuple(got)

    async def load(self, count: int, over_s: float, models: tuple[str, ...]) -> None:
        """``count`` requests of random lengths, times and models."""

        async def one(number: int, after_s: float, model: str, lengths: tuple[int, int]) -> None:
            await asyncio.sleep(after_s)
            await self.ask(number, model, *lengths)

        rng = self.rng
        async with asyncio.TaskGroup() as group:
            for number in range(count):
                lengths = rng.randrange(1, 400), rng.randrange(1, 90)
                group.create_task(one(number, rng.random() * over_s, rng.choice(models), lengths))

    async def check_idle(self) -> None:
        """Nothing is held anywhere, and what runs is what the plan says."""
        await asyncio.sleep(5)
        many = self.many
        assert list(many.members) == [entry.name for entry in many.plan.deployments]
        workers = set()
        for name, member in many.members.items():
            assert member.outstanding == 0
            assert not member.fleet.holding
            assert not member.leaving
            planned = many.plan.deployment(name).plan.engines
            assert set(member.drivers) == {engine.name for engine in planned}
            assert set(member.drivers.values()) == set(member.fleet.engines)
            for engine in planned:
                driver = member.drivers[engine.name]
                assert driver.alive
                assert driver.idle
                assert replace(driver.engine, name=engine.name) == engine
                driver.scheduler.check()
                for hop in driver.stages:
                    workers.add(hop.worker)
                    assert self.workers.worker(hop.worker).executor.pages().used == 0
        assert set(many._shared.owners) == workers


def run(
    plan: PoolPlan,
    body: Callable[[Rig], Coroutine[Any, Any, None]],
    *,
    seed: int = 1,
    classes: tuple[SLOClass, ...] = (),
    **options: Any,
) -> Rig:
    """Run ``body`` on a server of ``plan`` and close it."""

    async def main() -> Rig:
        workers = InlinePool(strict=True)
        settings = ServeOptions(executor="null", trace=True, **options)
        costs = dict.fromkeys(("a", "b", "c", "d"), LineCost())
        many = ManyRuntime(plan, workers, Making(settings, classes, costs=costs))
        rig = Rig(many, workers, random.Random(seed))
        await many.start()
        try:
            await body(rig)
        finally:
            await many.close()
        return rig

    with asyncio.Runner(loop_factory=VirtualTimeLoop) as runner:
        return runner.run(main())
