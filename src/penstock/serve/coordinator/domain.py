"""The two ways a plan serves: whole engines, or paths over nodes that hold parts of the model."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from typing import Protocol

from penstock.cost.steps import StepCostModel
from penstock.plan.plan import Plan
from penstock.serve.coordinator.fleet import Fleet
from penstock.serve.coordinator.live import Live
from penstock.serve.coordinator.options import ServeOptions
from penstock.serve.coordinator.paths import Paths
from penstock.serve.pool import WorkerPool
from penstock.serve.protocol import EngineStatus
from penstock.serve.wire import ToCoordinator
from penstock.spec.workload import SLOClass


class Domain(Protocol):
    """Requests in, messages of workers in, requests that are over out (``ended``)."""

    @property
    def outstanding(self) -> int: ...

    @property
    def num_waiting(self) -> int: ...

    async def start(self) -> None: ...

    async def close(self) -> None: ...

    def submit(self, live: Live) -> None: ...

    def cancel(self, live: Live) -> None: ...

    def receive(self, message: ToCoordinator) -> None: ...

    def died(self, worker: str, why: str) -> None: ...

    def status(self) -> tuple[EngineStatus, ...]: ...

    def ready(self) -> bool: ...

    def counters(self) -> Mapping[str, float]: ...

    async def administer(self, action: str, body: Mapping[str, object]) -> Mapping[str, object]: ...


def make_domain(
    plan: Plan,
    pool: WorkerPool,
    options: ServeOptions,
    *,
    classes: Mapping[str, SLOClass],
    ended: Callable[[Live], None],
    clock: Callable[[], float],
    cost: StepCostModel | None,
) -> Domain:
    """The one that ``plan`` needs."""
    if plan.whole_engines:
        return Fleet(plan, pool, options, classes=classes, ended=ended, clock=clock, cost=cost)
    return Paths(plan, pool, options, ended=ended, clock=clock)
