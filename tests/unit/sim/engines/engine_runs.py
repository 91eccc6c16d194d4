"""Small engines and workloads for the tests of the engine simulator."""

from __future__ import annotations

from collections.abc import Iterable

from penstock.cost.linear import DecodeLine, LinearCoefficients, LinearStepCost
from penstock.cost.steps import EngineShape
from penstock.measure.run import Run
from penstock.policy.schedulers import SchedulerSettings
from penstock.sim.engines import EngineFleet, EngineOptions, EngineSpec, simulate_engines
from penstock.spec.catalogue import catalogue
from penstock.spec.load import load_model
from penstock.spec.workload import Request, SLOClass, Workload

MODEL = load_model("llama-3-8b")
COEFFICIENTS = LinearCoefficients(
    0.0113, 6.1e-5, 1.03e-8, DecodeLine(0.0107, 8.3e-8, 3.7e-5), DecodeLine(0.012, 8.9e-8, 3e-5), 9
)
COST = LinearStepCost(MODEL, COEFFICIENTS, 100_000)


def shape(pipeline_parallel_size: int = 1) -> EngineShape:
    gpu = catalogue().get("A100-80GB")
    return EngineShape(gpu, pipeline_parallel_size=pipeline_parallel_size)


def workload(requests: Iterable[Request], classes: tuple[SLOClass, ...] = ()) -> Workload:
    return Workload("test", 0.0, trace=tuple(requests), classes=classes)


def run_engine(
    requests: Iterable[Request],
    settings: SchedulerSettings,
    *,
    num_blocks: int = 1000,
    stages: int = 1,
    replicas: int = 1,
    router: str = "round-robin",
    classes: tuple[SLOClass, ...] = (),
    **options: object,
) -> Run:
    spec = EngineSpec("engine", shape(stages), settings, num_blocks=num_blocks)
    return simulate_engines(
        EngineFleet.replicas(spec, replicas, router),
        workload(requests, classes),
        COST,
        EngineOptions(check=True, **options),  # type: ignore[arg-type]
    )
