"""What the engine simulator runs: engines with their schedulers behind one router."""

from __future__ import annotations

from dataclasses import dataclass, field, replace
from typing import Literal

from penstock.cost.steps import EngineShape
from penstock.errors import InputError
from penstock.plan.settings import SchedulerSettings
from penstock.policy.schedulers.base import Scheduler
from penstock.spec.cluster import Link
from penstock.spec.hardware import Accelerator

Role = Literal["prefill", "decode", "both"]


@dataclass(frozen=True, slots=True)
class StageSpec:
    """One stage of a pipeline on machines of a cluster.

    ``link`` leads to the next stage (None = the last one); ``price_per_hour`` is of the machine.
    """

    accelerator: Accelerator
    tensor_parallel_size: int
    num_layers: int
    link: Link | None = None
    price_per_hour: float | None = None


@dataclass(frozen=True, slots=True)
class EngineSpec:
    """One engine. ``num_blocks`` None = what the cost model says its memory holds.

    ``weight`` is its share of the requests under the router ``flow-weighted``. ``policy`` is a
    scheduler class of one's own; None = the one that ``scheduler`` names. ``stages`` tells stages
    apart; none = equal ones of ``shape``, inside one machine. ``slowdown`` multiplies the seconds
    of all its steps: what others on its machine take from it.
    """

    name: str
    shape: EngineShape
    scheduler: SchedulerSettings = field(default_factory=SchedulerSettings)
    role: Role = "both"
    num_blocks: int | None = None
    weight: float = 1.0
    policy: type[Scheduler] | None = None
    stages: tuple[StageSpec, ...] = ()
    slowdown: float = 1.0

    @property
    def num_accelerators(self) -> int:
        if self.stages:
            return sum(stage.tensor_parallel_size for stage in self.stages)
        return self.shape.num_accelerators

    @property
    def price_per_hour(self) -> float | None:
        """Dollars per hour of all its GPUs; None where one has no price."""
        if self.stages:
            prices = [stage.price_per_hour for stage in self.stages]
            known = [price for price in prices if price is not None]
            return sum(known) if len(known) == len(prices) else None
        each = self.shape.accelerator.price_per_hour
        return None if each is None else each * self.shape.num_accelerators


@dataclass(frozen=True, slots=True)
class EngineFleet:
    """Engines of one model; ``router`` is a name of ``policy.engine_routing.ROUTERS``."""

    engines: tuple[EngineSpec, ...]
    router: str = "round-robin"

    def __post_init__(self) -> None:
        if not self.engines:
            raise InputError("a fleet needs at least one engine")
        names = [engine.name for engine in self.engines]
        if len(set(names)) < len(names):
            raise InputError(f"engine names must differ (got {', '.join(names)})")

    @classmethod
    def replicas(cls, engine: EngineSpec, count: int, router: str = "round-robin") -> EngineFleet:
        """``count`` copies of ``engine``, numbered from 0."""
        return cls(tuple(replace(engine, name=f"{engine.name}-{i}") for i in range(count)), router)

    @property
    def num_accelerators(self) -> int:
        return sum(engine.num_accelerators for engine in self.engines)
