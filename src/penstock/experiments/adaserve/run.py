"""One trace under one system, measured as published and beyond."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, replace
from functools import cache
from pathlib import Path

import numpy as np

from penstock.experiments.adaserve.systems import (
    ADASERVE,
    PAIRS,
    PENSTOCK,
    engine_of,
    read_profile,
    speculator_of,
)
from penstock.experiments.adaserve.traces import read_trace
from penstock.policy.speculation.slo import TpotLimit
from penstock.sim.speculation.engine import SpeculationRun, simulate_speculation

SCALES = (1.6, 1.4, 1.2, 1.0, 0.8, 0.6)
URGENT = "coding"


@dataclass(frozen=True)
class Simulation:
    """``urgent_scale`` replaces the multiple of the coding class (Figure 11)."""

    model: str
    system: str
    trace: str
    seed: int = 0
    urgent_scale: float = 1.2
    output_cap: int = 256

    @property
    def weight(self) -> float:
        """Expected CPU seconds, roughly."""
        return {ADASERVE: 2.0, PENSTOCK: 3.0}.get(self.system, 0.8)


@dataclass(frozen=True)
class Measured:
    """``attainment_pct`` and ``goodput_tok_s`` by the multiple of the urgent class.

    Systems that know no SLO are run once and scored at every scale, as published.
    ``strict_attainment_pct`` uses TPOT = (last - first token) / (tokens - 1).
    """

    attainment_pct: Mapping[float, float]
    goodput_tok_s: Mapping[float, float]
    strict_attainment_pct: float
    mean_tokens: float
    speculation_share_pct: float
    ttft_p50_s: float
    ttft_p99_s: float
    tpot_p50_s: float


def run_simulation(adaserve: Path, run: Simulation) -> Measured:
    """Simulate and measure. Raises ``InputError`` where the reference is not complete."""
    knows_slo = run.system in (ADASERVE, PENSTOCK)
    scales = (run.urgent_scale,) if knows_slo else SCALES
    result = simulate_run(adaserve, run)
    return measure(result, baseline_of(adaserve, run.model), scales, run.urgent_scale)


@cache
def baseline_of(adaserve: Path, model: str) -> float:
    return read_profile(adaserve, PAIRS[model]).baseline_s


def simulate_run(adaserve: Path, run: Simulation) -> SpeculationRun:
    pair = PAIRS[run.model]
    profile = read_profile(adaserve, pair)
    requests, limits = read_trace(adaserve, run.trace, run.seed, run.output_cap)
    limits = {**limits, URGENT: TpotLimit(multiple=run.urgent_scale)}
    return simulate_speculation(
        engine_of(pair, profile, run.system),
        requests,
        limits,
        profile.baseline_s,
        speculator_of(pair, profile, run.system),
        seed=run.seed,
        name=f"{run.system} {run.model} {run.trace}",
    )


def measure(
    result: SpeculationRun, baseline_s: float, scales: tuple[float, ...], scale: float
) -> Measured:
    """Score one run at each of the urgent class's multiples; ``scale`` is that of the run."""
    table = result.run.requests
    names = result.run.class_names
    urgent = table.class_index == (names.index(URGENT) if URGENT in names else -1)
    attainment, goodput = {}, {}
    for multiple in scales:
        limit = np.where(urgent, multiple * baseline_s, result.tpot_limit_s)
        good = replace(result, tpot_limit_s=limit).attained
        attainment[multiple] = 100.0 * float(good[result.finished].mean())
        goodput[multiple] = float(table.generated_tokens[good].sum()) / result.run.window_s[1]
    limit = np.where(urgent, scale * baseline_s, result.tpot_limit_s)
    strict = result.decode_s / np.maximum(1, table.generated_tokens - 1)
    ttft = (table.first_token_s - table.arrival_s)[result.finished]
    steps = result.steps
    busy = sum(steps.draft_s) + sum(steps.target_s)
    return Measured(
        attainment,
        goodput,
        100.0 * float((strict <= limit)[result.finished].mean()),
        steps.mean_generated_tokens,
        100.0 * sum(steps.draft_s) / busy,
        float(np.quantile(ttft, 0.5)),
        float(np.quantile(ttft, 0.99)),
        float(np.quantile(strict[result.finished], 0.5)),
    )
