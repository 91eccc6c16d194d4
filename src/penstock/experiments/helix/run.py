"""One run: plan and traffic into the simulator, and what the tables need of it out again."""

from __future__ import annotations

from functools import lru_cache
from pathlib import Path

from penstock.experiments.helix.cases import Simulation, Traffic
from penstock.experiments.helix.fleet import simulated_plan, table_cost
from penstock.experiments.helix.flows import Edges
from penstock.experiments.helix.measured import Measured, measured
from penstock.experiments.reference import number, read_table
from penstock.plan.plan import Plan
from penstock.sim.options import Granularity, SimulationOptions
from penstock.sim.simulate import simulate
from penstock.spec.arrivals import BucketArrivals
from penstock.spec.lengths import EmpiricalLengths
from penstock.spec.workload import ClosedLoop, OpenLoopArrivals, Saturating, Workload

SEED = 0
BUCKET_S = 3.0


def run_simulation(helix: Path, simulation: Simulation, edges: Edges | None) -> Measured:
    """Simulate one published run."""
    plan = simulated_plan(helix, simulation, edges)
    return run_plan(helix, plan, simulation.traffic, simulation.model, simulation.granularity)


def run_plan(
    helix: Path, plan: Plan, traffic: Traffic, model: str, granularity: Granularity
) -> Measured:
    """Simulate ``plan`` under ``traffic`` with the published tables, lengths and seed."""
    options = SimulationOptions(
        granularity=granularity,
        seed=SEED,
        drain=traffic.drains,
        series_bucket_s=0.0,
    )
    run = simulate(plan, workload_of(helix, traffic), table_cost(helix, model), options)
    return measured(run)


def workload_of(helix: Path, traffic: Traffic) -> Workload:
    """The published lengths and arrivals (specification, section 5)."""
    lengths = EmpiricalLengths(_lengths(helix))
    arrivals: ClosedLoop | Saturating | OpenLoopArrivals
    if traffic.token_rate is None:
        count = traffic.in_flight or 1
        if traffic.feed_mark is None:
            arrivals = ClosedLoop(count)
        else:
            arrivals = Saturating(count, traffic.feed_mark)
    else:
        tokens = lengths.mean_prompt_tokens + lengths.mean_output_tokens
        arrivals = BucketArrivals(_histogram(helix), traffic.token_rate / tokens, BUCKET_S)
    return Workload(
        name="azure-conv",
        duration_s=traffic.warmup_s + traffic.window_s,
        warmup_s=traffic.warmup_s,
        lengths=lengths,
        arrivals=arrivals,
        seed=SEED,
    )


@lru_cache(maxsize=1)
def _lengths(helix: Path) -> tuple[tuple[int, int], ...]:
    path = helix / "traces" / "azure_conv_lengths.csv"
    rows = read_table(path, "input_tokens", "output_tokens")
    return tuple(
        (int(number(row, "input_tokens", path)), int(number(row, "output_tokens", path)))
        for row in rows
    )


@lru_cache(maxsize=1)
def _histogram(helix: Path) -> tuple[int, ...]:
    path = helix / "traces" / "azure_conv_arrivals_per_bucket.csv"
    return tuple(int(number(row, "arrivals", path)) for row in read_table(path, "arrivals"))
