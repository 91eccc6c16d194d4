"""Small pools for the tests of the pool simulator: toy GPUs whose steps take whole milliseconds."""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass

import numpy as np

from penstock.cost.base import BatchLimits
from penstock.cost.linear import DecodeLine, LinearCoefficients, LinearStepCost
from penstock.measure.run import Run
from penstock.plan.parts import Parts, cut
from penstock.plan.plan import Engine, Plan, Routing, Stage
from penstock.plan.pool_plan import Deployment, PoolPlan, Sharing
from penstock.plan.settings import SchedulerSettings
from penstock.sim.pools import PoolOptions, simulate_pool
from penstock.spec.cluster import Cluster, Link
from penstock.spec.hardware import Accelerator, Coordinator, Node
from penstock.spec.model import ModelSpec
from penstock.spec.variants import Precision
from penstock.spec.workload import Request, SLOClass, Workload

GPU = Accelerator("toy", 16_000_000_000, 1e11, {"fp16": 1e12}, "none", 0.0, None, "test")
MODEL = ModelSpec("toy", 4, 256, 4, 4, 64, 512, 1000, 4096)
DISK = float(MODEL.slice_weight_bytes(0, 4))
"""Bytes/s: a model is read in one second by one GPU."""
PRECISION = Precision("float16")


def cluster(machines: int, gpus: int = 1, *, disk_bytes_per_s: float = DISK) -> Cluster:
    nodes = tuple(
        Node(f"m{i}", GPU, gpus, f"toyx{gpus}", "here", 1e9, 1e9, disk_bytes_per_s * gpus, 1)
        for i in range(machines)
    )
    link = Link(1e18, 0.0)
    return Cluster("test", nodes, Coordinator("here", 1e9, 1e9), {("here", "here"): link}, {})


def cost(
    decode_s: float = 0.01, context_s: float = 0.0, seq_s: float = 0.0, token_s: float = 1e-4
) -> LinearStepCost:
    """``decode_s`` a step of decodes, ``decode_s + token_s * tokens`` one with prompts."""
    line = DecodeLine(decode_s, context_s, seq_s)
    return LinearStepCost(MODEL, LinearCoefficients(decode_s, token_s, 0.0, line), 100_000)


@dataclass(frozen=True)
class Holds:
    """An engine of ``model``: the nodes of its stages, and its KV blocks."""

    model: str
    nodes: tuple[str, ...]
    num_blocks: int = 1000


def pool(
    fleet: Cluster,
    holds: Iterable[Holds],
    *,
    parts: Sequence[Parts] = (),
    settings: SchedulerSettings | Mapping[str, SchedulerSettings] | None = None,
    router: str = "least-outstanding",
    sharing: Sharing | None = None,
    priorities: Mapping[str, int] | None = None,
) -> PoolPlan:
    engines: dict[str, list[Engine]] = {}
    for hold in holds:
        chosen = settings[hold.model] if isinstance(settings, Mapping) else settings
        chosen = chosen or SchedulerSettings()
        count, held = len(hold.nodes), engines.setdefault(hold.model, [])
        each = MODEL.num_hidden_layers // count
        stages = tuple(Stage(n, i * each, (i + 1) * each) for i, n in enumerate(hold.nodes))
        capacity = hold.num_blocks * chosen.block_size * MODEL.num_hidden_layers
        name = f"e{len(held)}"
        held.append(Engine(name, stages, capacity, BatchLimits(1, 1, 1, 1), scheduler=chosen))
    nodes = cut(fleet, parts)
    routing = Routing(engine_router=router)  # type: ignore[arg-type]
    return PoolPlan(
        fleet,
        tuple(parts),
        tuple(
            Deployment(
                name,
                Plan(nodes, MODEL, tuple(found), (), "test", "goodput", 0.0, 0.0, routing=routing),
                PRECISION,
                priority=(priorities or {}).get(name, 0),
            )
            for name, found in engines.items()
        ),
        "test",
        1.0,
        sharing or Sharing(),
    )


def workload(requests: Iterable[Request], classes: tuple[SLOClass, ...] = ()) -> Workload:
    return Workload("test", 0.0, trace=tuple(requests), classes=classes)


def run_pool(
    plan: PoolPlan,
    requests: Iterable[Request],
    *,
    classes: tuple[SLOClass, ...] = (),
    costs: Mapping[str, LinearStepCost] | None = None,
    **options: object,
) -> Run:
    names = {entry.name for entry in plan.deployments}
    for _, later in options.get("changes", ()):  # type: ignore[attr-defined]
        names |= {entry.name for entry in later.deployments}
    return simulate_pool(
        plan,
        workload(requests, classes),
        costs or dict.fromkeys(names, cost()),
        PoolOptions(check=True, **options),  # type: ignore[arg-type]
    )


def same_run(a: Run, b: Run) -> None:
    """Raise ``AssertionError`` unless the runs agree to a nanosecond and in every decision."""
    for column in ("admitted_s", "first_token_s", "last_token_s"):
        np.testing.assert_allclose(
            getattr(a.requests, column), getattr(b.requests, column), rtol=0, atol=1e-9
        )
    for column in ("generated_tokens", "status", "preemptions", "route_index"):
        np.testing.assert_array_equal(getattr(a.requests, column), getattr(b.requests, column))
    np.testing.assert_array_equal(a.tokens.offsets, b.tokens.offsets)
    np.testing.assert_allclose(a.tokens.times_s, b.tokens.times_s, rtol=0, atol=1e-9)
    assert a.nodes is not None
    assert b.nodes is not None
    assert a.nodes.names == b.nodes.names
    np.testing.assert_array_equal(a.nodes.batches, b.nodes.batches)
    np.testing.assert_allclose(a.nodes.busy_s, b.nodes.busy_s, rtol=1e-9, atol=1e-12)
    assert [e.kind + e.detail for e in a.events] == [e.kind + e.detail for e in b.events]
    times = [[event.time_s for event in run.events] for run in (a, b)]
    np.testing.assert_allclose(times[0], times[1], rtol=0, atol=1e-9)
