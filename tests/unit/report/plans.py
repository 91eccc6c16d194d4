"""Plans for tests of the report: fleets of any size, placed by a simple rule."""

from __future__ import annotations

from penstock.cost.base import BatchLimits
from penstock.plan.plan import Engine, Leg, Plan, Stage, Unused
from penstock.spec.cluster import COORDINATOR, Cluster, Link
from penstock.spec.hardware import Accelerator, Coordinator, Node
from penstock.spec.model import ModelSpec

LLAMA_70B = ModelSpec("llama2-70b", 80, 8192, 64, 8, 128, 28672, 32000, 4096, dtype="fp16")
SPEEDS = {"A100": 9, "V100": 5, "L4": 3, "T4": 2}


def cluster_of(counts: dict[tuple[str, str], int]) -> Cluster:
    """A cluster of ``counts[region, type]`` nodes, fully joined."""
    nodes = []
    for (region, kind), count in counts.items():
        gpu = Accelerator(kind, 24 * 10**9, 3e11, {"fp16": 1e14}, "pcie", 1e10, 1.0, "test")
        nodes += [
            Node(f"{region}-{kind.lower()}-{i}", gpu, 1, kind, region, 1e9, 1e9, 1e9, 10**11)
            for i in range(count)
        ]
    regions = sorted({region for region, _ in counts})
    links = {(a, b): Link(1.25e9 if a == b else 1e7, 0.001) for a in regions for b in regions}
    return Cluster("mixed", tuple(nodes), Coordinator(regions[0], 1e9, 1e9), links, {})


def plan_of(
    counts: dict[tuple[str, str], int], *, planner: str = "penstock", spare: int = 2
) -> Plan:
    """Chains over all 80 layers, faster nodes holding more; the last ``spare`` nodes unused."""
    cluster = cluster_of(counts)
    layers = LLAMA_70B.num_hidden_layers
    engines: list[Engine] = []
    legs: list[Leg] = []
    unused = []
    start, previous = 0, COORDINATOR
    limits = BatchLimits(16, 2048, 64, 40000)
    for i, node in enumerate(cluster.nodes):
        if i >= len(cluster.nodes) - spare and start == 0:
            unused.append(Unused(node.name, "too slow to help: its links cost more than it adds"))
            continue
        flow = 40.0 * SPEEDS[node.machine_type] + i
        end = min(layers, start + 2 * SPEEDS[node.machine_type] + 1)
        engines.append(Engine(node.name, (Stage(node.name, start, end),), 10**6, limits))
        legs.append(Leg(previous, node.name, flow, 2 * flow))
        if end == layers:
            legs.append(Leg(node.name, COORDINATOR, flow, 2 * flow))
            start, previous = 0, COORDINATOR
        else:
            start, previous = end, node.name
    return Plan(
        cluster=cluster,
        model=LLAMA_70B,
        engines=tuple(engines),
        legs=tuple(legs),
        planner=planner,
        objective="throughput",
        value=301.25,
        max_flow_tokens_per_s=2045.64,
        bound=None,
        max_flow_bound_tokens_per_s=2045.64 if planner == "penstock" else 2100.0,
        bound_method="configuration bound",
        proved_optimal=planner == "penstock",
        unused=tuple(unused),
        reasons=("12 candidates simulated; the one with the highest decode throughput kept",),
        cost={"kind": "roofline", "coefficients": {"flops": 0.62}},
        version="0.1.0",
    )
