"""The table of DistServe: its search, its factors, and the points they are read from."""

from __future__ import annotations

from math import isnan
from pathlib import Path

import pytest

from penstock.errors import SpecError
from penstock.experiments.distserve.crossing import crossing, improvement
from penstock.experiments.distserve.reproduce import (
    Request,
    check_sections,
    reproduce_distserve,
    search_rows,
)


def test_crossings_lie_on_the_line_between_two_points() -> None:
    """A curve falls under 90 % between two points; one that never does has no crossing."""
    assert crossing([(1, 100), (3, 80)]) == pytest.approx(2.0)
    assert crossing([(1.0, 80), (2.0, 100)], falls_up=False) == pytest.approx(1.5)
    assert isnan(crossing([(1, 100), (2, 95)]))
    assert isnan(crossing([(1, 85), (2, 80)]))
    assert improvement([(2, 90), (3, 0)], [(1, 90), (2, 0)], falls_up=True) == pytest.approx(2.0)


@pytest.mark.reference
def test_the_published_search_is_found_again(reference: Path) -> None:
    """Shapes and rates equal those of DistServe's own search."""
    rows = search_rows(reference / "distserve")
    assert [row.verdict for row in rows if row.unit == "req/s"] == ["within"] * 3
    assert rows[0].note == "prefill TP2 PP1, decode TP1 PP1"


@pytest.mark.reference
def test_printed_factors_follow_from_the_curves(reference: Path) -> None:
    """Every factor of Figure 9 follows from the published curves within 2 %."""
    request = Request(("9",), only="humaneval slo vllm")
    table = reproduce_distserve(reference / "distserve", request)
    drawn = [row for row in table.rows if row.metric == "from the curves"]
    assert drawn
    assert {row.verdict for row in drawn} == {"within"}


def test_unknown_sections_are_named() -> None:
    """A section that does not exist is the user's mistake."""
    with pytest.raises(SpecError, match="no such section"):
        check_sections(["10"])
