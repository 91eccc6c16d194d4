"""Changes that are asked over HTTP: which models are served, how, and where."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import asdict, replace
from typing import TYPE_CHECKING

from penstock.errors import InputError
from penstock.plan.pool_document import pool_from_dict, pool_to_dict
from penstock.plan.pool_plan import PoolPlan
from penstock.serve.many.bodies import DeployBody, DrainBody, RemoveBody
from penstock.serve.many.change import Change, Outcome
from penstock.serve.many.deploy import deployed
from penstock.serve.protocol import Conflict, UnknownModel
from penstock.spec.names import did_you_mean
from penstock.spec.strict import validate

if TYPE_CHECKING:
    from penstock.serve.many.runtime import ManyRuntime

Body = Mapping[str, object]


async def administer(many: ManyRuntime, action: str, body: Body) -> Body:
    """Run an action of ``Generator.administer``. Raises ``InputError`` where it is refused."""
    if action == "models.add":
        return await _add(many, body)
    if action == "models.remove":
        return await _remove(many, body)
    if action == "pool.set":
        return await _replace(many, body)
    if action == "pool.get":
        return pool_to_dict(many.plan)
    if action == "models.get":
        return {"models": [_described(many, name) for name in many.members]}
    if action.startswith("engines.") or action == "operations":
        raise InputError(
            "a server of several models changes as a whole; use /admin/models or /admin/pool"
        )
    known = ("models.add", "models.remove", "models.get", "pool.set", "pool.get")
    raise InputError(f"unknown action {action!r}; {did_you_mean(action, known)}")


async def _add(many: ManyRuntime, body: Body) -> Body:
    """Serve one more model, as its intent says."""
    wanted = validate(DeployBody, dict(body), "body")
    answer = deployed(many.plan, wanted, many.making)
    outcome = await Change(many, many.fit(answer.plan), wanted.drain_s).run()
    return {**answer.told(), **_told(outcome)}


async def _remove(many: ManyRuntime, body: Body) -> Body:
    """Stop serving a model: at once where nothing runs, else as ``drain_s`` and ``force`` say."""
    wanted = validate(RemoveBody, dict(body), "body")
    member = many.members.get(wanted.name)
    if member is None:
        raise UnknownModel(
            f"the model {wanted.name!r} is not served; {did_you_mean(wanted.name, many.members)}"
        )
    if member.outstanding and wanted.drain_s is None and not wanted.force:
        raise Conflict(
            f"{member.outstanding} requests of {wanted.name} are running; give drain_s to wait "
            "for them, or force to end them"
        )
    left = tuple(one for one in many.plan.deployments if one.name != wanted.name)
    plan = replace(many.plan, deployments=left)
    outcome = await Change(many, plan, wanted.drain_s or 0.0, force=wanted.force).run()
    return {"model": wanted.name, **_told(outcome)}


async def _replace(many: ManyRuntime, body: Body) -> Body:
    """Go over to another pool plan."""
    wanted = dict(body)
    drain = {key: wanted.pop(key) for key in ("drain_s", "force") if key in wanted}
    limits = validate(DrainBody, drain, "body")
    plan: PoolPlan = many.fit(pool_from_dict(wanted, source="body"))
    return _told(await Change(many, plan, limits.drain_s, force=limits.force).run())


def _told(outcome: Outcome) -> dict[str, object]:
    return asdict(outcome)


def _described(many: ManyRuntime, name: str) -> dict[str, object]:
    member = many.members[name]
    entry = member.entry
    return {
        "name": name,
        "checkpoint": entry.plan.checkpoint,
        "precision": str(entry.precision),
        "accuracy": entry.accuracy,
        "priority": entry.priority,
        "requests": member.outstanding,
        "engines": [
            {
                "name": engine.name,
                "nodes": [stage.node for stage in engine.stages],
                "layers": [stage.num_layers for stage in engine.stages],
                "tensor_parallel_size": entry.plan.cluster.node(engine.stages[0].node).count,
                "shared_with": _neighbours(many.plan, name, engine.name),
            }
            for engine in entry.plan.engines
        ],
    }


def _neighbours(plan: PoolPlan, model: str, engine: str) -> list[str]:
    for members in plan.groups.values():
        if any((name, one.name) == (model, engine) for name, one in members):
            return sorted({name for name, _ in members} - {model})
    return []
