"""The requests of a workload whose arrivals do not depend on the system."""

from __future__ import annotations

from collections.abc import Iterator
from random import Random

from penstock.errors import InputError
from penstock.spec.workload import ClosedLoop, Request, Saturating, Workload


def open_loop_requests(workload: Workload, rng: Random) -> Iterator[Request]:
    """Yield the requests in order of arrival, seconds from the start of the workload.

    The generator is used in the published order: all arrival times first, then one length each.
    Raises ``InputError`` where the workload has no arrivals or no lengths.
    """
    if workload.trace:
        yield from workload.trace
        return
    arrivals, lengths = workload.arrivals, workload.lengths
    if arrivals is None or lengths is None or isinstance(arrivals, ClosedLoop | Saturating):
        raise InputError(
            f"workload {workload.name} says nothing about "
            f"{'lengths' if lengths is None else 'arrivals'}; give it some, or a trace"
        )
    classes = Random(f"{rng.getstate()[1][0]}/classes") if workload.classes else None
    shares = [c.share for c in workload.classes]
    for number, time_s in enumerate(arrivals.times(rng, workload.duration_s)):
        prompt, output = lengths.sample(rng)
        name = classes.choices(workload.classes, shares)[0].name if classes else ""
        yield Request(number, time_s, prompt, output, name)
