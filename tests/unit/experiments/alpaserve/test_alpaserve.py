"""AlpaServe's published runs: inputs drawn again, rows that agree, missing data."""

from __future__ import annotations

import shutil
from pathlib import Path

import numpy as np
import pytest

from penstock.errors import InputError
from penstock.experiments.alpaserve.cases import BertPool, Maveriq, drawn_again, one_group
from penstock.experiments.alpaserve.data import (
    read_placements,
    read_profiles,
    read_scenarios,
    with_shifted_ids,
    with_true_latency,
)
from penstock.experiments.alpaserve.figures import alpaserve_plots
from penstock.experiments.alpaserve.reproduce import reproduce_alpaserve
from penstock.experiments.alpaserve.traffic import gamma_arrivals, minute_traffic
from penstock.experiments.rows import Labels, Tolerance, at_least, judged
from penstock.experiments.system import Request
from penstock.plan.pool.model import NOBODY, PoolPlacement, Shape
from penstock.plan.pool.search import sr_greedy
from penstock.spec.popularity import popularity_rates


def test_rates_fall_as_a_power_law() -> None:
    """Four times the rank has half the rate, and all sum to the total."""
    rates = popularity_rates(8, 10.0)
    assert sum(rates) == pytest.approx(10.0)
    assert rates[3] == pytest.approx(rates[0] / 2)


def test_gamma_gaps_have_the_rate_and_the_burstiness() -> None:
    """Mean gap 1/rate and coefficient of variation as asked; times ascend and end in time."""
    times = gamma_arrivals(50.0, 2.0, 400.0, seed=1)
    gaps = np.diff(times)
    assert len(times) / 400.0 == pytest.approx(50.0, rel=0.05)
    assert gaps.std() / gaps.mean() == pytest.approx(2.0, rel=0.05)
    assert times == sorted(times)
    assert times[-1] < 400.0


def test_minutes_are_replayed_twice_and_wait_for_loading() -> None:
    """Two minutes of ten and four requests at half scale: five and two, twice over."""
    traffic = minute_traffic([10, 4], 0.5, [0, 1], [1.0, 2.0])
    start = traffic.arrival_s
    assert len(start) == 14
    bins = [(90, 5), (30 + 180, 2), (60 + 180, 5), (90 + 180, 2)]
    for begin, count in bins:
        assert np.count_nonzero((start >= begin) & (start < begin + 29.9)) == count
    assert set(traffic.model[:5]) == {0}


@pytest.mark.reference
def test_stored_workloads_are_drawn_again(reference: Path) -> None:
    """Every stored workload comes out of our generators, to the microsecond of the files."""
    alpaserve = reference / "alpaserve"
    maveriq = Maveriq.read(alpaserve)
    for name, scenario in maveriq.scenarios.items():
        if scenario.maveriq:
            _, models, trace, scale = name.split("_")
            again = maveriq.problem(models, trace, float(scale))
        else:
            again = drawn_again(scenario)
        stored, ours = scenario.problem.traffic, again.traffic
        assert np.array_equal(stored.model, ours.model)
        assert np.abs(stored.arrival_s - ours.arrival_s).max() < 1e-6


@pytest.mark.reference
def test_greedy_placement_is_theirs(reference: Path) -> None:
    """Forty-eight models on sixteen GPUs: all eighty replicas where AlpaServe put them."""
    runs = reference / "alpaserve" / "runs"
    problem = drawn_again(read_scenarios(runs)["s_bert48"])
    stored = read_placements(runs)["s_bert48|sr-greedy"]
    assert isinstance(stored, PoolPlacement)
    assert sr_greedy(problem).placement == stored.normalised()


@pytest.mark.reference
def test_stored_outcomes_and_configurations_are_ours(reference: Path) -> None:
    """Every stored attainment, and every configuration that MaverIQ lists."""
    alpaserve = reference / "alpaserve"
    table = reproduce_alpaserve(alpaserve, Request(("simulator", "configs")))
    assert {row.verdict for row in table.rows} == {"within"}
    assert sum(row.experiment == "configs" for row in table.rows) == 49


@pytest.mark.reference
def test_faults_change_ids_and_latency_only(reference: Path) -> None:
    """Shifted ids leave model 0 without traffic; true latencies are five times the stored."""
    problem = read_scenarios(reference / "alpaserve" / "runs")["m_large_code_0.1"].problem
    shifted = with_shifted_ids(problem).traffic
    assert 0 not in shifted.model
    assert np.array_equal(shifted.model == NOBODY, problem.traffic.model == 3)
    before = problem.models[0].profile.timings[Shape(4, 2)].latency_s
    after = with_true_latency(problem).models[0].profile.timings[Shape(4, 2)].latency_s
    assert after == pytest.approx([5 * s for s in before])
    assert one_group(problem) == Shape(4, 2)


@pytest.mark.reference
def test_deadlines_follow_the_latency(reference: Path) -> None:
    """The sweep's base point has the deadline of the stored scenario."""
    profile = read_profiles(reference / "alpaserve" / "runs")["alpa/bert-1.3b"]
    problem = BertPool(models=4, rate_rps=1.0, duration_s=5.0).problem(profile)
    assert problem.models[0].slo_s == pytest.approx(0.495)


def test_missing_files_are_named(tmp_path: Path) -> None:
    """An empty reference folder is one clear line."""
    with pytest.raises(InputError, match=r"scenarios\.json|profiles\.json"):
        read_scenarios(tmp_path)


@pytest.mark.reference
def test_a_broken_workload_is_named(reference: Path, tmp_path: Path) -> None:
    """A workload that is no gzip names its file."""
    runs = tmp_path / "runs"
    shutil.copytree(reference / "alpaserve" / "runs", runs)
    broken = runs / "workloads" / "s_small8.csv.gz"
    broken.chmod(0o644)
    broken.write_bytes(b"not gzip")
    with pytest.raises(InputError, match=r"s_small8\.csv\.gz"):
        read_scenarios(runs)


def test_rows_become_figures() -> None:
    """Policies are bars, sweeps are lines with a point a value."""
    rows = [
        judged(Labels("policies", "s mp-rr").of("attainment", ""), 0.5, 0.5, Tolerance()),
        *(
            at_least(Labels("sweep cv", cv).of("ours attainment", ""), None, 0.9, 0.8)
            for cv in ("1", "4")
        ),
    ]
    bars, lines = alpaserve_plots(rows)
    assert bars.bars == ("mp-rr",)
    assert lines.curves[0].points == ((1.0, 0.9), (4.0, 0.9))
