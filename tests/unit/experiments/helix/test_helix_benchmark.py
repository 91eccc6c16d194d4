"""Equal terms: the same load, admission and settings for every method, ours included."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest

from penstock.experiments.helix.benchmark import (
    FAIR,
    _arenas,
    _fair_bouts,
    _ours_bouts,
    _wanted,
)
from penstock.experiments.helix.benchmark_rows import (
    GOALS,
    OURS,
    Arena,
    Made,
    bout_rows,
    planning_rows,
)
from penstock.experiments.helix.cases import read_cases
from penstock.experiments.helix.fleet import simulated_plan
from penstock.experiments.helix.measured import Measured
from penstock.experiments.helix.search import SEARCHES, Found, found_rows
from penstock.experiments.runner import Outcome
from penstock.plan.plan import Plan

pytestmark = pytest.mark.reference


@pytest.fixture(scope="module")
def arena(reference: Path) -> Arena:
    return next(a for a in _arenas(read_cases(reference / "helix")) if a.cluster == "single24")


@pytest.fixture(scope="module")
def plan(reference: Path, arena: Arena) -> Plan:
    return simulated_plan(reference / "helix", arena.stored("helix"), None)


def test_every_method_meets_the_same_traffic_and_admission(arena: Arena, plan: Plan) -> None:
    """Only plan and router differ between the methods of a fair comparison."""
    made = {("stored", m): Made(m, plan) for m in ("helix", "swarm", "petals")}
    made |= {("planned", m): Made(m, plan) for m in ("separate", "separate+", OURS)}
    bouts = _fair_bouts(arena, made)
    assert len(bouts) == 3 * len(FAIR)
    loads = {method: [b for b in bouts if b.labels.case.split()[0] == method] for method in FAIR}
    first = loads[FAIR[0]]
    assert [b.traffic.token_rate for b in first] == [None, 350.0, 700.0]
    for bouts_of_method in loads.values():
        for mine, other in zip(bouts_of_method, first, strict=True):
            assert mine.traffic == other.traffic
            assert mine.plan.admission == "queue"
            assert mine.plan.routing.kv_high_water_mark == other.plan.routing.kv_high_water_mark


def test_a_method_without_a_plan_is_left_out(arena: Arena, plan: Plan) -> None:
    """What cannot be planned has a row that says why, and no runs."""
    made = {("planned", "separate"): Made("separate", None, 0.1, "does not fit")}
    assert _fair_bouts(arena, made) == []
    (row,) = planning_rows(arena, made.values(), "")
    assert (row.verdict, row.note) == ("failed", "does not fit")


def test_ours_runs_as_published_and_with_fair_retry(arena: Arena, plan: Plan) -> None:
    """Our plan meets the published dropping; all plans meet fair retry; ours meets Helix's load."""
    made = {("planned", "petals"): Made("petals", plan), ("planned", OURS): Made(OURS, plan, 9.0)}
    kinds = {
        bout.labels.case: (bout.kind, bout.plan.admission) for bout in _ours_bouts(arena, made)
    }
    assert kinds == {
        "petals offline fair retry": ("shown", "queue"),
        "penstock offline fair retry": ("shown", "queue"),
        "penstock offline as published": ("goal", "drop"),
        "penstock online 700 tokens/s": ("beside", "queue"),
    }


def test_our_goal_and_helix_beside_us(arena: Arena, plan: Plan) -> None:
    """The offline row holds us to our goal, the online rows to Helix's published figures."""
    made = {("planned", OURS): Made(OURS, plan)}
    result = Measured(301.0, np.full(9, 0.7), np.full(9, 5.0), 9, 9, 0, 0, 700.0, {})
    rows = {
        (row.case, row.metric): row
        for bout in _ours_bouts(arena, made)
        for row in bout_rows(bout, Outcome(result, "", 1.0))
    }
    goal = rows["penstock offline as published", "decode throughput"]
    assert (goal.published, goal.verdict) == (252.1, "better")
    assert GOALS["single24"] == 300
    prompt = rows["penstock online 700 tokens/s", "prompt latency p5"]
    decode = rows["penstock online 700 tokens/s", "decode latency p95"]
    assert (prompt.published, prompt.verdict) == (0.8, "better")
    assert (decode.published, decode.verdict) == (3.19, "worse")


def test_a_word_that_names_another_fleet_leaves_this_one_out(arena: Arena) -> None:
    """``--only het42`` plans nothing on single24."""
    assert _wanted(arena, "single24 online")
    assert _wanted(arena, "penstock")
    assert not _wanted(arena, "het42")


def test_search_rows_compare_time_value_and_proof(reference: Path, plan: Plan) -> None:
    """Time to the published objective, the optimum and its proof have a verdict each."""
    search = next(s for s in SEARCHES if s.section == "6.9")
    proved = replace(
        plan,
        max_flow_tokens_per_s=286.5874,
        max_flow_bound_tokens_per_s=286.5874,
        proved_optimal=True,
    )
    helix = reference / "helix"
    rows = {r.metric: r for r in found_rows(helix, (search,), Found(proved, 2.0, 3.0))}
    assert (rows["optimum"].verdict, rows["optimum"].published) == ("within", 286.587)
    assert (rows["time to 286.59 tokens/s"].published, rows["time to 286.59 tokens/s"].ours) == (
        277.0,
        2.0,
    )
    assert (rows["time to the proof"].verdict, rows["time to the proof"].ours) == ("better", 3.0)
    unproved = replace(proved, proved_optimal=False)
    rows = {r.metric: r for r in found_rows(helix, (search,), Found(unproved, None, 3.0))}
    assert rows["time to the proof"].verdict == "failed"
    assert rows["time to 286.59 tokens/s"].verdict == "failed"
