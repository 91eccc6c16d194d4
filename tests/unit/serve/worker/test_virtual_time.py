"""The loop whose clock jumps."""

from __future__ import annotations

import asyncio
import time
from collections.abc import Coroutine
from typing import Any

from hypothesis import given
from hypothesis import strategies as st

from penstock.serve.virtual_time import VirtualTimeLoop


def run(main: Coroutine[Any, Any, Any]) -> Any:
    with asyncio.Runner(loop_factory=VirtualTimeLoop) as runner:
        return runner.run(main)


async def _sleeps(delays: list[list[float]]) -> list[tuple[float, int]]:
    loop = asyncio.get_running_loop()
    woken: list[tuple[float, int]] = []

    async def sleeper(number: int, naps: list[float]) -> None:
        for nap in naps:
            await asyncio.sleep(nap)
            woken.append((loop.time(), number))

    await asyncio.gather(*(sleeper(i, naps) for i, naps in enumerate(delays)))
    return woken


def test_a_long_sleep_takes_no_real_time_and_exactly_its_virtual_time() -> None:
    """An hour passes on the clock while hardly a second does on the wall."""
    before = time.monotonic()
    assert run(_sleeps([[3600.0]])) == [(3600.0, 0)]
    assert time.monotonic() - before < 60


naps = st.lists(
    st.lists(st.floats(0.001, 100, allow_nan=False), min_size=1, max_size=5), min_size=1, max_size=5
)


@given(naps)
def test_sleepers_wake_at_the_running_sum_of_their_naps(delays: list[list[float]]) -> None:
    """The clock shows the very sum of the delays, and never runs backwards."""
    expected = []
    for number, one in enumerate(delays):
        now = 0.0
        for nap in one:
            now += nap
            expected.append((now, number))
    woken = run(_sleeps(delays))
    assert [t for t, _ in woken] == sorted(t for t, _ in woken)
    assert sorted(woken) == sorted(expected)


def test_idle_calls_come_after_all_that_happens_at_the_moment() -> None:
    """A chain of immediate calls ends first; timers of later moments do not run before."""

    async def main() -> list[str]:
        loop = asyncio.get_running_loop()
        assert isinstance(loop, VirtualTimeLoop)
        seen: list[str] = []

        def chain(depth: int) -> None:
            seen.append(f"chain {depth}")
            if depth:
                loop.call_soon(chain, depth - 1)

        loop.call_when_idle(seen.append, "idle 1")
        loop.call_when_idle(seen.append, "idle 2")
        loop.call_later(1.0, seen.append, "later")
        loop.call_soon(chain, 3)
        await asyncio.sleep(2.0)
        return seen

    assert run(main()) == [
        "chain 3",
        "chain 2",
        "chain 1",
        "chain 0",
        "idle 1",
        "idle 2",
        "later",
    ]


def test_a_cancelled_timer_does_not_move_the_clock() -> None:
    """Only what still waits counts."""

    async def main() -> float:
        loop = asyncio.get_running_loop()
        loop.call_later(5.0, print).cancel()
        await asyncio.sleep(7.0)
        return loop.time()

    assert run(main()) == 7.0


def test_work_of_threads_is_waited_for() -> None:
    """Without timers the loop waits for real, so that executors can answer."""

    async def main() -> int:
        return await asyncio.get_running_loop().run_in_executor(None, sum, [1, 2])

    assert run(main()) == 3
