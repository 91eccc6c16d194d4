"""Chains of probes side by side: each asks for its next run when it has seen the last one.

A chain depends on its own answers alone, so that the results are the same however many run at
once and in whatever order they end.
"""

from __future__ import annotations

from collections.abc import Generator, Iterable, Iterator
from concurrent.futures import FIRST_COMPLETED, Future, wait
from typing import TypeVar

from penstock.plan.goodput.fleet import Job, Probe, Probes

T = TypeVar("T")
Chain = Generator[Job, Probe, T]


def run_chains(chains: Iterable[Chain[T]], probes: Probes) -> Iterator[tuple[int, T]]:
    """Yield (place, result) as chains end, ``probes.width`` of them under way at a time."""
    waiting = iter(enumerate(chains))
    flight: dict[Future[Probe], tuple[int, Chain[T], Job]] = {}
    try:
        while True:
            while len(flight) < probes.width and (entry := next(waiting, None)) is not None:
                place, chain = entry
                result = _step(place, chain, None, probes, flight)
                if result is not None:
                    yield result
            if not flight:
                return
            done, _ = wait(flight, return_when=FIRST_COMPLETED)
            for future in [one for one in flight if one in done]:
                place, chain, job = flight.pop(future)
                probe = future.result()
                probes.keep(job, probe)
                result = _step(place, chain, probe, probes, flight)
                if result is not None:
                    yield result
    finally:
        for future in flight:
            future.cancel()


def _step(
    place: int,
    chain: Chain[T],
    probe: Probe | None,
    probes: Probes,
    flight: dict[Future[Probe], tuple[int, Chain[T], Job]],
) -> tuple[int, T] | None:
    """Hand a chain its answer; submit what it asks next, or return its result."""
    try:
        job = next(chain) if probe is None else chain.send(probe)
    except StopIteration as end:
        return place, end.value
    flight[probes.submit(job)] = place, chain, job
    return None
