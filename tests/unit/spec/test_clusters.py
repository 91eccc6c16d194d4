"""Cluster files: expansion, regions, strictness, and round trips."""

from __future__ import annotations

import json
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import yaml
from hypothesis import given
from hypothesis import strategies as st

from penstock.errors import SpecError
from penstock.spec.catalogue import accelerator
from penstock.spec.cluster import COORDINATOR, Cluster, Link
from penstock.spec.cluster_file import cluster_from_dict, cluster_to_dict
from penstock.spec.hardware import Coordinator, Node
from penstock.spec.helix_ini import read_cluster, write_cluster
from penstock.spec.load import cluster_presets, json_schema, load_cluster


def small() -> dict[str, Any]:
    return {
        "nodes": [
            {"name": "big", "accelerator": "A100", "count": 2, "region": "us", "nic": "10 GB/s"},
            {"name": "small", "accelerator": "T4", "accelerators_per_node": 4, "region": "eu"},
        ],
        "coordinator": {"region": "us"},
        "network": {
            "in_region": {"bandwidth": "10 Gbit/s", "latency": "1 ms"},
            "regions": [{"between": ["us", "eu"], "bandwidth": "1 Gbit/s", "latency": "40 ms"}],
        },
    }


def changed(path: str, value: Any) -> dict[str, Any]:
    """The small cluster with the value at ``a.0.b`` replaced (or removed when None)."""
    data = json.loads(json.dumps(small()))
    *parents, last = path.split(".")
    at: Any = data
    for part in parents:
        at = at[int(part)] if part.isdigit() else at[part]
    if value is None:
        del at[last]
    else:
        at[int(last) if last.isdigit() else last] = value
    return dict(data)


def test_groups_expand_and_regions_join() -> None:
    """Counts number the names; links follow regions; prices and memory follow the catalogue."""
    cluster = cluster_from_dict(small(), "fleet.yaml")
    assert [node.name for node in cluster.nodes] == ["big-0", "big-1", "small"]
    small_node = cluster.node("small")
    assert (small_node.machine_type, small_node.count) == ("T4x4", 4)
    assert small_node.memory_bytes == 64_000_000_000
    assert small_node.price_per_hour == pytest.approx(4 * 0.54)
    assert cluster.name == "fleet"
    assert cluster.link("big-0", "big-1") == Link(1.25e9, 0.001)
    assert cluster.link("big-0", "small") == Link(1.25e8, 0.04)
    assert cluster.link(COORDINATOR, "small") == Link(1.25e8, 0.04)


def test_tensor_parallel_size_is_understood() -> None:
    """vLLM's word for the same number works."""
    data = changed("nodes.1.accelerators_per_node", None)
    data["nodes"][1]["tensor_parallel_size"] = 2
    assert cluster_from_dict(data).node("small").machine_type == "T4x2"


def test_pairs_refine_regions_and_links_refine_pairs() -> None:
    """The most specific statement about a pair wins, also when it cuts it."""
    data = small()
    data["network"]["pairs"] = [
        {"between": ["big-0", "big-1"], "bandwidth": "100 Gbit/s", "latency": 0},
        {"from": "big-0", "to": "small", "cut": True},
    ]
    data["network"]["links"] = [["big-1", "big-0", 7.0, 0.5]]
    cluster = cluster_from_dict(data)
    assert cluster.link("big-0", "big-1") == Link(12.5e9, 0.0)
    assert cluster.link("big-1", "big-0") == Link(7.0, 0.5)
    assert cluster.link("big-0", "small") is None
    assert cluster.link("small", "big-0") == Link(1.25e8, 0.04)


@pytest.mark.parametrize(
    ("path", "value", "expected"),
    [
        ("nodes.0.acelerator", "A100", "nodes[0].acelerator: unknown key; did you mean"),
        ("netwrk", {}, "netwrk: unknown key; did you mean 'network'"),
        ("nodes.0.accelerator", "A1000", "nodes[0].accelerator: unknown accelerator"),
        ("nodes.0.accelerator", None, "nodes[0].accelerator: key is missing"),
        ("nodes.0.count", 0, "nodes[0].count: must be at least 1 (got 0)"),
        ("nodes.0.count", 1.5, "nodes[0].count: "),
        ("nodes.0.count", True, "nodes[0].count: "),
        ("nodes.0.nic", "0 GB/s", "nodes[0].nic: a bandwidth must be greater than 0"),
        ("nodes.0.nic", "fast", "nodes[0].nic: not a bandwidth (got 'fast'); give bytes/s"),
        ("nodes.0.memory", "-3 GB", "nodes[0].memory: a size must be greater than 0"),
        ("nodes.0.price", float("nan"), "nodes[0].price: a price must be finite"),
        ("nodes.0.name", "two words", "nodes[0].name: may hold letters"),
        ("nodes.0.name", "coordinator", ""),
        ("nodes.1.name", "big-1", "nodes[1].name: this name is already that of"),
        ("nodes", [], "nodes: "),
        ("nodes.0", "A100", "nodes[0]: must be a mapping"),
        ("network.in_region.latency", float("inf"), "network.in_region.latency: a duration must"),
        ("network.in_region.bandwidth", 0, "network.in_region.bandwidth: a bandwidth must be"),
        ("network.regions.0.between", ["us", "ue"], "network.regions[0]: unknown region"),
        ("network.regions.0.bandwidth", None, "network.regions[0]: give bandwidth and latency"),
        ("network.regions.0.from", "us", "network.regions[0]: say `between: [a, b]`"),
        ("network.links", [["big-0", "big-7", 1, 1]], "network.links[0]: unknown node"),
        ("network.links", [["big-0", "big-0", 1, 1]], "linked to itself"),
        ("regions", ["us"], "nodes[1].region: unknown region (got 'eu')"),
        ("network.regions", None, "disconnected: small cannot be reached from the coordinator"),
    ],
)
def test_mistakes_name_file_key_and_fix(path: str, value: Any, expected: str) -> None:
    """One line: file, key path, what is wrong, what was given, what to do."""
    data = changed(path, value)
    if path == "nodes.0.name" and value == "coordinator":
        data["nodes"][0].pop("count")
        expected = "already that of the coordinator"
    with pytest.raises(SpecError) as caught:
        cluster_from_dict(data, "fleet.yaml")
    message = str(caught.value)
    assert message.startswith("fleet.yaml: ")
    assert expected in message
    assert "\n" not in message


def test_one_way_islands_are_disconnected() -> None:
    """A node that hears requests but cannot answer is named too."""
    data = changed("network.regions.0.between", None)
    data["network"]["regions"][0] |= {"from": "us", "to": "eu"}
    with pytest.raises(SpecError, match="small cannot answer to the coordinator"):
        cluster_from_dict(data)


@pytest.mark.parametrize("name", cluster_presets())
def test_presets_round_trip(name: str) -> None:
    """Every preset survives plain data, JSON and YAML, links in the same order."""
    cluster = load_cluster(name)
    for copy in (json.loads, yaml.safe_load):
        again = cluster_from_dict(copy(json.dumps(cluster_to_dict(cluster))))
        assert again == cluster
        assert list(again.links()) == list(cluster.links())


def test_a_large_regional_cluster_stays_small() -> None:
    """1,000 nodes in 5 regions take a few kilobytes and well under a second."""
    regions = [f"r{i}" for i in range(5)]
    data = {
        "nodes": [
            {"name": f"{kind.lower()}-{region}", "accelerator": kind, "count": 50, "region": region}
            for region in regions
            for kind in ("A100", "L4", "T4", "H100")
        ],
        "network": {"between_regions": {"bandwidth": "1 Gbit/s", "latency": "40 ms"}},
    }
    cluster = cluster_from_dict(data)
    assert len(cluster.nodes) == 1000
    plain = cluster_to_dict(cluster)
    assert len(json.dumps(plain)) < 12_000
    assert cluster_from_dict(plain) == cluster


NAMES = st.sampled_from(["a-0", "a-1", "a-2", "b", "b-0", "c-1", "x-0", "x-1", "node_7", "q-10"])


@given(
    st.lists(NAMES, min_size=1, max_size=8, unique=True),
    st.lists(st.sampled_from(["A100", "T4"]), min_size=8, max_size=8),
    st.booleans(),
)
def test_any_names_round_trip(names: list[str], kinds: list[str], priced: bool) -> None:
    """Grouping never changes names, order or values."""
    nodes = []
    for name, kind in zip(names, kinds, strict=False):
        found = accelerator(kind)
        price = 1.5 if priced else None
        nodes.append(Node(name, found, 2, "odd", "r", 1e9, 2e9, 3e8, 12_345, price))
    cluster = Cluster(
        "c",
        tuple(nodes),
        Coordinator("r", 1e9, 1.0),
        {("r", "r"): Link(1e9 / 3, 1e-3 / 7)},
        {(names[0], COORDINATOR): Link(5.0, 0.0)},
    )
    assert cluster_from_dict(cluster_to_dict(cluster)) == cluster


def test_own_accelerators_travel_along() -> None:
    """A cluster with a GPU of its own is complete in its plain data."""
    data = changed("nodes.0.accelerator", "MyGPU")
    data["accelerators"] = {
        "MyGPU": {"memory": "24 GB", "bandwidth": "600 GB/s", "flops": {"fp16": "120 TFLOPS"}}
    }
    cluster = cluster_from_dict(data)
    assert cluster.nodes[0].accelerator.flops_per_s == {"fp16": 120e12}
    assert cluster.nodes[0].price_per_hour is None
    assert cluster_from_dict(cluster_to_dict(cluster)) == cluster


def test_names_and_paths(tmp_path: Path) -> None:
    """A preset name in any spelling, a YAML path or a Helix ini path all load."""
    single = load_cluster("Single_24")
    assert len(single.nodes) == 24
    path = tmp_path / "c.yaml"
    path.write_text(yaml.safe_dump(cluster_to_dict(single)))
    assert load_cluster(path) == single
    write_cluster(tmp_path / "c.ini", single)
    assert list(load_cluster(str(tmp_path / "c.ini")).links()) == list(single.links())
    with pytest.raises(SpecError, match="did you mean 'single24'"):
        load_cluster("singel24")
    with pytest.raises(SpecError, match="file not found"):
        load_cluster("nowhere.yaml")
    with pytest.raises(SpecError, match="folder"):
        load_cluster(tmp_path)


def test_schemas_are_json() -> None:
    """Each kind has a JSON Schema that forbids unknown keys; unknown kinds say what there is."""
    for kind in ("cluster", "workload", "model"):
        schema = json.loads(json.dumps(json_schema(kind)))
        assert schema["additionalProperties"] is False
    with pytest.raises(SpecError, match="did you mean 'cluster'"):
        json_schema("clusters")


@pytest.mark.reference
@pytest.mark.parametrize(
    ("name", "file"),
    [
        ("single24", "single/cluster24.ini"),
        ("single24-a100", "single/a100.ini"),
        ("single24-l4", "single/l4.ini"),
        ("single24-t4", "single/t4.ini"),
        ("distributed24", "distributed/3cluster24.ini"),
        ("distributed24-a100", "distributed/a100.ini"),
        ("distributed24-l4", "distributed/l4.ini"),
        ("distributed24-t4", "distributed/t4.ini"),
        ("het42", "high_heterogeneity/cluster42.ini"),
        ("quality10", "quality/cluster10.ini"),
    ],
)
def test_presets_are_the_published_clusters(reference: Path, name: str, file: str) -> None:
    """Same nodes, same directed links in the same order, same values to the last bit."""
    folder = reference / "helix" / "clusters"
    published = read_cluster(folder / file, folder / "machine_profiles.ini")
    ours = load_cluster(name)
    assert list(ours.links()) == list(published.links())
    regions = [replace(node, region="default") for node in ours.nodes]
    assert regions == list(published.nodes)
    assert replace(ours.coordinator, region="default") == published.coordinator
