"""Accelerate: its device map by laws, and its published runs."""

from __future__ import annotations

from pathlib import Path

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from penstock.errors import Infeasible, SpecError
from penstock.experiments.accelerate.device_map import HOST, balanced_map
from penstock.experiments.accelerate.replay import serving_rows
from penstock.experiments.accelerate.reproduce import SECTIONS, reproduce_accelerate
from penstock.experiments.system import Request

SIZES = st.lists(st.integers(1, 20), min_size=1, max_size=40)


@settings(max_examples=100, deadline=None)
@given(SIZES, st.lists(st.integers(0, 200), min_size=1, max_size=8))
def test_blocks_stay_in_order_and_within_memory(sizes: list[int], free: list[int]) -> None:
    """Every block has a place, GPUs ascend, host memory comes last, nothing exceeds its GPU."""
    found = balanced_map(sizes, free, offload=True)
    on_gpus = [gpu for gpu in found.gpu_of if gpu != HOST]
    assert on_gpus == sorted(on_gpus)
    assert list(found.gpu_of) == on_gpus + [HOST] * (len(sizes) - len(on_gpus))
    assert all(used <= room for used, room in zip(found.used_bytes, free, strict=True))
    assert sum(found.used_bytes) + found.host_bytes == sum(sizes)


def test_an_even_model_is_even() -> None:
    """Ten layers a GPU need a share of 10 plus 1.25: eleven go to all but the last."""
    assert balanced_map([1.0] * 40, [100.0] * 4).used_bytes == (11.0, 11.0, 11.0, 7.0)


def test_what_does_not_fit_is_infeasible() -> None:
    """Without offloading the block is named; sizes that mean nothing are refused."""
    with pytest.raises(Infeasible, match="block 2 of 3"):
        balanced_map([5.0] * 3, [5.0, 5.0])
    with pytest.raises(SpecError, match="block_bytes"):
        balanced_map([], [5.0])


@pytest.mark.reference
def test_all_runs_agree(reference: Path) -> None:
    """Median, completed and attainment of all 13 runs; the rate of the 11 with four or eight
    models."""
    rows = serving_rows(reference / "maveriq")
    apart = [row for row in rows if row.verdict == "differs"]
    assert {(row.metric, row.case.split()[1]) for row in apart} == {
        ("requests per minute", "twentyone")
    }


@pytest.mark.reference
def test_the_verb_gives_rows_and_figures(reference: Path) -> None:
    """All sections, and a figure of the seconds a request."""
    table = reproduce_accelerate(reference / "maveriq", Request(SECTIONS))
    assert not [row for row in table.rows if row.verdict == "failed"]
    assert any(plot.name.startswith("accelerate seconds") for plot in table.plots)
