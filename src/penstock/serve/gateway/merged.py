"""Several token streams as one.

Each stream has a task that reads it, so that a slow client never holds the runtime up, and what
became ready meanwhile is handled at once. Leaving the context closes every stream.
"""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator, Callable, Sequence
from types import TracebackType

from penstock.serve.protocol import TokenDelta

Event = tuple[int, TokenDelta | Exception | None]
"""Stream and its next delta, the error that ended it, or None at its end."""


class Merged:
    def __init__(self, streams: Sequence[Callable[[], AsyncIterator[TokenDelta]]]) -> None:
        self._streams = streams
        self._tasks: list[asyncio.Task[None]] = []
        self._events: list[Event] = []
        self._wake = asyncio.Event()

    async def __aenter__(self) -> Merged:
        self._tasks = [
            asyncio.create_task(self._pump(index, start))
            for index, start in enumerate(self._streams)
        ]
        return self

    async def __aexit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        trace: TracebackType | None,
    ) -> None:
        for task in self._tasks:
            task.cancel()
        await asyncio.gather(*self._tasks, return_exceptions=True)

    async def ready(self) -> list[Event]:
        """Wait for something, then return all there is, in the order it came."""
        await self._wake.wait()
        self._wake.clear()
        events, self._events = self._events, []
        return events

    def close(self, index: int) -> None:
        """Stop reading stream ``index`` and close it."""
        self._tasks[index].cancel()

    async def _pump(self, index: int, start: Callable[[], AsyncIterator[TokenDelta]]) -> None:
        stream = None
        try:
            stream = start()
            async for delta in stream:
                self._put((index, delta))
            self._put((index, None))
        except Exception as error:
            self._put((index, error))
        finally:
            close = getattr(stream, "aclose", None)
            if close is not None:
                await close()

    def _put(self, event: Event) -> None:
        self._events.append(event)
        self._wake.set()
