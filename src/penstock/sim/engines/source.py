"""Where requests come from: a stream that knows its times, or launches that completions cause."""

from __future__ import annotations

from collections import deque
from collections.abc import Callable, Iterator
from heapq import heappop, heappush
from math import inf
from random import Random
from typing import Protocol

from penstock.cost.steps import HostedCost, StepCostModel
from penstock.errors import InputError
from penstock.policy.admission import make_feeder
from penstock.spec.workload import ClosedLoop, Request, Saturating, Workload, class_picker


class Source(Protocol):
    """``next_s`` is when the next request arrives, infinity when none is known."""

    next_s: float

    def take(self) -> Request: ...

    def prompt_completed(self, now: float, waiting: int) -> None: ...

    def ended(self, now: float, waiting: int) -> None: ...


class Stream:
    """Arrivals that do not depend on the system."""

    def __init__(self, requests: Iterator[Request]) -> None:
        self._requests = requests
        self._next = next(requests, None)
        self.next_s = inf if self._next is None else self._next.arrival_s

    def take(self) -> Request:
        request = self._next
        assert request is not None
        self._next = following = next(self._requests, None)
        if following is None:
            self.next_s = inf
        elif following.arrival_s >= self.next_s:
            self.next_s = following.arrival_s
        else:
            raise InputError(
                f"request {following.id} arrives at {following.arrival_s} s, before the one ahead "
                f"of it ({self.next_s} s); sort the workload by arrival"
            )
        return request

    def prompt_completed(self, now: float, waiting: int) -> None:
        return

    ended = prompt_completed


class Feed:
    """Closed loops and saturating feeders: completions launch requests until ``end_s``."""

    def __init__(self, workload: Workload, seed: int, kv_use: Callable[[], float]) -> None:
        assert isinstance(workload.arrivals, ClosedLoop | Saturating)
        if workload.lengths is None:
            raise InputError(f"workload {workload.name} has no lengths to draw from")
        self._lengths = workload.lengths
        self._rng = Random(seed)
        self._pick = class_picker(workload.classes, seed)
        self._feeder = make_feeder(workload.arrivals)
        self._kv_use = kv_use
        self._end_s = workload.duration_s
        self._number = 0
        self._launches: list[float] = []
        for delay in self._feeder.start():
            self._launch(delay)
        self.next_s = self._launches[0] if self._launches else inf

    def take(self) -> Request:
        now = heappop(self._launches)
        self.next_s = self._launches[0] if self._launches else inf
        prompt, output = self._lengths.sample(self._rng)
        self._number += 1
        return Request(self._number - 1, now, prompt, output, self._pick())

    def prompt_completed(self, now: float, waiting: int) -> None:
        self._follow(now, self._feeder.after_prompt(self._kv_use, waiting))

    def ended(self, now: float, waiting: int) -> None:
        self._follow(now, self._feeder.after_end(self._kv_use, waiting))

    def _follow(self, now: float, delay: float | None) -> None:
        if delay is not None:
            self._launch(now + delay)
            self.next_s = self._launches[0] if self._launches else inf

    def _launch(self, at: float) -> None:
        if at < self._end_s:
            heappush(self._launches, at)


class FrontEnd:
    """Requests on their way to the engines through HTTP and tokeniser, first come first served.

    ``delay_s`` (of the request) passes between sending and the scheduler. ``take`` gives None
    where a request has only just been sent.
    """

    def __init__(self, source: Source, delay_s: Callable[[Request], float]) -> None:
        self._source = source
        self._delay_s = delay_s
        self._ready: deque[tuple[float, Request]] = deque()
        self._last_s = 0.0
        self.next_s = source.next_s

    def take(self) -> Request | None:
        request: Request | None = None
        if self._ready and self._ready[0][0] <= self._source.next_s:
            request = self._ready.popleft()[1]
        else:
            sent = self._source.take()
            ready_s = sent.arrival_s + self._delay_s(sent)
            self._last_s = max(self._last_s, ready_s)
            self._ready.append((self._last_s, sent))
        self._look()
        return request

    def prompt_completed(self, now: float, waiting: int) -> None:
        self._source.prompt_completed(now, waiting)
        self._look()

    def ended(self, now: float, waiting: int) -> None:
        self._source.ended(now, waiting)
        self._look()

    def _look(self) -> None:
        ready_s = self._ready[0][0] if self._ready else inf
        self.next_s = min(ready_s, self._source.next_s)


def behind_host(source: Source, cost: StepCostModel) -> Source | FrontEnd:
    """``source`` behind the HTTP server and tokeniser, where the cost model knows them."""
    if not isinstance(cost, HostedCost):
        return source
    seconds = cost.request_s
    return FrontEnd(source, lambda sent: seconds(sent.prompt_tokens))


def follow(source: Source | FrontEnd, now: float, waiting: int, completed: int, ended: int) -> None:
    """Tell ``source`` of ``completed`` prompts and ``ended`` requests; they may launch others."""
    for _ in range(completed):
        source.prompt_completed(now, waiting)
    for _ in range(ended):
        source.ended(now, waiting)


def open_source(workload: Workload, seed: int, kv_use: Callable[[], float]) -> Source:
    """The requests of ``workload``; ``kv_use`` is what saturating arrivals look at."""
    launched = isinstance(workload.arrivals, ClosedLoop | Saturating)
    if launched and not len(workload.trace):
        return Feed(workload, seed, kv_use)
    return Stream(workload.requests(seed))
