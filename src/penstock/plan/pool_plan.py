"""Many models on one pool of machines: one plan of whole engines a model, on shared nodes.

Machines are cut into tensor-parallel groups (``parts``); a pipeline over such groups is held by
one engine or shared by engines of several models, which then take turns (``policy/sharing.py``).
The layout of the file is in ``plan/pool_document.py``.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from functools import cached_property
from typing import Literal

from penstock.plan.parts import Parts, cut
from penstock.plan.plan import Engine, Plan
from penstock.spec.cluster import Cluster
from penstock.spec.variants import Precision
from penstock.spec.workload import SLO

TurnRule = Literal["earliest-deadline", "round-robin", "first-come"]
PoolAdmission = Literal["queue", "deadline"]


@dataclass(frozen=True, slots=True)
class Sharing:
    """How engines on the same nodes take turns, and which requests are taken at all.

    ``turns``: whose batch enters next. ``admission``: ``deadline`` refuses a request that by
    all estimates would end after the limit of its class.
    """

    turns: TurnRule = "earliest-deadline"
    admission: PoolAdmission = "queue"


@dataclass(frozen=True, slots=True)
class Deployment:
    """One model as the pool serves it.

    ``plan`` has whole engines only, on nodes of ``PoolPlan.nodes``; its name space is its own.
    ``accuracy`` is that of the stored form, as a share of the unquantised model's. ``slo``: the
    limits of its requests where a workload gives them none.
    """

    name: str
    plan: Plan
    precision: Precision
    accuracy: float = 1.0
    priority: int = 0
    slo: SLO | None = None


@dataclass(frozen=True, slots=True)
class Unplaced:
    model: str
    reason: str


@dataclass(frozen=True)
class PoolPlan:
    """Deployments on one cluster. ``value``: predicted share of requests within their limits.

    ``cluster`` has whole machines; ``nodes`` is the same cluster cut into ``parts``, and the
    cluster of every deployment's plan. Two engines stand on the same nodes in the same order, or
    on none in common.
    """

    cluster: Cluster
    parts: tuple[Parts, ...]
    deployments: tuple[Deployment, ...]
    planner: str
    value: float
    sharing: Sharing = field(default_factory=Sharing)
    unplaced: tuple[Unplaced, ...] = ()
    reasons: tuple[str, ...] = ()
    seed: int = 0
    version: str = ""

    @cached_property
    def nodes(self) -> Cluster:
        return cut(self.cluster, self.parts)

    @cached_property
    def index(self) -> Mapping[str, int]:
        return {entry.name: i for i, entry in enumerate(self.deployments)}

    def deployment(self, name: str) -> Deployment:
        return self.deployments[self.index[name]]

    @cached_property
    def groups(self) -> Mapping[tuple[str, ...], tuple[tuple[str, Engine], ...]]:
        """(model, engine) pairs by the nodes they stand on, in the order of the plan."""
        found: dict[tuple[str, ...], list[tuple[str, Engine]]] = {}
        for entry in self.deployments:
            for engine in entry.plan.engines:
                nodes = tuple(stage.node for stage in engine.stages)
                found.setdefault(nodes, []).append((entry.name, engine))
        return {nodes: tuple(engines) for nodes, engines in found.items()}

    def gpus_of(self, node: str) -> frozenset[tuple[str, int]]:
        """The GPUs of a node: (machine, number on it)."""
        for part in self.parts:
            if node in part.names:
                at = part.names.index(node)
                first = sum(part.sizes[:at])
                return frozenset((part.machine, first + i) for i in range(part.sizes[at]))
        return frozenset((node, i) for i in range(self.cluster.node(node).count))
