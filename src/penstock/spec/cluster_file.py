"""Clusters as files: groups of equal machines, regions and the network between them.

``cluster_to_dict`` writes the same form as people do, in plain base units, so that the cluster
inside a plan can be cut out and used as a cluster file again.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from dataclasses import replace
from pathlib import Path
from typing import Annotated

import numpy as np
from pydantic import AliasChoices, Field, model_validator
from pydantic_core import PydanticCustomError

from penstock.errors import SpecError
from penstock.spec.catalogue import accelerator, catalogue, machine_type
from penstock.spec.cluster import COORDINATOR, Cluster, Link
from penstock.spec.hardware import Accelerator, Coordinator, Interconnect, Node
from penstock.spec.model import Dtype
from penstock.spec.names import did_you_mean, normalise
from penstock.spec.strict import (
    Bandwidth,
    Bytes,
    Duration,
    Flops,
    Name,
    Price,
    Strict,
    validate,
)

DEFAULT_NIC_BYTES_PER_S = 10e9 / 8
DEFAULT_DISK_BYTES_PER_S = 1e9
MAX_GROUP = 100_000


class AcceleratorFile(Strict):
    """An accelerator of your own, or changed figures of a known one (all must be given)."""

    memory: Bytes
    bandwidth: Bandwidth
    flops: dict[Dtype, Flops]
    interconnect: Interconnect = "pcie"
    interconnect_bandwidth: Bandwidth = 32e9
    price: Price | None = None
    source: str = "the cluster file"


class GroupFile(Strict):
    """Equal machines. With ``count`` they are called ``<name>-0``, ``<name>-1``, ...; without it
    there is one machine called ``name``; ``names`` lists them one by one.
    """

    name: Name | None = None
    names: list[Name] | None = Field(default=None, min_length=1)
    accelerator: str
    count: Annotated[int, Field(strict=True, ge=1, le=MAX_GROUP)] | None = None
    accelerators_per_node: int = Field(
        default=1,
        strict=True,
        ge=1,
        le=1024,
        validation_alias=AliasChoices("accelerators_per_node", "tensor_parallel_size"),
    )
    region: Name = "default"
    nic: Bandwidth | None = None
    nic_in: Bandwidth | None = None
    nic_out: Bandwidth | None = None
    disk: Bandwidth = DEFAULT_DISK_BYTES_PER_S
    memory: Bytes | None = Field(default=None, description="of the whole machine")
    price: Price | None = Field(default=None, description="of the whole machine")
    machine_type: Name | None = None

    @model_validator(mode="after")
    def _one_way_of_naming(self) -> GroupFile:
        if self.names is not None and (self.name is not None or self.count is not None):
            raise PydanticCustomError(
                "naming", "{problem}", {"problem": "give names, or name and count, not both"}
            )
        return self


class CoordinatorFile(Strict):
    """The CPU machine in front."""

    region: Name | None = None
    nic: Bandwidth | None = None
    nic_in: Bandwidth | None = None
    nic_out: Bandwidth | None = None


class LinkFile(Strict):
    bandwidth: Bandwidth
    latency: Duration


class EndsFile(Strict):
    """A link ``between: [a, b]`` in both directions, or one way ``from`` a ``to`` b."""

    between: tuple[Name, Name] | None = None
    src: Name | None = Field(default=None, alias="from")
    dst: Name | None = Field(default=None, alias="to")
    bandwidth: Bandwidth | None = None
    latency: Duration | None = None
    cut: bool = Field(default=False, description="true: not joined at all")

    @model_validator(mode="after")
    def _complete(self) -> EndsFile:
        one_way = self.src is not None and self.dst is not None
        problem = None
        if (self.between is None) == (not one_way) or (
            self.between is not None and (self.src or self.dst)
        ):
            problem = "say `between: [a, b]` (both ways) or `from: a` and `to: b` (one way)"
        elif self.cut != (self.bandwidth is None or self.latency is None):
            problem = "give bandwidth and latency, or `cut: true`"
        if problem:
            raise PydanticCustomError("ends", "{problem}", {"problem": problem})
        return self

    def directed(self) -> Iterable[tuple[str, str]]:
        a, b = self.between or (self.src or "", self.dst or "")
        return ((a, b), (b, a)) if self.between else ((a, b),)

    @property
    def link(self) -> Link | None:
        if self.bandwidth is None or self.latency is None:
            return None
        return Link(self.bandwidth, self.latency)


LinkRow = Annotated[
    tuple[Name, Name, Bandwidth | None, Duration | None],
    Field(description="[from, to, bandwidth, latency]; null for both cuts the pair"),
]


class NetworkFile(Strict):
    """Later entries refine earlier ones: in_region, between_regions, regions, pairs, links."""

    in_region: LinkFile | None = LinkFile(bandwidth=10e9 / 8, latency=1e-3)
    between_regions: LinkFile | None = None
    regions: list[EndsFile] = Field(default_factory=list)
    pairs: list[EndsFile] = Field(default_factory=list)
    links: list[LinkRow] = Field(default_factory=list)


class ClusterFile(Strict):
    """A fleet of machines."""

    name: str = ""
    description: str = ""
    regions: list[Name] | None = None
    accelerators: dict[str, AcceleratorFile] = Field(default_factory=dict)
    nodes: list[GroupFile] = Field(min_length=1)
    coordinator: CoordinatorFile = CoordinatorFile()
    network: NetworkFile = NetworkFile()


def cluster_from_dict(data: object, source: str | Path = "cluster") -> Cluster:
    """Return the cluster that ``data`` (the content of a cluster file) describes.

    Raises ``SpecError`` naming the key; also for duplicate names, unknown regions and nodes, and
    nodes that no request can reach.
    """
    file = validate(ClusterFile, data, source)
    try:
        cluster = _build(file)
        if not cluster.name:
            cluster = replace(cluster, name=Path(str(source)).stem)
        check_connected(cluster)
    except SpecError as error:
        raise error.at(source) from None
    return cluster


def _build(file: ClusterFile) -> Cluster:
    custom = {normalise(name): _accelerator(name, raw) for name, raw in file.accelerators.items()}
    nodes: list[Node] = []
    taken = {COORDINATOR: "the coordinator"}
    for i, group in enumerate(file.nodes):
        try:
            found = custom.get(normalise(group.accelerator)) or accelerator(group.accelerator)
        except SpecError as error:
            known = [*file.accelerators, *catalogue().accelerators]
            raise SpecError(
                error.problem,
                key=f"nodes[{i}].accelerator",
                value=group.accelerator,
                fix=did_you_mean(group.accelerator, known),
            ) from None
        for node in _expand(group, found):
            if node.name in taken:
                raise SpecError(
                    f"this name is already that of {taken[node.name]}",
                    key=f"nodes[{i}].name",
                    value=node.name,
                    fix="give each group its own name",
                )
            taken[node.name] = f"a node of nodes[{i}]"
            nodes.append(node)
    coordinator = _coordinator(file, nodes)
    regions = _regions(file, nodes, coordinator)
    region_links = _region_links(file.network, regions)
    return Cluster(file.name, tuple(nodes), coordinator, region_links, _pairs(file, list(taken)))


def _accelerator(name: str, raw: AcceleratorFile) -> Accelerator:
    return Accelerator(
        name=name,
        memory_bytes=raw.memory,
        memory_bandwidth_bytes_per_s=raw.bandwidth,
        flops_per_s={str(dtype): value for dtype, value in raw.flops.items()},
        interconnect=raw.interconnect,
        interconnect_bytes_per_s=raw.interconnect_bandwidth,
        price_per_hour=raw.price,
        source=raw.source,
    )


def _expand(group: GroupFile, found: Accelerator) -> Iterable[Node]:
    count = group.accelerators_per_node
    kind = group.machine_type or machine_type(found.name, count)
    if group.names is not None:
        names = group.names
    else:
        base = group.name or kind.lower()
        names = [base] if group.count is None else [f"{base}-{i}" for i in range(group.count)]
    nic = group.nic or DEFAULT_NIC_BYTES_PER_S
    price = group.price
    if "price" not in group.model_fields_set and found.price_per_hour is not None:
        price = found.price_per_hour * count
    for name in names:
        yield Node(
            name=name,
            accelerator=found,
            count=count,
            machine_type=kind,
            region=group.region,
            nic_in_bytes_per_s=group.nic_in or nic,
            nic_out_bytes_per_s=group.nic_out or nic,
            disk_bytes_per_s=group.disk,
            memory_bytes=group.memory or found.memory_bytes * count,
            price_per_hour=price,
        )


def _coordinator(file: ClusterFile, nodes: list[Node]) -> Coordinator:
    given = file.coordinator
    nic = given.nic or DEFAULT_NIC_BYTES_PER_S
    return Coordinator(given.region or nodes[0].region, given.nic_in or nic, given.nic_out or nic)


def _regions(file: ClusterFile, nodes: list[Node], coordinator: Coordinator) -> list[str]:
    used = list(dict.fromkeys([*(node.region for node in nodes), coordinator.region]))
    if file.regions is None:
        return used
    for i, group in enumerate(file.nodes):
        _known(group.region, file.regions, f"nodes[{i}].region", "region")
    _known(coordinator.region, file.regions, "coordinator.region", "region")
    return list(dict.fromkeys(file.regions))


def _known(name: str, known: Iterable[str], key: str, what: str) -> None:
    if name not in known:
        raise SpecError(f"unknown {what}", key=key, value=name, fix=did_you_mean(name, known))


def _region_links(network: NetworkFile, regions: list[str]) -> dict[tuple[str, str], Link]:
    links: dict[tuple[str, str], Link] = {}
    for a in regions:
        for b in regions:
            default = network.in_region if a == b else network.between_regions
            if default is not None:
                links[a, b] = Link(default.bandwidth, default.latency)
    for i, entry in enumerate(network.regions):
        for a, b in entry.directed():
            for name in (a, b):
                _known(name, regions, f"network.regions[{i}]", "region")
            if entry.link is None:
                links.pop((a, b), None)
            else:
                links[a, b] = entry.link
    return links


def _pairs(file: ClusterFile, names: list[str]) -> dict[tuple[str, str], Link | None]:
    known = dict.fromkeys(names)
    pairs: dict[tuple[str, str], Link | None] = {}

    def add(key: str, a: str, b: str, link: Link | None) -> None:
        for name in (a, b):
            if name not in known:
                _known(name, names, key, "node")
        if a == b:
            raise SpecError("a node cannot be linked to itself", key=key, value=a)
        pairs[a, b] = link

    for i, entry in enumerate(file.network.pairs):
        for a, b in entry.directed():
            add(f"network.pairs[{i}]", a, b, entry.link)
    for i, (a, b, bandwidth, latency) in enumerate(file.network.links):
        if (bandwidth is None) != (latency is None):
            raise SpecError("give bandwidth and latency, or null for both", key=f"links[{i}]")
        link = None if bandwidth is None or latency is None else Link(bandwidth, latency)
        add(f"network.links[{i}]", a, b, link)
    return pairs


def check_connected(cluster: Cluster) -> None:
    """Raise ``SpecError`` naming the nodes that requests cannot reach, or return from."""
    bandwidth, _ = cluster.link_matrices()
    joined = bandwidth > 0
    cases = (("cannot be reached from", joined), ("cannot answer to", joined.T))
    for problem, graph in cases:
        seen = np.zeros(len(graph), dtype=bool)
        seen[-1] = True
        frontier = seen.copy()
        while frontier.any():
            frontier = graph[frontier].any(axis=0) & ~seen
            seen |= frontier
        lost = [node.name for node, ok in zip(cluster.nodes, seen[:-1], strict=True) if not ok]
        if lost:
            shown = ", ".join(lost[:8]) + (f" and {len(lost) - 8} more" if len(lost) > 8 else "")
            regions = ", ".join(dict.fromkeys(cluster.region_of(name) for name in lost))
            raise SpecError(
                f"disconnected: {shown} {problem} the coordinator",
                key="network",
                fix=f"add a link for region {regions} under network.regions, or "
                "network.between_regions",
            )


def cluster_to_dict(cluster: Cluster) -> dict[str, object]:
    """Return ``cluster`` as plain data in base units; ``cluster_from_dict`` gives it back.

    Equal machines in a row are one group and links between regions one row each, so that a
    1,000-node regional cluster stays small.
    """
    used = {node.accelerator.name: node.accelerator for node in cluster.nodes}
    coordinator = cluster.coordinator
    network: dict[str, object] = {"in_region": None}
    if cluster.region_links:
        network["regions"] = [
            {"from": a, "to": b, "bandwidth": link.bandwidth_bytes_per_s, "latency": link.latency_s}
            for (a, b), link in cluster.region_links.items()
        ]
    if cluster.pair_links:
        network["links"] = [
            [a, b, link.bandwidth_bytes_per_s, link.latency_s] if link else [a, b, None, None]
            for (a, b), link in cluster.pair_links.items()
        ]
    regions = [*(node.region for node in cluster.nodes), coordinator.region]
    regions += [name for pair in cluster.region_links for name in pair]
    return {
        "name": cluster.name,
        "regions": list(dict.fromkeys(regions)),
        "accelerators": {name: _accelerator_dict(entry) for name, entry in used.items()},
        "nodes": _groups(cluster.nodes),
        "coordinator": {
            "region": coordinator.region,
            "nic_in": coordinator.nic_in_bytes_per_s,
            "nic_out": coordinator.nic_out_bytes_per_s,
        },
        "network": network,
    }


def _accelerator_dict(entry: Accelerator) -> dict[str, object]:
    return {
        "memory": entry.memory_bytes,
        "bandwidth": entry.memory_bandwidth_bytes_per_s,
        "flops": dict(entry.flops_per_s),
        "interconnect": entry.interconnect,
        "interconnect_bandwidth": entry.interconnect_bytes_per_s,
        "price": entry.price_per_hour,
        "source": entry.source,
    }


def _groups(nodes: tuple[Node, ...]) -> list[dict[str, object]]:
    runs: list[list[Node]] = []
    for node in nodes:
        if runs and replace(runs[-1][0], name=node.name) == node and _continues(runs[-1], node):
            runs[-1].append(node)
        else:
            runs.append([node])
    groups = []
    for run in runs:
        first = run[0]
        base, _, number = first.name.rpartition("-")
        named: Mapping[str, object] = (
            {"name": base, "count": len(run)}
            if base and number == "0"
            else {"name": first.name}
            if len(run) == 1
            else {"names": [node.name for node in run]}
        )
        groups.append(
            {
                **named,
                "accelerator": first.accelerator.name,
                "accelerators_per_node": first.count,
                "region": first.region,
                "nic_in": first.nic_in_bytes_per_s,
                "nic_out": first.nic_out_bytes_per_s,
                "disk": first.disk_bytes_per_s,
                "memory": first.memory_bytes,
                "price": first.price_per_hour,
                "machine_type": first.machine_type,
            }
        )
    return groups


def _continues(run: list[Node], node: Node) -> bool:
    """Whether ``node`` may join the run: numbered on, or in a list of free names."""
    base, _, number = run[0].name.rpartition("-")
    if base and number == "0":
        return node.name == f"{base}-{len(run)}"
    return not node.name.endswith("-0")
