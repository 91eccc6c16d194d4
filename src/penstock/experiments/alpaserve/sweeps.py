"""Sweeps around the base point of 48 BERT-1.3B on 16 GPUs: rate, burstiness, deadline, GPUs."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path

from penstock.experiments.alpaserve.cases import BERT, BertPool
from penstock.experiments.alpaserve.data import read_profiles
from penstock.experiments.rows import Labels, Row, at_least, information
from penstock.plan.pool.improve import pool_search
from penstock.plan.pool.model import PoolProblem
from penstock.plan.pool.search import mp_search, sr_greedy, sr_replace
from penstock.plan.pool.simulate import simulate_changing

RATES_RPS = (16.0, 32.0, 64.0, 96.0, 128.0, 192.0)
CVS = (1.0, 2.0, 4.0, 6.0, 8.0)
SLO_FACTORS = (1.0, 2.0, 3.0, 5.0, 7.5, 10.0)
GPUS = (8, 16, 24, 32)
ROUNDS = 8


def sweep_rows(runs: Path) -> list[Row]:
    """Attainment of SR-greedy, SR-replace, MP-search and ours at every point."""
    profile = read_profiles(runs)[BERT]
    base = BertPool()
    sweeps: dict[str, list[tuple[float, BertPool]]] = {
        "rate_rps": [(rate, replace(base, rate_rps=rate)) for rate in RATES_RPS],
        "cv": [(cv, replace(base, cv=cv)) for cv in CVS],
        "slo_factor": [(factor, replace(base, slo_factor=factor)) for factor in SLO_FACTORS],
        "gpus": [(gpus, replace(base, gpus=gpus)) for gpus in GPUS],
    }
    rows = []
    for name, points in sweeps.items():
        for value, pool in points:
            rows += _point(Labels(f"sweep {name}", f"{value:g}"), pool.problem(profile))
    return rows


def _point(labels: Labels, problem: PoolProblem) -> list[Row]:
    greedy = sr_greedy(problem).outcome.attainment
    swapped = simulate_changing(problem, sr_replace(problem, 60.0)).attainment
    searched = mp_search(problem).outcome.attainment
    ours = pool_search(problem, rounds=ROUNDS).outcome.attainment
    note = "their policies by our search; the published sweep of these points is not in the data"
    return [
        information(labels.of("sr-greedy attainment", ""), None, greedy, note=note),
        information(labels.of("sr-replace-60 attainment", ""), None, swapped),
        information(labels.of("mp-search attainment", ""), None, searched),
        at_least(labels.of("ours attainment", ""), None, ours, searched),
    ]
