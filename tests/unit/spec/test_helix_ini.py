"""Helix ini files: every published file parses, and what is written reads back the same."""

from __future__ import annotations

import configparser
from pathlib import Path

import pytest

from penstock.errors import SpecError
from penstock.spec.cluster import COORDINATOR, Cluster, Link
from penstock.spec.helix_ini import (
    read_cluster,
    read_machine_profiles,
    read_simulator_cluster,
    read_solution,
    write_cluster,
    write_simulator_cluster,
    write_solution,
)

CLUSTER = """
[NodeNames]
total_compute_nodes=2
[SourceNode]
connected_nodes=[0]
[SinkNode]
connected_nodes=[1]
[ComputeNode-0]
type=A100
connected_nodes=['source', 1]
[ComputeNode-1]
type=T4x4
connected_nodes=[0, 'sink']
[Link-source-0]
bandwidth=14.2 * mbps
latency=55 * MilliSec
[Link-1-sink]
bandwidth=1000 * mbps
latency=1 * MilliSec
[Link-0-1]
bandwidth=1 * gbps
latency=2 * MilliSec
"""


def write(tmp_path: Path, text: str, name: str = "cluster.ini") -> Path:
    path = tmp_path / name
    path.write_text(text)
    return path


def same(a: Cluster, b: Cluster) -> bool:
    """Equal but for the name, with the same order of links."""
    return (
        a.nodes == b.nodes and a.coordinator == b.coordinator and list(a.links()) == list(b.links())
    )


def test_units_are_bytes_and_links_between_nodes_go_both_ways(tmp_path: Path) -> None:
    """mbps is 1e6 bytes/s; a compute link gives both directions, forward first."""
    cluster = read_cluster(write(tmp_path, CLUSTER))
    assert list(cluster.pair_links.items()) == [
        ((COORDINATOR, "compute_node_2"), Link(14.2e6, 0.055)),
        (("compute_node_3", COORDINATOR), Link(1e9, 0.001)),
        (("compute_node_2", "compute_node_3"), Link(1e9, 0.002)),
        (("compute_node_3", "compute_node_2"), Link(1e9, 0.002)),
    ]
    t4x4 = cluster.node("compute_node_3")
    assert (t4x4.machine_type, t4x4.count, t4x4.memory_bytes) == ("T4x4", 4, 64_000_000_000)
    assert t4x4.nic_in_bytes_per_s == 10e9
    assert t4x4.disk_bytes_per_s == 1e9


@pytest.mark.parametrize(
    ("old", "new", "expected"),
    [
        ("total_compute_nodes=2", "total_compute_nodes=3", "[ComputeNode-2] is missing"),
        ("total_compute_nodes=2", "total_compute_nodes=x", "not a whole number"),
        ("type=A100", "type=A1000x", "did you mean"),
        ("14.2 * mbps", "__import__('os').system('x')", "not a number with a unit"),
        ("14.2 * mbps", "14.2 * mbit", "mbps"),
        ("14.2 * mbps", "0 * mbps", "must be finite and positive"),
        ("14.2 * mbps", "1e999 * mbps", "must be finite and positive"),
        ("55 * MilliSec", "-1 * MilliSec", "must be finite and positive"),
        ("[Link-0-1]", "[Link-0-7]", "no such compute node"),
        ("[Link-0-1]", "[Link-0]", "Link-<a>-<b>"),
        ("[Link-0-1]", "[Link-source-0]", "already exists"),
        ("[Link-0-1]", "Link-0-1]", "corrupt ini file"),
        ("latency=2 * MilliSec", "", "Link-0-1.latency: key is missing"),
    ],
)
def test_corrupt_files_give_one_line(tmp_path: Path, old: str, new: str, expected: str) -> None:
    """Whatever is wrong, the error names the file and the place on one line."""
    path = write(tmp_path, CLUSTER.replace(old, new))
    with pytest.raises(SpecError) as caught:
        read_cluster(path)
    message = str(caught.value)
    assert str(path) in message
    assert expected in message
    assert "\n" not in message


def test_solution_with_a_gap_is_refused(tmp_path: Path) -> None:
    """A node holds one contiguous run of layers."""
    path = write(tmp_path, "[Settings]\noffset=2\n[Solution]\ncompute_node_2=[0, 2]\n")
    with pytest.raises(SpecError, match="without gaps"):
        read_solution(path)


def test_a_binary_file_is_refused(tmp_path: Path) -> None:
    """A file that is not text is the user's mistake, not ours."""
    path = tmp_path / "x.ini"
    path.write_bytes(b"\xff\xfe\x00\x81")
    with pytest.raises(SpecError, match="not a text file"):
        read_cluster(path)


def test_unequal_directions_cannot_be_exported(tmp_path: Path) -> None:
    """The format holds one value for both directions; we do not silently pick one."""
    cluster = read_cluster(write(tmp_path, CLUSTER))
    links = dict(cluster.pair_links)
    links["compute_node_3", "compute_node_2"] = Link(5.0, 0.0)
    odd = Cluster("odd", cluster.nodes, cluster.coordinator, {}, links)
    with pytest.raises(SpecError, match="by direction"):
        write_cluster(tmp_path / "out.ini", odd)


@pytest.mark.reference
def test_published_clusters_survive_export(reference: Path, tmp_path: Path) -> None:
    """Every published cluster parses, also with machine profiles, and round-trips exactly."""
    folder = reference / "helix" / "clusters"
    profiles = folder / "machine_profiles.ini"
    paths = [path for path in sorted(folder.rglob("*.ini")) if path != profiles]
    paths += sorted((reference / "helix" / "placements").rglob("pruned_cluster.ini"))
    assert len(paths) >= 14
    assert read_machine_profiles(profiles)["T4x4"].memory_bytes == 64_000_000_000
    for path in paths:
        cluster = read_cluster(path)
        assert same(read_cluster(path, profiles), cluster)
        write_cluster(tmp_path / "out.ini", cluster)
        assert same(read_cluster(tmp_path / "out.ini"), cluster)
        ours = configparser.ConfigParser()
        theirs = configparser.ConfigParser()
        ours.read(tmp_path / "out.ini")
        theirs.read(path)
        assert ours.sections() == theirs.sections()
        for section in theirs.sections():
            if "connected_nodes" in theirs[section]:
                assert ours[section]["connected_nodes"] == theirs[section]["connected_nodes"]


@pytest.mark.reference
def test_published_placements_survive_export(reference: Path, tmp_path: Path) -> None:
    """Every simulator cluster and solution parses and round-trips exactly."""
    folder = reference / "helix" / "placements"
    placed_paths = sorted(folder.rglob("*simulator_cluster.ini"))
    solution_paths = [
        path
        for pattern in ("*_sol.ini", "*solution_file.ini")
        for path in sorted(folder.rglob(pattern))
    ]
    assert len(placed_paths) == 45
    assert len(solution_paths) == 50
    for path in placed_paths:
        placed = read_simulator_cluster(path)
        write_simulator_cluster(tmp_path / "out.ini", placed)
        again = read_simulator_cluster(tmp_path / "out.ini")
        assert same(again.cluster, placed.cluster)
        assert again.machine_type == placed.machine_type
        assert again.kv_capacity_layer_tokens == placed.kv_capacity_layer_tokens
    for path in solution_paths:
        solution = read_solution(path)
        write_solution(tmp_path / "out.ini", solution)
        assert read_solution(tmp_path / "out.ini") == solution


@pytest.mark.reference
def test_simulator_cluster_keeps_order_and_capacity(reference: Path) -> None:
    """Link order is the published scheduler's candidate order; KV capacity is as written."""
    placed = read_simulator_cluster(
        reference / "helix/placements/single_llama70b/ilp/simulator_cluster.ini"
    )
    assert placed.kv_capacity_layer_tokens["compute_node_2"] == 3_004_416
    assert placed.machine_type["compute_node_2"] == "L4"
    text = (reference / "helix/placements/single_llama70b/ilp/simulator_cluster.ini").read_text()
    ends = [line.split("=")[1] for line in text.splitlines() if line.startswith(("in=", "out="))]
    ends = [COORDINATOR if name in ("source", "sink", "coordinator") else name for name in ends]
    assert list(placed.cluster.pair_links) == list(zip(ends[::2], ends[1::2], strict=True))
