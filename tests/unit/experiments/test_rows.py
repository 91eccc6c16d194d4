"""Verdicts, tolerances and the printed forms of rows."""

from __future__ import annotations

import csv
import io
import json

import pytest
from hypothesis import given
from hypothesis import strategies as st

from penstock.experiments.rows import (
    COLUMNS,
    Labels,
    Tolerance,
    as_csv,
    as_dicts,
    as_json,
    at_least,
    counts,
    information,
    judged,
)

LABELS = Labels("6.3 single", "llama2-70b offline helix")
THROUGHPUT = LABELS.of("decode throughput", "tokens/s")
LATENCY_P50 = LABELS.of("prompt latency p50", "s")
ONE_PERCENT = Tolerance(relative=0.01)
LATENCY = Tolerance(relative=0.02, absolute=0.02, unit="s")


@pytest.mark.parametrize(
    ("tolerance", "published", "ours", "verdict"),
    [
        (ONE_PERCENT, 252.1, 252.08, "within"),
        (ONE_PERCENT, 252.1, 254.7, "differs"),
        (ONE_PERCENT, 100.0, 101.0, "within"),
        (LATENCY, 0.06, 0.0799, "within"),
        (LATENCY, 0.06, 0.081, "differs"),
        (LATENCY, 10.0, 10.19, "within"),
        (LATENCY, 10.0, 9.79, "differs"),
        (Tolerance(absolute=0.01), 1289.556, 1289.5660, "within"),
        (Tolerance(absolute=0.01), 1289.556, 1289.5670, "differs"),
    ],
)
def test_a_figure_is_within_when_the_wider_limit_allows_it(
    tolerance: Tolerance, published: float, ours: float, verdict: str
) -> None:
    """The relative and the absolute limit are alternatives, and the limit itself is allowed."""
    row = judged(THROUGHPUT, published, ours, tolerance)
    assert row.verdict == verdict


@given(st.floats(0.001, 1e6), st.floats(0.0, 1.0), st.floats(0.0, 1.0))
def test_a_figure_within_a_tolerance_is_within_a_wider_one(
    published: float, share: float, more: float
) -> None:
    """Widening a tolerance never turns a pass into a difference."""
    narrow, wide = Tolerance(relative=share), Tolerance(relative=share + more)
    ours = published * (1 + share)
    assert not narrow.allows(published, ours) or wide.allows(published, ours)
    assert narrow.allows(published, published)


@pytest.mark.parametrize("ours", [None, float("nan"), float("inf")])
def test_a_missing_or_broken_figure_fails(ours: float | None) -> None:
    """What we could not compute is never shown as a number."""
    for row in (
        judged(LATENCY_P50, 1.0, ours, ONE_PERCENT),
        at_least(LATENCY_P50, 1.0, ours, 1.0),
        information(LATENCY_P50, 1.0, ours),
    ):
        assert row.verdict == "failed"
        assert row.ours is None


def test_a_goal_is_met_from_the_goal_on() -> None:
    """``at_least`` counts the goal itself as met and names it."""
    assert at_least(THROUGHPUT, 252.1, 300.0, 300.0).verdict == "better"
    row = at_least(THROUGHPUT, 252.1, 299.9, 300.0)
    assert (row.verdict, row.tolerance) == ("worse", "at least 300")


def test_json_rows_have_the_documented_keys_in_order() -> None:
    """Programs find the same keys in every row; a note appears only where there is one."""
    rows = [
        judged(LATENCY_P50, 1.0, 1.0, LATENCY),
        information(LATENCY_P50, None, 2.0, note="why"),
    ]
    first, second = json.loads(as_json(rows))
    assert tuple(first) == COLUMNS[:-1]
    assert tuple(second) == COLUMNS
    assert first["tolerance"] == "2 % or 0.02 s"
    assert second["published"] is None


def test_csv_holds_the_same_figures_as_json() -> None:
    """Both files are written from one list of values."""
    rows = [judged(LATENCY_P50, 1 / 3, 2 / 3, LATENCY)]
    (read,) = csv.DictReader(io.StringIO(as_csv(rows)))
    assert float(read["published"]) == as_dicts(rows)[0]["published"] == 0.3333333
    assert read["note"] == ""


def test_counts_add_up() -> None:
    """Every row is counted under its verdict."""
    rows = [judged(LATENCY_P50, 1.0, ours, ONE_PERCENT) for ours in (1.0, 2.0, 1.001, None)]
    assert counts(rows) == {"within": 2, "differs": 1, "failed": 1}
