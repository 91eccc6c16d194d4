"""From a cluster and a cost model to planner arrays."""

from __future__ import annotations

import time
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
from cost_fleet import COMPOSITIONS, LLAMA2_70B, cluster

from penstock.cost.roofline import RooflineCost
from penstock.cost.tables import LayerTableCost
from penstock.errors import Infeasible
from penstock.plan.problem import placement_problem
from penstock.spec.cluster import Link

REGIONS = ("a", "b", "c", "d", "e")


def test_capacities_by_hand() -> None:
    """Links carry ids and activations between nodes, ids alone at the coordinator."""
    problem = placement_problem(cluster({"A100": 8}, regions=("a", "b")), RooflineCost(LLAMA2_70B))
    link = problem.link_tokens_per_s
    assert link.shape == (9, 9)
    assert link[0, 2] == 1e9 / 16386
    assert link[0, 1] == 12.5e6 / 16386
    assert link[8, 0] == 1e9 / 2
    assert link[1, 8] == 12.5e6 / 2
    assert np.all(np.diag(link) == 0)
    assert problem.link_latency_s[0, 1] == 0.05
    assert problem.nic_out_tokens_per_s.tolist() == [10e9 / 16386] * 8


@pytest.mark.reference
def test_published_upper_bound(reference: Path) -> None:
    """The sum of max k T(k) / L over the nodes is the published bound of every fleet."""
    cost = LayerTableCost(LLAMA2_70B, reference / "helix" / "profiles")
    for name, bound in (("single24_or_distributed24", 2803.9), ("het42", 7104.3)):
        problem = placement_problem(cluster(COMPOSITIONS[name]), cost)
        k = np.arange(problem.throughput.shape[1])
        best = (k * problem.throughput).max(axis=1)[problem.node_type]
        assert best.sum() / 80 == pytest.approx(bound, abs=0.05)


def test_a_thousand_nodes_in_five_regions_are_quick() -> None:
    """A 1,000-node, 5-region problem takes under two seconds."""
    counts = {"A100": 200, "L4": 300, "T4": 300, "V100": 100, "L4x2": 100}
    fleet = cluster(counts, regions=REGIONS)
    start = time.perf_counter()
    problem = placement_problem(fleet, RooflineCost(LLAMA2_70B))
    assert time.perf_counter() - start < 2
    assert problem.num_nodes == 1000
    assert problem.type_names == ("A100", "V100", "L4", "L4x2", "T4")
    assert np.all(problem.throughput[problem.node_type, problem.node_max_layers] > 0)


def test_cut_pairs_have_no_capacity() -> None:
    """A named pair overrides its regions; None cuts it."""
    fleet = cluster({"A100": 8})
    names = [n.name for n in fleet.nodes]
    pairs = {(names[0], names[1]): None, (names[1], names[0]): Link(5e6, 0.2)}
    problem = placement_problem(replace(fleet, pair_links=pairs), RooflineCost(LLAMA2_70B))
    assert problem.link_tokens_per_s[0, 1] == 0
    assert np.isinf(problem.link_latency_s[0, 1])
    assert problem.link_tokens_per_s[1, 0] == 5e6 / 16386


def test_memory_is_filled_further_when_half_is_not_enough() -> None:
    """Four A100 hold 70B only beyond the half-memory rule."""
    cost = RooflineCost(LLAMA2_70B)
    problem = placement_problem(cluster({"A100": 4}), cost)
    assert 4 * cost.max_layers(problem.cluster.nodes[0]) < 80
    assert problem.max_layers.tolist() == [cost.hard_max_layers(problem.cluster.nodes[0])]
    assert problem.throughput[0, -1] > 0


def test_a_model_that_cannot_fit() -> None:
    """The shortage is stated in GiB with what would help."""
    cost = RooflineCost(LLAMA2_70B)
    fleet = cluster({"A100": 2})
    room = sum(cost.hard_max_layers(node) for node in fleet.nodes)
    short_gib = (80 - room) * 2 * 855_638_016 / 2**30
    with pytest.raises(Infeasible) as caught:
        placement_problem(fleet, cost)
    message = str(caught.value)
    assert f"{short_gib:.1f} GiB short" in message
    assert "2 more A100 or int8 weights" in message
    assert caught.value.binding == "memory"


def test_the_cheapest_addition_is_named_first() -> None:
    """With prices known, the way out is the cheapest one."""
    fleet = cluster({"A100": 1, "L4": 1})
    priced = replace(
        fleet,
        nodes=tuple(
            replace(n, price_per_hour=100.0 if n.machine_type == "A100" else 0.7)
            for n in fleet.nodes
        ),
    )
    with pytest.raises(Infeasible, match=r"\d+ more L4"):
        placement_problem(priced, RooflineCost(LLAMA2_70B))


def test_nodes_too_small_for_one_layer_take_none() -> None:
    """A node that cannot hold a layer gets none; the others carry the model."""
    fleet = cluster({"A100": 8, "T4": 1})
    tiny = tuple(
        replace(n, memory_bytes=10**9) if n.machine_type == "T4" else n for n in fleet.nodes
    )
    problem = placement_problem(replace(fleet, nodes=tiny), RooflineCost(LLAMA2_70B))
    assert problem.max_layers.tolist() == [11, 0]
    assert np.all(problem.throughput[1] == 0)
    assert np.all(np.isfinite(problem.throughput))
