"""Engines that come, go and change roles while requests run: every change is a transaction.

It answers when it is done, or is refused with the reason and changes nothing. SDS's operations
(``remove [id]``, ``add [role, id]``, ``change [old role, id, new role, id]``) name engines by
their place in the plan.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from dataclasses import replace
from itertools import count
from typing import TYPE_CHECKING

from penstock.errors import InputError
from penstock.plan.plan import Engine, Role
from penstock.spec.availability import ROLES
from penstock.spec.names import did_you_mean

if TYPE_CHECKING:
    from penstock.serve.coordinator.engine import EngineDriver
    from penstock.serve.coordinator.fleet import Fleet

Body = Mapping[str, object]


class Elastic:
    """Changes of one fleet; one at a time."""

    def __init__(self, fleet: Fleet) -> None:
        self._fleet = fleet
        self._busy = ""
        self._numbered: dict[int, Engine] = {}

    def number(self, engines: Iterable[Engine]) -> None:
        """Note the numbers of SDS's operations: places in the plan, for good."""
        self._numbered = dict(enumerate(engines))

    async def administer(self, action: str, body: Body) -> Body:
        """Run an action of ``Generator.administer``. Raises ``InputError`` where it is refused."""
        actions = {
            "engines.add": self.add,
            "engines.remove": self.remove,
            "engines.role": self.change_role,
            "operations": self.operate,
        }
        if action not in actions:
            raise InputError(f"unknown action {action!r}; {did_you_mean(action, list(actions))}")
        if self._busy:
            raise InputError(f"another change is under way ({self._busy}); try again after it")
        self._busy = action
        try:
            return await actions[action](body)
        finally:
            self._busy = ""

    async def add(self, body: Body) -> Body:
        """Add a copy of the engine ``like`` (default: the first) as ``name``, with ``role``."""
        fleet = self._fleet
        like = fleet.named(_text(body, "like", fleet.engines[0].name))
        names = {engine.name for engine in fleet.engines}
        free = (f"{like.name}-{n}" for n in count(len(names)))
        name = _text(body, "name", next(n for n in free if n not in names))
        role = _role(body.get("role", like.engine.role))
        if name in names:
            raise InputError(f"an engine called {name!r} is there already")
        fleet.check_roles(more=(role,))
        engine = replace(like.engine, name=name, role=role)
        await fleet.add(engine, like.weight)
        return {"name": name, "role": role}

    async def remove(self, body: Body) -> Body:
        """Let ``name`` finish what it has, for ``drain_s`` at most, then end it."""
        fleet = self._fleet
        engine = fleet.named(_text(body, "name"))
        fleet.check_roles(without=engine)
        moved = await fleet.remove(engine, _seconds(body, "drain_s"))
        return {"name": engine.name, "restarted_requests": moved}

    async def change_role(self, body: Body) -> Body:
        """Give ``name`` another ``role`` when it has finished what it has."""
        fleet = self._fleet
        engine = fleet.named(_text(body, "name"))
        role = _role(body.get("role"))
        if role != engine.engine.role:
            if engine.engine.url:
                raise InputError(f"{engine.name} is a server of its own and keeps the role both")
            fleet.check_roles(without=engine, more=(role,))
            await fleet.change_role(engine, role, _seconds(body, "drain_s"))
        return {"name": engine.name, "role": role}

    async def operate(self, body: Body) -> Body:
        """One operation of SDS's files: ``{"operation": ..., "params": [...]}``."""
        operation = _text(body, "operation")
        params = body.get("params")
        if not isinstance(params, list):
            raise InputError("params: must be a list")
        drain = {key: body[key] for key in ("drain_s",) if key in body}
        match operation, params:
            case "remove", [number]:
                return await self.remove({"name": self._of(number).name, **drain})
            case "add", [role, int(number)]:
                return await self._come_back(number, _role(role))
            case "change", [old, number, new, other]:
                engine = self._of(number)
                if number != other:
                    raise InputError(f"params: an engine keeps its number (got {params})")
                if engine.engine.role != _role(old):
                    raise InputError(f"params: {engine.name} has the role {engine.engine.role}")
                return await self.change_role({"name": engine.name, "role": new, **drain})
        raise InputError(
            f"operation: unknown {operation!r} with {len(params)} params; use remove [id], "
            "add [role, id] or change [old role, id, new role, id]"
        )

    async def _come_back(self, number: int, role: Role) -> Body:
        """Add the engine with ``number``: as the plan has it, or a copy of the first."""
        fleet = self._fleet
        planned = self._numbered.get(number)
        if planned is None:
            planned = replace(fleet.engines[0].engine, name=f"engine-{number}")
        if any(engine.name == planned.name for engine in fleet.engines):
            raise InputError(f"params: the engine {number} ({planned.name}) is there already")
        fleet.check_roles(more=(role,))
        await fleet.add(replace(planned, role=role), 1.0)
        self._numbered[number] = planned
        return {"name": planned.name, "role": role}

    def _of(self, number: object) -> EngineDriver:
        planned = self._numbered.get(number) if type(number) is int else None
        for engine in self._fleet.engines:
            if planned is not None and engine.name == planned.name:
                return engine
        raise InputError(f"params: no engine has the number {number!r} now")


def _text(body: Body, key: str, default: str | None = None) -> str:
    value = body.get(key, default)
    if not isinstance(value, str) or not value:
        raise InputError(f"{key}: must be text (got {value!r})")
    return value


def _seconds(body: Body, key: str) -> float | None:
    value = body.get(key)
    if value is None:
        return None
    if isinstance(value, bool) or not isinstance(value, int | float) or value < 0:
        raise InputError(f"{key}: must be 0 or more seconds (got {value!r})")
    return float(value)


def _role(value: object) -> Role:
    if value == "both":
        return "both"
    role = ROLES.get(value) if isinstance(value, str) else None
    if role is None:
        raise InputError(f"role: must be prefill, decode or both (got {value!r})")
    return role
