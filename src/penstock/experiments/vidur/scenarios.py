"""The scenarios that were run with Vidur itself, and our runs of them."""

from __future__ import annotations

import time
from collections.abc import Mapping
from dataclasses import dataclass, replace
from pathlib import Path

from penstock.cost.operator_tables import OperatorTableCost
from penstock.cost.steps import EngineShape
from penstock.errors import InputError
from penstock.measure.run import Run
from penstock.policy.schedulers import SchedulerSettings
from penstock.sim.engines import EngineFleet, EngineOptions, EngineSpec, simulate_engines
from penstock.spec.catalogue import catalogue
from penstock.spec.load import load_model
from penstock.spec.traces import open_trace
from penstock.spec.workload import Workload


@dataclass(frozen=True, slots=True)
class Scenario:
    """One run: model, tables, scheduler, traffic, as Vidur was given them.

    ``num_blocks`` None = what Vidur's memory rule gives. ``loop_cpu_s`` is what its event loop
    took on one core (specification of the comparison, section 8.2).
    """

    name: str
    model: str
    tables: str
    scheduler: str
    requests: str
    tensor_parallel_size: int = 1
    pipeline_parallel_size: int = 1
    replicas: int = 1
    num_blocks: int | None = None
    loop_cpu_s: float = 0.0

    def with_blocks(self, num_blocks: int) -> Scenario:
        return replace(self, num_blocks=num_blocks)


@dataclass(frozen=True)
class Simulated:
    """A run and the CPU seconds it took, reading of inputs apart."""

    run: Run
    cpu_s: float


_ALL = (
    Scenario(
        "s1",
        "Llama-3-8B",
        "llama3-8b_a100_tp1",
        "vidur-sarathi",
        "conv_n1000_qps5.csv",
        loop_cpu_s=2.42,
    ),
    Scenario(
        "s2",
        "Llama-3-8B",
        "llama3-8b_a100_tp1",
        "vidur-vllm",
        "conv_n1000_qps5.csv",
        loop_cpu_s=2.32,
    ),
    Scenario(
        "s3",
        "CodeLlama-34B",
        "codellama-34b_a100_tp2",
        "vidur-sarathi",
        "conv_n512_qps2.csv",
        tensor_parallel_size=2,
        loop_cpu_s=1.38,
    ),
)
SCENARIOS: Mapping[str, Scenario] = {scenario.name: scenario for scenario in _ALL}


def simulate_scenario(
    folder: Path, scenario: Scenario, *, step_by_step: bool = False, keep_tokens: bool = True
) -> Simulated:
    """Run ``scenario`` with the inputs and cost tables in ``folder`` (Vidur's runs)."""
    trace = folder / "inputs" / scenario.requests
    if not trace.is_file():
        raise InputError(f"{trace}: not there; the reference folder is not complete")
    requests = tuple(open_trace(trace))
    cost = OperatorTableCost(
        load_model(scenario.model),
        folder / "cost_tables",
        scenario.tables,
        scenario.tensor_parallel_size,
    )
    shape = EngineShape(
        catalogue().get("A100-80GB"),
        scenario.tensor_parallel_size,
        scenario.pipeline_parallel_size,
    )
    spec = EngineSpec(
        "replica",
        shape,
        SchedulerSettings(name=scenario.scheduler),
        num_blocks=scenario.num_blocks,
    )
    fleet = EngineFleet.replicas(
        spec, scenario.replicas, "least-waiting" if scenario.replicas > 1 else "round-robin"
    )
    workload = Workload(scenario.requests, 0.0, trace=requests)
    started = time.process_time()
    run = simulate_engines(
        fleet, workload, cost, EngineOptions(step_by_step=step_by_step, keep_tokens=keep_tokens)
    )
    return Simulated(run, time.process_time() - started)
