"""Runs beside each other."""

from __future__ import annotations

import json

import pytest
from tests.unit.measure.runs import busy_run, run_of

from penstock.errors import InputError
from penstock.measure.compare import compare_runs, comparison_to_dict, verdict_sentence


def test_the_best_is_marked_and_the_first_is_the_baseline() -> None:
    """The quicker run wins latency; differences are relative to the first run."""
    slow = run_of([(0.0, 1, [2.0, 3.0], "finished")], name="slow")
    fast = run_of([(0.0, 1, [1.0, 1.5], "finished")], name="fast")
    comparison = compare_runs([slow, fast])
    rows = {row.metric.key: row for row in comparison.rows}

    assert rows["ttft_p50_s"].values == (2.0, 1.0)
    assert rows["ttft_p50_s"].relative == (0.0, -0.5)
    assert rows["ttft_p50_s"].best == (1,)
    assert rows["output_throughput_tokens_per_s"].best == ()
    assert "slo_attainment" not in rows


def test_prediction_is_held_against_measurement() -> None:
    """A simulated and a measured run give one verdict a metric."""
    simulated = run_of([(0.0, 1, [1.05, 2.0], "finished")], name="sim")
    measured = run_of([(0.0, 1, [1.0, 2.2], "finished")], name="real", header={"kind": "measured"})
    verdicts = {v.metric.key: v for v in compare_runs([simulated, measured]).verdicts}

    assert verdicts["ttft_p50_s"].error == pytest.approx(0.05)
    assert verdicts["ttft_p50_s"].verdict == "within"
    assert verdicts["itl_p50_s"].verdict == "outside"


def test_a_prediction_is_judged_by_the_goals() -> None:
    """Mean TTFT may be 15 % off, mean TPOT 7 %, throughput 5 %; the sentence names what misses."""
    header = {"kind": "measured"}
    measured = run_of([(0.0, 1, [1.0, 2.0], "finished")], header=header)
    near = compare_runs([run_of([(0.0, 1, [1.14, 2.2], "finished")]), measured])
    assert near.holds is True
    assert verdict_sentence(near) == "The prediction is within all 4 goals."
    far = compare_runs([run_of([(0.0, 1, [1.14, 2.22], "finished")]), measured])
    assert far.holds is False
    assert "misses 1 of 4 goals: TPOT mean +8.0% (goal 7%)" in verdict_sentence(far)
    alone = compare_runs([measured])
    assert alone.holds is None
    assert verdict_sentence(alone) == ""


def test_names_of_columns_differ() -> None:
    """Runs of one name are numbered."""
    assert compare_runs([busy_run("a"), busy_run("a")]).names == ("a", "a (2)")


def test_a_comparison_is_valid_json() -> None:
    """Programs get the same table, undefined as null."""
    document = comparison_to_dict(compare_runs([busy_run("a"), busy_run("b", seed=2)]))

    assert [run["name"] for run in document["runs"]] == ["a", "b"]  # type: ignore[index, attr-defined]
    json.dumps(document, allow_nan=False)


def test_nothing_cannot_be_compared() -> None:
    """No run is a user's mistake."""
    with pytest.raises(InputError, match="at least one run"):
        compare_runs([])
