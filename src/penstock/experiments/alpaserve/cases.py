"""Problems of the published runs: MaverIQ's sets on 8 GPUs, and gamma traffic on BERT pools."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, replace
from pathlib import Path

from penstock.experiments.alpaserve.data import (
    Scenario,
    model_deadlines,
    read_minutes,
    read_model_sets,
    read_profiles,
    read_scenarios,
    with_shifted_ids,
    with_true_latency,
)
from penstock.experiments.alpaserve.traffic import gamma_traffic, minute_traffic
from penstock.plan.pool.model import (
    LatencyProfile,
    PoolCluster,
    PoolModel,
    PoolPlacement,
    PoolProblem,
    Shape,
)
from penstock.plan.pool.search import AS_MAVERIQ, ShapeLimits
from penstock.plan.pool.tables import tables_of
from penstock.spec.popularity import popularity_rates

GIB = 2.0**30
MAVERIQ_CLUSTER = PoolCluster(8, 48 * GIB)
BERT = "alpa/bert-1.3b"
SYNTHETIC_S: Mapping[str, float] = {"s_small8": 100.0, "s_bert48": 200.0}
SYNTHETIC_CV = 4.0


@dataclass(frozen=True)
class Maveriq:
    """What MaverIQ's ten scenarios are made of. ``deadlines_s`` at SLO 5x by model."""

    profiles: Mapping[str, LatencyProfile]
    scenarios: Mapping[str, Scenario]
    deadlines_s: Mapping[str, float]
    folder: Path

    @staticmethod
    def read(alpaserve: Path) -> Maveriq:
        """Read both reference folders; that of MaverIQ lies beside that of AlpaServe."""
        runs, folder = alpaserve / "runs", alpaserve.parent / "maveriq"
        scenarios = read_scenarios(runs)
        deadlines = model_deadlines(scenarios, folder)
        return Maveriq(read_profiles(runs), scenarios, deadlines, folder)

    def problem(self, models: str, trace: str, scale: float, slo: float = 5.0) -> PoolProblem:
        """A set under a trace: right ids, latencies as in the table."""
        chosen = read_model_sets(self.folder)[models]
        limits = [self.deadlines_s[name] * slo / 5.0 for name in chosen.models]
        traffic = minute_traffic(read_minutes(self.folder)[trace], scale, chosen.load_bins, limits)
        return PoolProblem(
            tuple(PoolModel(self.profiles[name]) for name in chosen.models),
            MAVERIQ_CLUSTER,
            traffic,
        )


def faulty(problem: PoolProblem) -> PoolProblem:
    """As it was published: ids shifted, latencies a fifth."""
    return with_shifted_ids(problem)


def mended(problem: PoolProblem) -> PoolProblem:
    """Right ids, true latencies."""
    return with_true_latency(problem)


def one_group(problem: PoolProblem, limits: ShapeLimits = AS_MAVERIQ) -> Shape | None:
    """AlpaServe*: the shape of one group that holds every model with the lowest latency.

    Lowest sum over the models; None where no shape holds them all.
    """
    best: tuple[float, Shape] | None = None
    gpus = problem.cluster.gpus
    shapes = [
        Shape(op, pp)
        for pp in range(1, min(gpus, limits.max_pp) + 1)
        for op in range(1, limits.max_op + 1)
        if op * pp == gpus
    ]
    for shape in shapes:
        tables = tables_of(problem.models, [shape])
        seconds = float(tables.latency.sum())
        fits = float(tables.weight.sum()) <= problem.cluster.memory_bytes
        if fits and (best is None or seconds < best[0]):
            best = seconds, shape
    return best[1] if best else None


def drawn_again(scenario: Scenario) -> PoolProblem:
    """A synthetic scenario with its arrivals to full precision; the file has microseconds."""
    models = scenario.problem.models
    traffic = gamma_traffic(
        [model.rate_rps for model in models],
        [model.slo_s for model in models],
        SYNTHETIC_CV,
        SYNTHETIC_S[scenario.name],
    )
    return replace(scenario.problem, traffic=traffic)


@dataclass(frozen=True, slots=True)
class BertPool:
    """Power-law traffic on BERT-1.3B: the base point of the sweeps."""

    models: int = 48
    gpus: int = 16
    rate_rps: float = 64.0
    cv: float = 4.0
    slo_factor: float = 5.0
    duration_s: float = 200.0

    def problem(self, profile: LatencyProfile) -> PoolProblem:
        rates = popularity_rates(self.models, self.rate_rps)
        limit = self.slo_factor * profile.timings[Shape(1, 1)].latency_s[0]
        traffic = gamma_traffic(rates, [limit] * self.models, self.cv, self.duration_s)
        models = tuple(PoolModel(profile, limit, rate) for rate in rates)
        return PoolProblem(models, PoolCluster(self.gpus, 13 * GIB), traffic)


def same_placement(placement: PoolPlacement, listed: str) -> bool:
    """Whether ``listed`` (``tp4pp2:0,1 | ...``) names the same groups."""
    return str(placement.normalised()) == listed
