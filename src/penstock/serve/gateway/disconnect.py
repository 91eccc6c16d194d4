"""Work for as long as the client is there."""

from __future__ import annotations

import asyncio
from collections.abc import Coroutine
from typing import Any, TypeVar

from starlette.types import Message, Receive, Send

_Result = TypeVar("_Result")


class ClientGone(Exception):  # noqa: N818 - nobody is left to be told
    """The client closed its connection before the answer was complete."""


async def while_connected(receive: Receive, work: Coroutine[Any, Any, _Result]) -> _Result:
    """Run ``work``; the moment the client leaves, cancel it and raise ``ClientGone``.

    ``receive`` must have given the whole body already. Returns only after ``work`` has ended.
    """
    task = asyncio.ensure_future(work)
    watch = asyncio.ensure_future(_gone(receive))
    try:
        await asyncio.wait((task, watch), return_when=asyncio.FIRST_COMPLETED)
        if not task.done():
            raise ClientGone
        return task.result()
    finally:
        task.cancel()
        watch.cancel()
        await asyncio.gather(task, watch, return_exceptions=True)


async def send_within(send: Send, message: Message, limit_s: float) -> None:
    """Send ``message``; a client that reads nothing for ``limit_s`` counts as gone."""
    try:
        async with asyncio.timeout(limit_s):
            await send(message)
    except TimeoutError:
        raise ClientGone from None


async def _gone(receive: Receive) -> None:
    while (await receive())["type"] != "http.disconnect":
        pass
