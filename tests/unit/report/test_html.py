"""The HTML report."""

from __future__ import annotations

import re
import subprocess
import sys
from dataclasses import replace
from html.parser import HTMLParser
from pathlib import Path

import pytest
from tests.unit.measure.runs import busy_run, run_of
from tests.unit.report.plans import plan_of

from penstock.cost.base import Provenance
from penstock.errors import InputError, StorageError
from penstock.measure.definitions import DEFINITIONS
from penstock.report.html import render_report, write_report
from penstock.report.plans import proof_line

MIXED = {("eu", "A100"): 4, ("eu", "L4"): 8, ("us", "T4"): 12}


class _Checker(HTMLParser):
    """Collects ids, links, resources and unbalanced tags."""

    VOID = frozenset({"meta", "link", "br", "hr", "img", "input"})

    def __init__(self) -> None:
        super().__init__()
        self.ids: list[str] = []
        self.links: list[str] = []
        self.resources: list[str] = []
        self.charts: list[dict[str, str | None]] = []
        self.open: list[str] = []
        self.text: list[str] = []

    def handle_starttag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        values = dict(attrs)
        if "id" in values:
            self.ids.append(values["id"] or "")
        if tag == "a":
            self.links.append(values["href"] or "")
        elif "src" in values or "href" in values:
            self.resources.append(str(values))
        if tag == "svg" and "chart" in (values.get("class") or ""):
            self.charts.append(values)
        if tag not in self.VOID:
            self.open.append(tag)

    def handle_startendtag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        del tag, attrs

    def handle_endtag(self, tag: str) -> None:
        assert self.open, f"</{tag}> closes nothing"
        assert self.open[-1] == tag
        self.open.pop()

    def handle_data(self, data: str) -> None:
        if not self.open or self.open[-1] not in {"style", "script"}:
            self.text.append(data)


def _check(page: str) -> _Checker:
    checker = _Checker()
    checker.feed(page)
    assert checker.open == []
    assert len(set(checker.ids)) == len(checker.ids)
    return checker


def _page(**more: object) -> str:
    plans = [plan_of(MIXED, planner="helix"), plan_of(MIXED)]
    runs = [
        busy_run(
            plan.planner,
            seed=i,
            requests=300 + 100 * i,
            pace_s=0.05 / (i + 1),
            nodes=[engine.name for engine in plan.engines],
            header={"kind": "simulated", "seed": 3, "planner": plan.planner, "workload": "conv"},
        )
        for i, plan in enumerate(plans)
    ]
    return render_report(runs, plans, title="Mixed fleet", **more)  # type: ignore[arg-type]


def test_the_page_is_complete_in_itself() -> None:
    """Nothing is loaded from anywhere; every link points into the page."""
    page = _page()
    checker = _check(page)

    assert checker.resources == []
    for link in checker.links:
        assert link.startswith("#")
        assert link[1:] in checker.ids
    assert not re.search(r"url\(|@import|https?://(?!www\.w3\.org/2000/svg)", page)


def test_every_chart_has_a_text_alternative() -> None:
    """Each drawing names a title and a description that exist."""
    checker = _check(_page())

    assert len(checker.charts) >= 10
    for chart in checker.charts:
        assert chart["role"] == "img"
        assert all(name in checker.ids for name in (chart["aria-labelledby"] or "").split())


def test_the_page_says_who_won_and_how_numbers_are_defined() -> None:
    """Headline, definitions and provenance are in words."""
    source = Provenance("fitted", "layer tables", "mean 4.1 %", "1 to 2,048 tokens")
    text = " ".join(_check(_page(provenance=[source])).text)

    assert "penstock has the highest decode throughput" in text
    assert "proved optimal" in text
    assert "mean 4.1 %" in text
    for sentence in DEFINITIONS.values():
        assert sentence in text


def test_names_from_files_are_escaped() -> None:
    """A name with markup stays text."""
    run = replace(busy_run(), name="<script>alert(1)</script>")
    page = render_report([run], [], title="<b>x</b> & y")

    assert "<script>alert" not in page
    assert "<b>x</b>" not in page
    _check(page)


@pytest.mark.parametrize("nodes", [1, 42, 1000])
def test_fleets_of_any_size_are_drawn(nodes: int) -> None:
    """One node, 42 nodes and 1,000 nodes give a page of sensible size."""
    plan = (
        plan_of({("eu", "A100"): nodes}, spare=0)
        if nodes < 9
        else plan_of(
            {("eu", "A100"): nodes // 4, ("eu", "L4"): nodes // 4, ("us", "T4"): nodes - nodes // 2}
        )
    )
    run = busy_run("penstock", nodes=[engine.name for engine in plan.engines], requests=50)
    page = render_report([run], [plan], title="Fleet")

    _check(page)
    assert len(page) < 1_500_000


def test_plans_alone_and_runs_alone_make_a_page() -> None:
    """Either kind of document is enough; nothing at all is a mistake."""
    _check(render_report([], [plan_of(MIXED)], title="Plan"))
    _check(render_report([busy_run()], [], title="Run"))
    with pytest.raises(InputError, match="nothing to report"):
        render_report([], [], title="")


def test_an_empty_run_makes_a_page() -> None:
    """No request, no token: the page says so instead of failing."""
    page = render_report([run_of([]), run_of([(1.0, 5, [], "rejected")])], [], title="Empty")

    assert "no samples in the window" in page
    _check(page)


def test_published_semantics_show_published_percentiles() -> None:
    """A run whose prompt iteration is no token shows prompt and decode latency."""
    run = run_of([(0.0, 5, [1.0, 1.5, 2.25], "finished")] * 3, first_iteration_is_token=False)
    text = " ".join(_check(render_report([run], [], title="Published")).text)

    assert "Prompt latency, published percentiles" in text
    assert "Decode latency" in text


def test_limits_make_goodput_the_headline() -> None:
    """With limits set, the best run is the one with the most good requests."""
    header = {"kind": "simulated", "classes": [{"name": "", "slo": {"ttft_s": 0.3}}]}
    slow = replace(busy_run("slow", pace_s=0.2), header=header)
    fast = replace(busy_run("fast", pace_s=0.02), header=header)
    text = " ".join(_check(render_report([slow, fast], [], title="SLO")).text)

    assert "fast has the highest goodput" in text


def test_a_plan_without_bound_admits_it() -> None:
    """No bound means the distance from the best possible is not known, and the page says so."""
    plan = replace(plan_of(MIXED), max_flow_bound_tokens_per_s=None, proved_optimal=False)

    assert "not known" in proof_line(plan)
    assert "gap" in proof_line(plan_of(MIXED, planner="swarm"))


def test_equal_inputs_give_equal_pages() -> None:
    """The page depends on its inputs alone, also under another hash seed."""
    root = Path(__file__).parents[3]
    code = (
        "import hashlib; from tests.unit.report.test_html import _page;"
        "print(hashlib.sha256(_page().encode()).hexdigest())"
    )
    digests = {
        subprocess.run(
            [sys.executable, "-c", code],
            check=True,
            cwd=root,
            env={"PYTHONHASHSEED": seed, "PYTHONPATH": str(root)},
            capture_output=True,
            text=True,
        ).stdout
        for seed in ("1", "2")
    }

    assert len(digests) == 1


def test_a_refused_write_leaves_the_old_page(tmp_path: Path) -> None:
    """A path that cannot be written is one line, and nothing half-written stays."""
    path = tmp_path / "report.html"
    write_report(path, [busy_run()], [], title="One")
    before = path.read_text()
    with pytest.raises(StorageError, match="cannot be written"):
        write_report(tmp_path / "missing" / "report.html", [busy_run()], [], title="Two")

    assert path.read_text() == before
    assert [entry.name for entry in tmp_path.iterdir()] == ["report.html"]


def test_classes_have_their_own_table() -> None:
    """Service is shown for each class, with the limits it was held to."""
    rows = [(float(i), 10, [i + 0.5, i + 1.0], "finished") for i in range(4)]
    header = {"classes": [{"name": "chat", "slo": {"ttft_s": 0.4, "tpot_s": 1.0}}]}
    run = run_of(rows, header=header, class_index=[0, 1, 0, 1], class_names=("chat", "batch"))
    text = " ".join(_check(render_report([run], [], title="Classes")).text)

    assert "By SLO class" in text
    assert "TTFT 400.0 ms, TPOT 1.00 s" in text
    assert "run · batch" in text


def test_a_tie_has_no_winner() -> None:
    """Two equal runs are called equal."""
    page = render_report([busy_run("a"), busy_run("b")], [], title="Tie")

    assert "a and b have the same decode throughput." in page
