"""An asyncio event loop whose clock jumps: what waits for a timer waits no time at all.

    with asyncio.Runner(loop_factory=VirtualTimeLoop) as runner:
        runner.run(main())

The clock starts at 0 and moves only when nothing is ready to run, to the next timer, exactly.
Equal programs run in equal order. Threads and sockets work, but take no virtual time.
"""

from __future__ import annotations

import asyncio
import selectors
from collections import deque
from collections.abc import Callable
from contextvars import Context
from heapq import heappop, heappush
from typing import Any, TypeVarTuple

_Ts = TypeVarTuple("_Ts")

RESOLUTION_S = 1e-9
"""Timers closer together than this are due at the same time."""


class VirtualTimeLoop(asyncio.SelectorEventLoop):
    """``call_when_idle`` runs what must wait for everything else of the same moment."""

    def __init__(self) -> None:
        self._now_s = 0.0
        self._timers = 0
        self._due: list[float] = []
        self._idle: deque[tuple[Callable[..., object], tuple[Any, ...]]] = deque()
        super().__init__(_JumpingSelector(self))

    def time(self) -> float:
        return self._now_s

    def call_at(
        self,
        when: float,
        callback: Callable[[*_Ts], object],
        *args: *_Ts,
        context: Context | None = None,
    ) -> asyncio.TimerHandle:
        # The clock jumps to ``when`` itself, not to a sum that may differ in the last bit.
        heappush(self._due, when)
        self._timers += 1
        timer = _Timer(self._timers, when, (callback, args), self, context)
        # The base class leaves open in what order equal times are due.
        heappush(self._scheduled, timer)  # type: ignore[attr-defined]
        timer._scheduled = True  # type: ignore[attr-defined]
        return timer

    def call_when_idle(self, callback: Callable[..., object], *args: Any) -> None:
        """Call once nothing else is ready, before the clock moves; one such call at a time."""
        self._idle.append((callback, args))

    def nothing_ready(self, timeout: float | None) -> bool:
        """Run one idle call, or move the clock; False where there is no timer to move to."""
        if self._idle:
            callback, args = self._idle.popleft()
            self.call_soon(callback, *args)
            return True
        if timeout is None:
            return False
        target = self._now_s + timeout
        while self._due and self._due[0] < target - RESOLUTION_S:
            heappop(self._due)
        if self._due and self._due[0] <= target + RESOLUTION_S:
            target = self._due[0]
        self._now_s = max(self._now_s, target)
        return True


class _Timer(asyncio.TimerHandle):
    """Equal times are due in the order in which they were set."""

    def __init__(
        self,
        number: int,
        when: float,
        call: tuple[Callable[..., object], tuple[Any, ...]],
        loop: VirtualTimeLoop,
        context: Context | None,
    ) -> None:
        super().__init__(when, *call, loop, context)
        self._number = number

    def __lt__(self, other: object) -> bool:
        if isinstance(other, _Timer):
            return (self.when(), self._number) < (other.when(), other._number)
        return NotImplemented


class _JumpingSelector(selectors.DefaultSelector):
    """Polls files without waiting while the loop can still move its clock."""

    def __init__(self, loop: VirtualTimeLoop) -> None:
        super().__init__()
        self._loop = loop

    def select(self, timeout: float | None = None) -> list[tuple[selectors.SelectorKey, int]]:
        events = super().select(0)
        if events or (timeout is not None and timeout <= 0):
            return events
        if self._loop.nothing_ready(timeout):
            return []
        return super().select(None)
