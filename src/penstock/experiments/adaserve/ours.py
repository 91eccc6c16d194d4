"""Penstock's controller against our own AdaServe: same traces, same engine, same seeds."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass

import numpy as np

from penstock.experiments.adaserve.run import Measured, Simulation
from penstock.experiments.adaserve.systems import ADASERVE, LLAMA, PENSTOCK, QWEN
from penstock.experiments.rows import Labels, Row, at_least, information

CHAIN = "vLLM-Spec(4)"
SEEDS = (11, 12, 13)
"""Not the seed that constants and controller were tuned on."""
LOADS = {
    LLAMA: (
        "rps2.4.csv",
        "rps2.8.csv",
        "rps3.0.csv",
        "rps3.2.csv",
        "rps3.6.csv",
        "rps3.8.csv",
        "rps4.2.csv",
        "rps4.4.csv",
        "rps4.6.csv",
    ),
    QWEN: (
        "rps2.4.csv",
        "rps2.8.csv",
        "rps3.0.csv",
        "rps3.2.csv",
        "rps3.6.csv",
        "rps3.8.csv",
        "rps4.2.csv",
    ),
}
MIXES = ("rps4.0_prop0.2.csv", "fluc_6m_peak4.0.csv")


@dataclass(frozen=True)
class Target:
    """Published figures of AdaServe (or of the best system) that ours should pass."""

    attainment_pct: float
    goodput_tok_s: float | None = None


TARGETS: Mapping[tuple[str, str], Target] = {
    (LLAMA, "rps4.6.csv"): Target(86.5, 839.0),
    (LLAMA, "rps3.8.csv"): Target(95.4),
    (QWEN, "rps4.2.csv"): Target(85.5, 751.0),
    (LLAMA, "rps4.0_prop0.2.csv"): Target(85.1),
    (QWEN, "rps4.0_prop0.2.csv"): Target(75.6),
    (LLAMA, "fluc_6m_peak4.0.csv"): Target(83.6),
    (QWEN, "fluc_6m_peak4.0.csv"): Target(83.0),
}


def our_simulations(models: Sequence[str] = (LLAMA, QWEN)) -> list[Simulation]:
    return [
        Simulation(model, system, trace, seed)
        for model in models
        for trace in (*LOADS[model], *MIXES)
        for system in (PENSTOCK, ADASERVE, CHAIN)
        for seed in SEEDS
    ]


def our_rows(done: Mapping[Simulation, Measured]) -> list[Row]:
    """Means over the seeds that are ``done``; cases without all systems are left out."""
    rows: list[Row] = []
    cases = list(dict.fromkeys((run.model, run.trace) for run in done if run.seed in SEEDS))
    for model, trace in cases:
        found = {
            system: [
                measured
                for run, measured in done.items()
                if (run.model, run.trace, run.system) == (model, trace, system)
                and run.seed in SEEDS
            ]
            for system in (PENSTOCK, ADASERVE, CHAIN)
        }
        if all(found.values()):
            rows += _case(Labels("ours", f"{model} {trace.removesuffix('.csv')}"), found, trace)
    return rows


def _case(labels: Labels, found: Mapping[str, list[Measured]], trace: str) -> list[Row]:
    model = labels.case.split()[0]
    target = TARGETS.get((model, trace))
    ours, ada, chain = (found[name] for name in (PENSTOCK, ADASERVE, CHAIN))
    mean, spread = _attainment(ours)
    seeds = f"{len(ours)} seeds, standard deviation {spread:.1f} points"
    rows = []
    if target is not None:
        subject = labels.of("Penstock attainment against the publication", "%")
        goal = target.attainment_pct
        rows.append(at_least(subject, goal, mean, goal + 0.01, note=seeds))
        if target.goodput_tok_s is not None:
            subject = labels.of("Penstock goodput against the publication", "tok/s")
            goal = target.goodput_tok_s
            rows.append(at_least(subject, goal, _goodput(ours), goal + 0.01, note=seeds))
    best = _attainment(ada)[0]
    subject = labels.of("Penstock attainment against our AdaServe", "%")
    rows.append(at_least(subject, best, mean, best, note=seeds))
    best = _attainment(chain)[0]
    subject = labels.of(f"Penstock attainment against our {CHAIN}", "%")
    rows.append(at_least(subject, best, mean, best, note=seeds))
    best = max(_goodput(ada), _goodput(chain))
    subject = labels.of("Penstock goodput against the better of both", "tok/s")
    rows.append(at_least(subject, best, _goodput(ours), best, note=seeds))
    for system, runs in ((PENSTOCK, ours), (ADASERVE, ada), (CHAIN, chain)):
        for metric, unit, value in _shown(runs):
            rows.append(information(labels.of(f"{system} {metric}", unit), None, value))
    return rows


def _shown(runs: Sequence[Measured]) -> list[tuple[str, str, float]]:
    strict = [run.strict_attainment_pct for run in runs]
    return [
        ("attainment by TPOT over tokens - 1", "%", float(np.mean(strict))),
        ("TTFT p50", "s", float(np.mean([run.ttft_p50_s for run in runs]))),
        ("TTFT p99", "s", float(np.mean([run.ttft_p99_s for run in runs]))),
        ("TPOT p50", "s", float(np.mean([run.tpot_p50_s for run in runs]))),
    ]


def _attainment(runs: Sequence[Measured]) -> tuple[float, float]:
    values = [measured.attainment_pct[1.2] for measured in runs]
    return float(np.mean(values)), float(np.std(values))


def _goodput(runs: Sequence[Measured]) -> float:
    return float(np.mean([measured.goodput_tok_s[1.2] for measured in runs]))
