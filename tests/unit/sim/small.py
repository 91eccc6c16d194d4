"""Small random clusters, plans and workloads for the simulator's tests."""

from __future__ import annotations

from dataclasses import dataclass
from itertools import pairwise

from hypothesis import strategies as st

from penstock.cost.base import BatchLimits
from penstock.plan.plan import Engine, Leg, Plan, Routing, Stage
from penstock.spec.cluster import COORDINATOR, Cluster, Link
from penstock.spec.hardware import Accelerator, Coordinator, Node
from penstock.spec.model import ModelSpec
from penstock.spec.workload import Request, Workload

GPU = Accelerator("toy", 16_000_000_000, 1e11, {"fp16": 1e12}, "none", 0.0, None, "test")
NIC = 1e9


@dataclass(frozen=True)
class ToyCost:
    """A layer takes a base time, plus one per prefill token and one per decode sequence."""

    model: ModelSpec
    layer_weight_bytes: int = 1_000_000_000

    def layer_timer(self, node):
        base = 1e-3 * (1 + len(node.machine_type))

        def seconds(prefill: int, decodes: int, context: int) -> float:
            return base + 1.37e-5 * prefill + 1.13e-4 * decodes

        return seconds

    def planning_timer(self, node):
        return self.layer_timer(node)

    def max_layers(self, node):
        return min(16, self.model.num_hidden_layers)

    def hard_max_layers(self, node):
        return min(16, self.model.num_hidden_layers)

    def kv_capacity_layer_tokens(self, node, layers):
        return 100_000

    def batch_limits(self, node, layers):
        return BatchLimits(2, 512, 8, 4096)

    @property
    def provenance(self):
        return ()

    def to_dict(self):
        return {}


def toy_model(layers: int) -> ModelSpec:
    return ModelSpec("toy", layers, 256, 4, 4, 64, 512, 1000, 4096)


def make_plan(
    spans: list[tuple[int, int]],
    flows: dict[tuple[int, int], float],
    *,
    layers: int,
    kv: int = 10**9,
    links: dict[tuple[int, int], Link] | None = None,
    limits: BatchLimits | None = None,
    routing: Routing | None = None,
    admission: str = "none",
) -> Plan:
    """Engines n0, n1, ... on the spans; flows by (src, dst), -1 = coordinator."""
    limits = limits or BatchLimits(2, 512, 8, 4096)
    names = {i: f"n{i}" for i in range(len(spans))} | {-1: COORDINATOR}
    nodes = tuple(
        Node(f"n{i}", GPU, 1, "t" * (1 + i % 3), "r", NIC, NIC, 1e9, 16 * 10**9)
        for i in range(len(spans))
    )
    default = Link(1e8, 1e-3)
    pairs = {(names[a], names[b]): (links or {}).get((a, b), default) for a, b in flows}
    cluster = Cluster("toy", nodes, Coordinator("r", NIC, NIC), {}, pairs)
    return Plan(
        cluster=cluster,
        model=toy_model(layers),
        engines=tuple(
            Engine(f"n{i}", (Stage(f"n{i}", *span),), kv, limits) for i, span in enumerate(spans)
        ),
        legs=tuple(Leg(names[a], names[b], f, 1e6) for (a, b), f in flows.items()),
        planner="test",
        objective="maxflow",
        value=1.0,
        max_flow_tokens_per_s=sum(f for (a, _), f in flows.items() if a == -1),
        routing=routing or Routing(),
        admission=admission,
    )


@st.composite
def plans(draw, *, kv=10**9, admission="none", partial=True) -> Plan:
    """Layered plans of 2 to 4 stages with 1 to 3 replicas each; some replicas start earlier."""
    stages = draw(st.integers(1, 4))
    width = draw(st.integers(1, 4))
    layers = stages * width
    groups, spans = [], []
    for s in range(stages):
        group = []
        for _ in range(draw(st.integers(1, 3))):
            early = draw(st.integers(0, width - 1)) if partial and s and width > 1 else 0
            group.append(len(spans))
            spans.append((s * width - early, (s + 1) * width))
        groups.append(group)
    flow = st.floats(1.0, 50.0)
    flows = {}
    for b in groups[0]:
        flows[-1, b] = draw(flow)
    for left, right in pairwise(groups):
        for a in left:
            for b in right:
                flows[a, b] = draw(flow)
    for a in groups[-1]:
        flows[a, -1] = draw(flow)
    link = st.builds(Link, st.floats(1e5, 1e9), st.floats(1e-4, 0.05))
    links = {pair: draw(link) for pair in flows}
    router = draw(st.sampled_from(["maxflow", "swarm", "random", "shortest-queue"]))
    limits = BatchLimits(draw(st.integers(1, 3)), 512, draw(st.integers(1, 8)), 4096)
    return make_plan(
        spans,
        flows,
        layers=layers,
        kv=kv,
        links=links,
        limits=limits,
        routing=Routing(router, expected_output_tokens=8.0),
        admission=admission,
    )


@st.composite
def traces(draw, largest: int = 25) -> Workload:
    """Up to ``largest`` requests over a few seconds."""
    gaps = draw(st.lists(st.floats(0.0, 0.4), min_size=1, max_size=largest))
    time, requests = 0.0, []
    for i, gap in enumerate(gaps):
        time += gap
        prompt, output = draw(st.integers(1, 400)), draw(st.integers(1, 12))
        requests.append(Request(i, time, prompt, output))
    return Workload("trace", time + 1.0, trace=tuple(requests))
