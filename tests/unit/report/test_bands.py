"""Where predicted times come from and how far off they may be, as users see it."""

from __future__ import annotations

from dataclasses import replace
from io import StringIO

from rich.console import Console
from tests.unit.measure.runs import busy_run, run_of

from penstock.cost.base import Provenance
from penstock.measure.metrics import TimeBand, summarise, summary_to_dict
from penstock.measure.run import Run
from penstock.report.html import render_report
from penstock.report.provenance import band_sentence, run_sources
from penstock.report.tables import summary_table

SOURCE = {
    "kind": "extrapolated",
    "source": "datasheets",
    "error": "9 %",
    "domain": "x",
    "notes": ["n"],
}
COST = {"document": {"kind": "step-roofline", "engine": "vllm"}, "provenance": [SOURCE, SOURCE]}
BAND = {"low": 0.5, "high": 1.5, "extrapolated": ["MI300X"]}


def banded(run: Run) -> Run:
    return replace(run, header={**run.header, "cost": COST, "band": BAND})


def shown(run: Run) -> str:
    console = Console(width=160, record=True, file=StringIO())
    console.print(summary_table(summarise(run)))
    return console.export_text()


def test_predicted_medians_come_with_their_band() -> None:
    """TTFT 2 s and TPOT 1 s in a band of 0.5 to 1.5; runs without one have no such column."""
    run = run_of([(0.0, 10, [2.0, 3.0, 4.0], "finished")])
    text = shown(banded(run))
    lines = {
        line.split()[1]: line for line in text.splitlines() if "TTFT" in line or "TPOT" in line
    }
    assert "1.00 to 3.00" in lines["TTFT"]
    assert "0.50 to 1.50" in lines["TPOT"] or "500 to 1,500" in lines["TPOT"]
    assert "extrapolated to MI300X" in " ".join(text.split())
    assert "band" not in shown(run)


def test_the_band_is_part_of_the_summary() -> None:
    """Programs find it under its key; what is not a band is none."""
    found = summarise(banded(busy_run()))
    assert found.band == TimeBand(0.5, 1.5, ("MI300X",))
    assert summary_to_dict(found)["band"] == BAND
    odd = replace(busy_run(), header={"band": {"low": "little"}})
    assert summary_to_dict(summarise(odd))["band"] is None


def test_the_page_names_sources_and_marks_what_is_extrapolated() -> None:
    """Kind, source, error and domain come from the run's header, each source once."""
    run = banded(busy_run())
    assert run_sources([run, run]) == (
        Provenance("extrapolated", "datasheets", "9 %", "x", ("n",)),
    )
    page = render_report([run], [], title="t")
    assert page.count('class="badge extrapolated"') == 1
    assert "p50 band from" in page
    assert "step-roofline" in page


def test_a_band_is_told_in_one_sentence() -> None:
    """Without accelerators beyond the measurements nothing is called extrapolated."""
    assert "0.50 and 1.50 times" in band_sentence(TimeBand(0.5, 1.5))
    assert "extrapolated" not in band_sentence(TimeBand(0.5, 1.5))
