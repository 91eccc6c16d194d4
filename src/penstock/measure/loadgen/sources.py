"""The requests of a load in the order in which they are sent, and when each is due."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from dataclasses import replace
from itertools import count, islice
from random import Random

from penstock.errors import SpecError
from penstock.spec.workload import ClosedLoop, Request, Saturating, Workload, class_picker

Draw = Callable[[float], Request | None]
"""The next request, due at the given second of the run; None when there are no more."""


def open_requests(workload: Workload, seed: int, most: int | None) -> Iterator[Request]:
    """Requests whose arrivals do not depend on the server, ``most`` at most."""
    return islice(workload.requests(seed), most)


def closed_requests(workload: Workload, seed: int, most: int | None) -> Draw:
    """Requests for a closed loop: lengths and classes in the order of launches.

    They are the ones the simulator draws from the same seed; a trace and several models give
    their own, in order. Raises ``SpecError`` where there is nothing to draw from.
    """
    numbers = iter(range(most)) if most is not None else count()
    if len(workload.trace) or workload.streams:
        rows = workload.requests(seed)

        def take(due_s: float) -> Request | None:
            row = next(rows, None) if next(numbers, None) is not None else None
            return None if row is None else replace(row, arrival_s=due_s)

        return take
    lengths = workload.lengths
    if lengths is None:
        raise SpecError(f"workload {workload.name} has no lengths to draw from", key="lengths")
    rng, pick = Random(seed), class_picker(workload.classes, seed)

    def draw(due_s: float) -> Request | None:
        number = next(numbers, None)
        if number is None or due_s >= workload.duration_s:
            return None
        prompt, output = lengths.sample(rng)
        return Request(number, due_s, prompt, output, pick())

    return draw


def loop_of(workload: Workload, max_concurrency: int | None) -> ClosedLoop | None:
    """The closed loop that the load runs in, or None for open-loop arrivals.

    Raises ``SpecError`` for arrivals that look into the server's memory.
    """
    if max_concurrency is not None:
        if max_concurrency < 1:
            raise SpecError("must be at least 1", key="--max-concurrency", value=max_concurrency)
        return ClosedLoop(max_concurrency)
    if isinstance(workload.arrivals, Saturating) and not len(workload.trace):
        raise SpecError(
            "arrivals that fill the KV memory need to see it, and a client does not",
            source=workload.source or workload.name,
            key="arrivals",
            fix="give --max-concurrency N",
        )
    if isinstance(workload.arrivals, ClosedLoop) and not len(workload.trace):
        return workload.arrivals
    return None
