"""From one pool plan to the next while requests run: done, or refused and nothing changed.

1. Models that go finish their requests first; where they do not, the change is refused.
2. New engines start beside the old ones where the GPUs have room for both. Requests go to them at
   once; the old ones finish what they have and end.
3. Where there is no room, old engines leave first. Their models' requests wait meanwhile.
4. What does not finish in time starts over on other engines, from the tokens it has.
5. Where an engine cannot start, the new ones end and those that left come back.
"""

from __future__ import annotations

import asyncio
from collections.abc import Iterable
from dataclasses import dataclass, replace
from pathlib import Path

from penstock.errors import InputError
from penstock.plan.moves import Placed, moves
from penstock.plan.plan import Engine
from penstock.plan.pool_plan import PoolPlan
from penstock.serve.coordinator.engine import EngineDriver
from penstock.serve.coordinator.moment import together
from penstock.serve.many.member import Member, build_of, piece_tokens, weight_of
from penstock.serve.many.memory import Budget, Bytes, engine_bytes
from penstock.serve.many.runtime import ManyRuntime
from penstock.serve.protocol import Conflict

_LOOK_S = 0.01


@dataclass(frozen=True, slots=True, eq=False)
class Part:
    """An engine that comes or goes, and the bytes it holds."""

    model: str
    engine: Engine
    need: Bytes

    def __str__(self) -> str:
        return f"{self.model}.{self.engine.name}"


@dataclass(frozen=True, slots=True)
class Outcome:
    """What a change did; engines as their plans call them, with their models."""

    started: tuple[str, ...]
    ended: tuple[str, ...]
    kept: tuple[str, ...]
    restarted_requests: int


class Change:
    """One change of ``many`` to ``new``. ``drain_s``: what old engines may take to finish.

    ``force`` ends the requests of models that go.
    """

    def __init__(
        self, many: ManyRuntime, new: PoolPlan, drain_s: float | None = None, *, force: bool = False
    ) -> None:
        self._many, self._old, self._new = many, many.plan, new
        self._drain_s = many.making.options.drain_s if drain_s is None else drain_s
        self._force = force
        self._kept: list[tuple[Placed, Placed]] = []
        self._coming: list[Part] = []
        self._going: list[Part] = []
        self._newcomers: dict[str, Member] = {}
        self._started: dict[Part, EngineDriver] = {}
        self._ended: list[Part] = []
        self._moved = 0

    async def run(self) -> Outcome:
        """Raises ``InputError`` or ``Conflict``; then nothing has changed."""
        many, new = self._many, self._new
        self._check()
        self._compare()
        gone = [member for name, member in many.members.items() if name not in new.index]
        touched = {part.model for part in (*self._coming, *self._going)}
        fleets = [
            many.members[name].fleet
            for name in touched
            if name in new.index and name in many.members
        ]
        many.limit_by(entry for entry in new.deployments if entry.name not in many.members)
        try:
            await self._empty(gone)
            for fleet in fleets:
                fleet.holding = True
            await self._exchange()
        except BaseException as error:
            await self._go_back()
            for member in gone:
                member.leaving = False
            if isinstance(error, InputError):
                raise InputError(f"{error}; nothing has changed") from error
            raise
        finally:
            for fleet in fleets:
                fleet.holding = False
        await self._settle(gone)
        return Outcome(
            tuple(map(str, self._started)),
            tuple(map(str, self._ended)),
            tuple(f"{after.model}.{after.engine.name}" for _, after in self._kept),
            self._moved,
        )

    # -- what there is to do ------------------------------------------------------------------

    def _check(self) -> None:
        many, new = self._many, self._new
        many.check(new)
        for entry in new.deployments:
            member = many.members.get(entry.name)
            if member is None:
                continue
            if not _same_folder(member.entry.plan.checkpoint, entry.plan.checkpoint):
                raise InputError(
                    f"{entry.name}: its checkpoint cannot change while it is served; remove the "
                    "model and add it again"
                )
            if member.entry.slo != entry.slo:
                raise InputError(
                    f"{entry.name}: its limits (slo) cannot change while it is served; remove the "
                    "model and add it again"
                )
            size, known = piece_tokens(entry.plan.engines), member.runtime.piece_tokens
            if size and known and size != known:
                raise InputError(f"{entry.name}: prefix_piece_tokens must stay {known}")

    def _compare(self) -> None:
        """Engines that stay, come and go. One with other settings goes and comes again."""
        found = moves(self._old, self._new)
        coming, going = list(found.loaded), list(found.removed)
        for before, after in found.kept:
            if _settings(before.engine) == _settings(after.engine):
                self._kept.append((before, after))
            else:
                coming.append(after)
                going.append(before)
        self._coming = [_part(self._new, placed) for placed in coming]
        self._going = [_part(self._old, placed) for placed in going]

    # -- doing it -----------------------------------------------------------------------------

    async def _empty(self, gone: Iterable[Member]) -> None:
        """Let models that go finish. Raises ``Conflict`` where they do not in time."""
        many = self._many
        gone = list(gone)
        for member in gone:
            member.leaving = True
        end_s = many.clock() + self._drain_s
        while any(member.outstanding for member in gone) and many.clock() < end_s:
            await asyncio.sleep(_LOOK_S)
        for member in gone:
            if member.outstanding and not self._force:
                raise Conflict(
                    f"{member.outstanding} requests of {member.card.name} are running after "
                    f"{self._drain_s:g} s; wait longer with drain_s, or end them with force; "
                    "nothing has changed"
                )

    async def _exchange(self) -> None:
        """Start what comes and end what goes, in an order that the memory allows."""
        budget = Budget.of((self._old, self._new))
        for entry in self._old.deployments:
            for engine in entry.plan.engines:
                budget.take(engine_bytes(self._old, entry.plan.model, engine))
        coming, going = list(self._coming), list(self._going)
        while coming or going:
            room = []
            for part in coming:
                if budget.fits(part.need):
                    budget.take(part.need)
                    room.append(part)
            if room:
                await together(self._start(part) for part in room)
                coming = [part for part in coming if part not in room]
                continue
            if coming and not going:
                raise InputError(f"{coming[0]} does not fit the memory of its GPUs")
            # Only what stands in the way of the first one, while something waits.
            wanted = set(coming[0].need) if coming else set()
            now = [part for part in going if wanted & set(part.need)] or going
            await together(self._end(part) for part in now)
            for part in now:
                budget.give(part.need)
            going = [part for part in going if part not in now]

    async def _start(self, part: Part) -> None:
        entry = self._new.deployment(part.model)
        member = self._many.members.get(part.model) or self._newcomers.get(part.model)
        if member is None:
            member = self._newcomers[part.model] = self._many.make(entry)
        self._started[part] = await self._many.open(member, self._new, entry, part.engine)

    async def _end(self, part: Part) -> None:
        member = self._many.members[part.model]
        driver = member.drivers[part.engine.name]
        self._ended.append(part)
        # What a forced end leaves of a model that goes has nowhere to start over.
        drain_s = 0.0 if member.leaving else self._drain_s
        moved = await self._many.shut(member, driver, drain_s)
        self._moved += 0 if member.leaving else moved

    async def _go_back(self) -> None:
        """Undo what was done. Raises ``InputError`` where an engine that left cannot come back."""
        many = self._many
        for part, driver in self._started.items():
            if part.model not in self._newcomers:
                await many.shut(many.members[part.model], driver, 0.0)
        for member in self._newcomers.values():
            await many.discard(member)
        lost = []
        for part in self._ended:
            member = many.members[part.model]
            entry = self._old.deployment(part.model)
            try:
                driver = await many.open(member, self._old, entry, part.engine)
            except InputError as error:
                lost.append(f"{part} ({error})")
            else:
                member.drivers[part.engine.name] = driver
        if lost:
            raise InputError(
                f"the change failed, and engines that had left for it cannot come back: "
                f"{', '.join(lost)}"
            )

    async def _settle(self, gone: Iterable[Member]) -> None:
        """Make the new plan the one that is served."""
        many, new = self._many, self._new
        for member in gone:
            del many.members[member.card.name]
            await many.discard(member)
        many.members |= self._newcomers
        drivers: dict[str, dict[str, EngineDriver]] = {name: {} for name in new.index}
        for before, after in self._kept:
            driver = many.members[after.model].drivers[before.engine.name]
            driver.engine = replace(after.engine, name=driver.name)
            if driver.standing is not None:
                driver.standing.urgency.priority = new.deployment(after.model).priority
            drivers[after.model][after.engine.name] = driver
        for part, driver in self._started.items():
            drivers[part.model][part.engine.name] = driver
        for entry in new.deployments:
            member = many.members[entry.name]
            member.entry, member.drivers = entry, drivers[entry.name]
            member.fleet.reroute(entry.plan.routing)
            member.fleet.build = build_of(entry, many.making)
            for engine in entry.plan.engines:
                member.drivers[engine.name].weight = weight_of(entry, engine)
            member.runtime.piece_tokens = member.runtime.piece_tokens or piece_tokens(
                entry.plan.engines
            )
        many.share_by(new.sharing)
        many.members = {entry.name: many.members[entry.name] for entry in new.deployments}
        many.plan = new


def _settings(engine: Engine) -> Engine:
    """An engine but for its name and place."""
    return replace(engine, name="", stages=())


def _part(pool: PoolPlan, placed: Placed) -> Part:
    model = pool.deployment(placed.model).plan.model
    return Part(placed.model, placed.engine, engine_bytes(pool, model, placed.engine))


def _same_folder(one: str, other: str) -> bool:
    """Whether two checkpoints are one folder, however its path is written."""
    return Path(one).resolve() == Path(other).resolve()
