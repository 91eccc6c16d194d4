"""From measured runs to rows: sums, pools, percentiles, tolerances and failures."""

from __future__ import annotations

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from penstock.experiments.helix.cases import Case, Figure, Kind, Simulation, Traffic
from penstock.experiments.helix.measured import Measured, figures, together
from penstock.experiments.helix.table import Problems, case_rows

NO_PROBLEMS = Problems({})
SIMULATION = Simulation(
    model="llama70b",
    placement="placements/single_llama70b/separate",
    prefix="a100_",
    router="random",
    cluster_file="clusters/single/a100.ini",
    force_set=True,
    traffic=Traffic(None, 18, None, 60.0, 600.0, drains=False),
    kv_high_water_mark=None,
    output_ratio=None,
    admission="none",
)


def run_of(throughput: float, prompts: list[float], decodes: list[float]) -> Measured:
    return Measured(
        throughput, np.array(prompts), np.array(decodes), len(prompts), 0, 0, 0, 700.0, {}
    )


def case_of(*figures: Figure, kind: Kind = "simulation", section: str = "6.3") -> Case:
    parts = {"a100": SIMULATION, "l4": SIMULATION}
    return Case(
        section, "single", kind, "llama2-70b", "online", "helix", "single24", parts, figures
    )


def figure(metric: str, value: float, scope: str = "total") -> Figure:
    return Figure(scope, metric, "s", value, "1")


seconds = st.lists(st.floats(0.001, 100.0), min_size=1, max_size=40)


@given(st.lists(st.tuples(st.floats(0.0, 500.0), seconds, seconds), min_size=1, max_size=4))
def test_sub_clusters_add_up_and_pool(parts: list[tuple[float, list[float], list[float]]]) -> None:
    """Throughputs add; percentiles are those of all samples together, by rank."""
    whole = together([run_of(*part) for part in parts])
    assert whole.decode_tokens_per_s == pytest.approx(sum(part[0] for part in parts))
    pooled = sorted(s for part in parts for s in part[1])
    found = figures(whole)
    for name, share in (("p5", 0.05), ("p50", 0.5), ("p95", 0.95)):
        assert found[f"prompt latency {name}"] == pooled[int(len(pooled) * share)]
    assert found["prompt latency mean"] == pytest.approx(sum(pooled) / len(pooled))


def test_totals_and_sub_clusters_have_their_own_rows() -> None:
    """A figure of a sub-cluster is compared with that part, a total with all of them."""
    case = case_of(figure("decode throughput", 3.0), figure("decode throughput", 1.0, "a100"))
    total, part = case_rows(
        case, {"a100": run_of(1.0, [1.0], [1.0]), "l4": run_of(2.0, [1.0], [1.0])}, NO_PROBLEMS
    )
    assert (total.ours, total.verdict, total.tolerance) == (3.0, "within", "1 %")
    assert (part.case, part.ours) == ("llama2-70b online helix a100", 1.0)


def test_a_failed_part_fails_the_total_and_says_why() -> None:
    """A total is never made of the parts that happened to work."""
    case = case_of(figure("decode throughput", 3.0), figure("decode throughput", 2.0, "l4"))
    total, part = case_rows(
        case, {"l4": run_of(2.0, [1.0], [1.0])}, Problems({"a100": "no such table"})
    )
    assert (total.ours, total.verdict, total.note) == (None, "failed", "no such table")
    assert (part.ours, part.verdict) == (2.0, "within")


def test_prototype_figures_are_shown_and_not_judged() -> None:
    """A simulation does not have to equal real hardware; the row only sets them side by side."""
    case = case_of(figure("decode throughput", 99.0), kind="prototype")
    (row,) = case_rows(case, {n: run_of(1.0, [1.0], [1.0]) for n in ("a100", "l4")}, NO_PROBLEMS)
    assert row.verdict == "information"
    assert "prototype" in row.note


def test_latencies_allow_two_percent_or_a_fiftieth_of_a_second() -> None:
    """The printed percentiles have two digits; short ones are held to 0.02 s."""
    case = case_of(figure("prompt latency p50", 0.10), figure("decode latency p50", 10.0))
    runs = {"a100": run_of(1.0, [0.119], [10.3]), "l4": run_of(1.0, [0.119], [10.3])}
    prompt, decode = case_rows(case, runs, NO_PROBLEMS)
    assert (prompt.verdict, decode.verdict) == ("within", "differs")


def test_the_42_node_flow_is_not_unique() -> None:
    """Where another optimal flow routes differently the limit is wider, and the row says so."""
    case = case_of(figure("decode throughput", 100.0), section="6.5")
    runs = {name: run_of(50.8, [1.0], [1.0]) for name in ("a100", "l4")}
    (row,) = case_rows(case, runs, NO_PROBLEMS)
    assert (row.verdict, row.tolerance) == ("within", "2 %")
    assert "not unique" in row.note
