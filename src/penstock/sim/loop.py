"""Virtual time: a heap of events in a total order."""

from __future__ import annotations

from collections.abc import Callable
from heapq import heappop, heappush
from typing import Any

ARRIVE = 0
"""Rank of everything that brings work or ends it."""
START = 1
"""Rank of batch formation: at equal times, what has arrived joins the batch."""

_EVENTS_PER_REPORT = 50_000


class Loop:
    """Runs events in order of (time, rank, since, creation); the handler gets one argument.

    ``since`` is when the event became certain; by default the moment it is created. An event that
    stands for a chain of others gives the start of the last one, so that ties break as if each
    had been an event of its own.
    """

    def __init__(self) -> None:
        self.now = 0.0
        self.events = 0
        self._heap: list[tuple[float, int, float, int, Callable[[Any], None], Any]] = []
        self._created = 0

    def at(
        self,
        time_s: float,
        rank: int,
        handler: Callable[[Any], None],
        argument: Any,
        *,
        since_s: float | None = None,
    ) -> None:
        """Call ``handler(argument)`` at ``time_s``, which must not lie in the past."""
        self._created += 1
        since = self.now if since_s is None else since_s
        heappush(self._heap, (time_s, rank, since, self._created, handler, argument))

    def run(self, until_s: float, report: Callable[[float], None]) -> None:
        """Run all events up to and including ``until_s``; tell ``report`` the time now and then."""
        heap = self._heap
        while heap and heap[0][0] <= until_s:
            for _ in range(_EVENTS_PER_REPORT):
                if not heap or heap[0][0] > until_s:
                    break
                self.now, _rank, _since, _number, handler, argument = heappop(heap)
                handler(argument)
                self.events += 1
            report(self.now)
