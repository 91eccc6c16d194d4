"""Typical node throughput T(k): what a node holding k layers passes on in tokens/s.

Source: Helix (ASPLOS'25) artifact, machine profiles (specification section 2). T depends on the
composition of the whole cluster: the share of a request's round trip spent at a node decides how
many of its KV-limited sequences are there at once.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from penstock.cost.base import CostModel, LayerTimer
from penstock.cost.tables import LayerTableCost
from penstock.spec.cluster import Cluster
from penstock.spec.hardware import Node

AVERAGE_INPUT_TOKENS = 750
AVERAGE_OUTPUT_TOKENS = 240
KV_FILL = 0.3
ROUNDS = 10
_TYPE_ORDER = ("A100", "V100", "L4", "L4x2", "T4", "T4x2", "T4x4")


@dataclass(frozen=True, slots=True)
class _Start:
    """Published start of the fixed point, by machine type in the order of ``_TYPE_ORDER``."""

    typical_layers: tuple[int, ...]
    scarce_layers: tuple[int, ...]
    speed: tuple[float, ...]


# Helix artifact: constants of its machine profiles. The scale of ``speed`` cancels out.
_PUBLISHED: Mapping[str, _Start] = {
    "llama2_70b": _Start(
        (8, 3, 4, 9, 3, 6, 12), (12, 4, 7, 14, 4, 9, 18), (80, 40, 20, 30, 12.5, 20, 30)
    ),
    "llama1_30b": _Start(
        (12, 4, 8, 14, 4, 10, 20), (18, 7, 11, 22, 7, 15, 30), (48, 25, 9, 15, 8, 15, 23)
    ),
}


@dataclass(frozen=True)
class NodeThroughput:
    """T(k) of every node type of a cluster.

    type_names   [t]        machine types, numbered where two different nodes share a name
    node_type    [n]        type of each node
    max_layers   [t]        most layers of a node of the type
    throughput   [t, K + 1] tokens/s at k layers, prefill and decode together; 0 at k = 0 and
                            beyond ``max_layers``
    typical_layers, speed_layer_tokens_per_s  [t]  the fixed point the figures rest on
    """

    type_names: tuple[str, ...]
    node_type: NDArray[np.int64]
    max_layers: NDArray[np.int64]
    throughput: NDArray[np.float64]
    typical_layers: NDArray[np.int64]
    speed_layer_tokens_per_s: NDArray[np.float64]


@dataclass(frozen=True, slots=True)
class _Type:
    """One node type: how many there are, its first node, its timer."""

    name: str
    node: Node
    count: int
    max_layers: int
    timer: LayerTimer


def typical_throughput(
    cluster: Cluster,
    cost: CostModel,
    *,
    composition: Cluster | None = None,
    full_memory: bool = False,
    over_full: bool = False,
) -> NodeThroughput:
    """T(k) for every node type of ``cluster``.

    ``composition`` is the fleet whose mix sets the round trip (default: ``cluster``).
    ``full_memory`` allows up to ``cost.hard_max_layers`` layers. ``over_full`` lets every type
    hold all layers and keeps, beyond ``cost.max_layers``, the batch of that many layers: the
    published ``force_set`` of the separate pipelines.
    """
    types = _types(cluster, cost, full_memory=full_memory, over_full=over_full)
    mix = types if composition is None else _types(composition, cost)
    typical, speed = _fixed_point(mix, cost)
    mean_s = _mean_layer_s(mix, typical, speed)
    by_name = {t.name: i for i, t in enumerate(mix)}
    own_speed = [speed[by_name[t.name]] if t.name in by_name else _first_speed(t) for t in types]
    largest = max(t.max_layers for t in types)
    table = np.zeros((len(types), largest + 1))
    for i, kind in enumerate(types):
        own = cost.max_layers(kind.node) if over_full else kind.max_layers
        for k in range(1, own + 1):
            table[i, k] = _throughput(kind, cost, k, k / own_speed[i], mean_s)
        if own > 0:
            beyond = np.arange(own + 1, kind.max_layers + 1)
            table[i, beyond] = table[i, own] * own / beyond
    return NodeThroughput(
        tuple(t.name for t in types),
        _node_types(cluster, types),
        np.array([t.max_layers for t in types], dtype=np.int64),
        table,
        np.array([typical[by_name[t.name]] if t.name in by_name else 0 for t in types]),
        np.array(own_speed),
    )


def _identity(node: Node) -> tuple[str, str, int, int]:
    return (node.machine_type, node.accelerator.name, node.count, node.memory_bytes)


def _first_nodes(cluster: Cluster) -> list[tuple[str, Node, int]]:
    """(name, first node, count) of every type: published types first, then by identity."""
    found: dict[tuple[str, str, int, int], tuple[Node, int]] = {}
    for node in cluster.nodes:
        first, count = found.get(_identity(node), (node, 0))
        found[_identity(node)] = (first, count + 1)
    rank = {name: i for i, name in enumerate(_TYPE_ORDER)}
    order = sorted(found, key=lambda key: (rank.get(key[0], len(rank)), key))
    names = [key[0] for key in order]
    numbered = [
        f"{name} ({names[: i + 1].count(name)})" if names.count(name) > 1 else name
        for i, name in enumerate(names)
    ]
    return [(name, *found[key]) for name, key in zip(numbered, order, strict=True)]


def _types(
    cluster: Cluster, cost: CostModel, *, full_memory: bool = False, over_full: bool = False
) -> list[_Type]:
    types = []
    for name, node, count in _first_nodes(cluster):
        if over_full:
            most = cost.model.num_hidden_layers
        elif full_memory:
            most = cost.hard_max_layers(node)
        else:
            most = cost.max_layers(node)
        most = min(most, cost.model.num_hidden_layers)
        types.append(_Type(name, node, count, most, cost.planning_timer(node)))
    return types


def _node_types(cluster: Cluster, types: list[_Type]) -> NDArray[np.int64]:
    number = {_identity(t.node): i for i, t in enumerate(types)}
    return np.array([number[_identity(node)] for node in cluster.nodes], dtype=np.int64)


def _first_speed(kind: _Type) -> float:
    """Layer tokens/s of one average request decoded 16 at a time: the start where none is given."""
    prefill_s = kind.timer(AVERAGE_INPUT_TOKENS, 0, 0)
    context = 16 * (AVERAGE_INPUT_TOKENS + AVERAGE_OUTPUT_TOKENS // 2)
    decode_s = AVERAGE_OUTPUT_TOKENS * kind.timer(0, 16, context) / 16
    return (AVERAGE_INPUT_TOKENS + AVERAGE_OUTPUT_TOKENS) / (prefill_s + decode_s)


def _start(mix: list[_Type], cost: CostModel) -> tuple[list[int], list[int], list[float]]:
    """Typical layers, layers when the fleet is scarce, and first speed of each type.

    The published figures go with the published tables. Elsewhere a typical node holds two thirds
    of its most layers (the ratio of the published figures: 0.57 to 0.75) and the speed comes from
    its own timer.
    """
    published = _PUBLISHED.get(cost.profile_name) if isinstance(cost, LayerTableCost) else None
    if published is not None and all(t.name in _TYPE_ORDER for t in mix):
        at = [_TYPE_ORDER.index(t.name) for t in mix]
        return (
            [published.typical_layers[i] for i in at],
            [published.scarce_layers[i] for i in at],
            [published.speed[i] for i in at],
        )
    most = [t.max_layers for t in mix]
    typical = [max(1, round(2 * k / 3)) if k else 0 for k in most]
    return typical, most, [_first_speed(t) for t in mix]


def _fixed_point(mix: list[_Type], cost: CostModel) -> tuple[list[int], list[float]]:
    """(typical layers, layer tokens/s) of each type after ``ROUNDS`` rounds."""
    typical, scarce, speed = _start(mix, cost)
    held = sum(t.count * y for t, y in zip(mix, typical, strict=True))
    if held < 1.2 * cost.model.num_hidden_layers:
        typical = scarce
    for _ in range(ROUNDS):
        mean_s = _mean_layer_s(mix, typical, speed)
        updated = [
            y * _throughput(t, cost, y, y / p, mean_s) if y else 0.0
            for t, y, p in zip(mix, typical, speed, strict=True)
        ]
        # A type without room passes nothing; its old speed keeps the mean finite.
        speed = [new if new > 0 else old for new, old in zip(updated, speed, strict=True)]
    return typical, speed


def _mean_layer_s(mix: list[_Type], typical: list[int], speed: list[float]) -> float:
    """Mean time a token spends per layer elsewhere in the fleet (in the unit of 1 / speed)."""
    rows = list(zip(mix, typical, speed, strict=True))
    return sum(t.count * y / p for t, y, p in rows) / sum(t.count * y for t, y, _ in rows)


def _throughput(kind: _Type, cost: CostModel, layers: int, stay_s: float, mean_s: float) -> float:
    """T(k) of one node: KV-limited sequences present, split into whole prompts and decodes.

    ``stay_s``: time of a batch at this node; ``mean_s``: time per layer at the others. Rounding
    is half to even, as published. Where it would leave an empty batch (little KV memory), one
    decode sequence and its share of a prompt stand in for it.
    """
    elsewhere = cost.model.num_hidden_layers - layers
    share = stay_s / (stay_s + elsewhere * mean_s)
    kv_tokens = int(KV_FILL * cost.kv_capacity_layer_tokens(kind.node, layers) / layers)
    if kv_tokens <= 0:
        return 0.0
    decodes = kv_tokens / (AVERAGE_INPUT_TOKENS + AVERAGE_OUTPUT_TOKENS) * share
    requests = decodes / AVERAGE_OUTPUT_TOKENS
    if round(AVERAGE_INPUT_TOKENS * requests) + round(decodes) == 0:
        decodes, requests = 1.0, 1.0 / AVERAGE_OUTPUT_TOKENS
    prompt_tokens, decode_seqs = round(AVERAGE_INPUT_TOKENS * requests), round(decodes)
    if requests > 1:
        requests, prompt_tokens, decode_seqs = 1.0, AVERAGE_INPUT_TOKENS, AVERAGE_OUTPUT_TOKENS
    context = decode_seqs * (AVERAGE_INPUT_TOKENS + AVERAGE_OUTPUT_TOKENS // 2)
    decode_s = kind.timer(0, decode_seqs, context)
    if requests >= 1:
        batch_s = kind.timer(prompt_tokens, 0, 0) + decode_s
        return (prompt_tokens + decode_seqs) / (layers * batch_s)
    spread = 1 / requests
    batch_s = kind.timer(int(prompt_tokens * spread), 0, 0) + spread * decode_s
    return spread * (prompt_tokens + decode_seqs) / (layers * batch_s)
