"""From a job to bytes on the wire, watched by the client's own connection.

Whatever ends an answer (its last token, an error, the deadline, a client that left), the streams
of the runtime are closed before the answer returns.
"""

from __future__ import annotations

import asyncio
import logging
import time
from collections.abc import Awaitable, Callable, Sequence
from functools import partial

from starlette.responses import Response
from starlette.types import Receive, Scope, Send

from penstock.serve.gateway.choice import ChoiceText, Piece
from penstock.serve.gateway.disconnect import ClientGone, send_within, while_connected
from penstock.serve.gateway.errors import ApiError, as_api_error, internal_error
from penstock.serve.gateway.formats import DONE, Chunks, WholeChoice, whole_answer
from penstock.serve.gateway.job import Job
from penstock.serve.gateway.limits import Limits
from penstock.serve.gateway.merged import Event, Merged
from penstock.serve.gateway.record import Journal, Record
from penstock.serve.gateway.tracing import Tracing
from penstock.serve.protocol import DeadlineExceeded, Generator, ServeError, TokenDelta

FACTS = "penstock.facts"
"""Key of an ASGI scope: a dict for what the log line of the request should say."""

LAST_SEND_S = 30.0
"""How long a client may take to read the end of its answer; the deadline bounds the rest."""

_log = logging.getLogger("penstock.gateway")

Pieces = Sequence[tuple[int, Piece]]


class Answer(Response):
    """The answer of a completion or a chat, as a stream or whole."""

    def __init__(
        self,
        job: Job,
        *,
        generator: Generator,
        journal: Journal,
        limits: Limits,
        tracing: Tracing,
        arrival_s: float,
    ) -> None:
        super().__init__()
        self._job = job
        self._generator = generator
        self._limits = limits
        self._tracing = tracing
        self._arrival_s = arrival_s
        self._record = Record(journal, job, arrival_s)

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        outcome = "aborted"
        work = self._stream if self._job.stream else self._whole
        with self._limits.slot(), self._tracing.span(self._job, scope) as span:
            try:
                outcome = await while_connected(receive, work(send))
            except ClientGone:
                pass
            except Exception as error:
                known = as_api_error(error)
                outcome = known.code if known else "internal_error"
                raise
            finally:
                facts = self._record.close(outcome, time.monotonic())
                scope.get(FACTS, {}).update(facts)
                span(facts)

    async def _whole(self, send: Send) -> str:
        choices = [WholeChoice() for _ in self._job.requests]

        async def keep(pieces: Pieces) -> None:
            for index, piece in pieces:
                choices[index].add(piece)

        await self._run(keep)
        body = whole_answer(self._job, choices, self._record.usage)
        headers = [(b"content-type", b"application/json"), (b"content-length", b"%d" % len(body))]
        await send({"type": "http.response.start", "status": 200, "headers": headers})
        await send_within(send, {"type": "http.response.body", "body": body}, LAST_SEND_S)
        return "ok"

    async def _stream(self, send: Send) -> str:
        """Errors before the first token have their HTTP status; later ones end the stream."""
        chunks = Chunks(self._job)
        started = False

        async def show(pieces: Pieces) -> None:
            nonlocal started
            body = b"".join(
                chunks.chunk(index, piece, self._record.usage)
                for index, piece in pieces
                if not piece.silent
            )
            if not started:
                started = True
                await send(_STREAM_START)
                body = chunks.opening() + body
            if body:
                await send({"type": "http.response.body", "body": body, "more_body": True})

        outcome = "ok"
        try:
            await self._run(show)
            end = chunks.closing(self._record.usage)
        except Exception as error:
            if not started:
                raise
            shown = _shown(error)
            outcome, end = shown.code, b"data: %s\n\n%s" % (shown.body(), DONE)
        await send_within(send, {"type": "http.response.body", "body": end}, LAST_SEND_S)
        return outcome

    async def _run(self, emit: Callable[[Pieces], Awaitable[None]]) -> None:
        """Generate all choices and hand their pieces on as they come."""
        job = self._job
        left_s = job.deadline_s - (time.monotonic() - self._arrival_s)
        try:
            async with asyncio.timeout(left_s) as deadline:
                await self._generate(emit)
        except TimeoutError:
            if not deadline.expired():
                raise
            raise DeadlineExceeded(f"not done within {job.deadline_s:g} s") from None

    async def _generate(self, emit: Callable[[Pieces], Awaitable[None]]) -> None:
        generate = self._generator.generate
        streams = [partial(generate, request) for request in self._job.requests]
        choices = {index: ChoiceText(self._job, index) for index in range(len(streams))}
        async with Merged(streams) as merged:
            while choices:
                events = await merged.ready()
                pieces, failure = self._take(events, choices, merged)
                if pieces:
                    await emit(pieces)
                if failure is not None:
                    raise failure

    def _take(
        self, events: Sequence[Event], choices: dict[int, ChoiceText], merged: Merged
    ) -> tuple[Pieces, Exception | None]:
        """Pieces of ``events`` up to the first failure; choices that ended leave ``choices``."""
        now_s = time.monotonic()
        pieces: list[tuple[int, Piece]] = []
        for index, delta in events:
            choice = choices.get(index)
            if choice is None:
                continue
            if not isinstance(delta, TokenDelta):
                return pieces, delta or ServeError("the runtime ended without a reason")
            try:
                piece = choice.push(delta)
            except ServeError as error:
                return pieces, error
            self._record.observe(index, delta, piece, now_s)
            pieces.append((index, piece))
            if piece.finish_reason:
                del choices[index]
                if delta.finish_reason is None:
                    merged.close(index)
        return pieces, None


_STREAM_START = {
    "type": "http.response.start",
    "status": 200,
    "headers": [
        (b"content-type", b"text/event-stream; charset=utf-8"),
        (b"cache-control", b"no-cache"),
        (b"x-accel-buffering", b"no"),
    ],
}


def _shown(error: Exception) -> ApiError:
    known = as_api_error(error)
    if known is None:
        _log.error("a stream failed", exc_info=error)
        return internal_error()
    return known
