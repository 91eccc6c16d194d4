"""The plan: which engine holds which layers, how requests flow, and why.

A plan is a document. It carries the cluster and the model it was made for, so that it can be
checked, drawn, simulated and served on its own. The layout of the file is in ``plan/document.py``.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from functools import cached_property
from typing import Literal

from penstock.cost.base import BatchLimits
from penstock.plan.settings import HandoffSettings, SchedulerSettings, SpeculationSettings
from penstock.spec.cluster import Cluster
from penstock.spec.model import ModelSpec

Role = Literal["both", "prefill", "decode"]
RouterName = Literal["maxflow", "swarm", "random", "shortest-queue"]
EngineRouterName = Literal[
    "flow-weighted",
    "round-robin",
    "random",
    "least-outstanding",
    "least-waiting",
    "least-kv-use",
    "prefix-affinity",
]
AdmissionName = Literal["queue", "drop", "none"]


@dataclass(frozen=True, slots=True)
class Stage:
    """Layers ``[start_layer, end_layer)`` on one node."""

    node: str
    start_layer: int
    end_layer: int

    @property
    def num_layers(self) -> int:
        return self.end_layer - self.start_layer


@dataclass(frozen=True, slots=True)
class Engine:
    """Stages in a pipeline under one batch scheduler, with one KV pool.

    ``kv_capacity_layer_tokens`` counts (token, layer) entries over all its stages. With a
    ``scheduler`` the engine holds the whole model and serves a request alone (or one phase of
    it, by its ``role``); without one its node batches the iterations of requests whose path
    leads through it, under ``limits``. ``url``: an OpenAI-compatible server instead of workers.
    """

    name: str
    stages: tuple[Stage, ...]
    kv_capacity_layer_tokens: int
    limits: BatchLimits
    role: Role = "both"
    scheduler: SchedulerSettings | None = None
    speculation: SpeculationSettings | None = None
    url: str = ""

    @property
    def num_blocks(self) -> int:
        """KV blocks of the whole engine, of its scheduler's block size."""
        block_size = 16 if self.scheduler is None else self.scheduler.block_size
        return self.kv_capacity_layer_tokens // (self.num_layers * block_size)

    @property
    def start_layer(self) -> int:
        return self.stages[0].start_layer

    @property
    def end_layer(self) -> int:
        return self.stages[-1].end_layer

    @property
    def num_layers(self) -> int:
        return self.end_layer - self.start_layer


@dataclass(frozen=True, slots=True)
class Leg:
    """A hop requests may take. ``src``/``dst`` are engine names or the coordinator.

    ``flow_tokens_per_s`` is the planned flow: the router's weight.
    """

    src: str
    dst: str
    flow_tokens_per_s: float
    capacity_tokens_per_s: float


@dataclass(frozen=True, slots=True)
class Routing:
    """Router and its settings (Helix section 4: KV expectation, masking).

    ``router`` draws paths over nodes; ``engine_router`` picks among whole engines (of role
    ``prefill`` or ``both``), ``decode_router`` among those that decode.
    """

    router: RouterName = "maxflow"
    kv_high_water_mark: float = 0.9
    expected_output_tokens: float = 240.0
    min_flow_share: float = 0.05
    engine_router: EngineRouterName = "least-outstanding"
    decode_router: EngineRouterName = "least-outstanding"


@dataclass(frozen=True, slots=True)
class Unused:
    node: str
    reason: str


@dataclass(frozen=True)
class Plan:
    """Engines, legs and settings, with objective, bound and reasons.

    ``value`` and ``bound`` are in the unit of ``objective``: tokens/s of max flow for
    ``maxflow``, decode tokens/s for ``throughput``, good requests/s for ``goodput``.
    ``max_flow_tokens_per_s`` and its bound are always stated. ``cost`` is what rebuilds the cost
    model (``CostModel.to_dict``). Wall time is not part of a plan: the same inputs give the
    same bytes. ``handoff`` is how KV memory moves between engines of different roles;
    ``checkpoint`` the folder that ``serve`` loads weights from, unless it is told another.
    """

    cluster: Cluster
    model: ModelSpec
    engines: tuple[Engine, ...]
    legs: tuple[Leg, ...]
    planner: str
    objective: Literal["maxflow", "throughput", "goodput"]
    value: float
    max_flow_tokens_per_s: float
    bound: float | None = None
    max_flow_bound_tokens_per_s: float | None = None
    bound_method: str = ""
    proved_optimal: bool = False
    routing: Routing = field(default_factory=Routing)
    admission: AdmissionName = "queue"
    unused: tuple[Unused, ...] = ()
    reasons: tuple[str, ...] = ()
    seed: int = 0
    cost: Mapping[str, object] = field(default_factory=dict)
    version: str = ""
    handoff: HandoffSettings = field(default_factory=HandoffSettings)
    checkpoint: str = ""

    @property
    def whole_engines(self) -> bool:
        """Whether every engine serves requests alone, under a batch scheduler of its own."""
        return all(engine.scheduler is not None or engine.url for engine in self.engines)

    @property
    def gap(self) -> float | None:
        """(bound - value) / value, or None without a bound."""
        if self.bound is None or self.value <= 0:
            return None
        return max(0.0, self.bound - self.value) / self.value

    @cached_property
    def engine_index(self) -> Mapping[str, int]:
        return {engine.name: i for i, engine in enumerate(self.engines)}

    def engine(self, name: str) -> Engine:
        return self.engines[self.engine_index[name]]
