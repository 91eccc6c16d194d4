"""Pool plans for tests: random, but valid in every way."""

from __future__ import annotations

from collections.abc import Sequence
from typing import cast, get_args

from hypothesis import strategies as st

from penstock.cost.step_roofline import StepRoofline
from penstock.plan.goodput.publish import Outcome, Placed, engine_plan
from penstock.plan.parts import Parts, cut
from penstock.plan.plan import EngineRouterName, Routing
from penstock.plan.pool_plan import Deployment, PoolAdmission, PoolPlan, Sharing, TurnRule, Unplaced
from penstock.plan.settings import SchedulerSettings
from penstock.spec.cluster import Cluster
from penstock.spec.load import cluster_from_dict, load_model
from penstock.spec.served import in_precision
from penstock.spec.variants import Precision
from penstock.spec.workload import SLO

MACHINES = {"a": 4, "b": 8}
SIZES = {4: [(4,), (2, 2), (2, 1, 1), (1, 1, 1, 1)], 8: [(8,), (4, 4), (4, 2, 2), (2,) * 4]}
PRECISIONS = [Precision("float16"), Precision("int8", True), Precision("int4")]
TIMES = st.floats(0.001, 100)
TEXT = st.text("abc déf:#'\"-\n", min_size=1, max_size=20)


def machines() -> Cluster:
    """A machine of 4 and one of 8 A100s, joined."""
    return cluster_from_dict(
        {
            "name": "two",
            "nodes": [
                {
                    "name": name,
                    "accelerator": "A100-80GB",
                    "accelerators_per_node": count,
                    "region": "here",
                    "nic": "10 Gbit/s",
                }
                for name, count in MACHINES.items()
            ],
            "coordinator": {"region": "here", "nic": "10 Gbit/s"},
            "network": {"in_region": {"bandwidth": "10 Gbit/s", "latency": "1 ms"}},
        }
    )


def shared_pool() -> PoolPlan:
    """Machine b in pairs of GPUs; two models take turns on the first two of them."""
    cluster = machines()
    parts = (Parts("b", (2, 2, 2, 2)),)
    nodes = cut(cluster, parts)

    def deployment(name: str, preset: str, groups: Sequence[tuple[str, ...]]) -> Deployment:
        precision = Precision("int8", int8_kv=True)
        placed = [Placed(f"e{i}", group, 4096) for i, group in enumerate(groups)]
        cost = StepRoofline(in_precision(load_model(preset), precision))
        outcome = Outcome(2.0, 0.9, 100.0, "joint")
        return Deployment(name, engine_plan(nodes, cost, placed, outcome), precision, 0.98)

    return PoolPlan(
        cluster,
        parts,
        (
            deployment("chat", "llama2-13b", [("b.0", "b.1"), ("a",)]),
            deployment("code", "llama2-7b", [("b.0", "b.1"), ("b.2",)]),
        ),
        "joint",
        0.97,
    )


@st.composite
def pools(draw: st.DrawFn) -> PoolPlan:
    """Up to four models on shared pipelines of one or two nodes."""
    cluster = machines()
    parts = tuple(
        Parts(name, draw(st.sampled_from(SIZES[count])))
        for name, count in MACHINES.items()
        if draw(st.booleans())
    )
    nodes = cut(cluster, parts)
    names = [node.name for node in nodes.nodes]
    groups = []
    while names:
        size = draw(st.integers(1, min(2, len(names))))
        groups.append(tuple(names[:size]))
        names = names[size:]
    deployments = []
    for number in range(draw(st.integers(1, 4))):
        precision = draw(st.sampled_from(PRECISIONS))
        preset = draw(st.sampled_from(["llama2-7b", "llama2-13b"]))
        shape = in_precision(load_model(preset), precision)
        chosen = draw(st.lists(st.sampled_from(groups), min_size=1, max_size=3, unique=True))
        scheduler = SchedulerSettings(max_num_seqs=draw(st.none() | st.integers(1, 64)))
        placed = [
            Placed(f"e{i}", group, draw(st.integers(16, 10_000)), scheduler=scheduler)
            for i, group in enumerate(chosen)
        ]
        reasons = tuple(draw(st.lists(TEXT, max_size=2)))
        rate = draw(st.floats(0, 50))
        plan = engine_plan(
            nodes,
            StepRoofline(shape),
            placed,
            Outcome(rate, 0.9, 100.0, "joint", reasons, seed=draw(st.integers(0, 9))),
            routing=Routing(engine_router=draw(st.sampled_from(get_args(EngineRouterName)))),
        )
        deployments.append(
            Deployment(
                f"model-{number}",
                plan,
                precision,
                draw(st.floats(0.01, 1)),
                draw(st.integers(-2, 9)),
                draw(st.none() | st.builds(SLO, ttft_s=TIMES, e2e_s=st.none() | TIMES)),
            )
        )
    return PoolPlan(
        cluster,
        parts,
        tuple(deployments),
        draw(st.sampled_from(["joint", "alpaserve"])),
        draw(st.floats(0, 1)),
        Sharing(
            cast(TurnRule, draw(st.sampled_from(get_args(TurnRule)))),
            cast(PoolAdmission, draw(st.sampled_from(get_args(PoolAdmission)))),
        ),
        tuple(Unplaced(f"left-{i}", draw(TEXT)) for i in range(draw(st.integers(0, 2)))),
        tuple(draw(st.lists(TEXT, max_size=2))),
        draw(st.integers(0, 9)),
        "0.1",
    )
