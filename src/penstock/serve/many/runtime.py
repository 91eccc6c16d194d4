"""Several models behind one gateway: a runtime each, over one pool of workers."""

from __future__ import annotations

import asyncio
from collections import Counter
from collections.abc import AsyncGenerator, AsyncIterator, Callable, Iterable, Mapping
from contextlib import aclosing
from dataclasses import replace
from typing import cast

from penstock.errors import InputError
from penstock.measure.run import Run
from penstock.plan.plan import Engine
from penstock.plan.pool_checker import check_pool
from penstock.plan.pool_plan import Deployment, PoolPlan, Sharing
from penstock.serve.coordinator.engine import EngineDriver
from penstock.serve.coordinator.moment import together
from penstock.serve.coordinator.record import Ledger, Part, recorded
from penstock.serve.many.groups import Groups, Place
from penstock.serve.many.member import (
    Making,
    Member,
    build_of,
    dtype_of,
    make_member,
    pace_of,
    piece_tokens,
    weight_of,
)
from penstock.serve.many.shared_pool import SharedPool
from penstock.serve.pool import WorkerPool
from penstock.serve.protocol import (
    EngineStatus,
    GenerationRequest,
    ModelCard,
    TokenDelta,
    Unavailable,
    UnknownModel,
)
from penstock.spec.names import did_you_mean


class ManyRuntime:
    """Implements ``protocol.Generator`` over the deployments of a pool plan.

    ``plan`` is what is served now. ``fit`` cuts plans to what this machine holds. Raises
    ``SpecError`` for a plan that cannot be served.
    """

    def __init__(
        self,
        plan: PoolPlan,
        workers: WorkerPool,
        making: Making | None = None,
        *,
        fit: Callable[[PoolPlan], PoolPlan] = lambda plan: plan,
        clock: Callable[[], float] | None = None,
    ) -> None:
        self.clock = clock or asyncio.get_running_loop().time
        self.plan = fit(plan)
        self.making = (making or Making()).limited_by(self.plan.deployments)
        self.fit = fit
        self.members: dict[str, Member] = {}
        self.busy = ""
        self.groups = Groups(self.plan.sharing.turns, self.making.classes, self.clock)
        self._shared = SharedPool(workers)
        self._names: Counter[str] = Counter()
        self._started_s = self.clock()
        self._left: list[Part] = []
        self.check(self.plan)

    def check(self, plan: PoolPlan) -> None:
        """Raises ``InputError`` for a plan that does not hold or cannot be served here."""
        problems = check_pool(plan)
        if problems:
            raise InputError(f"the pool plan does not hold: {problems[0]}")
        for entry in plan.deployments:
            dtype_of(entry, self.making.options)
            sizes = {piece_tokens((engine,)) for engine in entry.plan.engines} - {0}
            if len(sizes) > 1:
                raise InputError(f"{entry.name}: prefix caches need one prefix_piece_tokens")

    async def start(self) -> None:
        """Start the workers of all models. Raises ``InputError`` where one cannot be built."""
        for entry in self.plan.deployments:
            self.members[entry.name] = self.make(entry)
        self.share_by(self.plan.sharing)
        await together(
            self._first(entry, engine)
            for entry in self.plan.deployments
            for engine in entry.plan.engines
        )

    async def _first(self, entry: Deployment, engine: Engine) -> None:
        member = self.members[entry.name]
        member.drivers[engine.name] = await self.open(member, self.plan, entry, engine)

    async def close(self) -> None:
        """End everything; requests under way end with an error."""
        await self.end_requests()
        await self._shared.close()

    async def end_requests(self) -> None:
        """Let no request wait any longer: all end with an error."""
        for member in self.members.values():
            await member.runtime.end_requests()

    async def drain(self, seconds: float) -> None:
        """Wait until nothing runs, for ``seconds`` at most."""
        await asyncio.gather(*(one.runtime.drain(seconds) for one in self.members.values()))

    # -- engines ------------------------------------------------------------------------------

    def limit_by(self, entries: Iterable[Deployment]) -> None:
        """Let the limits of models that come hold for their requests."""
        self.making = self.making.limited_by(entries)
        self.groups.set_classes(self.making.classes)

    def make(self, entry: Deployment) -> Member:
        """A runtime for ``entry``, without engines yet."""
        return make_member(entry, self._shared.share(), self.making)

    async def open(
        self, member: Member, plan: PoolPlan, entry: Deployment, engine: Engine
    ) -> EngineDriver:
        """Start ``engine`` of ``entry`` and let requests in. Raises ``InputError``."""
        name = f"{entry.name}.{engine.name}"
        self._names[name] += 1
        if self._names[name] > 1:
            # The engine it takes over from may still run.
            name += f"~{self._names[name]}"
        place = tuple(plan.gpus_of(stage.node) for stage in engine.stages)
        return await member.fleet.add(
            replace(engine, name=name),
            weight_of(entry, engine),
            build_of(entry, self.making),
            lambda driver: self._join(driver, place, entry),
        )

    def _join(self, driver: EngineDriver, place: Place, entry: Deployment) -> None:
        if not driver.engine.url:
            self.groups.join(driver, place, entry.priority, pace_of(driver, entry, self.making))

    def share_by(self, sharing: Sharing) -> None:
        """Take turns and admit requests by ``sharing`` from now on."""
        self.groups.set_rule(sharing.turns)
        in_time = self.groups.in_time if sharing.admission == "deadline" else None
        for member in self.members.values():
            member.fleet.in_time = in_time

    async def shut(self, member: Member, driver: EngineDriver, drain_s: float | None) -> int:
        """End an engine; returns how many requests start over elsewhere."""
        moved = await member.fleet.remove(driver, drain_s)
        self.groups.leave(driver)
        return moved

    async def discard(self, member: Member) -> None:
        """End a model's runtime with all its workers; what it has served stays on record."""
        await member.runtime.close()
        ledger = member.runtime.ledger
        if ledger.rows:
            self._left.append(Part(member.entry.name, ledger, ()))
        for driver in member.fleet.engines:
            self.groups.leave(driver)

    # -- for the gateway ----------------------------------------------------------------------

    def models(self) -> tuple[ModelCard, ...]:
        return tuple(member.card for member in self.members.values())

    async def generate(self, request: GenerationRequest) -> AsyncIterator[TokenDelta]:
        """See ``protocol.Generator``."""
        member = self._member(request.model)
        if not request.class_name and member.entry.name in self.groups.classes:
            request = replace(request, class_name=member.entry.name)
        stream = cast(AsyncGenerator[TokenDelta, None], member.runtime.generate(request))
        async with aclosing(stream):
            async for delta in stream:
                yield delta

    def _member(self, name: str) -> Member:
        if not name and len(self.members) == 1:
            name = next(iter(self.members))
        member = self.members.get(name)
        if member is None:
            raise UnknownModel(
                f"the model {name!r} is not served; {did_you_mean(name, self.members)}"
            )
        if member.leaving:
            raise Unavailable(f"the model {name!r} is being removed")
        return member

    def engines(self) -> tuple[EngineStatus, ...]:
        return tuple(
            status for member in self.members.values() for status in member.runtime.engines()
        )

    def ready(self) -> bool:
        """Whether every model can be served now."""
        return all(member.runtime.ready() for member in self.members.values())

    def counters(self) -> Mapping[str, float]:
        sums: Counter[str] = Counter()
        for counters in self.model_counters().values():
            sums.update(counters)
        return sums

    def model_counters(self) -> Mapping[str, Mapping[str, float]]:
        """``counters`` of each model."""
        return {name: member.runtime.counters() for name, member in self.members.items()}

    def run(self, name: str, header: Mapping[str, object]) -> Run:
        """What was served so far (``ServeOptions.record``), of models that have gone too."""
        here = [
            Part(model, member.runtime.ledger, member.runtime.engines())
            for model, member in self.members.items()
        ]
        parts = [*here, *self._left]
        if not parts:
            nothing = Ledger(self._started_s, [one.name for one in self.making.classes], keep=False)
            parts = [Part("", nothing, ())]
        return recorded(name, header, parts, self.clock(), self._started_s)

    async def administer(self, action: str, body: Mapping[str, object]) -> Mapping[str, object]:
        from penstock.serve.many.admin import administer  # noqa: PLC0415 - it imports us

        if self.busy:
            raise InputError(f"another change is under way ({self.busy}); try again after it")
        self.busy = action
        try:
            return await administer(self, action, body)
        finally:
            self.busy = ""
