"""The published pruning, link for link."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
from plan_fleets import problem_of
from plan_published import placements, problem

from penstock.errors import SpecError
from penstock.plan.prune import prune, pruned_cluster
from penstock.spec.helix_ini import read_cluster


@pytest.mark.reference
@pytest.mark.parametrize(
    ("where", "folder"),
    [
        ("distributed", "distributed_llama70b/ilp"),
        ("distributed", "ablation_raw_24"),
        ("het42", "het42_llama70b/ilp"),
        ("het42", "ablation_raw_42"),
    ],
)
def test_pruning_keeps_the_published_links(reference: Path, where: str, folder: str) -> None:
    """Twelve fastest links per node, ties by name: the same set as the stored pruned cluster."""
    pruned = pruned_cluster(problem(reference, where, "llama70b").cluster)
    stored = read_cluster(placements(reference) / folder / "pruned_cluster.ini")
    assert dict(pruned.pair_links) == dict(stored.pair_links)


def test_pruned_links_have_no_capacity() -> None:
    """The problem's matrices lose exactly the links the cluster lost."""
    task = problem_of([("A100", 4), ("L4", 6)], "llama2-13b", regions=2)
    less = prune(task, 2)
    for i in range(task.num_nodes + 1):
        for j in range(task.num_nodes + 1):
            names = [*(node.name for node in task.cluster.nodes), "coordinator"]
            kept = (names[i], names[j]) in less.cluster.pair_links
            expected = task.link_tokens_per_s[i, j] if kept else 0.0
            assert less.link_tokens_per_s[i, j] == expected
    assert np.isinf(less.link_latency_s[less.link_tokens_per_s == 0]).all()


def test_every_node_keeps_its_fastest_links() -> None:
    """Each node has at least the kept number of links, and none it lost is faster than all kept."""
    cluster = problem_of([("A100", 4), ("L4", 6)], "llama2-13b", regions=2).cluster
    less = pruned_cluster(cluster, 3)
    for node in cluster.nodes:
        mine = [link for (src, dst), link in less.pair_links.items() if src == node.name
                and dst != "coordinator" and link is not None]  # fmt: skip
        speeds = sorted(
            (link.bandwidth_bytes_per_s for other in cluster.nodes
             if (link := cluster.link(node.name, other.name)) is not None),
            reverse=True,
        )  # fmt: skip
        assert len(mine) >= 3
        kept = sorted((link.bandwidth_bytes_per_s for link in mine), reverse=True)
        assert kept[:3] == speeds[:3]


def test_keeping_more_links_than_there_are_changes_nothing() -> None:
    """A generous limit keeps every link, in the cluster's order."""
    cluster = problem_of([("L4", 3)], "llama2-7b").cluster
    kept = pruned_cluster(cluster, 50)
    assert list(kept.links()) == list(cluster.links())


def test_keeping_no_link_is_refused() -> None:
    """Zero links per node is a mistake, named as such."""
    with pytest.raises(SpecError, match="at least one link"):
        pruned_cluster(problem_of([("L4", 3)], "llama2-7b").cluster, 0)
