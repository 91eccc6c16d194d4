"""A layer placement and the arrays every planner works on."""

from __future__ import annotations

from dataclasses import dataclass
from functools import cached_property

import numpy as np
from numpy.typing import NDArray

from penstock.cost.base import CostModel
from penstock.spec.cluster import Cluster
from penstock.spec.model import ModelSpec

Interval = tuple[int, int]


@dataclass(frozen=True)
class Placement:
    """One contiguous layer interval ``[start, end)`` per node of the cluster; None = no layers."""

    intervals: tuple[Interval | None, ...]


@dataclass(frozen=True)
class PlacementProblem:
    """A cluster, a model and what each node can do with k layers of it.

    Shapes: n nodes, t node types, K the largest ``max_layers``.

    node_type            [n]        type of each node
    max_layers           [t]        most layers a node of the type takes
    throughput           [t, K + 1] T(k), tokens/s of a node holding k layers, prefill and decode
                                    together (Helix section 2); 0 where k is 0 or over the maximum
    link_tokens_per_s    [n+1, n+1] capacity of i -> j; index n is the coordinator; 0 = no link
    link_latency_s       [n+1, n+1] inf = no link
    nic_in_tokens_per_s, nic_out_tokens_per_s   [n]  NIC limits when all traffic is activations
    """

    cluster: Cluster
    model: ModelSpec
    cost: CostModel
    type_names: tuple[str, ...]
    node_type: NDArray[np.int64]
    max_layers: NDArray[np.int64]
    throughput: NDArray[np.float64]
    link_tokens_per_s: NDArray[np.float64]
    link_latency_s: NDArray[np.float64]
    nic_in_tokens_per_s: NDArray[np.float64]
    nic_out_tokens_per_s: NDArray[np.float64]
    partial_inference: bool = False

    @property
    def num_nodes(self) -> int:
        return len(self.node_type)

    @property
    def num_layers(self) -> int:
        return self.model.num_hidden_layers

    @cached_property
    def node_max_layers(self) -> NDArray[np.int64]:
        """``[n]`` most layers of each node."""
        return self.max_layers[self.node_type]
