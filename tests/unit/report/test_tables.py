"""Tables for the terminal and figures for papers."""

from __future__ import annotations

import builtins
from dataclasses import replace
from pathlib import Path

import pytest
from rich.console import Console, RenderableType
from tests.unit.measure.runs import busy_run, run_of
from tests.unit.report.plans import plan_of

from penstock.errors import InputError, StorageError
from penstock.measure.compare import compare_runs
from penstock.measure.metrics import summarise
from penstock.report.figures import latency_percentiles, throughput_bars
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


def test_a_plan_lists_its_stages_by_layer() -> None:
    """Stages come in the order of their layers, inclusive on both ends."""
    text = _shown(plan_table(plan_of({("eu", "A100"): 6}, spare=0)))

    assert "0-18" in text
    assert text.index("0-18") < text.index("19-37")


def test_figures_are_written_whole_and_equal(tmp_path: Path) -> None:
    """Equal inputs give equal files; nothing else is left in the folder."""
    for name in ("a.svg", "b.svg"):
        throughput_bars(
            tmp_path / name, ["helix", "swarm"], [252.1, 124.7], [252.08, None], title="70B"
        )
    latency_percentiles(
        tmp_path / "c.pdf",
        [5, 50, 95],
        {"helix": [0.8, 2.64, 4.41]},
        published={"helix": [0.8, 2.6, 4.4]},
        title="prompt latency",
    )

    assert (tmp_path / "a.svg").read_bytes() == (tmp_path / "b.svg").read_bytes()
    assert sorted(path.name for path in tmp_path.iterdir()) == ["a.svg", "b.svg", "c.pdf"]


def test_figures_that_cannot_be_are_one_line(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Unknown format, missing folder, missing matplotlib: the line says what to do."""
    with pytest.raises(InputError, match=r"use \.svg"):
        throughput_bars(tmp_path / "a.xyz", ["a"], [1.0], [1.0], title="")
    with pytest.raises(StorageError, match="cannot be written"):
        throughput_bars(tmp_path / "no" / "a.svg", ["a"], [1.0], [1.0], title="")
    with pytest.raises(InputError, match="one entry"):
        throughput_bars(tmp_path / "a.svg", ["a"], [1.0, 2.0], [1.0], title="")
    real = builtins.__import__

    def without(name: str, *rest: object) -> object:
        if name.startswith("matplotlib"):
            raise ImportError(name)
        return real(name, *rest)  # type: ignore[arg-type]

    monkeypatch.setattr(builtins, "__import__", without)
    with pytest.raises(InputError, match=r"penstock\[report\]"):
        throughput_bars(tmp_path / "a.svg", ["a"], [1.0], [1.0], title="")
    assert list(tmp_path.iterdir()) == []
