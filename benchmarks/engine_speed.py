"""How many requests the engine simulator runs in a CPU second, and how much memory each takes.

    python benchmarks/engine_speed.py [--requests N] [--tables DIR] [--scale N ...]

Traffic: Poisson arrivals, log-normal prompts (mean 554) and outputs (mean 167), one replica with
the scheduler ``vllm`` (chunked prefill), per-request metrics kept. Load "moderate" keeps some 12
sequences in a batch, "heavy" some 120 with a queue. Memory is the growth of the peak from before
the run to after its summary. With ``--tables`` (a folder of Vidur runs: ``cost_tables/`` and
``inputs/``) also operator tables and the scenario s1. ``--scale`` runs streamed workloads of N
requests, each in a process of its own. The last line is JSON.
"""

from __future__ import annotations

import argparse
import json
import multiprocessing
import resource
import time
from collections.abc import Iterator
from pathlib import Path
from random import Random

from penstock.cost.linear import DecodeLine, LinearCoefficients, LinearStepCost
from penstock.cost.operator_tables import OperatorTableCost
from penstock.cost.steps import EngineShape, StepCostModel
from penstock.experiments.vidur.scenarios import SCENARIOS, simulate_scenario
from penstock.measure.metrics import summarise
from penstock.policy.schedulers import SchedulerSettings
from penstock.sim.engines import EngineFleet, EngineSpec, simulate_engines
from penstock.spec.catalogue import catalogue
from penstock.spec.load import load_model
from penstock.spec.workload import Request, Workload

MODEL = load_model("llama-3-8b")
LINEAR = LinearStepCost(
    MODEL,
    LinearCoefficients(0.011, 6e-5, 1e-10, DecodeLine(0.011, 8e-8, 3e-5)),
    kv_tokens=400_000,
)


class Traffic:
    """Requests made up as they are asked for."""

    def __init__(self, count: int, rate_per_s: float) -> None:
        self._count = count
        self._rate = rate_per_s

    def __len__(self) -> int:
        return self._count

    def __iter__(self) -> Iterator[Request]:
        rng = Random(1)
        now = 0.0
        for number in range(self._count):
            now += rng.expovariate(self._rate)
            prompt = max(1, min(4000, int(rng.lognormvariate(6.0, 0.8))))
            output = max(1, min(2000, int(rng.lognormvariate(4.8, 0.8))))
            yield Request(number, now, prompt, output)


def measure(
    cost: StepCostModel, count: int, rate_per_s: float, *, stored: bool
) -> dict[str, float]:
    """CPU seconds of one run; ``stored`` requests are made before the clock starts."""
    traffic = Traffic(count, rate_per_s)
    workload = Workload("traffic", 0.0, trace=tuple(traffic) if stored else traffic)
    spec = EngineSpec("engine", EngineShape(catalogue().get("A100-80GB")), SchedulerSettings())
    before = _peak_bytes()
    started = time.process_time()
    run = simulate_engines(EngineFleet((spec,)), workload, cost)
    cpu_s = time.process_time() - started
    overall = summarise(run).overall
    summary_s = time.process_time() - started - cpu_s
    assert run.nodes is not None
    return {
        "requests": count,
        "requests_per_cpu_s": round(count / cpu_s),
        "with_summary_per_cpu_s": round(count / (cpu_s + summary_s)),
        "itl_p99_ms": round(1e3 * overall.itl.p99, 3),
        "steps_per_cpu_s": round(run.counters["batches"] / cpu_s),
        "events_per_request": round(run.counters["events"] / count, 2),
        "mean_batch": round(float(run.nodes.decode_tokens[0] / run.nodes.batches[0]), 1),
        "peak_bytes_per_request": round(max(0, _peak_bytes() - before) / count),
    }


def _peak_bytes() -> int:
    return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * 1024


def apart(count: int) -> dict[str, float]:
    """A streamed run in a process of its own: its peak memory is not another run's."""
    with multiprocessing.get_context("spawn").Pool(1) as pool:
        return pool.apply(measure, (LINEAR, count, 5.0), {"stored": False})


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--requests", type=int, default=100_000)
    parser.add_argument("--tables", type=Path)
    parser.add_argument("--scale", type=int, nargs="*", default=[])
    arguments = parser.parse_args()
    count = arguments.requests
    result: dict[str, object] = {
        "linear_streamed": apart(count),
        "linear_moderate": measure(LINEAR, count, 5.0, stored=True),
        "linear_heavy": measure(LINEAR, count, 14.0, stored=True),
    }
    if arguments.tables is not None:
        tables = OperatorTableCost(MODEL, arguments.tables / "cost_tables", "llama3-8b_a100_tp1")
        result["tables_moderate"] = measure(tables, count, 5.0, stored=True)
        s1 = SCENARIOS["s1"]
        cpu_s = min(simulate_scenario(arguments.tables, s1).cpu_s for _ in range(5))
        result["vidur_s1"] = {
            "cpu_s": round(cpu_s, 4),
            "times_faster": round(s1.loop_cpu_s / cpu_s, 1),
        }
    for scale in arguments.scale:
        result[f"scale_{scale}"] = apart(scale)
    for name, figures in result.items():
        print(f"{name}: {figures}")
    print(json.dumps(result))


if __name__ == "__main__":
    main()
