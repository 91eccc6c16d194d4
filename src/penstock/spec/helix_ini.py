"""Reading and writing the ini files of the Helix artifact (parsed, never evaluated).

Three kinds: the cluster a planner reads, the simulator cluster a planner writes (with KV
capacities and only the links its placement uses), and the solution (layers of each node).

The unit names in these files lie: ``mbps`` is 1e6 and ``gbps`` 1e9 BYTES per second. Source and
sink are the two halves of our coordinator. Cluster files number nodes from 0; placements call
node i ``compute_node_<i + 2>``, and so do we.
"""

from __future__ import annotations

import configparser
import math
import re
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

from penstock.errors import SpecError
from penstock.spec.catalogue import parse_machine_type
from penstock.spec.cluster import COORDINATOR, Cluster, Link
from penstock.spec.files import read_text
from penstock.spec.hardware import Coordinator, Node
from penstock.storage import write_text

NODE_OFFSET = 2
REGION = "default"
DEFAULT_NIC_BYTES_PER_S = 10e9
DEFAULT_DISK_BYTES_PER_S = 1e9

_BANDWIDTH = {"bps": 1.0, "kbps": 1e3, "mbps": 1e6, "gbps": 1e9}
_TIME = {"Sec": 1.0, "MilliSec": 1e-3, "MicroSec": 1e-6}
_SIZE = {"B": 1.0, "KB": 1e3, "MB": 1e6, "GB": 1e9}
_EXPRESSION = re.compile(r"([+-]?\d[\d_]*\.?\d*(?:[eE][+-]?\d+)?)(?:\s*\*\s*([A-Za-z]+))?")
_NAME = re.compile(r"[A-Za-z_][A-Za-z_0-9.-]*")


@dataclass(frozen=True)
class SimulatorCluster:
    """A planner's output: the nodes it used, their directed links in order, their KV capacity.

    A capacity that the file leaves open (-1) is 0.
    """

    cluster: Cluster
    machine_type: Mapping[str, str]
    kv_capacity_layer_tokens: Mapping[str, int]


@dataclass(frozen=True, slots=True)
class MachineProfile:
    """NIC, disk and memory of a machine type; -1 in the file (does not apply) is read as 0."""

    nic_in_bytes_per_s: float
    nic_out_bytes_per_s: float
    disk_bytes_per_s: float
    memory_bytes: int


class _Ini:
    """Sections and keys of one ini file, with errors that name the place."""

    def __init__(self, path: str | Path) -> None:
        self.path = path
        self.sections: dict[str, dict[str, str]] = {}
        parser = configparser.RawConfigParser(delimiters=("=",), strict=True)
        parser.optionxform = str  # type: ignore[method-assign,assignment]
        try:
            parser.read_string(read_text(path), source=str(path))
        except configparser.Error as error:
            line = str(error).splitlines()[0]
            raise SpecError(f"corrupt ini file: {line}", source=path) from None
        for section in parser.sections():
            self.sections[section] = dict(parser.items(section))

    def text(self, section: str, key: str) -> str:
        if section not in self.sections:
            raise SpecError(f"section [{section}] is missing", source=self.path)
        if key not in self.sections[section]:
            raise SpecError("key is missing", source=self.path, key=f"{section}.{key}")
        return self.sections[section][key]

    def fail(self, section: str, key: str, problem: str, fix: str | None = None) -> SpecError:
        value = self.sections.get(section, {}).get(key)
        return SpecError(problem, source=self.path, key=f"{section}.{key}", value=value, fix=fix)

    def number(
        self, section: str, key: str, constants: Mapping[str, float], *, zero: bool = False
    ) -> float:
        """``N * unit`` or a plain number, finite and positive (or 0 with ``zero``)."""
        match = _EXPRESSION.fullmatch(self.text(section, key))
        if match is None or (match[2] and match[2] not in constants):
            known = ", ".join(constants)
            raise self.fail(section, key, "not a number with a unit", f"write `N * unit` ({known})")
        value = float(match[1]) * (constants[match[2]] if match[2] else 1.0)
        if not math.isfinite(value) or value < 0 or (value == 0 and not zero):
            raise self.fail(section, key, "must be finite and positive")
        return value

    def items(self, section: str, key: str) -> list[str]:
        """The words of a list such as ``['source', 1, 2]``, without quotes."""
        text = self.text(section, key)
        if not (text.startswith("[") and text.endswith("]")):
            raise self.fail(section, key, "not a list", "write [a, b, ...]")
        return [word.strip().strip("'\"") for word in text[1:-1].split(",") if word.strip()]


def read_machine_profiles(path: str | Path) -> Mapping[str, MachineProfile]:
    """Read ``machine_profiles.ini``; ``SourceNode`` and ``SinkNode`` are the coordinator's."""
    ini = _Ini(path)
    profiles = {}
    for name in ini.sections:

        def value(key: str, units: Mapping[str, float], name: str = name) -> float:
            if ini.sections[name].get(key) == "-1":
                return 0.0
            return ini.number(name, key, units)

        profiles[name] = MachineProfile(
            value("inbound_nic_speed", _BANDWIDTH),
            value("outbound_nic_speed", _BANDWIDTH),
            value("disk_speed", _BANDWIDTH),
            round(value("vram_size", _SIZE)),
        )
    return profiles


def read_cluster(path: str | Path, machine_profiles: str | Path | None = None) -> Cluster:
    """Read a cluster file (``cluster24.ini``).

    Without ``machine_profiles`` nodes get the published 10e9 bytes/s NIC and 1e9 bytes/s disk and
    the memory of the accelerator catalogue. ``pair_links`` has the file's order; a link between
    two compute nodes stands for both directions, forward first.
    """
    ini = _Ini(path)
    profiles = read_machine_profiles(machine_profiles) if machine_profiles else {}
    try:
        count = int(ini.text("NodeNames", "total_compute_nodes"))
    except ValueError:
        raise ini.fail("NodeNames", "total_compute_nodes", "not a whole number") from None
    if count < 1:
        raise ini.fail("NodeNames", "total_compute_nodes", "there must be a node")
    nodes = tuple(_node(ini, i, profiles) for i in range(count))
    links: dict[tuple[str, str], Link | None] = {}
    for section in ini.sections:
        if not section.startswith("Link-"):
            continue
        a, b, both = _ends(ini, section, count)
        link = _link(ini, section)
        for pair in ((a, b), (b, a)) if both else ((a, b),):
            if pair in links:
                raise SpecError("link is listed twice", source=path, key=section)
            links[pair] = link
    return Cluster(Path(path).stem, nodes, _coordinator(profiles), {}, links)


def _node(ini: _Ini, i: int, profiles: Mapping[str, MachineProfile]) -> Node:
    section = f"ComputeNode-{i}"
    machine = ini.text(section, "type").strip("'\"")
    profile = profiles.get(machine)
    if profiles and profile is None:
        raise ini.fail(section, "type", "no such section in the machine profiles")
    return _make_node(ini, f"{section}.type", f"compute_node_{i + NODE_OFFSET}", machine, profile)


def _make_node(
    ini: _Ini, place: str, name: str, machine: str, profile: MachineProfile | None
) -> Node:
    try:
        accelerator, count = parse_machine_type(machine)
    except SpecError as error:
        raise error.at(ini.path, place) from None
    price = accelerator.price_per_hour
    return Node(
        name=name,
        accelerator=accelerator,
        count=count,
        machine_type=machine,
        region=REGION,
        nic_in_bytes_per_s=profile.nic_in_bytes_per_s if profile else DEFAULT_NIC_BYTES_PER_S,
        nic_out_bytes_per_s=profile.nic_out_bytes_per_s if profile else DEFAULT_NIC_BYTES_PER_S,
        disk_bytes_per_s=profile.disk_bytes_per_s if profile else DEFAULT_DISK_BYTES_PER_S,
        memory_bytes=profile.memory_bytes if profile else accelerator.memory_bytes * count,
        price_per_hour=None if price is None else price * count,
    )


def _coordinator(profiles: Mapping[str, MachineProfile]) -> Coordinator:
    into = profiles["SinkNode"].nic_in_bytes_per_s if "SinkNode" in profiles else 0.0
    out = profiles["SourceNode"].nic_out_bytes_per_s if "SourceNode" in profiles else 0.0
    return Coordinator(REGION, into or DEFAULT_NIC_BYTES_PER_S, out or DEFAULT_NIC_BYTES_PER_S)


def _ends(ini: _Ini, section: str, count: int) -> tuple[str, str, bool]:
    parts = section.split("-")
    if len(parts) != 3:
        raise SpecError("link name must be Link-<a>-<b>", source=ini.path, key=section)
    _, a, b = parts

    def name(word: str) -> str:
        if not word.isascii() or not word.isdigit() or int(word) >= count:
            raise SpecError("no such compute node", source=ini.path, key=section, value=word)
        return f"compute_node_{int(word) + NODE_OFFSET}"

    if a == "source":
        return COORDINATOR, name(b), False
    if b == "sink":
        return name(a), COORDINATOR, False
    if a == b:
        raise SpecError("a node cannot be linked to itself", source=ini.path, key=section)
    return name(a), name(b), True


def _link(ini: _Ini, section: str) -> Link:
    return Link(
        ini.number(section, "bandwidth", _BANDWIDTH),
        ini.number(section, "latency", _TIME, zero=True),
    )


def read_simulator_cluster(path: str | Path) -> SimulatorCluster:
    """Read a planner's ``*simulator_cluster.ini``: directed links, in file order."""
    ini = _Ini(path)
    nodes, capacity = [], {}
    for name in ini.items("ComputeNodes", "names"):
        if not _NAME.fullmatch(name) or name in capacity:
            raise ini.fail("ComputeNodes", "names", f"bad or repeated node name {name!r}")
        profile = MachineProfile(
            ini.number(name, "inbound_nic_speed", _BANDWIDTH),
            ini.number(name, "outbound_nic_speed", _BANDWIDTH),
            ini.number(name, "disk_speed", _BANDWIDTH),
            round(ini.number(name, "vram_size", _SIZE)),
        )
        machine = ini.text(name, "machine_type").strip("'\"")
        nodes.append(_make_node(ini, f"{name}.machine_type", name, machine, profile))
        unstated = ini.text(name, "kv_cache_capacity") == "-1"
        capacity[name] = (
            0 if unstated else round(ini.number(name, "kv_cache_capacity", {}, zero=True))
        )
    links: dict[tuple[str, str], Link | None] = {}
    for section in ini.items("Links", "names"):
        pair = (_end(ini, section, "in", capacity), _end(ini, section, "out", capacity))
        if pair in links or pair[0] == pair[1]:
            raise SpecError("link is repeated or joins a node to itself", source=path, key=section)
        links[pair] = _link(ini, section)
    coordinator = Coordinator(
        REGION,
        ini.number("Coordinator", "inbound_nic_speed", _BANDWIDTH),
        ini.number("Coordinator", "outbound_nic_speed", _BANDWIDTH),
    )
    cluster = Cluster(Path(path).stem, tuple(nodes), coordinator, {}, links)
    return SimulatorCluster(cluster, {node.name: node.machine_type for node in nodes}, capacity)


def _end(ini: _Ini, section: str, key: str, known: Mapping[str, int]) -> str:
    name = ini.text(section, key)
    if name in ("source", "sink", "coordinator"):
        return COORDINATOR
    if name not in known:
        raise ini.fail(section, key, "no such compute node")
    return name


def read_solution(path: str | Path) -> Mapping[str, tuple[int, int]]:
    """Read a ``*_sol.ini``: node name -> layers ``[start, end)``. Nodes without layers are left
    out; layers that are not one contiguous run are refused.
    """
    ini = _Ini(path)
    ini.text("Settings", "offset")
    solution = {}
    for name in ini.sections.get("Solution", {}):
        words = ini.items("Solution", name)
        if not words:
            continue
        if not all(word.isascii() and word.isdigit() for word in words):
            raise ini.fail("Solution", name, "layers must be whole numbers")
        layers = [int(word) for word in words]
        if layers != list(range(layers[0], layers[0] + len(layers))):
            raise ini.fail("Solution", name, "layers must be one ascending run without gaps")
        solution[name] = (layers[0], layers[-1] + 1)
    if not solution:
        raise SpecError("no node holds a layer", source=path, key="Solution")
    return solution


def _number(value: float, unit: str, scale: float) -> str:
    """``N * unit`` where that gives exactly ``value`` back, else the plain number."""
    scaled = value / scale
    short = f"{scaled:.12g}"
    for text in (short, repr(scaled)):
        if float(text) * scale == value:
            return f"{text} * {unit}"
    return repr(value)


def _link_lines(link: Link) -> list[str]:
    return [
        f"bandwidth={_number(link.bandwidth_bytes_per_s, 'mbps', 1e6)}",
        f"latency={_number(link.latency_s, 'MilliSec', 1e-3)}",
    ]


def format_cluster(cluster: Cluster) -> str:
    """The cluster file, with nodes numbered in their order.

    Raises ``SpecError`` where two nodes are joined one way, or unequally: the format cannot say so.
    """
    number = {node.name: i for i, node in enumerate(cluster.nodes)}
    listed: dict[tuple[str, str], Link] = {}
    for src, dst, link in cluster.links():
        if COORDINATOR in (src, dst):
            listed[src, dst] = link
        elif (dst, src) not in listed:
            if cluster.link(dst, src) != link:
                raise SpecError(
                    "Helix files cannot say that a link differs by direction",
                    key=f"{src} -> {dst}",
                    fix="give both directions the same bandwidth and latency",
                )
            listed[src, dst] = link
    neighbours: dict[str, list[object]] = {node.name: [] for node in cluster.nodes}
    for src, dst in listed:
        if COORDINATOR not in (src, dst):
            neighbours[src].append(number[dst])
            neighbours[dst].append(number[src])
    lines = ["[NodeNames]", f"total_compute_nodes={len(cluster.nodes)}", ""]
    sources = [number[dst] for src, dst in listed if src == COORDINATOR]
    sinks = [number[src] for src, dst in listed if dst == COORDINATOR]
    lines += ["[SourceNode]", f"connected_nodes={sorted(sources)}", ""]
    lines += ["[SinkNode]", f"connected_nodes={sorted(sinks)}", ""]
    for node in cluster.nodes:
        i = number[node.name]
        first: list[object] = ["source"] if i in sources else []
        last: list[object] = ["sink"] if i in sinks else []
        middle = sorted(neighbours[node.name], key=lambda j: int(str(j)))
        lines += [
            f"[ComputeNode-{i}]",
            f"type={node.machine_type}",
            f"connected_nodes={first + middle + last}",
            "",
        ]
    for (src, dst), link in listed.items():
        a = "source" if src == COORDINATOR else str(number[src])
        b = "sink" if dst == COORDINATOR else str(number[dst])
        if a.isdigit() and b.isdigit() and int(a) > int(b):
            a, b = b, a
        lines += [f"[Link-{a}-{b}]", *_link_lines(link), ""]
    return "\n".join(lines)


def write_cluster(path: str | Path, cluster: Cluster) -> None:
    """Write ``format_cluster``."""
    write_text(Path(path), format_cluster(cluster))


def _simulator_lines(placed: SimulatorCluster) -> Iterator[str]:
    cluster = placed.cluster

    def nic(into: float, out: float) -> list[str]:
        return [
            f"inbound_nic_speed={_number(into, 'mbps', 1e6)}",
            f"outbound_nic_speed={_number(out, 'mbps', 1e6)}",
        ]

    coordinator = cluster.coordinator
    yield "[Coordinator]"
    yield from nic(coordinator.nic_in_bytes_per_s, coordinator.nic_out_bytes_per_s)
    types = list(dict.fromkeys(placed.machine_type[node.name] for node in cluster.nodes))
    yield from ("", "[MachineTypes]", f"types={types}", "", "[ComputeNodes]")
    yield f"names={[node.name for node in cluster.nodes]}"
    for node in cluster.nodes:
        yield from ("", f"[{node.name}]")
        yield f"vram_size={_number(node.memory_bytes, 'MB', 1e6)}"
        yield from nic(node.nic_in_bytes_per_s, node.nic_out_bytes_per_s)
        yield f"disk_speed={_number(node.disk_bytes_per_s, 'mbps', 1e6)}"
        yield f'machine_type="{placed.machine_type[node.name]}"'
        yield f"kv_cache_capacity={placed.kv_capacity_layer_tokens[node.name]}"
        yield "activation_backup_capacity=0"
    links = {}
    for src, dst, link in cluster.links():
        a = "source" if src == COORDINATOR else src
        b = "sink" if dst == COORDINATOR else dst
        links[f"link_{a}_{b}"] = (a, b, link)
    yield from ("", "[Links]", f"names={list(links)}")
    for name, (a, b, link) in links.items():
        yield from ("", f"[{name}]", f"in={a}", f"out={b}")
        yield from reversed(_link_lines(link))
    yield ""


def format_simulator_cluster(placed: SimulatorCluster) -> str:
    return "\n".join(_simulator_lines(placed))


def write_simulator_cluster(path: str | Path, placed: SimulatorCluster) -> None:
    write_text(Path(path), format_simulator_cluster(placed))


def format_solution(
    layers: Mapping[str, tuple[int, int]], node_names: Sequence[str] | None = None
) -> str:
    """The solution file; ``node_names`` also lists nodes that hold nothing."""
    lines = ["[Settings]", f"offset={NODE_OFFSET}", "", "[Solution]"]
    for name in node_names if node_names is not None else layers:
        start, end = layers.get(name, (0, 0))
        lines.append(f"{name}={list(range(start, end))}")
    return "\n".join([*lines, ""])


def write_solution(
    path: str | Path,
    layers: Mapping[str, tuple[int, int]],
    node_names: Sequence[str] | None = None,
) -> None:
    write_text(Path(path), format_solution(layers, node_names))
