"""Limits that models bring along in the pool plan."""

from __future__ import annotations

from dataclasses import replace

import pytest
from many_rig import Rig, pool, run

from penstock.errors import InputError
from penstock.measure.metrics import summarise
from penstock.measure.run import Run
from penstock.plan.pool_document import pool_to_dict
from penstock.plan.pool_plan import PoolPlan, Sharing
from penstock.spec.workload import SLO, SLOClass

TOGETHER = {"a": ((0,),), "b": ((0,),)}
NEVER = SLO(ttft_s=0.001)
"""Shorter than any step."""


def limited(plan: PoolPlan, **slos: SLO) -> PoolPlan:
    entries = (replace(entry, slo=slos.get(entry.name)) for entry in plan.deployments)
    return replace(plan, deployments=tuple(entries))


async def ask_both(rig: Rig) -> None:
    await rig.ask(0, "a", 20, 2)
    await rig.ask(1, "b", 20, 2)


@pytest.mark.parametrize(
    ("classes", "refused"),
    [
        ((), {0}),
        ((SLOClass("a", SLO()),), {0}),
        ((SLOClass("a", SLO(e2e_s=50.0)), SLOClass("b", NEVER)), {1}),
    ],
    ids=["no workload", "a class without limits", "classes with limits"],
)
def test_limits_of_the_plan_hold_where_none_are_stated(
    classes: tuple[SLOClass, ...], refused: set[int]
) -> None:
    """With admission by deadline: what the plan's limits forbid is refused, unless the
    workload's own class says otherwise."""
    plan = limited(pool(TOGETHER, sharing=Sharing(admission="deadline")), a=NEVER)
    rig = run(plan, ask_both, classes=classes)
    assert set(rig.refused) == refused
    assert all(answer.startswith("429") for answer in rig.refused.values())


def test_limits_are_those_of_the_record() -> None:
    """A run on record is held against the limits that its requests had."""
    taken: list[Run] = []

    async def body(rig: Rig) -> None:
        await ask_both(rig)
        classes = rig.many.making.classes
        assert classes == (SLOClass("a", NEVER),)
        taken.append(rig.many.run("measured", {}))
        [shown] = [m for m in summarise(taken[0], classes).models if m.name == "a"]
        assert shown.slo_attainment == 0.0

    run(limited(pool(TOGETHER), a=NEVER), body, record=True)
    assert taken[0].class_names == ("a",)


def test_models_that_come_bring_their_limits() -> None:
    """A new model's limits hold from its first request on, and those of one that comes back
    replace its earlier ones; while it is served they stay."""
    plan = limited(pool(TOGETHER, sharing=Sharing(admission="deadline")), a=NEVER)
    only_b = replace(plan, deployments=plan.deployments[1:])

    async def body(rig: Rig) -> None:
        many = rig.many
        await rig.ask(0, "b", 20, 2)
        await many.administer("pool.set", pool_to_dict(plan))
        await rig.ask(1, "a", 20, 2)
        with pytest.raises(InputError, match=r"a: its limits .* remove the model"):
            await many.administer("pool.set", pool_to_dict(limited(plan, a=SLO(ttft_s=9.0))))
        await many.administer("models.remove", {"name": "a"})
        await many.administer("pool.set", pool_to_dict(limited(plan)))
        await rig.ask(2, "a", 20, 2)

    rig = run(only_b, body)
    assert set(rig.refused) == {1}
    assert set(rig.answers) == {0, 2}
