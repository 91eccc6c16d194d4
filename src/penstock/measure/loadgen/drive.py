"""Send requests when they are due, whatever the server does.

Latency counts from the moment a request was due, so that a client or server that falls behind
cannot hide it (no coordinated omission).
"""

from __future__ import annotations

import asyncio
from collections.abc import Awaitable, Callable, Iterable

from penstock.measure.loadgen.sources import Draw
from penstock.spec.workload import ClosedLoop, Request

Clock = Callable[[], float]
Prepare = Callable[[Request], Callable[[], Awaitable[None]]]
"""Makes the body of a request ahead of time; what it gives sends it and waits for the end."""

_TIMER_S = 0.002
"""Event loops wake up to a millisecond late; the last stretch is waited for by looking."""


async def drive_open(
    requests: Iterable[Request], prepare: Prepare, clock: Clock, stop: asyncio.Event
) -> None:
    """Send each request at its ``arrival_s`` on ``clock``; return when all have ended."""
    async with asyncio.TaskGroup() as group:
        for request in requests:
            send = prepare(request)
            if not await wait_until(request.arrival_s, clock, stop):
                return
            group.create_task(_run(send, stop))


async def drive_closed(
    loop: ClosedLoop, draw: Draw, prepare: Prepare, clock: Clock, stop: asyncio.Event
) -> None:
    """Keep ``loop.concurrency`` requests in flight until ``draw`` gives no more."""

    async def user(number: int) -> None:
        due_s = number * loop.interval_s
        while await wait_until(due_s, clock, stop):
            request = draw(due_s)
            if request is None:
                return
            await _run(prepare(request), stop)
            due_s = clock() + loop.interval_s

    async with asyncio.TaskGroup() as group:
        for number in range(loop.concurrency):
            group.create_task(user(number))


async def wait_until(due_s: float, clock: Clock, stop: asyncio.Event) -> bool:
    """Wait until ``clock`` says ``due_s``; False as soon as ``stop`` is set."""
    while not stop.is_set():
        left_s = due_s - clock()
        if left_s <= 0:
            return True
        if left_s <= _TIMER_S:
            await asyncio.sleep(0)
            continue
        try:
            await asyncio.wait_for(stop.wait(), left_s - _TIMER_S)
        except TimeoutError:
            continue
    return False


async def _run(send: Callable[[], Awaitable[None]], stop: asyncio.Event) -> None:
    """Run one request until its end or ``stop``."""
    work = asyncio.ensure_future(send())
    stopped = asyncio.ensure_future(stop.wait())
    try:
        await asyncio.wait({work, stopped}, return_when=asyncio.FIRST_COMPLETED)
        if not work.done():
            work.cancel()
        await work
    except asyncio.CancelledError:
        if not stop.is_set():
            raise
    finally:
        work.cancel()
        stopped.cancel()
