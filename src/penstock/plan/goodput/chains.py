"""Chains of probes side by side: each asks for its next run when it has seen the last one.

A chain depends on its own answers alone, so that the results are the same however many run at
once and in whatever order they end.
"""

from __future__ import annotations

from collections.abc import Generator, Iterable, Iterator
from concurrent.futures import FIRST_COMPLETED, Future, wait
from typing import Protocol, TypeVar

from penstock.plan.goodput.fleet import Probe

J = TypeVar("J")
J_contra = TypeVar("J_contra", contravariant=True)
T = TypeVar("T")
Chain = Generator[J, Probe, T]


class Probes(Protocol[J_contra]):
    """Makes runs. ``width`` of them are worth submitting at once."""

    @property
    def width(self) -> int: ...

    def submit(self, job: J_contra) -> Future[Probe]: ...

    def keep(self, job: J_contra, probe: Probe) -> None:
        """Called once with every answer that was used."""
        ...


def run_chains(chains: Iterable[Chain[J, T]], probes: Probes[J]) -> Iterator[tuple[int, T]]:
    """Yield (place, result) as chains end, ``probes.width`` of them under way at a time."""
    waiting = iter(enumerate(chains))
    flight: dict[Future[Probe], tuple[int, Chain[J, T], J]] = {}
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
    chain: Chain[J, T],
    probe: Probe | None,
    probes: Probes[J],
    flight: dict[Future[Probe], tuple[int, Chain[J, T], J]],
) -> tuple[int, T] | None:
    """Hand a chain its answer; submit what it asks next, or return its result."""
    try:
        job = next(chain) if probe is None else chain.send(probe)
    except StopIteration as end:
        return place, end.value
    flight[probes.submit(job)] = place, chain, job
    return None
