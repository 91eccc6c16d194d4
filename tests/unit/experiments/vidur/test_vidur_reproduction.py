"""Rows of Vidur's scenarios."""

from __future__ import annotations

from pathlib import Path

import pytest

from penstock.experiments.system import Request
from penstock.experiments.vidur.reproduce import reproduce_vidur


@pytest.mark.reference
def test_published_figures_are_ours(reference: Path) -> None:
    """Every judged row of the smallest scenario agrees, nothing failed, and all is drawn."""
    table = reproduce_vidur(reference / "vidur", Request(("s3",)))
    assert {row.verdict for row in table.rows} == {"within", "information"}
    assert len(table.rows) > 20
    assert [plot.name for plot in table.plots] == [
        "vidur s3 ttft",
        "vidur s3 tpot",
        "vidur s3 e2e",
        "vidur s3 scheduling_delay",
        "vidur speed",
    ]
