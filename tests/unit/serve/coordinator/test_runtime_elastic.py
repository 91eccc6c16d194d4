"""Engines that come, go and change roles while requests run."""

from __future__ import annotations

import asyncio
from typing import Any

import pytest
from runtime_rig import Rig, fleet_plan, run

from penstock.errors import InputError

APART = ("prefill", "decode", "decode")


def snapshot(rig: Rig) -> list[tuple[str, str, bool, bool]]:
    return [(e.name, e.role, e.alive, e.draining) for e in rig.runtime.engines()]


def test_an_added_engine_takes_requests() -> None:
    """Requests go to it as soon as it stands."""

    async def body(rig: Rig) -> None:
        adding = rig.runtime.administer("engines.add", {"like": "e0", "name": "new"})
        loading = asyncio.ensure_future(rig.load(40, over_s=4))
        assert await adding == {"name": "new", "role": "both"}
        await loading
        await rig.check_idle()
        assert rig.fleet.named("new").generation_tokens > 0

    assert len(run(fleet_plan(("both",)), body).outputs) == 40


@pytest.mark.parametrize("drain_s", [None, 0, 0.5])
def test_a_removed_engine_finishes_or_hands_its_requests_on(drain_s: float | None) -> None:
    """With time nothing starts over; without time its requests do, and lose no token."""

    async def body(rig: Rig) -> Any:
        loading = asyncio.ensure_future(rig.load(40, over_s=2))
        await asyncio.sleep(1.5)
        answer = await rig.runtime.administer("engines.remove", {"name": "e0", "drain_s": drain_s})
        assert "e0" not in [name for name, *_ in snapshot(rig)]
        with pytest.raises(KeyError):
            rig.pool.worker("e0")
        await loading
        await rig.check_idle()
        moved.append(answer["restarted_requests"])

    moved: list[int] = []
    assert len(run(fleet_plan(("both", "both"), stages=1), body).outputs) == 40
    assert (moved[0] == 0) == (drain_s is None)


@pytest.mark.parametrize("drain_s", [None, 0])
def test_a_role_is_changed_under_load(drain_s: float | None) -> None:
    """A prefill engine becomes a decode engine and back, with caches, and leaves no page."""

    async def body(rig: Rig) -> None:
        loading = asyncio.ensure_future(rig.load(60, over_s=6))
        for role in ("decode", "prefill", "decode"):
            await asyncio.sleep(1.2)
            change = {"name": "e1", "role": role, "drain_s": drain_s}
            assert (await rig.runtime.administer("engines.role", change))["role"] == role
        await loading
        await rig.check_idle()

    plan = fleet_plan(("prefill", "prefill", "decode"), caching=True)
    assert len(run(plan, body).outputs) == 60


@pytest.mark.parametrize(
    ("action", "body", "problem"),
    [
        ("engines.remove", {"name": "e0"}, "no engine of the role prefill"),
        ("engines.remove", {"name": "nobody"}, "no engine is called 'nobody'"),
        ("engines.remove", {"name": "e1", "drain_s": -1}, "drain_s"),
        ("engines.role", {"name": "e0", "role": "decode"}, "no engine of the role prefill"),
        ("engines.role", {"name": "e0", "role": "cook"}, "role"),
        ("engines.add", {"name": "e2"}, "there already"),
        ("engines.add", {"like": 7}, "like"),
        ("engines.burn", {}, "engines."),
        ("models.add", {}, "one model"),
        ("operations", {"operation": "add", "params": ["prefill", 1]}, "there already"),
        ("operations", {"operation": "change", "params": ["prefill", 1, "decode", 1]}, "role"),
        ("operations", {"operation": "remove", "params": [9]}, "no engine has the number 9"),
        ("operations", {"operation": "remove", "params": [1, 2]}, "remove [id]"),
        ("operations", {"operation": "remove", "params": 1}, "must be a list"),
    ],
)
def test_a_refused_change_changes_nothing(action: str, body: dict, problem: str) -> None:
    """The reason is told, and the pool stays as it was."""

    async def main(rig: Rig) -> None:
        before = snapshot(rig)
        with pytest.raises(InputError) as refusal:
            await rig.runtime.administer(action, body)
        assert problem in str(refusal.value)
        assert snapshot(rig) == before
        await rig.ask(0, 50, 10)

    assert run(fleet_plan(APART), main).outputs == {0: 10}


def test_an_engine_that_cannot_start_is_not_added() -> None:
    """The refusal of the worker is the refusal of the change."""

    async def body(rig: Rig) -> None:
        async def start(spec: Any) -> None:
            raise InputError("no memory left")

        rig.pool.start = start
        before = snapshot(rig)
        with pytest.raises(InputError, match="no memory left"):
            await rig.runtime.administer("engines.add", {})
        assert snapshot(rig) == before

    run(fleet_plan(("both",)), body)


def test_changes_come_one_at_a_time() -> None:
    """A second change during the first is refused."""

    async def body(rig: Rig) -> None:
        loading = asyncio.ensure_future(rig.load(10, over_s=0.1))
        await asyncio.sleep(0.5)
        first = asyncio.ensure_future(rig.runtime.administer("engines.remove", {"name": "e1"}))
        await asyncio.sleep(0.01)
        with pytest.raises(InputError, match="under way"):
            await rig.runtime.administer("engines.remove", {"name": "e2"})
        await first
        await loading

    run(fleet_plan(("both", "both", "both")), body)


def test_numbers_of_operations_stay_with_their_engines() -> None:
    """After 1 has gone, 2 is still the third engine; 1 comes back under its old name."""

    async def operate(rig: Rig, operation: str, *params: object) -> Any:
        body = {"operation": operation, "params": list(params)}
        return await rig.runtime.administer("operations", body)

    async def body(rig: Rig) -> None:
        loading = asyncio.ensure_future(rig.load(30, over_s=3))
        await operate(rig, "remove", 1)
        assert (await operate(rig, "change", "decoding", 2, "context", 2))["name"] == "e2"
        assert await operate(rig, "add", "decoding", 1) == {"name": "e1", "role": "decode"}
        assert (await operate(rig, "add", "context", 7))["name"] == "engine-7"
        await operate(rig, "remove", 7)
        await loading
        await rig.check_idle()
        roles = {name: role for name, role, *_ in snapshot(rig)}
        assert roles == {"e0": "prefill", "e1": "decode", "e2": "prefill", "e3": "decode"}

    plan = fleet_plan(("prefill", "decode", "decode", "decode"))
    assert len(run(plan, body).outputs) == 30


def test_changes_and_losses_together_lose_no_request() -> None:
    """Engines change roles and leave while their workers are killed."""

    async def body(rig: Rig) -> None:
        async def change() -> None:
            for role in ("decode", "prefill") * 3:
                await asyncio.sleep(0.5)
                body = {"name": "e1", "role": role, "drain_s": 0.3}
                await rig.runtime.administer("engines.role", body)
            await rig.runtime.administer("engines.remove", {"name": "e3", "drain_s": 0.2})
            await rig.runtime.administer("engines.add", {"role": "decode", "name": "late"})

        await asyncio.gather(rig.load(60, over_s=5), change(), rig.kill(10, every_s=0.4))
        await rig.check_idle()

    plan = fleet_plan(("prefill", "prefill", "decode", "decode"), stages=2, caching=True)
    assert len(run(plan, body).outputs) == 60
