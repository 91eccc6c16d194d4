"""What single requests are told: refusals, deadlines, overload, queueing."""

from __future__ import annotations

import asyncio

import pytest
from runtime_rig import Rig, fleet_plan, run

from penstock.serve.protocol import (
    DeadlineExceeded,
    GenerationRequest,
    RequestTooLong,
    SamplingParams,
    Unavailable,
    UnknownModel,
)


def request(tokens: int = 10, prompt: int = 20, **more: object) -> GenerationRequest:
    return GenerationRequest("1", tuple(range(prompt)), SamplingParams(tokens), **more)


async def consume(rig: Rig, asked: GenerationRequest) -> list:
    return [delta async for delta in rig.runtime.generate(asked)]


@pytest.mark.parametrize(
    ("asked", "error"),
    [
        (request(prompt=0), RequestTooLong),
        (request(prompt=5000), RequestTooLong),
        (request(prompt=1500), RequestTooLong),
        (request(model="other"), UnknownModel),
    ],
    ids=["no prompt", "beyond the model", "beyond the memory", "another model"],
)
def test_what_can_never_be_served_is_refused_at_once(
    asked: GenerationRequest, error: type[Exception]
) -> None:
    """Before the first token, and nothing is held."""

    async def body(rig: Rig) -> None:
        with pytest.raises(error):
            await consume(rig, asked)
        await rig.check_idle()

    run(fleet_plan(("both",), blocks=90), body)


def test_a_deadline_ends_a_request_and_frees_it() -> None:
    """At its time, not before."""

    async def body(rig: Rig) -> None:
        start_s = asyncio.get_running_loop().time()
        with pytest.raises(DeadlineExceeded):
            await consume(rig, request(200, deadline_s=1.5))
        assert asyncio.get_running_loop().time() - start_s == pytest.approx(1.5)
        await consume(rig, request(3, deadline_s=1.5))
        await rig.check_idle()

    rig = run(fleet_plan(("both",)), body)
    assert rig.runtime.ledger.counts == {"finished": 1, "dropped": 0, "failed": 1}


def test_too_many_that_wait_are_told_to_come_again() -> None:
    """Overload is an answer; those inside are served."""

    async def body(rig: Rig) -> None:
        await asyncio.gather(*(rig.ask(i, 300, 40) for i in range(12)))
        await rig.ask(12, 300, 40)

    rig = run(fleet_plan(("both",), blocks=60), body, max_waiting=9)
    assert sorted(rig.refused) == [9, 10, 11]
    assert "wait already" in rig.refused[9]
    assert len(rig.outputs) == 10


def test_without_an_engine_a_request_waits_and_is_then_told() -> None:
    """503 after ``unavailable_s``, counted from the loss of the last engine."""

    async def body(rig: Rig) -> None:
        loop = asyncio.get_running_loop()
        asking = asyncio.ensure_future(consume(rig, request(400)))
        await asyncio.sleep(2)
        rig.pool.kill("e0")
        lost_s = loop.time()
        with pytest.raises(Unavailable):
            await asking
        assert loop.time() - lost_s == pytest.approx(4.0, abs=0.05)
        assert not rig.runtime.ready()

    run(fleet_plan(("both",)), body, restart=False, unavailable_s=4.0)


def test_the_first_delta_tells_how_long_a_request_was_queued() -> None:
    """0 on an idle engine, and once only; more behind a full one."""

    async def body(rig: Rig) -> None:
        deltas = await consume(rig, request(5))
        assert deltas[0].queued_s == pytest.approx(0.0)
        assert all(delta.queued_s is None for delta in deltas[1:])
        crowd = [asyncio.ensure_future(rig.ask(i, 300, 60)) for i in range(10)]
        await asyncio.sleep(0.3)
        assert (await consume(rig, request(5)))[0].queued_s > 0.5
        await asyncio.gather(*crowd)

    run(fleet_plan(("both",), blocks=60), body)


def test_closing_ends_requests_under_way() -> None:
    """They are told, and none waits for ever."""

    async def body(rig: Rig) -> None:
        asking.append(asyncio.ensure_future(consume(rig, request(300))))
        await asyncio.sleep(1)
        await rig.runtime.close()
        with pytest.raises(Unavailable):
            await asking[0]

    asking: list = []
    run(fleet_plan(("prefill", "decode")), body)
