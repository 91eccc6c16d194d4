"""Models and engines that come, go and move while requests run."""

from __future__ import annotations

import asyncio
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
from many_rig import FP16, INT8, Rig, pool, run

from penstock.errors import InputError
from penstock.plan.pool_document import pool_to_dict
from penstock.plan.pool_plan import PoolPlan
from penstock.serve.many.change import Change, Outcome
from penstock.serve.protocol import Conflict

# One engine of 4000 blocks has 32 GB of KV memory and 13.5 GB of weights: a GPU of 40 GB holds
# one engine of 200 blocks and another one; of 1500 blocks (12.6 GB) only one.
LARGE = 1500
BEFORE = {"a": ((0,),), "b": ((1,),)}


async def change(rig: Rig, plan: PoolPlan, **more: Any) -> Outcome:
    return await Change(rig.many, plan, **more).run()


@pytest.mark.parametrize(
    ("after", "started", "ended"),
    [
        ({"a": ((2,),), "b": ((1,),)}, ("a.e0",), ("a.e0",)),
        ({"a": ((0,), (2,), (3,)), "b": ((1,),)}, ("a.e1", "a.e2"), ()),
        ({"a": ((1,),), "b": ((0,),)}, ("a.e0", "b.e0"), ("a.e0", "b.e0")),
        ({"a": ((0, 1),), "b": ((2, 3),)}, ("a.e0", "b.e0"), ("a.e0", "b.e0")),
        ({"a": ((0,),), "b": ((0,),)}, ("b.e0",), ("b.e0",)),
        ({"a": ((0,),), "b": ((1,),), "c": ((1,),)}, ("c.e0",), ()),
    ],
)
@pytest.mark.parametrize("blocks", [200, LARGE])
@pytest.mark.parametrize("drain_s", [None, 0.0])
def test_engines_move_and_no_request_is_lost(
    after: Any, started: tuple[str, ...], ended: tuple[str, ...], blocks: int, drain_s: float | None
) -> None:
    """With room for both beside each other or not, and whether the old may finish or not."""
    if blocks == LARGE and len({gpu for where in after.values() for e in where for gpu in e}) < sum(
        len(e) for where in after.values() for e in where
    ):
        pytest.skip("two large engines do not fit one GPU")

    async def body(rig: Rig) -> None:
        loading = asyncio.ensure_future(rig.load(60, 6, ("a", "b")))
        await asyncio.sleep(1.5)
        outcome = await change(rig, pool(after, blocks=blocks), drain_s=drain_s)
        assert sorted(outcome.started) == sorted(started)
        assert sorted(outcome.ended) == sorted(ended)
        if not ended:
            assert outcome.restarted_requests == 0
        await loading
        await rig.check_idle()

    rig = run(pool(BEFORE, blocks=blocks), body)
    assert len(rig.answers) == 60, rig.refused


def test_another_precision_is_another_engine() -> None:
    """The same seat in another precision is loaded anew, on the new cost and memory."""

    async def body(rig: Rig) -> None:
        loading = asyncio.ensure_future(rig.load(30, 3, ("a", "b")))
        await asyncio.sleep(1)
        outcome = await change(rig, pool(BEFORE, precisions={"a": INT8}))
        assert outcome.started == outcome.ended == ("a.e0",)
        assert outcome.kept == ("b.e0",)
        assert rig.many.members["a"].entry.precision != FP16
        await loading
        await rig.check_idle()

    assert len(run(pool(BEFORE), body).answers) == 30


def test_engines_that_stay_keep_their_requests() -> None:
    """A change elsewhere, and other settings of the pool, do not touch them."""

    async def body(rig: Rig) -> None:
        asking = asyncio.ensure_future(rig.ask(0, "b", 100, 80))
        await asyncio.sleep(0.2)
        driver = rig.many.members["b"].drivers["e0"]
        await change(rig, pool({"b": ((1,),), "c": ((2,),)}), drain_s=0.0)
        assert rig.many.members["b"].drivers["e0"] is driver
        await asking
        assert rig.many.model_counters()["b"]["requests_restarted"] == 0
        await rig.check_idle()

    assert len(run(pool(BEFORE), body).answers) == 1


@pytest.mark.parametrize("fails", ["a.e0~2", "b.e0~2", "c.e0"])
@pytest.mark.parametrize("blocks", [200, LARGE])
def test_a_change_that_fails_changes_nothing(fails: str, blocks: int) -> None:
    """Where one engine cannot start, the others end again and those that left are back."""

    async def body(rig: Rig) -> None:
        real = rig.workers.start

        async def start(spec: Any) -> None:
            if spec.name.startswith(fails) and not broken.is_set():
                broken.set()
                await asyncio.sleep(0.5)
                raise InputError("no memory left")
            await asyncio.sleep(0.1)
            await real(spec)

        broken = asyncio.Event()
        rig.workers.start = start  # type: ignore[method-assign]
        before = rig.many.plan
        loading = asyncio.ensure_future(rig.load(40, 4, ("a", "b")))
        await asyncio.sleep(1)
        after = pool({"a": ((1,),), "b": ((0,),), "c": ((2,),)}, blocks=blocks)
        with pytest.raises(InputError, match=r"no memory left; nothing has changed"):
            await change(rig, after, drain_s=0.0)
        assert rig.many.plan is before
        await loading
        await rig.check_idle()

    rig = run(pool(BEFORE, blocks=blocks), body)
    assert len(rig.answers) == 40, rig.refused


@pytest.mark.parametrize(
    ("after", "problem"),
    [
        (pool({"a": ((0,),), "b": ((0,),)}, blocks=LARGE * 2), "weights of"),
        (pool({"a": ((0, 1),), "b": ((1, 2),)}), "overlaps"),
        (
            replace(
                pool(BEFORE),
                deployments=tuple(
                    replace(one, plan=replace(one.plan, checkpoint="elsewhere"))
                    for one in pool(BEFORE).deployments
                ),
            ),
            "its checkpoint cannot change",
        ),
    ],
)
def test_a_plan_that_cannot_be_is_refused(after: PoolPlan, problem: str) -> None:
    """Before anything is touched."""

    async def body(rig: Rig) -> None:
        with pytest.raises(InputError, match=problem):
            await change(rig, after)
        await rig.ask(0, "a", 10, 5)
        await rig.check_idle()

    assert len(run(pool(BEFORE), body).answers) == 1


def test_a_checkpoint_is_the_same_however_its_path_is_written() -> None:
    """A server started with a path relative to its folder takes the whole path later."""

    def kept_in(folder: str) -> PoolPlan:
        plan = pool(BEFORE)
        entries = (
            replace(one, plan=replace(one.plan, checkpoint=folder)) for one in plan.deployments
        )
        return replace(plan, deployments=tuple(entries))

    async def body(rig: Rig) -> None:
        done = await change(rig, kept_in(str(Path("checkpoints", "m").resolve())))
        assert (done.started, done.ended) == ((), ())

    run(kept_in("checkpoints/m"), body)


def test_a_model_goes_when_its_requests_are_over() -> None:
    """Not before: without time or force the answer is 409 and nothing changes."""

    async def body(rig: Rig) -> None:
        asking = asyncio.ensure_future(rig.ask(0, "a", 100, 80))
        await asyncio.sleep(0.3)
        with pytest.raises(Conflict, match="1 requests of a are running"):
            await rig.many.administer("models.remove", {"name": "a"})
        with pytest.raises(Conflict, match=r"after 0.1 s"):
            await rig.many.administer("models.remove", {"name": "a", "drain_s": 0.1})
        await rig.ask(1, "a", 10, 2)
        removing = asyncio.ensure_future(
            rig.many.administer("models.remove", {"name": "a", "drain_s": 60})
        )
        await asyncio.sleep(0.1)
        await rig.ask(2, "a", 10, 2)
        assert (await removing)["ended"] == ("a.e0",)
        await asking
        await rig.ask(3, "a", 10, 2)
        await rig.ask(4, "b", 10, 2)
        await rig.check_idle()

    rig = run(pool(BEFORE), body)
    assert set(rig.answers) == {0, 1, 4}
    assert rig.refused[2].startswith("503")
    assert rig.refused[3].startswith("404")


def test_force_ends_what_runs() -> None:
    """Its client is told; the other models go on."""

    async def body(rig: Rig) -> None:
        asking = [asyncio.ensure_future(rig.ask(i, "ab"[i], 100, 80)) for i in range(2)]
        await asyncio.sleep(0.3)
        await rig.many.administer("models.remove", {"name": "a", "force": True})
        await asyncio.gather(*asking)
        await rig.check_idle()

    rig = run(pool(BEFORE), body)
    assert rig.refused[0].startswith("503")
    assert set(rig.answers) == {1}


def test_a_pool_comes_as_a_document() -> None:
    """What is told of the pool can be given back; with a mistake in it nothing changes."""

    async def body(rig: Rig) -> None:
        document = dict(await rig.many.administer("pool.get", {}))
        assert document == pool_to_dict(pool(BEFORE))
        same = await rig.many.administer("pool.set", document)
        assert same["started"] == same["ended"] == ()
        moved = pool_to_dict(pool({"a": ((3,),), "b": ((1,),)}))
        answer = await rig.many.administer("pool.set", {**moved, "drain_s": 5})
        assert answer["started"] == ("a.e0",)
        with pytest.raises(InputError, match="body"):
            await rig.many.administer("pool.set", {**moved, "part": 3})
        with pytest.raises(InputError, match="changes as a whole"):
            await rig.many.administer("engines.add", {})
        await rig.check_idle()

    run(pool(BEFORE), body)


def test_changes_come_one_at_a_time() -> None:
    """A second one during the first is refused."""

    async def body(rig: Rig) -> None:
        asking = asyncio.ensure_future(rig.ask(0, "a", 100, 80))
        await asyncio.sleep(0.1)
        first = asyncio.ensure_future(
            rig.many.administer("models.remove", {"name": "a", "drain_s": 60})
        )
        await asyncio.sleep(0.01)
        with pytest.raises(InputError, match="under way"):
            await rig.many.administer("models.remove", {"name": "b"})
        await asyncio.gather(first, asking)

    run(pool(BEFORE), body)


def test_changes_and_losses_together_lose_no_request() -> None:
    """Models move and come back while workers are killed."""

    async def body(rig: Rig) -> None:
        async def move() -> None:
            for k in range(8):
                await asyncio.sleep(0.5)
                where = {"a": ((k % 4,),), "b": (((k + 1) % 4,), ((k + 2) % 4,))}
                if k % 3 == 0:
                    where["b"] = ((k % 4,),)
                await change(rig, pool(where, caching=True), drain_s=0.3)

        async def kill() -> None:
            for _ in range(12):
                await asyncio.sleep(rig.rng.random())
                up = list(rig.many._shared.owners)
                rig.workers.kill(rig.rng.choice(up))

        await asyncio.gather(rig.load(80, 6, ("a", "b")), move(), kill())

    rig = run(pool({"a": ((0,),), "b": ((1,),)}, caching=True), body, restart_delay_s=0.1)
    assert len(rig.answers) == 80, rig.refused
