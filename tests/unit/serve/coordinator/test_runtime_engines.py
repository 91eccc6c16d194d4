"""Whole engines under load, cancellation and the loss of workers."""

from __future__ import annotations

import asyncio

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from runtime_rig import Rig, fleet_plan, run

from penstock.serve.wire import PushKV

SHAPES = {
    "one engine": {"roles": ("both",)},
    "scarce memory": {"roles": ("both",), "blocks": 60},
    "pipeline": {"roles": ("both", "both"), "stages": 2, "blocks": 90},
    "prefix caches": {"roles": ("both", "both"), "caching": True, "router": "prefix-affinity"},
    "cached pipeline": {"roles": ("both",), "stages": 2, "blocks": 60, "caching": True},
    "1 to 2": {"roles": ("prefill", "decode", "decode"), "blocks": 90},
    "2 to 1": {"roles": ("prefill", "prefill", "decode"), "blocks": 90, "caching": True},
    "2 to 2 pipelines": {"roles": ("prefill", "decode", "decode", "prefill"), "stages": 2},
}


@pytest.mark.parametrize("shape", SHAPES)
def test_every_request_gets_its_tokens_and_nothing_is_left(shape: str) -> None:
    """No token is lost or repeated, no page stays taken, nothing is computed twice."""

    async def body(rig: Rig) -> None:
        await rig.load(60, over_s=6, cancel_every=7)
        await rig.check_idle()

    rig = run(fleet_plan(**SHAPES[shape]), body)
    assert len(rig.outputs) + len(rig.gone) == 60
    assert rig.gone
    assert rig.runtime.counters()["requests_restarted"] == 0


@pytest.mark.parametrize("shape", SHAPES)
def test_lost_workers_lose_no_request(shape: str) -> None:
    """Requests of lost engines go on elsewhere, or on the same engine when it is back."""

    async def body(rig: Rig) -> None:
        await asyncio.gather(rig.load(50, over_s=6, cancel_every=9), rig.kill(12, every_s=0.5))
        await rig.check_idle()

    rig = run(fleet_plan(**SHAPES[shape]), body)
    assert len(rig.outputs) + len(rig.gone) == 50
    assert rig.fleet.restarts == 12


@settings(max_examples=12, deadline=None)
@given(
    shape=st.sampled_from(sorted(SHAPES)),
    seed=st.integers(0, 1 << 20),
    kills=st.integers(0, 6),
    cancel_every=st.integers(0, 4),
)
def test_conservation_holds_for_any_load(
    shape: str, seed: int, kills: int, cancel_every: int
) -> None:
    """Whatever happens when, all that was not cancelled is answered in full."""

    async def body(rig: Rig) -> None:
        await asyncio.gather(
            rig.load(24, over_s=2, cancel_every=cancel_every), rig.kill(kills, every_s=0.3)
        )
        await rig.check_idle()

    rig = run(fleet_plan(**SHAPES[shape]), body, seed=seed)
    assert len(rig.outputs) + len(rig.gone) == 24


@pytest.mark.parametrize("victim", ["source", "target"])
def test_the_loss_of_either_end_of_a_transfer_is_survived(victim: str) -> None:
    """Killed while KV entries are under way: source or target, again and again."""

    async def body(rig: Rig) -> None:
        send, seen = rig.pool._post, iter(range(1000))

        def post(to: str, message: object, buffer: object = None) -> None:
            if not isinstance(message, PushKV) or next(seen) % 4 or len(struck) == 8:
                send(to, message, buffer)
                return
            # The entries get stuck on the way, and one end dies.
            worker = to if victim == "source" else message.targets[-1].worker
            struck.append(worker)
            asyncio.get_running_loop().call_later(0.05, rig.pool.kill, worker)

        rig.pool._post = post
        await rig.load(60, over_s=6)
        await rig.check_idle()

    struck: list[str] = []
    rig = run(fleet_plan(("prefill", "prefill", "decode", "decode"), stages=2), body)
    assert len(rig.outputs) == 60
    assert len(struck) == 8


def test_a_stage_that_dies_while_another_loads_is_started_again() -> None:
    """An engine is up only when all of its stages are."""

    async def body(rig: Rig) -> None:
        start, slow = rig.pool.start, asyncio.Event()

        async def start_slowly(spec) -> None:
            await start(spec)
            if spec.name == "e0/1" and not slow.is_set():
                slow.set()
                await asyncio.sleep(1)

        rig.pool.start = start_slowly
        rig.pool.kill("e0/1")
        await slow.wait()
        rig.pool.kill("e0/0")
        await rig.ask(0, 30, 5)
        await rig.check_idle()

    assert run(fleet_plan(("both",), stages=2), body).outputs == {0: 5}
