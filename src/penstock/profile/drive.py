"""Ask an endpoint all probes, one after the other."""

from __future__ import annotations

import asyncio
from collections.abc import Awaitable, Callable, Iterable, Sequence
from dataclasses import dataclass

from penstock.errors import InputError
from penstock.measure.loadgen.bench import Client
from penstock.measure.loadgen.outcome import Outcome
from penstock.profile.probes import Probe
from penstock.spec.workload import Request

Report = Callable[[int, Probe], None]
_PAUSE_S = 0.02


@dataclass(frozen=True, slots=True)
class Seen:
    """A probe and what the client saw of its requests."""

    probe: Probe
    outcomes: Sequence[Outcome]


async def drive(
    client: Client,
    wanted: Iterable[Probe],
    report: Report = lambda _done, _probe: None,
    *,
    until_s: float | None = None,
) -> list[Seen]:
    """Run the probes in turn; stop before the first one that would start after ``until_s``.

    Raises ``InputError`` where a request fails: a profile with holes would be a guess.
    """
    client.start()
    seen: list[Seen] = []
    number = 0
    for probe in wanted:
        if until_s is not None and client.clock() > until_s:
            break
        report(len(seen), probe)
        before = len(client.outcomes)
        sends = []
        for prompt_tokens, output_tokens in probe.lengths:
            request = Request(number, client.clock(), prompt_tokens, output_tokens)
            sends.append(client.prepare(request))
            number += 1
        await _send(sends, probe.at_once or len(sends))
        outcomes = client.outcomes[before:]
        for outcome in outcomes:
            if outcome.status != "finished":
                size = outcome.request.prompt_tokens
                raise InputError(
                    f"{client.endpoint.url}: a request of {size} prompt tokens "
                    f"failed ({outcome.problem or outcome.status})"
                )
        seen.append(Seen(probe, outcomes))
        await asyncio.sleep(_PAUSE_S)
    return seen


async def _send(sends: Sequence[Callable[[], Awaitable[None]]], at_once: int) -> None:
    """Run ``sends`` in order, ``at_once`` at a time."""
    free = asyncio.Semaphore(at_once)

    async def one(send: Callable[[], Awaitable[None]]) -> None:
        async with free:
            await send()

    await asyncio.gather(*(one(send) for send in sends))
