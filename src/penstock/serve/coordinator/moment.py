"""Doing something once everything that happens at the same moment is done, and all at once."""

from __future__ import annotations

import asyncio
from collections.abc import Awaitable, Callable, Iterable
from typing import TypeVarTuple

from penstock.serve.virtual_time import VirtualTimeLoop

_Ts = TypeVarTuple("_Ts")


def when_settled(callback: Callable[[*_Ts], object], *args: *_Ts) -> None:
    """Call soon; on a virtual clock after all else of this moment, so that order is certain."""
    loop = asyncio.get_running_loop()
    if isinstance(loop, VirtualTimeLoop):
        loop.call_when_idle(callback, *args)
    else:
        loop.call_soon(callback, *args)


async def together(work: Iterable[Awaitable[object]]) -> None:
    """Wait for all of ``work``, then raise the first of its errors."""
    results = await asyncio.gather(*work, return_exceptions=True)
    for result in results:
        if isinstance(result, BaseException):
            raise result
