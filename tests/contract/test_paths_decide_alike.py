"""One workload over per-request paths, through simulator and runtime: the same routes and batches.

The links of the cluster are so fast that only computation takes time, as for null executors.
"""

from __future__ import annotations

import asyncio
import random
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import replace
from functools import cache

import pytest

import penstock
from penstock.cost.load import cost_from_dict
from penstock.plan.plan import Engine, Plan
from penstock.policy.batching import NodewiseBatcher
from penstock.serve.coordinator.options import ServeOptions
from penstock.serve.coordinator.paths import Paths
from penstock.serve.coordinator.runtime import Runtime
from penstock.serve.inline import InlinePool
from penstock.serve.protocol import GenerationRequest, ModelCard, SamplingParams
from penstock.serve.virtual_time import VirtualTimeLoop
from penstock.serve.worker.executor import NodeTimer, node_timer
from penstock.sim.node import CONCATENATE_BYTES_PER_S, COPY_TO_DEVICE_BYTES_PER_S
from penstock.sim.options import SimulationOptions
from penstock.sim.simulate import simulate
from penstock.spec.cluster import Link
from penstock.spec.workload import Request, Workload

Shapes = list[tuple[object, ...]]


@cache
def fast_plan() -> Plan:
    """A plan for Helix's 24 nodes, with links that take no time worth mentioning."""
    plan = penstock.plan("single24", "llama2-70b", planner="petals", objective="maxflow")
    cluster = plan.cluster

    def fast(link: Link) -> Link:
        return replace(link, bandwidth_bytes_per_s=1e18, latency_s=0.0)

    pairs = {pair: link and fast(link) for pair, link in cluster.pair_links.items()}
    regions = {pair: fast(link) for pair, link in cluster.region_links.items()}
    nic = {"nic_in_bytes_per_s": 1e18, "nic_out_bytes_per_s": 1e18}
    quick = replace(
        cluster,
        nodes=tuple(replace(node, **nic) for node in cluster.nodes),
        coordinator=replace(cluster.coordinator, **nic),
        pair_links=pairs,
        region_links=regions,
    )
    return replace(plan, cluster=quick)


@contextmanager
def shapes() -> Iterator[dict[tuple[int, int, int], Shapes]]:
    """Collect the batch shapes of every node, by (start layer, end layer, order of creation)."""
    born: list[NodewiseBatcher] = []
    formed: dict[int, Shapes] = {}
    init, next_batch = NodewiseBatcher.__init__, NodewiseBatcher.next_batch

    def watched_init(self, *args, **kwargs):
        init(self, *args, **kwargs)
        born.append(self)

    def watched_next(self):
        batch = next_batch(self)
        if batch is not None:
            formed.setdefault(id(self), []).append(tuple(batch.parts))
        return batch

    found: dict[tuple[int, int, int], Shapes] = {}
    NodewiseBatcher.__init__, NodewiseBatcher.next_batch = watched_init, watched_next
    try:
        yield found
    finally:
        NodewiseBatcher.__init__, NodewiseBatcher.next_batch = init, next_batch
        for number, one in enumerate(born):
            if id(one) in formed:
                found[one._bounds[0], one._end, number] = formed[id(one)]


async def served(plan: Plan, requests: list[Request]) -> tuple[dict, Paths]:
    loop = asyncio.get_running_loop()
    cost = cost_from_dict(plan.cost, plan.model)
    copy_s = plan.model.activation_bytes_per_token * (
        1 / CONCATENATE_BYTES_PER_S + 1 / COPY_TO_DEVICE_BYTES_PER_S
    )

    def timer(engine: Engine) -> NodeTimer:
        layers = node_timer(cost.layer_timer(plan.cluster.node(engine.stages[0].node)))
        return lambda parts, arrived_tokens: layers(parts, 0) + arrived_tokens * copy_s

    timers = {engine.name: timer(engine) for engine in plan.engines}
    options = ServeOptions(executor="null", trace=True, max_waiting=10_000)
    card = ModelCard("m", 1 << 20, 1000, "")
    runtime = Runtime(plan, InlinePool(timers), card, options)
    await runtime.start()
    start_s = loop.time()
    times: dict[int, tuple[float, float]] = {}

    async def one(request: Request) -> None:
        come = asyncio.Event()
        loop.call_at(start_s + request.arrival_s, come.set)
        await come.wait()
        params = SamplingParams(max_tokens=request.output_tokens)
        first = -1.0
        prompt = (7,) * request.prompt_tokens
        async for delta in runtime.generate(GenerationRequest(str(request.id), prompt, params)):
            if delta.tokens and first < 0:
                first = loop.time()
        times[request.id] = (first - start_s, loop.time() - start_s)

    await asyncio.gather(*map(one, requests))
    domain = runtime.domain
    assert isinstance(domain, Paths)
    await runtime.close()
    return times, domain


def test_paths_batches_and_times_are_the_same() -> None:
    """Max-flow routing sends every request the same way, and nodes form the same batches."""
    plan = fast_plan()
    rng = random.Random(3)
    at_s, requests = 0.0, []
    for i in range(60):
        at_s += rng.expovariate(4.0)
        requests.append(Request(i, at_s, rng.randrange(8, 600), rng.randrange(1, 40)))
    workload = Workload(name="contract", trace=tuple(requests), duration_s=500.0)
    with shapes() as simulated:
        cost = cost_from_dict(plan.cost, plan.model)
        run = simulate(plan, workload, cost, SimulationOptions(start_s=0.0))
    with shapes() as real, asyncio.Runner(loop_factory=VirtualTimeLoop) as runner:
        times, domain = runner.run(served(plan, requests))

    ours = [route for _, route in sorted(domain.routes)]
    theirs = [run.routes[index] for index in run.requests.route_index]
    assert ours == theirs
    assert [tuple(map(tuple, shape)) for shape in real.values()] == [
        tuple(map(tuple, shape)) for shape in simulated.values()
    ]
    for row, request in enumerate(requests):
        first, last = times[request.id]
        assert first == pytest.approx(run.requests.first_token_s[row], abs=1e-6)
        assert last == pytest.approx(run.requests.last_token_s[row], abs=1e-6)
