"""Typical node throughput against the published table and over-full placements."""

from __future__ import annotations

import csv
from pathlib import Path

import numpy as np
import pytest
from cost_fleet import COMPOSITIONS, LLAMA2_70B, LLAMA_30B, cluster

from penstock.cost.tables import LayerTableCost
from penstock.cost.typical import typical_throughput

MODELS = {"llama1_30b": LLAMA_30B, "llama2_70b": LLAMA2_70B}


@pytest.mark.reference
def test_all_published_rows_match(reference: Path) -> None:
    """Every row of the published table is reproduced to its printed digits."""
    profiles = reference / "helix" / "profiles"
    found = {}
    for model, spec in MODELS.items():
        cost = LayerTableCost(spec, profiles)
        for name, counts in COMPOSITIONS.items():
            found[model, name] = typical_throughput(cluster(counts), cost)
    with (profiles / "typical_throughput.csv").open() as file:
        rows = list(csv.DictReader(file))
    assert len(rows) == 325
    for row in rows:
        result = found[row["model"], row["cluster_composition"]]
        kind = result.type_names.index(row["machine"])
        value = result.throughput[kind, int(row["num_layers"])]
        assert f"{value:.6f}" == row["node_throughput_tokens_per_s"]


@pytest.mark.reference
def test_fixed_point_matches_the_published_speeds(reference: Path) -> None:
    """Typical layers and per-layer speeds equal the published fixed point."""
    profiles = reference / "helix" / "profiles"
    with (profiles / "fixed_point.csv").open() as file:
        rows = list(csv.DictReader(file))
    for row in rows:
        cost = LayerTableCost(MODELS[row["model"]], profiles)
        result = typical_throughput(cluster(COMPOSITIONS[row["cluster_composition"]]), cost)
        kind = result.type_names.index(row["machine"])
        assert result.typical_layers[kind] == int(row["typical_layers"])
        speed = result.speed_layer_tokens_per_s[kind]
        assert f"{speed:.6f}" == row["normalized_perf_layer_tokens_per_s"]


@pytest.mark.reference
@pytest.mark.parametrize(
    ("machine", "count", "layers", "flow"), [("A100", 4, 20, 1543.814), ("L4", 8, 10, 360.959)]
)
def test_over_full_nodes_keep_the_largest_recommended_batch(
    reference: Path, machine: str, count: int, layers: int, flow: float
) -> None:
    """A pipeline of over-full nodes passes its published max flow."""
    cost = LayerTableCost(LLAMA2_70B, reference / "helix" / "profiles")
    result = typical_throughput(cluster({machine: count}), cost, over_full=True)
    assert result.throughput[0, layers] == pytest.approx(flow, abs=6e-4)


@pytest.mark.reference
def test_composition_of_another_fleet_sets_the_round_trip(reference: Path) -> None:
    """Four A100 judged as part of the 42-node fleet pass the published 818.2 tokens/s."""
    cost = LayerTableCost(LLAMA2_70B, reference / "helix" / "profiles")
    result = typical_throughput(
        cluster({"A100": 4}), cost, composition=cluster(COMPOSITIONS["het42"]), over_full=True
    )
    assert result.throughput[0, 20] == pytest.approx(818.227, abs=6e-4)


@pytest.mark.reference
def test_order_of_nodes_does_not_matter(reference: Path) -> None:
    """The same fleet listed in another order gives the same bits."""
    cost = LayerTableCost(LLAMA2_70B, reference / "helix" / "profiles")
    counts = COMPOSITIONS["het42"]
    one = typical_throughput(cluster(counts), cost)
    other = typical_throughput(cluster(dict(reversed(counts.items()))), cost)
    assert one.type_names == other.type_names
    assert np.array_equal(one.throughput, other.throughput)
