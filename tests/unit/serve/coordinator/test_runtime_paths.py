"""Per-request paths over nodes under load, scarce memory and the loss of nodes."""

from __future__ import annotations

import asyncio
from dataclasses import replace
from functools import cache

import pytest
from runtime_rig import Rig, run

import penstock
from penstock.cost.load import cost_from_dict
from penstock.plan.plan import Plan
from penstock.serve.coordinator.paths import Paths
from penstock.serve.worker.executor import node_timer


@cache
def planned() -> Plan:
    """70B over 24 machines: every request crosses many."""
    return penstock.plan("single24", "llama2-70b", planner="swarm", objective="maxflow")


def paths_plan(router: str, memory: float = 1.0) -> Plan:
    """With a share of the KV memory, and nobody watching over admission where it is scarce."""
    plan = planned()
    engines = tuple(
        replace(e, kv_capacity_layer_tokens=int(e.kv_capacity_layer_tokens * memory))
        for e in plan.engines
    )
    return replace(
        plan,
        engines=engines,
        routing=replace(plan.routing, router=router),
        admission="queue" if memory == 1 else "none",
    )


def timers(plan: Plan) -> dict:
    cost = cost_from_dict(plan.cost, plan.model)
    return {
        engine.name: node_timer(cost.layer_timer(plan.cluster.node(engine.stages[0].node)))
        for engine in plan.engines
    }


def paths(rig: Rig) -> Paths:
    assert isinstance(rig.runtime.domain, Paths)
    return rig.runtime.domain


async def kill(rig: Rig, plan: Plan, times: int) -> None:
    for _ in range(times):
        await asyncio.sleep(rig.rng.random() * 1.2)
        up = [
            engine.name
            for engine, node in zip(plan.engines, paths(rig)._nodes, strict=True)
            if node.alive
        ]
        rig.pool.kill(rig.rng.choice(up))


async def check_idle(rig: Rig, plan: Plan) -> None:
    """No memory is held, by count of the coordinator and of the workers."""
    await asyncio.sleep(5)
    domain = paths(rig)
    assert domain.outstanding == 0
    assert domain._kv.charged == 0
    for engine, node in zip(plan.engines, domain._nodes, strict=True):
        assert node.pool.used == 0
        assert rig.pool.worker(engine.name).executor.pages().used == 0


@pytest.mark.parametrize("router", ["maxflow", "swarm", "random", "shortest-queue"])
@pytest.mark.parametrize("kills", [0, 6])
def test_every_request_gets_its_tokens_over_any_router(router: str, kills: int) -> None:
    """With nodes that are lost, and clients that go away, too."""
    plan = paths_plan(router)

    async def body(rig: Rig) -> None:
        await asyncio.gather(rig.load(30, over_s=4, cancel_every=8), kill(rig, plan, kills))
        await check_idle(rig, plan)

    rig = run(plan, body, timers=timers(plan), unavailable_s=1000)
    assert len(rig.outputs) + len(rig.gone) == 30
    assert rig.runtime.counters()["worker_restarts"] == kills


def test_scarce_memory_preempts_and_still_answers() -> None:
    """Requests that give up their place start over, and lose no token."""
    plan = paths_plan("maxflow", memory=0.012)

    async def body(rig: Rig) -> None:
        await rig.load(30, over_s=1)
        await check_idle(rig, plan)

    rig = run(plan, body, timers=timers(plan))
    assert len(rig.outputs) == 30
    assert rig.runtime.counters()["preemptions"] > 0


def test_nodes_that_do_not_hold_the_model_any_more_are_told_of() -> None:
    """When all nodes are gone, requests get an answer after ``unavailable_s``, not before."""
    plan = paths_plan("maxflow")

    async def body(rig: Rig) -> None:
        asking = [asyncio.ensure_future(rig.ask(i, 50, 80)) for i in range(3)]
        await asyncio.sleep(1)
        for engine in plan.engines:
            rig.pool.kill(engine.name)
        lost_s = asyncio.get_running_loop().time()
        await asyncio.gather(*asking)
        assert asyncio.get_running_loop().time() - lost_s == pytest.approx(3.0, abs=0.01)
        assert not rig.runtime.ready()

    rig = run(plan, body, timers=timers(plan), restart=False, unavailable_s=3.0)
    assert len(rig.refused) == 3
    assert not rig.outputs
