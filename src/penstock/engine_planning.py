"""Plans of whole engines for a rate and its limits: one of the ways of ``api.plan``."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path

from penstock.api import (
    DEFAULT_ENGINE_WORKLOAD,
    MAX_PROCESSES,
    SEEDS,
    available_cores,
    load_traffic,
    require_limits,
)
from penstock.cost.step_roofline import StepRoofline
from penstock.cost.steps import EngineShape
from penstock.errors import SpecError
from penstock.evaluate import worker_pool
from penstock.plan.goodput.machines import machines_of
from penstock.plan.goodput.named import plan_engines
from penstock.plan.goodput.planner import Task
from penstock.plan.plan import Plan
from penstock.plan.planner import ProgressCallback
from penstock.policy.baseline import (
    engines_baseline_s,
    has_relative_limits,
    with_absolute_limits,
)
from penstock.sim.disaggregated.judging import PooledProbes
from penstock.sim.plan_probes import PlanProbeSetting, run_plan_probe
from penstock.spec.cluster import Cluster
from penstock.spec.load import load_cluster, load_model
from penstock.spec.model import ModelSpec
from penstock.spec.workload import Workload
from penstock.spec.workloads import mean_lengths, of_one_model


def plan_engines_for(
    cluster: Cluster | str | Path,
    model: ModelSpec | str | Path,
    workload: Workload | str | Path | None,
    *,
    planner: str,
    rate: float | None,
    attainment: float,
    processes: int | None,
    seed: int,
    progress: ProgressCallback,
) -> Plan:
    """Engines on ``cluster`` for the highest rate that keeps the limits; see ``api.plan``."""
    fleet = load_cluster(cluster) if isinstance(cluster, (str, Path)) else cluster
    shape = load_model(model) if isinstance(model, (str, Path)) else model
    traffic = of_one_model(load_traffic(workload or DEFAULT_ENGINE_WORKLOAD))
    if not 0 < attainment < 1:
        raise SpecError("must lie between 0 and 1", key="--attainment", value=attainment)
    max_queue_s = None
    if planner == "vidur-search":
        # MLSys 2024: the 99th percentile of the scheduling delay is under 5 s.
        attainment, max_queue_s = 0.99, 5.0
        traffic = replace(traffic, classes=())
    else:
        require_limits(traffic)
    cost = StepRoofline(shape)
    if has_relative_limits(traffic.classes):
        heads = shape.num_attention_heads
        shapes = [
            EngineShape(machines.accelerator, size)
            for machines in machines_of(fleet)
            for size in machines.tensor_parallel_sizes
            if heads % size == 0
        ]
        traffic = with_absolute_limits(traffic, engines_baseline_s(cost, shapes))
    prompt, output = mean_lengths(traffic)
    setting = PlanProbeSetting(cost, traffic, attainment, max_queue_s)
    width = processes or min(MAX_PROCESSES, available_cores())
    with worker_pool(width) as pool:
        submit = None if pool is None else pool.submit
        task = Task(
            fleet,
            cost,
            prompt,
            output,
            PooledProbes(run_plan_probe, setting, submit, width),
            attainment=attainment,
            planner=planner,
            # A trace is the same whatever the seed.
            seeds=(seed,) if len(traffic.trace) else tuple(range(seed, seed + SEEDS)),
            progress=progress,
        )
        return plan_engines(task, rate)
