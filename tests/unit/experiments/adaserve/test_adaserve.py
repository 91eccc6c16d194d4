"""The published AdaServe experiments: inputs, a few points, and the controller's lead."""

from __future__ import annotations

import json
from collections import Counter
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest

from penstock.cli.main import execute
from penstock.errors import SpecError
from penstock.experiments.adaserve.cases import read_points
from penstock.experiments.adaserve.ours import our_rows
from penstock.experiments.adaserve.reproduce import reproduce_adaserve
from penstock.experiments.adaserve.run import Simulation, run_simulation
from penstock.experiments.adaserve.systems import (
    ADASERVE,
    LLAMA,
    PAIRS,
    PENSTOCK,
    QWEN,
    engine_of,
    read_profile,
    speculator_of,
)
from penstock.experiments.adaserve.traces import read_trace
from penstock.experiments.system import Request
from penstock.policy.speculation.controller import ControllerSettings, PricedSpeculator
from penstock.sim.speculation.engine import simulate_speculation

pytestmark = pytest.mark.reference


@pytest.fixture
def adaserve(reference: Path) -> Path:
    return reference / "adaserve"


def test_traces_are_the_published_arrivals_with_drawn_outputs(adaserve: Path) -> None:
    """1700 requests at 4.72 req/s; outputs have the published mean and depend on the seed only."""
    requests, limits = read_trace(adaserve, "rps4.6.csv", 1)
    assert len(requests) == 1700
    assert Counter(r.class_name for r in requests)["coding"] == 1007
    assert limits["coding"].seconds(0.03) == pytest.approx(0.036)
    assert limits["summarization"].seconds(0.03) == pytest.approx(0.15)
    assert 204 <= np.mean([r.output_tokens for r in requests]) <= 211
    assert max(r.prompt_tokens + r.output_tokens for r in requests) <= 2048
    assert read_trace(adaserve, "rps4.6.csv", 1)[0] == requests
    assert read_trace(adaserve, "rps4.6.csv", 2)[0] != requests


def test_all_traces_can_be_read(adaserve: Path) -> None:
    """The 18 files hold ascending arrivals."""
    names = sorted(path.name for path in (adaserve / "traces").glob("*.csv"))
    assert len(names) == 18
    for name in names:
        arrivals = [r.arrival_s for r in read_trace(adaserve, name, 0, 128)[0]]
        assert arrivals == sorted(arrivals)


def test_every_published_point_has_a_simulation(adaserve: Path) -> None:
    """All but Figure 1; points with the same inputs share one."""
    points = read_points(adaserve)
    assert len(points) == 746 - 40
    fitted = {(p.model, p.simulation.trace) for p in points if p.fitted}
    assert fitted == {(LLAMA, name) for name in ("rps3.2.csv", "rps3.8.csv", "rps4.6.csv")}
    same = {p.simulation for p in points if p.system == ADASERVE and p.x in ("4.6", "4.8")}
    assert len(same) == 1


def test_a_held_out_point_is_reproduced(adaserve: Path) -> None:
    """AdaServe on Llama at nominal 4.4 and on Qwen at 4.2: within 4 points and 6 %."""
    table = reproduce_adaserve(adaserve, Request(("fig8", "fig9"), f"{ADASERVE} {LLAMA} 4.4"))
    assert {row.verdict for row in table.rows} == {"within"}
    table = reproduce_adaserve(adaserve, Request(("fig8",), f"{ADASERVE} {QWEN} 4.2"))
    assert [row.verdict for row in table.rows] == ["within"]
    (plot,) = table.plots
    assert [(curve.published, curve.points[0][0]) for curve in plot.curves] == [
        (True, 4.2),
        (False, 4.2),
    ]


def test_the_controller_beats_adaserve_where_it_is_busiest(adaserve: Path) -> None:
    """Llama at true 4.72 req/s: more than the published 86.5 % and 839 tok/s."""
    ours = run_simulation(adaserve, Simulation(LLAMA, PENSTOCK, "rps4.6.csv", 11))
    theirs = run_simulation(adaserve, Simulation(LLAMA, ADASERVE, "rps4.6.csv", 11))
    assert ours.attainment_pct[1.2] > max(86.5, theirs.attainment_pct[1.2])
    assert ours.goodput_tok_s[1.2] > 839.0
    assert ours.ttft_p50_s < theirs.ttft_p50_s


def test_systems_that_know_no_slo_are_scored_at_every_scale(adaserve: Path) -> None:
    """A laxer limit is met more often; the run is the same."""
    measured = run_simulation(adaserve, Simulation(QWEN, "vLLM", "rps2.4.csv"))
    scores = list(measured.attainment_pct.values())
    assert scores == sorted(scores, reverse=True)
    assert len(scores) == 6


def test_figure_1_runs_on_the_shared_schedulers(adaserve: Path) -> None:
    """Ten rows, for information."""
    table = reproduce_adaserve(adaserve, Request(("fig1",), ""))
    assert len(table.rows) == 10
    assert [plot.bars[0] for plot in table.plots] == ["vLLM cat1", "VTC cat1"]
    assert {row.verdict for row in table.rows} == {"information"}


def test_comparisons_need_all_systems(adaserve: Path) -> None:
    """A case without every system gives no rows."""
    only = {
        Simulation(QWEN, PENSTOCK, "rps2.4.csv", 11): run_simulation(
            adaserve, Simulation(QWEN, "vLLM", "rps2.4.csv", 11)
        )
    }
    assert our_rows(only) == []


def test_mistakes_are_refused_in_one_line(adaserve: Path) -> None:
    """Unknown system, words that match nothing."""
    with pytest.raises(SpecError, match="fewer words"):
        reproduce_adaserve(adaserve, Request(("fig8",), "gemma"))
    pair = PAIRS[LLAMA]
    with pytest.raises(SpecError, match="unknown system"):
        speculator_of(pair, read_profile(adaserve, pair), "SpecInfer")


def test_calibration_pays_when_the_draft_is_overconfident(adaserve: Path) -> None:
    """Target probabilities q^0.6: learning from verdicts gives at least five points."""
    pair = PAIRS[LLAMA]
    profile = read_profile(adaserve, pair)
    requests, limits = read_trace(adaserve, "rps4.6.csv", 11)
    engine = engine_of(pair, profile, PENSTOCK)
    engine = replace(engine, acceptance=replace(engine.acceptance, sharpness=0.6))
    settings = ControllerSettings(profile.latency, draft_tokens=pair.draft_tokens)
    attained = [
        simulate_speculation(
            engine,
            requests,
            limits,
            profile.baseline_s,
            PricedSpeculator(replace(settings, calibrate=calibrate)),
            seed=11,
        ).attained.mean()
        for calibrate in (True, False)
    ]
    assert attained[0] > attained[1] + 0.05


def test_the_command_runs_one_figure_and_refuses_what_is_helixs(
    adaserve: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    """``penstock reproduce adaserve fig8``: JSON rows on stdout; flags of Helix are one line."""
    argv = ["reproduce", "adaserve", "--reference", str(adaserve.parent), "--processes", "1"]
    only = ["--only", "vllm-spec(4) qwen2.5 2.4", "--format", "json"]
    assert execute([*argv, "fig8", *only]) == 0
    rows = json.loads(capsys.readouterr().out)
    assert [row["metric"] for row in rows] == ["vLLM-Spec(4) attainment"]
    for wrong, message in ((["fig8", "--fair"], "--fair does not belong"), (["fig88"], "fig8")):
        assert execute([*argv, *wrong]) == 2
        error = capsys.readouterr().err
        assert message in error
        assert error.count("\n") == 1
