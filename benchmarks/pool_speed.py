"""How many requests the simulator of pools runs in a CPU second.

    python benchmarks/pool_speed.py [--requests N]

Eight models of 8B parameters on 16 GPUs, rates by a power law, lengths log-normal (prompts of mean
512; outputs of mean 20 or 200 tokens). "apart": every model has two GPUs of its own, which the two
rates keep busy for half of the time and nearly always. "shared": the same traffic on four groups of
four GPUs, whose steps take as long (so that they are overloaded), each shared by four models, every
model on two of them; turns by deadline, or in a round, which skips no step while two models have
work. The last line is JSON.
"""

from __future__ import annotations

import argparse
import json
import time
from collections.abc import Iterator
from math import log
from random import Random

from penstock.cost.base import BatchLimits
from penstock.cost.linear import DecodeLine, LinearCoefficients, LinearStepCost
from penstock.measure.metrics import summarise
from penstock.plan.parts import Parts, cut
from penstock.plan.plan import Engine, Plan, Stage
from penstock.plan.pool_plan import Deployment, PoolPlan, Sharing, TurnRule
from penstock.plan.settings import SchedulerSettings
from penstock.sim.pools import PoolOptions, simulate_pool
from penstock.spec.catalogue import catalogue
from penstock.spec.cluster import Cluster, Link
from penstock.spec.hardware import Coordinator, Node
from penstock.spec.load import load_model
from penstock.spec.variants import Precision
from penstock.spec.workload import SLO, Request, SLOClass, Workload

MODEL = load_model("llama-3-8b")
COST = LinearStepCost(
    MODEL,
    LinearCoefficients(0.011, 6e-5, 1e-10, DecodeLine(0.011, 8e-8, 3e-5)),
    kv_tokens=400_000,
)
MODELS = tuple(f"model-{i}" for i in range(8))
WEIGHTS = tuple((i + 1) ** -0.5 for i in range(8))
MACHINES = 4


class Traffic:
    """Requests made up as they are asked for, for all models together."""

    def __init__(self, count: int, rate_per_s: float, output_tokens: int) -> None:
        self._count, self._rate, self._output = count, rate_per_s, output_tokens

    def __len__(self) -> int:
        return self._count

    def __iter__(self) -> Iterator[Request]:
        rng = Random(1)
        now = 0.0
        for number in range(self._count):
            now += rng.expovariate(self._rate)
            prompt = max(1, min(4000, int(rng.lognormvariate(log(512) - 0.18, 0.6))))
            output = max(1, min(2000, int(rng.lognormvariate(log(self._output) - 0.18, 0.6))))
            name = rng.choices(MODELS, WEIGHTS)[0]
            yield Request(number, now, prompt, output, name, name)


def pool(shared: bool, turns: TurnRule) -> PoolPlan:
    """Eight models on four machines of four GPUs."""
    gpu = catalogue().get("A100-80GB")
    nodes = tuple(
        Node(f"m{i}", gpu, 4, "A100-80GBx4", "here", 1e9, 1e9, 1e9, 1) for i in range(MACHINES)
    )
    link = Link(1e9, 1e-4)
    cluster = Cluster("test", nodes, Coordinator("here", 1e9, 1e9), {("here", "here"): link}, {})
    parts = tuple(Parts(node.name, (4,) if shared else (1,) * 4) for node in nodes)
    names = [name for part in parts for name in part.names]
    layers, entries = MODEL.num_hidden_layers, []
    for i, model in enumerate(MODELS):
        places = (names[i % 4], names[(i + 1 + i // 4) % 4]) if shared else names[2 * i : 2 * i + 2]
        engines = tuple(
            Engine(
                f"e{k}",
                (Stage(place, 0, layers),),
                (100_000 if shared else 400_000) * layers,
                BatchLimits(1, 1, 1, 1),
                scheduler=SchedulerSettings(),
            )
            for k, place in enumerate(places)
        )
        plan = Plan(cut(cluster, parts), MODEL, engines, (), "test", "goodput", 0.0, 0.0)
        entries.append(Deployment(model, plan, Precision("bfloat16")))
    return PoolPlan(cluster, parts, tuple(entries), "test", 1.0, Sharing(turns))


def measure(
    count: int, rate_per_s: float, output_tokens: int, *, shared: bool, turns: TurnRule
) -> dict[str, float]:
    """CPU seconds of one run; requests are made before the clock starts."""
    classes = tuple(SLOClass(name, SLO(e2e_s=0.2 + 0.05 * output_tokens)) for name in MODELS)
    traffic = tuple(Traffic(count, rate_per_s, output_tokens))
    workload = Workload("traffic", 0.0, trace=traffic, classes=classes)
    plan = pool(shared, turns)
    costs = dict.fromkeys(MODELS, COST)
    started = time.process_time()
    run = simulate_pool(plan, workload, costs, PoolOptions())
    cpu_s = time.process_time() - started
    summary = summarise(run, classes)
    assert run.nodes is not None
    return {
        "requests": count,
        "requests_per_cpu_s": round(count / cpu_s),
        "events_per_request": round(run.counters["events"] / count, 2),
        "steps_per_request": round(run.counters["batches"] / count, 2),
        "attainment": round(summary.overall.slo_attainment or 0.0, 3),
        "utilisation": round(summary.mean_utilisation or 0.0, 3),
    }


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--requests", type=int, default=50_000)
    count = parser.parse_args().requests
    result = {}
    # Requests per second that keep the GPUs busy for half of the time, and nearly always.
    for output, rates in ((20, (40.0, 120.0)), (200, (8.0, 24.0))):
        for rate in rates:
            for shared, turns in (
                (False, "earliest-deadline"),
                (True, "earliest-deadline"),
                (True, "round-robin"),
            ):
                name = f"{output}_tokens_{rate:g}_per_s_{'shared_' + turns if shared else 'apart'}"
                result[name] = measure(count, rate, output, shared=shared, turns=turns)
                print(f"{name}: {result[name]}", flush=True)
    print(json.dumps(result))


if __name__ == "__main__":
    main()
