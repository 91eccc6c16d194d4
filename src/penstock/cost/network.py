"""Seconds and bytes on links and disks."""

from __future__ import annotations

from penstock.cost.base import CostModel
from penstock.spec.cluster import Link
from penstock.spec.hardware import Node
from penstock.spec.model import ModelSpec

# Helix artifact: a token id travels as 2 bytes (int16 suffices for its 32,000-word vocabulary).
TOKEN_ID_BYTES = 2


def hop_bytes_per_token(model: ModelSpec, *, coordinator: bool = False) -> int:
    """Bytes one token takes on a hop: its id, and between nodes also its hidden state."""
    return TOKEN_ID_BYTES if coordinator else TOKEN_ID_BYTES + model.activation_bytes_per_token


def iteration_bytes(model: ModelSpec, tokens: int, *, coordinator: bool = False) -> int:
    """Bytes an iteration of ``tokens`` tokens takes on a hop; results to the coordinator alike."""
    return tokens * hop_bytes_per_token(model, coordinator=coordinator)


def kv_bytes(model: ModelSpec, tokens: int, layers: int) -> int:
    """Bytes of the KV cache of ``tokens`` tokens on ``layers`` layers."""
    return tokens * layers * model.kv_bytes_per_token_per_layer


def transfer_s(num_bytes: float, link: Link) -> float:
    """Latency plus transmission at the full bandwidth of ``link``."""
    return link.latency_s + num_bytes / link.bandwidth_bytes_per_s


def loading_s(cost: CostModel, node: Node, layers: int) -> float:
    """Seconds to read the weights of ``layers`` layers from the node's disk."""
    return layers * cost.layer_weight_bytes / node.disk_bytes_per_s
