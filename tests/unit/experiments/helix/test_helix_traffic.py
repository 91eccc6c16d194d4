"""The published traffic is drawn exactly, and every method gets the same of it."""

from __future__ import annotations

import csv
from pathlib import Path
from random import Random

import pytest

from penstock.experiments.helix.cases import Traffic
from penstock.experiments.helix.run import SEED, workload_of

pytestmark = pytest.mark.reference


@pytest.mark.parametrize("rate", [1, 140, 700, 2150])
def test_online_traffic_is_the_published_trace(reference: Path, rate: int) -> None:
    """Seed 0 gives the stored arrivals and lengths of each published token rate."""
    helix = reference / "helix"
    traffic = Traffic(float(rate), None, None, 0.0, 1800.0, drains=True)
    drawn = list(workload_of(helix, traffic).requests(SEED))
    path = helix / "traces" / "online_seed0_1800s" / f"rate_{rate}.csv"
    with path.open() as stream:
        stored = list(csv.DictReader(stream))
    assert len(drawn) == len(stored)
    for request, row in zip(drawn, stored, strict=True):
        assert request.arrival_s == pytest.approx(float(row["arrival_s"]), abs=1e-6)
        assert (request.prompt_tokens, request.output_tokens) == (
            int(row["input_tokens"]),
            int(row["output_tokens"]),
        )


def test_offline_lengths_are_the_published_sequence(reference: Path) -> None:
    """The feeder's samples with seed 0 are the stored sequence."""
    helix = reference / "helix"
    lengths = workload_of(helix, Traffic(None, 20, 0.8, 60.0, 600.0, drains=False)).lengths
    assert lengths is not None
    rng = Random(SEED)
    with (helix / "traces" / "offline_length_sequence_seed0.csv").open() as stream:
        for row in csv.DictReader(stream):
            assert lengths.sample(rng) == (int(row["input_tokens"]), int(row["output_tokens"]))
