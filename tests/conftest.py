"""Fixtures shared by all tests."""

from __future__ import annotations

import os
from pathlib import Path

import pytest
from hypothesis import settings

# The same examples every time, so that a change is judged by itself; look for new ones with
# --hypothesis-profile=default. No deadline: a busy machine is no fault.
settings.register_profile("repeatable", derandomize=True, deadline=None)
settings.load_profile("repeatable")

REFERENCE = Path(
    os.environ.get("PENSTOCK_REFERENCE", Path(__file__).parents[2] / "shared" / "reference")
)


@pytest.fixture(scope="session")
def reference() -> Path:
    """Folder of reference data (measured tables, published placements and results)."""
    if not REFERENCE.is_dir():
        pytest.skip(
            f"reference data is not at {REFERENCE}; set PENSTOCK_REFERENCE to the folder to run "
            "the comparisons with published results"
        )
    return REFERENCE
