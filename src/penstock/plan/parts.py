"""Machines cut into tensor-parallel groups, each a node of its own."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass, replace

from penstock.spec.cluster import COORDINATOR, Cluster, Link
from penstock.spec.hardware import Node


@dataclass(frozen=True, slots=True)
class Parts:
    """A machine cut into tensor-parallel groups of ``sizes`` GPUs."""

    machine: str
    sizes: tuple[int, ...]

    @property
    def names(self) -> tuple[str, ...]:
        if len(self.sizes) == 1:
            return (self.machine,)
        return tuple(f"{self.machine}.{i}" for i in range(len(self.sizes)))


def cut(cluster: Cluster, parts: Sequence[Parts]) -> Cluster:
    """``cluster`` with each group of ``parts`` as a node of its own.

    Groups of one machine share its NIC in proportion to their GPUs and are joined by the link
    between its GPUs. Machines that ``parts`` does not name stay whole.
    """
    by_machine = {part.machine: part for part in parts if len(part.sizes) > 1}
    nodes: list[Node] = []
    names: dict[str, tuple[str, ...]] = {COORDINATOR: (COORDINATOR,)}
    pairs: dict[tuple[str, str], Link | None] = {}
    for node in cluster.nodes:
        part = by_machine.get(node.name)
        names[node.name] = (node.name,) if part is None else part.names
        if part is None:
            nodes.append(node)
            continue
        nodes += [
            _group(node, label, size) for label, size in zip(part.names, part.sizes, strict=True)
        ]
        inside = Link(node.accelerator.interconnect_bytes_per_s or node.nic_out_bytes_per_s, 0.0)
        pairs.update(dict.fromkeys(_ordered(part.names), inside))
    for (src, dst), link in cluster.pair_links.items():
        pairs.update({(a, b): link for a in names[src] for b in names[dst]})
    return replace(cluster, nodes=tuple(nodes), pair_links=pairs)


def _ordered(names: Sequence[str]) -> Iterator[tuple[str, str]]:
    return ((a, b) for a in names for b in names if a != b)


def _group(node: Node, name: str, gpus: int) -> Node:
    share = gpus / node.count
    short = node.machine_type.removesuffix(f"x{node.count}")
    return replace(
        node,
        name=name,
        count=gpus,
        machine_type=short if gpus == 1 else f"{short}x{gpus}",
        nic_in_bytes_per_s=node.nic_in_bytes_per_s * share,
        nic_out_bytes_per_s=node.nic_out_bytes_per_s * share,
        disk_bytes_per_s=node.disk_bytes_per_s * share,
        memory_bytes=int(node.memory_bytes * share),
        price_per_hour=None if node.price_per_hour is None else node.price_per_hour * share,
    )
