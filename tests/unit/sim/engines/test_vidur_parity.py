"""The compatibility presets against Vidur's own runs, request by request."""

from __future__ import annotations

import csv
import gzip
import json
from pathlib import Path

import numpy as np
import pytest

from penstock.experiments.vidur.scenarios import SCENARIOS, simulate_scenario

pytestmark = pytest.mark.reference


@pytest.mark.parametrize("name", SCENARIOS)
@pytest.mark.parametrize("step_by_step", [False, True])
def test_every_time_is_vidurs(reference: Path, name: str, step_by_step: bool) -> None:
    """First schedule, first token and completion of every request agree to a microsecond."""
    runs = reference / "vidur" / "runs"
    run = simulate_scenario(runs, SCENARIOS[name], step_by_step=step_by_step).run
    folder = next(runs.glob(f"{name}_*"))
    with gzip.open(folder / "requests.csv.gz", "rt") as file:
        rows = list(csv.DictReader(file))
    table = run.requests
    for column, ours in (
        ("scheduled_at", table.admitted_s),
        ("prefill_completed_at", table.first_token_s),
        ("completed_at", table.last_token_s),
    ):
        theirs = np.array([float(row[column]) for row in rows])
        np.testing.assert_allclose(ours, theirs, rtol=0, atol=1e-6)
    results = json.loads((folder / "summary.json").read_text())["results"]
    assert run.counters["batches"] == results["iterations"]
    assert run.counters["preemptions"] == results["restarts"]


@pytest.mark.parametrize("name", SCENARIOS)
def test_token_gaps_are_vidurs_iterations(reference: Path, name: str) -> None:
    """Every token time rebuilt from segments is the end of one of Vidur's batches."""
    runs = reference / "vidur" / "runs"
    run = simulate_scenario(runs, SCENARIOS[name]).run
    with gzip.open(next(runs.glob(f"{name}_*")) / "iterations.csv.gz", "rt") as file:
        ends = np.array([float(row["end"]) for row in csv.DictReader(file)])
    times = run.tokens.times_s
    nearest = np.searchsorted(ends, times - 1e-6)
    assert np.abs(ends[np.minimum(nearest, len(ends) - 1)] - times).max() < 1e-6
    assert len(times) == run.requests.output_tokens.sum()


@pytest.mark.parametrize(
    ("scenario", "iterations", "restarts", "makespan_s"),
    [("s1", 11_844, 69, 206.11), ("s2", 12_181, 89, 224.75)],
)
def test_scarce_memory_restarts_as_often_as_vidur(
    reference: Path,
    scenario: str,
    iterations: int,
    restarts: int,
    makespan_s: float,
) -> None:
    """With 1500 blocks instead of 30,208 the counts are those of Vidur's runs s5s and s5v."""
    chosen = SCENARIOS[scenario].with_blocks(1500)
    run = simulate_scenario(reference / "vidur" / "runs", chosen).run
    assert run.counters["batches"] == iterations
    assert run.counters["preemptions"] == restarts
    assert run.requests.last_token_s.max() == pytest.approx(makespan_s, abs=0.005)
