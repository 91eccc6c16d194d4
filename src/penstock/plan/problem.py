"""From a cluster and a cost model to the arrays every planner works on."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import replace

import numpy as np

from penstock.cost.base import CostModel
from penstock.cost.network import TOKEN_ID_BYTES, hop_bytes_per_token
from penstock.cost.typical import NodeThroughput, typical_throughput
from penstock.errors import Infeasible
from penstock.plan.placement import PlacementProblem
from penstock.spec.cluster import Cluster
from penstock.spec.hardware import Node
from penstock.spec.model import Dtype, ModelSpec

GIB = 2**30


def placement_problem(
    cluster: Cluster,
    cost: CostModel,
    *,
    partial_inference: bool = False,
    composition: Cluster | None = None,
    over_full: bool = False,
) -> PlacementProblem:
    """Build the placement problem of ``cost.model`` on ``cluster``.

    Link and NIC capacities count a token id (2 bytes) with its activations; links of the
    coordinator carry ids alone (Helix specification section 3.1). Nodes take at most
    ``cost.max_layers``; where the model does not fit so, up to ``cost.hard_max_layers``.
    ``composition`` and ``over_full`` are those of ``typical_throughput``.

    Raises ``Infeasible`` when the weights do not fit even then.
    """
    full_memory = False
    if not over_full:
        need = cost.model.num_hidden_layers
        full_memory = sum(cost.max_layers(node) for node in cluster.nodes) < need
        if full_memory:
            _check_fit(cluster.nodes, cost)
    nodes = typical_throughput(
        cluster, cost, composition=composition, full_memory=full_memory, over_full=over_full
    )
    return _problem(cluster, cost, nodes, partial_inference)


def _problem(
    cluster: Cluster, cost: CostModel, nodes: NodeThroughput, partial_inference: bool
) -> PlacementProblem:
    bandwidth, latency = cluster.link_matrices()
    per_token = hop_bytes_per_token(cost.model)
    links = bandwidth / per_token
    links[-1, :] = bandwidth[-1, :] / TOKEN_ID_BYTES
    links[:, -1] = bandwidth[:, -1] / TOKEN_ID_BYTES
    return PlacementProblem(
        cluster=cluster,
        model=cost.model,
        cost=cost,
        type_names=nodes.type_names,
        node_type=nodes.node_type,
        max_layers=nodes.max_layers,
        throughput=nodes.throughput,
        link_tokens_per_s=links,
        link_latency_s=latency,
        nic_in_tokens_per_s=np.array([n.nic_in_bytes_per_s for n in cluster.nodes]) / per_token,
        nic_out_tokens_per_s=np.array([n.nic_out_bytes_per_s for n in cluster.nodes]) / per_token,
        partial_inference=partial_inference,
    )


def _check_fit(nodes: Sequence[Node], cost: CostModel) -> None:
    need = cost.model.num_hidden_layers
    room = sum(cost.hard_max_layers(node) for node in nodes)
    if room >= need:
        return
    short_gib = (need - room) * cost.layer_weight_bytes / GIB
    weights_gib = need * cost.layer_weight_bytes / GIB
    raise Infeasible(
        f"{cost.model.name} needs {need} layers ({weights_gib:.1f} GiB of weights); the "
        f"{len(nodes)} nodes hold {room} beside the KV cache of one long sequence: "
        f"{short_gib:.1f} GiB short",
        binding="memory",
        fix=" or ".join(_ways_out(nodes, cost, need - room)) or "a smaller model",
    )


def _ways_out(nodes: Sequence[Node], cost: CostModel, missing_layers: int) -> list[str]:
    """More of the nodes at hand (cheapest first), or the mildest quantisation that fits."""
    ways = []
    kinds: dict[str, Node] = {}
    for node in nodes:
        kinds.setdefault(node.machine_type, node)
    offers = []
    for kind, node in kinds.items():
        room = cost.hard_max_layers(node)
        if room > 0:
            count = math.ceil(missing_layers / room)
            price = math.inf if node.price_per_hour is None else count * node.price_per_hour
            offers.append((price, count, kind))
    if offers:
        _, count, kind = min(offers)
        ways.append(f"{count} more {kind}")
    dtype = _fitting_dtype(nodes, cost.model)
    if dtype is not None:
        ways.append(f"{dtype} weights")
    return ways


def _fitting_dtype(nodes: Sequence[Node], model: ModelSpec) -> Dtype | None:
    # The import is only for the message: tables know one dtype, the roofline all of them.
    from penstock.cost.roofline import RooflineCost  # noqa: PLC0415

    for dtype in ("int8", "int4"):
        smaller = replace(model, weight_dtype=dtype, layer_weight_bytes_override=None)
        if smaller.layer_weight_bytes >= model.layer_weight_bytes:
            continue
        cost = RooflineCost(smaller)
        if sum(cost.hard_max_layers(node) for node in nodes) >= model.num_hidden_layers:
            return dtype
    return None
