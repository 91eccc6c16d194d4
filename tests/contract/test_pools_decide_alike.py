"""Two models on one node through simulator and runtime: the same turns at the same times.

The runtime runs on a virtual clock with null executors, which take the modelled time.
"""

from __future__ import annotations

import asyncio
import random
from dataclasses import dataclass

import pytest
from test_sim_and_serve_decide_alike import LineCost, batches

from penstock.cost.base import BatchLimits
from penstock.plan.parts import Parts, cut
from penstock.plan.plan import Engine, Leg, Plan, Routing, Stage
from penstock.plan.pool_plan import Deployment, PoolAdmission, PoolPlan, Sharing, TurnRule
from penstock.plan.settings import SchedulerSettings
from penstock.serve.coordinator.options import ServeOptions
from penstock.serve.inline import InlinePool
from penstock.serve.many.member import Making
from penstock.serve.many.runtime import ManyRuntime
from penstock.serve.protocol import GenerationRequest, Overloaded, RequestTooLong, SamplingParams
from penstock.serve.virtual_time import VirtualTimeLoop
from penstock.sim.pools.options import PoolOptions
from penstock.sim.pools.simulate import simulate_pool
from penstock.spec.load import cluster_from_dict, load_model
from penstock.spec.variants import Precision
from penstock.spec.workload import SLO, Request, SLOClass, Workload

MODELS = ("a", "b")
CLASSES = (SLOClass("a", SLO(ttft_s=0.8, tpot_s=0.1)), SLOClass("b", SLO(e2e_s=3.0)))


@dataclass(frozen=True)
class Case:
    """How engines take turns, KV blocks of each, priority of the second model, and how
    requests come and are taken."""

    turns: TurnRule
    blocks: int = 300
    priority: int = 0
    admission: PoolAdmission = "queue"
    rate_per_s: float = 6.0


CASES = {
    "earliest deadline": Case("earliest-deadline"),
    "round robin": Case("round-robin"),
    "first come": Case("first-come"),
    "scarce memory": Case("earliest-deadline", blocks=60),
    "priority": Case("first-come", priority=1),
    "admission, earliest deadline": Case("earliest-deadline", 300, 0, "deadline", 15.0),
    "admission, round robin": Case("round-robin", 300, 0, "deadline", 40.0),
    "admission, scarce memory": Case("first-come", blocks=60, admission="deadline"),
}


def plan_of(case: Case) -> PoolPlan:
    """One engine of each model on the same GPU."""
    cluster = cluster_from_dict(
        {
            "name": "one",
            "nodes": [
                {
                    "name": "box",
                    "accelerator": "A100-80GB",
                    "accelerators_per_node": 2,
                    "region": "here",
                    "nic": "10 Gbit/s",
                }
            ],
            "coordinator": {"region": "here", "nic": "10 Gbit/s"},
            "network": {"in_region": {"bandwidth": "10 Gbit/s", "latency": "1 ms"}},
        }
    )
    parts = (Parts("box", (1, 1)),)
    nodes, model = cut(cluster, parts), load_model("llama2-7b")
    layers = model.num_hidden_layers
    settings = SchedulerSettings("vllm", max_num_seqs=24, max_num_batched_tokens=256)
    engine = Engine(
        "e",
        (Stage("box.0", 0, layers),),
        case.blocks * 16 * layers,
        BatchLimits(1, 1, 1, 1),
        scheduler=settings,
    )
    plan = Plan(
        cluster=nodes,
        model=model,
        engines=(engine,),
        legs=(Leg("coordinator", "e", 1.0, 1.0), Leg("e", "coordinator", 1.0, 1.0)),
        planner="test",
        objective="goodput",
        value=1.0,
        max_flow_tokens_per_s=1.0,
        routing=Routing(engine_router="least-outstanding"),
    )
    deployments = tuple(
        Deployment(name, plan, Precision("float16"), priority=case.priority * (name == "b"))
        for name in MODELS
    )
    return PoolPlan(cluster, parts, deployments, "test", 1.0, Sharing(case.turns, case.admission))


def requests_of(case: Case, seed: int) -> list[Request]:
    rng = random.Random(seed)
    at_s, requests = 0.0, []
    for i in range(100):
        at_s += rng.expovariate(case.rate_per_s)
        model = rng.choice(MODELS)
        lengths = rng.randrange(1, 400), rng.randrange(1, 120)
        requests.append(Request(i, at_s, *lengths, class_name=model, model=model))
    return requests


async def served(plan: PoolPlan, requests: list[Request]) -> dict[int, tuple[float, float]]:
    """First and last token times on a virtual clock, by request."""
    loop = asyncio.get_running_loop()
    options = ServeOptions(executor="null", max_waiting=10_000)
    costs = {name: LineCost(load_model("llama2-7b")) for name in MODELS}
    many = ManyRuntime(plan, InlinePool(strict=True), Making(options, CLASSES, costs=costs))
    await many.start()
    times: dict[int, tuple[float, float]] = {}

    async def one(request: Request) -> None:
        delay = asyncio.Event()
        loop.call_at(request.arrival_s, delay.set)
        await delay.wait()
        prompt = tuple(range(request.prompt_tokens))
        params = SamplingParams(max_tokens=request.output_tokens)
        first = last = -1.0
        asked = GenerationRequest(str(request.id), prompt, params, request.model)
        try:
            async for delta in many.generate(asked):
                if delta.tokens:
                    first = loop.time() if first < 0 else first
                    last = loop.time()
        except (Overloaded, RequestTooLong):
            return
        times[request.id] = (first, last)

    await asyncio.gather(*map(one, requests))
    await many.close()
    return times


@pytest.mark.parametrize("name", CASES)
def test_the_same_turns_are_taken(name: str) -> None:
    """Every engine forms the same batches, and tokens come at the same times."""
    plan, requests = plan_of(CASES[name]), requests_of(CASES[name], seed=5)
    workload = Workload(name="contract", trace=tuple(requests), duration_s=1000.0, classes=CLASSES)
    costs = {model: LineCost(load_model("llama2-7b")) for model in MODELS}
    with batches() as simulated:
        run = simulate_pool(plan, workload, costs, PoolOptions(step_by_step=True))
    with batches() as real, asyncio.Runner(loop_factory=VirtualTimeLoop) as runner:
        times = runner.run(served(plan, requests))

    assert len(real) == len(simulated) == len(MODELS)
    # Rows are counted by model in the runtime, over all models in the simulator.
    for model, ours, theirs in zip(MODELS, real, simulated, strict=True):
        rows = [request.id for request in requests if request.model == model]
        mine = [
            (tuple((rows[row], n) for row, n in prompts), tuple(rows[row] for row in decodes))
            for prompts, decodes in ours
        ]
        assert mine == theirs
    refused = len(requests) - len(times)
    assert (refused > 0) == (CASES[name].admission == "deadline")
    assert refused < len(requests) / 2
    table = run.requests
    for row, request in enumerate(requests):
        if request.id not in times:
            assert table.first_token_s[row] != table.first_token_s[row]
            continue
        first, last = times[request.id]
        assert first == pytest.approx(table.first_token_s[row], abs=1e-6)
        assert last == pytest.approx(table.last_token_s[row], abs=1e-6)
