"""One workload through simulator and runtime: the same batches at the same times.

The runtime runs on a virtual clock with null executors, which take the modelled time.
"""

from __future__ import annotations

import asyncio
import random
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass

import pytest

from penstock.cost.base import BatchLimits, Provenance
from penstock.plan.plan import Engine, Leg, Plan, Role, Routing, Stage
from penstock.plan.settings import SchedulerSettings
from penstock.policy.blocks import chain_hashes
from penstock.policy.schedulers.base import Scheduler
from penstock.policy.schedulers.vllm import VllmV1
from penstock.serve.coordinator.options import ServeOptions
from penstock.serve.coordinator.runtime import Runtime
from penstock.serve.inline import InlinePool
from penstock.serve.protocol import GenerationRequest, ModelCard, RequestTooLong, SamplingParams
from penstock.serve.virtual_time import VirtualTimeLoop
from penstock.sim.options import SimulationOptions
from penstock.sim.simulate import simulate
from penstock.spec.load import load_cluster, load_model
from penstock.spec.workload import Request, Workload

PIECE = 16
Formed = tuple[tuple[tuple[int, int], ...], tuple[int, ...]]


class LineTimer:
    """Seconds that grow with tokens; no two sums of steps are likely to tie."""

    def decode_s(self, seqs: int, context_tokens: int) -> float:
        return 0.0103 + 1.37e-4 * seqs + 1.1e-8 * context_tokens

    def step_s(self, prefill: list[tuple[int, int]], seqs: int, context_tokens: int) -> float:
        tokens = sum(tokens for tokens, _ in prefill)
        return 0.0103 + 1.37e-4 * (tokens + seqs) + 1.1e-8 * context_tokens

    def decode_span_s(self, seqs: int, context_tokens: int, steps: int) -> float:
        return sum(self.decode_s(seqs, context_tokens + i * seqs) for i in range(steps))


class LineCost:
    """A step cost model of ``LineTimer`` on any shape."""

    def __init__(self, model: object) -> None:
        self.model = model
        self.provenance: tuple[Provenance, ...] = ()

    def step_timer(self, shape: object) -> LineTimer:
        return LineTimer()

    def kv_capacity_tokens(self, shape: object) -> int:
        return 1 << 20

    def to_dict(self) -> dict[str, object]:
        return {"kind": "line"}


@contextmanager
def batches() -> Iterator[list[list[Formed]]]:
    """Collect the batches of every scheduler, in order of the schedulers' creation."""
    born: list[Scheduler] = []
    formed: dict[int, list[Formed]] = {}
    init, next_batch = VllmV1.__init__, VllmV1.next_batch

    def watched_init(self, *args, **kwargs):
        init(self, *args, **kwargs)
        born.append(self)

    def watched_next(self):
        batch = next_batch(self)
        if batch is not None:
            prompts = tuple((seq.row, tokens) for seq, tokens in batch.prefill)
            entry = (prompts, tuple(seq.row for seq in batch.cohort))
            formed.setdefault(id(self), []).append(entry)
        return batch

    found: list[list[Formed]] = []
    VllmV1.__init__, VllmV1.next_batch = watched_init, watched_next
    try:
        yield found
    finally:
        VllmV1.__init__, VllmV1.next_batch = init, next_batch
        found += [formed[id(one)] for one in born if id(one) in formed]


@dataclass(frozen=True)
class Case:
    """Roles of the engines, KV blocks of each, and how requests reach them."""

    roles: tuple[Role, ...]
    blocks: int
    router: str
    caching: bool = False


CASES = {
    "one engine": Case(("both",), 4000, "round-robin"),
    "scarce memory": Case(("both",), 90, "round-robin"),
    "replicas in turn": Case(("both", "both", "both"), 300, "round-robin"),
    "replicas by load": Case(("both", "both"), 120, "least-outstanding"),
    "prefix caches": Case(("both", "both"), 200, "prefix-affinity", caching=True),
    "roles": Case(("prefill", "prefill", "decode", "decode"), 400, "least-outstanding"),
    "roles and scarce memory": Case(("prefill", "prefill", "decode"), 110, "round-robin"),
}


def plan_of(case: Case) -> Plan:
    cluster = load_cluster("single24")
    model = load_model("llama2-70b")
    layers = model.num_hidden_layers
    settings = SchedulerSettings(
        "vllm",
        max_num_seqs=24,
        max_num_batched_tokens=256,
        enable_prefix_caching=case.caching,
        prefix_piece_tokens=PIECE,
    )
    engines = tuple(
        Engine(
            f"engine-{i}",
            (Stage(cluster.nodes[i].name, 0, layers),),
            case.blocks * 16 * layers,
            BatchLimits(1, 1, 1, 1),
            role,
            settings,
        )
        for i, role in enumerate(case.roles)
    )
    return Plan(
        cluster=cluster,
        model=model,
        engines=engines,
        legs=tuple(Leg("coordinator", engine.name, 1.0, 1.0) for engine in engines),
        planner="test",
        objective="goodput",
        value=1.0,
        max_flow_tokens_per_s=0.0,
        routing=Routing(engine_router=case.router, decode_router="least-outstanding"),
    )


def requests_of(case: Case, seed: int) -> tuple[list[Request], list[tuple[int, ...]]]:
    rng = random.Random(seed)
    at_s, requests, prompts = 0.0, [], []
    shared = [tuple(rng.randrange(999) for _ in range(200)) for _ in range(3)]
    for i in range(120):
        at_s += rng.expovariate(9.0)
        own = tuple(rng.randrange(999) for _ in range(rng.randrange(1, 400)))
        prompt = rng.choice(shared)[: rng.randrange(200)] + own
        pieces = [prompt[k : k + PIECE] for k in range(0, len(prompt) - PIECE + 1, PIECE)]
        hashes = chain_hashes(pieces) if case.caching else ()
        requests.append(Request(i, at_s, len(prompt), rng.randrange(1, 160), prefix_hashes=hashes))
        prompts.append(prompt)
    return requests, prompts


async def served(plan: Plan, requests: list[Request], prompts: list[tuple[int, ...]]) -> dict:
    """First and last token times of a runtime on a virtual clock, by request."""
    loop = asyncio.get_running_loop()
    options = ServeOptions(executor="null", max_waiting=10_000)
    card = ModelCard("m", 1 << 20, 1000, "")
    runtime = Runtime(plan, InlinePool(strict=True), card, options, cost=LineCost(plan.model))
    await runtime.start()
    times: dict[int, tuple[float, float]] = {}

    async def one(request: Request, prompt: tuple[int, ...]) -> None:
        delay = asyncio.Event()
        loop.call_at(request.arrival_s, delay.set)
        await delay.wait()
        params = SamplingParams(max_tokens=request.output_tokens)
        first = last = -1.0
        try:
            async for delta in runtime.generate(GenerationRequest(str(request.id), prompt, params)):
                if delta.tokens:
                    first = loop.time() if first < 0 else first
                    last = loop.time()
        except RequestTooLong:
            return
        times[request.id] = (first, last)

    await asyncio.gather(*map(one, requests, prompts))
    await runtime.close()
    return times


@pytest.mark.parametrize("name", CASES)
def test_the_same_policies_decide_the_same(name: str) -> None:
    """Every engine forms the same batches, and tokens come at the same times."""
    case = CASES[name]
    plan = plan_of(case)
    requests, prompts = requests_of(case, seed=7)
    workload = Workload(name="contract", trace=tuple(requests), duration_s=1000.0)
    with batches() as simulated:
        run = simulate(plan, workload, LineCost(plan.model), SimulationOptions(step_by_step=True))
    with batches() as real, asyncio.Runner(loop_factory=VirtualTimeLoop) as runner:
        times = runner.run(served(plan, requests, prompts))

    assert len(real) == len(case.roles)
    for ours, theirs in zip(real, simulated, strict=True):
        for number, (mine, other) in enumerate(zip(ours, theirs, strict=False)):
            assert mine == other, f"batch {number} differs"
        assert len(ours) == len(theirs)
    table = run.requests
    for row, request in enumerate(requests):
        if request.id in times:
            first, last = times[request.id]
            assert first == pytest.approx(table.first_token_s[row], abs=1e-6)
            assert last == pytest.approx(table.last_token_s[row], abs=1e-6)
        else:
            assert table.first_token_s[row] != table.first_token_s[row]
