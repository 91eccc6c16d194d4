"""Rows of Vidur's scenarios."""

from __future__ import annotations

from pathlib import Path

import pytest

from penstock.errors import SpecError
from penstock.experiments.vidur.reproduce import check_sections, reproduce_vidur


@pytest.mark.reference
def test_published_figures_are_ours(reference: Path) -> None:
    """Every judged row of the smallest scenario agrees, and nothing failed."""
    rows = reproduce_vidur(reference / "vidur", ["s3"])
    assert {row.verdict for row in rows} == {"within", "information"}
    assert len(rows) > 20


def test_unknown_scenario_is_named() -> None:
    """A wrong name gets a one-line answer with the nearest one."""
    with pytest.raises(SpecError, match="did you mean"):
        check_sections(["s11"])
