"""A workload against an endpoint, from the first look to the run."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator, Awaitable, Callable, Mapping, Sequence
from contextlib import asynccontextmanager
from dataclasses import dataclass, replace
from functools import partial

import httpx

from penstock.errors import InputError
from penstock.measure.loadgen.drive import Clock, drive_closed, drive_open
from penstock.measure.loadgen.endpoint import Abilities, Endpoint, Refused, encode
from penstock.measure.loadgen.events import StreamProblem
from penstock.measure.loadgen.outcome import Outcome, measured_run
from penstock.measure.loadgen.prompts import ROUGHLY, TextPrompts, TokenPrompts, one_token_words
from penstock.measure.loadgen.sources import closed_requests, loop_of, open_requests
from penstock.measure.run import Run
from penstock.spec.workload import ClosedLoop, Request, Workload
from penstock.spec.workload_file import workload_to_dict

TOO_MANY = 429


@dataclass(frozen=True, slots=True)
class BenchSettings:
    """How a server is loaded. ``model`` None = each request's own, or the first it serves.

    ``max_concurrency`` makes a closed loop of any workload; ``num_requests`` ends the load early.
    ``ignore_eos``: outputs have the lengths of the workload.
    """

    url: str
    model: str | None = None
    api_key: str | None = None
    temperature: float = 0.0
    ignore_eos: bool = True
    max_concurrency: int | None = None
    num_requests: int | None = None
    timeout_s: float = 600.0
    seed: int | None = None


Prompts = TokenPrompts | TextPrompts


@dataclass(frozen=True, slots=True)
class Target:
    """A model of an endpoint: what the server takes for it, and prompts in its tokens."""

    abilities: Abilities
    prompts: Prompts


@dataclass(frozen=True, slots=True)
class Standing:
    """How far a load is. ``share`` is of the seconds of the workload or of its requests."""

    sent: int
    ended: int
    failed: int
    tokens: int
    share: float | None


Report = Callable[[Standing], None]


async def bench(
    workload: Workload,
    settings: BenchSettings,
    stop: asyncio.Event | None = None,
    report: Report = lambda _standing: None,
) -> Run:
    """Load the endpoint and return what its client saw; ``stop`` ends early and keeps the rest.

    Raises ``InputError`` where the server cannot be reached, asks for another key or does not
    serve the model; requests that fail later are rows of the run.
    """
    if settings.num_requests is not None and settings.num_requests < 1:
        raise InputError(f"--num-requests: must be at least 1 (got {settings.num_requests})")
    loop = loop_of(workload, settings.max_concurrency)
    seed = workload.seed if settings.seed is None else settings.seed
    models = workload.models if settings.model is None else ()
    async with open_client(replace(settings, seed=seed), models) as client:
        most, stop = settings.num_requests, stop or asyncio.Event()
        return await _load(workload, most, client, loop, stop=stop, report=report)


@asynccontextmanager
async def open_client(settings: BenchSettings, models: Sequence[str] = ()) -> AsyncIterator[Client]:
    """A client that knows what the endpoint takes. Raises ``InputError``, as ``bench`` does.

    ``models`` are those that requests name; every one is looked at before any load.
    """
    endpoint = Endpoint(settings.url, api_key=settings.api_key, timeout_s=settings.timeout_s)
    try:
        options: dict[str, object] = {"temperature": settings.temperature}
        if settings.ignore_eos:
            options["ignore_eos"] = True
        seed = settings.seed or 0
        if len(models) > 1:
            await endpoint.require(models)
        targets: dict[str, Target] = {}
        for name in models or (settings.model,):
            abilities = await endpoint.look(name, options)
            prompts = await _prompts(endpoint, abilities, seed)
            targets[name or abilities.model] = Target(abilities, prompts)
        yield Client(endpoint, targets, seed)
    finally:
        await endpoint.close()


async def _prompts(endpoint: Endpoint, abilities: Abilities, seed: int) -> Prompts:
    if abilities.vocabulary:
        return TokenPrompts(abilities.vocabulary, seed)
    count = partial(endpoint.count, abilities.model)
    return TextPrompts(await one_token_words(count) if abilities.counts else ROUGHLY, seed)


async def _load(
    workload: Workload,
    most: int | None,
    client: Client,
    loop: ClosedLoop | None,
    *,
    stop: asyncio.Event,
    report: Report,
) -> Run:
    seed = client.seed
    watching = asyncio.ensure_future(_watch(client, workload, most, report))
    client.start()
    try:
        if loop is None:
            requests = open_requests(workload, seed, most)
            await drive_open(requests, client.prepare, client.clock, stop)
        else:
            draw = closed_requests(workload, seed, most)
            await drive_closed(loop, draw, client.prepare, client.clock, stop)
    except ExceptionGroup as group:
        # A trace that goes wrong halfway, say: one line, not a tree of tasks.
        raise group.exceptions[0] from None
    finally:
        watching.cancel()
    end_s = client.clock()
    document: dict[str, object] = {
        **workload_to_dict(workload),
        "max_concurrency": loop.concurrency if loop else None,
        "request_rate": _rate_per_s(workload) if loop is None else None,
    }
    targets = client.targets.values()
    kinds = {"token ids" if one.abilities.vocabulary else "text" for one in targets}
    header = {
        "seed": seed,
        "model": ", ".join(one.abilities.model for one in targets),
        "url": client.endpoint.url,
        "workload": document,
        "prompts": " and ".join(sorted(kinds)),
        "stopped": stop.is_set(),
    }
    whole = not stop.is_set() and (most is None or len(client.outcomes) < most)
    name = f"measured-{workload.name}"
    return measured_run(name, client.outcomes, workload, end_s=end_s, whole=whole, header=header)


def _rate_per_s(workload: Workload) -> float | None:
    """Mean rate of open-loop arrivals, where they state one."""
    if workload.streams:
        rates = [getattr(stream.arrivals, "rate_per_s", None) for stream in workload.streams]
        return None if None in rates else sum(rate for rate in rates if rate is not None)
    return getattr(workload.arrivals, "rate_per_s", None)


class Client:
    """Makes requests, sends them and keeps their outcomes. ``clock`` starts with ``start``.

    ``targets`` are the models it knows; requests that name none, or another, go to the first.
    """

    def __init__(self, endpoint: Endpoint, targets: Mapping[str, Target], seed: int) -> None:
        self.endpoint, self.targets, self.seed = endpoint, targets, seed
        self._first = next(iter(targets.values()))
        self.abilities = self._first.abilities
        self.outcomes: list[Outcome] = []
        self._clock: Clock = asyncio.get_running_loop().time
        self._start_s = self._clock()

    def start(self) -> None:
        """Second 0 is now."""
        self._start_s = self._clock()

    def clock(self) -> float:
        """Seconds since ``start``."""
        return self._clock() - self._start_s

    def prepare(self, request: Request) -> Callable[[], Awaitable[None]]:
        """Build the body of ``request``; what this gives sends it."""
        target = self.targets.get(request.model, self._first)
        body = encode(
            {
                "model": target.abilities.model,
                "prompt": target.prompts.make(request),
                "max_tokens": request.output_tokens,
                **target.abilities.extras,
            }
        )
        headers = {"x-slo-class": request.class_name} if request.class_name else {}
        return partial(self._send, Outcome(request), body, headers)

    async def _send(self, outcome: Outcome, body: bytes, headers: Mapping[str, str]) -> None:
        self.outcomes.append(outcome)
        outcome.sent_s = self.clock()
        try:
            await self.endpoint.complete(body, headers, self.clock, outcome.stream)
            outcome.status = "finished" if outcome.stream.tokens else "failed"
        except Refused as error:
            outcome.status = "rejected" if error.status == TOO_MANY else "failed"
            outcome.problem = str(error)
        except (httpx.HTTPError, StreamProblem) as error:
            outcome.status, outcome.problem = "failed", str(error) or type(error).__name__

    def standing(self) -> tuple[int, int, int, int]:
        """(sent, ended, failed, output tokens so far)."""
        states = [one.status for one in self.outcomes]
        tokens = sum(count for one in self.outcomes for _, count in one.stream.tokens)
        ended = len(states) - states.count("running")
        return len(states), ended, ended - states.count("finished"), tokens


async def _watch(client: Client, workload: Workload, most: int | None, report: Report) -> None:
    """Report twice a second."""
    while True:
        await asyncio.sleep(0.5)
        sent, ended, failed, tokens = client.standing()
        shares = [ended / most] if most else []
        if 0 < workload.duration_s < float("inf"):
            shares.append(client.clock() / workload.duration_s)
        share = min(1.0, max(shares)) if shares else None
        report(Standing(sent, ended, failed, tokens, share))
