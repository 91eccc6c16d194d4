"""Tables for the terminal and figures for papers."""

from __future__ import annotations

from dataclasses import replace

import numpy as np
from rich.console import Console, RenderableType
from tests.unit.measure.runs import busy_run, run_of
from tests.unit.report.plans import plan_of

from penstock.measure.compare import compare_runs
from penstock.measure.metrics import summarise
from penstock.measure.run import Run
from penstock.report.tables import comparison_table, plan_table, summary_table


def _shown(what: RenderableType) -> str:
    console = Console(width=140, record=True, file=open("/dev/null", "w"))  # noqa: SIM115
    console.print(what)
    text = console.export_text()
    console.file.close()
    return text


def test_a_summary_shows_rates_latencies_and_window() -> None:
    """The table names what it shows, with units."""
    text = _shown(summary_table(summarise(busy_run())))

    for word in ("decode throughput", "tok/s", "TTFT", "p99.9", "window 10.0 s to 100.0 s"):
        assert word in text


def test_a_summary_of_nothing_is_still_a_table() -> None:
    """A run without finished requests has no latency table."""
    text = _shown(summary_table(summarise(run_of([(0.0, 1, [], "rejected")]))))

    assert "TTFT" not in text
    assert "rejected" in text


def test_a_comparison_shows_differences_and_verdicts() -> None:
    """Relative differences are to the first run; a measured run gives verdicts."""
    measured = replace(busy_run("real", pace_s=0.06), header={"kind": "measured"})
    text = _shown(comparison_table(compare_runs([busy_run("sim"), measured])))

    assert "%" in text
    assert "Simulated against measured" in text
    assert "within" in text or "outside" in text


def _of_two_models(name: str) -> Run:
    run = busy_run(name, requests=40)
    index = np.arange(40, dtype=np.int16) % 2
    table = replace(run.requests, model_index=index)
    return replace(run, requests=table, model_names=("chat", "code"))


def test_models_have_a_row_each() -> None:
    """A summary has a row a model, a comparison one a model and run, with what each was sent."""
    first, second = _of_two_models("sim"), _of_two_models("real")
    text = _shown(summary_table(summarise(first))).partition("By model")[2]
    rows = [line for line in text.splitlines() if "chat" in line or "code" in line]
    sent = [group.sent for group in summarise(first).models]
    assert [int(row.split("│")[2]) for row in rows] == sent
    both = _shown(comparison_table(compare_runs([first, second]))).partition("By model")[2]
    rows = [line for line in both.splitlines() if "chat" in line or "code" in line]
    assert [("sim" in row, "real" in row) for row in rows] == [(True, False), (False, True)] * 2
    assert "By model" not in _shown(summary_table(summarise(busy_run())))


def test_a_plan_lists_its_stages_by_layer() -> None:
    """Stages come in the order of their layers, inclusive on both ends."""
    text = _shown(plan_table(plan_of({("eu", "A100"): 6}, spare=0)))

    assert "0-18" in text
    assert text.index("0-18") < text.index("19-37")
