"""One model of a pool: who serves it now, who will, and who waits for that."""

from __future__ import annotations

from penstock.plan.pool_plan import Deployment
from penstock.policy.engine_routing import EngineRouter, RoundRobin, admit_all, make_router
from penstock.policy.fleet import plan_admission
from penstock.policy.schedulers.priority import UrgencyQueue
from penstock.sim.pools.engine import PoolEngine, State


class ServedModel:
    """``engines`` are those of the plan in force, ``former`` those of older plans that live on.

    ``ready`` take requests now: engines of the plan, else former ones that stay. ``queue`` holds
    requests until somebody is ready, most urgent first.
    """

    def __init__(self, name: str, seed: int) -> None:
        self.name = name
        self.engines: list[PoolEngine] = []
        self.former: list[PoolEngine] = []
        self.ready: list[PoolEngine] = []
        self.queue = UrgencyQueue()
        self.admission = admit_all
        self._seed = seed
        self._router_name = ""
        self.router: EngineRouter = RoundRobin()

    @property
    def deployed(self) -> bool:
        return bool(self.engines)

    @property
    def coming(self) -> list[PoolEngine]:
        """Engines that are not ready yet."""
        return [e for e in self.engines if e.state in (State.WAITING, State.LOADING)]

    def adopt(self, entry: Deployment | None, engines: list[PoolEngine]) -> None:
        """Be served as ``entry`` says (None = no more) by ``engines``."""
        gone = [engine for engine in self.engines if engine not in engines]
        self.former += [engine for engine in gone if engine.state is not State.GONE]
        self.engines = engines
        if entry is not None:
            self.admission = plan_admission(entry.plan)
            name = entry.plan.routing.engine_router
            if name != self._router_name:
                self._router_name, self.router = name, make_router(name, self._seed)

    def look(self) -> None:
        """Find out who is ready."""
        self.former = [engine for engine in self.former if engine.state is not State.GONE]
        ready = [engine for engine in self.engines if engine.state is State.READY]
        self.ready = ready or [e for e in self.former if e.state is State.STAYING]
