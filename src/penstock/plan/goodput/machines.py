"""The machines of a cluster as tensor-parallel groups of any size, and engines on them."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

from penstock.cost.steps import EngineShape
from penstock.spec.cluster import Cluster
from penstock.spec.hardware import Accelerator, Node


@dataclass(frozen=True, slots=True)
class Machines:
    """Equal machines of a cluster, in its order."""

    accelerator: Accelerator
    gpus_per_machine: int
    names: tuple[str, ...]

    @property
    def num_gpus(self) -> int:
        return self.gpus_per_machine * len(self.names)

    @property
    def tensor_parallel_sizes(self) -> tuple[int, ...]:
        most = self.gpus_per_machine
        return tuple(size for size in range(1, most + 1) if most % size == 0)


def machines_of(cluster: Cluster) -> tuple[Machines, ...]:
    """Groups of machines with the same accelerators, in the order of the cluster."""
    groups: dict[tuple[Accelerator | str, int], list[Node]] = {}
    for node in cluster.nodes:
        groups.setdefault((node.accelerator.name, node.count), []).append(node)
    return tuple(
        Machines(nodes[0].accelerator, nodes[0].count, tuple(node.name for node in nodes))
        for nodes in groups.values()
    )


def pipelines(groups: Sequence[str], stages: int) -> list[tuple[str, ...]]:
    """Successive groups as pipelines of ``stages``; what is left over joins none."""
    whole = len(groups) // stages * stages
    return [tuple(groups[i : i + stages]) for i in range(0, whole, stages)]


def shape_on(machines: Machines, tensor: int, stages: int, utilization: float) -> EngineShape:
    return EngineShape(machines.accelerator, tensor, stages, utilization)
