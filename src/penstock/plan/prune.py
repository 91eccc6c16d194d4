"""Fewer links: Helix's pruning, which keeps the fastest links of every node.

Source: Helix (ASPLOS'25), section 4.5 and its artifact (specification section 3.2). Penstock's own
planner does not need it: pruning costs flow where all links are equal, because ties fall by name.
"""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import replace
from heapq import nlargest

import numpy as np

from penstock.errors import SpecError
from penstock.plan.placement import PlacementProblem
from penstock.spec.cluster import COORDINATOR, Cluster, Link

PUBLISHED_KEEP = 12
Pair = tuple[int, int]


def prune(problem: PlacementProblem, keep: int = PUBLISHED_KEEP) -> PlacementProblem:
    """Return ``problem`` on the cluster of ``pruned_cluster``; T(k) stays as it is."""
    cluster = pruned_cluster(problem.cluster, keep)
    kept = np.zeros_like(problem.link_tokens_per_s, dtype=bool)
    index = cluster.index
    for src, dst in cluster.pair_links:
        kept[index[src], index[dst]] = True
    return replace(
        problem,
        cluster=cluster,
        link_tokens_per_s=np.where(kept, problem.link_tokens_per_s, 0.0),
        link_latency_s=np.where(kept, problem.link_latency_s, np.inf),
    )


def pruned_cluster(cluster: Cluster, keep: int = PUBLISHED_KEEP) -> Cluster:
    """Return ``cluster`` with the ``keep`` fastest links of every node and, each way, of the
    coordinator, in the cluster's order.

    A link between nodes stays, in both directions, when either end keeps it; the coordinator's
    links do not count against a node. Among equally fast links the larger name goes first: text
    ``Link-<a>-<b>`` with positions a < b between nodes, the larger position at the coordinator.
    """
    if keep < 1:
        raise SpecError("must keep at least one link per node", key="prune", value=keep)
    index = cluster.index
    host = len(cluster.nodes)
    links = [(index[src], index[dst], link) for src, dst, link in cluster.links()]
    kept = _kept_between_nodes(links, host, keep)
    for side in (0, 1):
        ends = [row for row in links if row[side] == host]
        best = nlargest(keep, ends, key=lambda row: (row[2].bandwidth_bytes_per_s, row[:2]))
        kept.update((src, dst) for src, dst, _ in best)
    names = [*(node.name for node in cluster.nodes), COORDINATOR]
    pairs: dict[tuple[str, str], Link | None] = {
        (names[src], names[dst]): link for src, dst, link in links if (src, dst) in kept
    }
    return replace(cluster, region_links={}, pair_links=pairs)


def _kept_between_nodes(links: Iterable[tuple[int, int, Link]], host: int, keep: int) -> set[Pair]:
    """Directed pairs of nodes whose link is among the fastest of either end."""
    speed: dict[Pair, float] = {}
    for src, dst, link in links:
        if host not in (src, dst):
            pair = (min(src, dst), max(src, dst))
            # A pair is as fast as its slower direction.
            speed[pair] = min(speed.get(pair, np.inf), link.bandwidth_bytes_per_s)
    at_node: dict[int, list[tuple[float, str, Pair]]] = {}
    for (a, b), bandwidth in speed.items():
        ranked = (bandwidth, f"Link-{a}-{b}", (a, b))
        at_node.setdefault(a, []).append(ranked)
        at_node.setdefault(b, []).append(ranked)
    kept: set[Pair] = set()
    for candidates in at_node.values():
        for _, _, (a, b) in nlargest(keep, candidates):
            kept.update(((a, b), (b, a)))
    return kept
