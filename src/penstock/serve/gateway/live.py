"""The live page: its files, and what it draws, once a second."""

from __future__ import annotations

import asyncio
import time
from dataclasses import asdict
from importlib import resources

import msgspec
from starlette.responses import Response
from starlette.types import Receive, Scope, Send

from penstock.serve.gateway.disconnect import ClientGone, send_within, while_connected
from penstock.serve.gateway.errors import too_many
from penstock.serve.gateway.limits import Limits
from penstock.serve.gateway.record import Journal
from penstock.serve.gateway.settings import GatewaySettings
from penstock.serve.protocol import Generator

_MOST_VIEWERS = 64
_SLOWEST_VIEWER_S = 10.0
_FILES = {
    "index.html": "text/html; charset=utf-8",
    "style.css": "text/css; charset=utf-8",
    "page.js": "text/javascript; charset=utf-8",
}
_HEADERS = {
    "cache-control": "no-cache",
    "content-security-policy": "default-src 'none'; style-src 'self'; script-src 'self'; "
    "connect-src 'self'; img-src 'self' data:; base-uri 'none'; form-action 'none'; "
    "frame-ancestors 'none'",
    "referrer-policy": "no-referrer",
    "x-content-type-options": "nosniff",
}


def page_file(name: str) -> Response | None:
    """One of the files of the page, None if there is no such file."""
    kind = _FILES.get(name)
    if kind is None:
        return None
    content = resources.files(__package__).joinpath("static", name).read_bytes()
    return Response(content, headers={**_HEADERS, "content-type": kind})


class Live:
    """Snapshots of the runtime, taken once for all viewers."""

    def __init__(
        self, generator: Generator, journal: Journal, limits: Limits, settings: GatewaySettings
    ) -> None:
        self._generator = generator
        self._journal = journal
        self._limits = limits
        self._window_s = settings.window_s
        self._interval_s = settings.events_interval_s
        self._taken_s = float("-inf")
        self._event = b""
        self._viewers = 0
        self._start_s = time.monotonic()
        self.closing = asyncio.Event()

    def snapshot(self, now_s: float) -> dict[str, object]:
        """What the page shows; seconds and shares."""
        journal = self._journal
        return {
            "ready": self._generator.ready(),
            "uptime_s": now_s - self._start_s,
            "window_s": self._window_s,
            "in_flight": self._limits.in_flight,
            "models": [
                {"name": card.name, "max_model_len": card.max_model_len}
                for card in self._generator.models()
            ],
            "engines": [asdict(engine) for engine in self._generator.engines()],
            "ttft_s": journal.ttft_s.percentiles(now_s),
            "itl_s": journal.itl_s.percentiles(now_s),
            "recent": list(journal.recent)[::-1],
        }

    def response(self) -> Response:
        """The stream of snapshots; raises ``ApiError`` 429 if too many watch."""
        if self._viewers >= _MOST_VIEWERS:
            raise too_many(f"{self._viewers} pages are watching", 10.0)
        return _Events(self)

    async def follow(self, send: Send) -> None:
        """Send a snapshot every interval until the server closes."""
        self._viewers += 1
        try:
            await send(_START)
            while not self.closing.is_set():
                body = self._current(time.monotonic())
                message = {"type": "http.response.body", "body": body, "more_body": True}
                await send_within(send, message, _SLOWEST_VIEWER_S)
                try:
                    async with asyncio.timeout(self._interval_s):
                        await self.closing.wait()
                except TimeoutError:
                    continue
            await send({"type": "http.response.body", "body": b"", "more_body": False})
        finally:
            self._viewers -= 1

    def _current(self, now_s: float) -> bytes:
        if now_s - self._taken_s >= 0.9 * self._interval_s:
            self._event = b"data: %s\n\n" % msgspec.json.encode(self.snapshot(now_s))
            self._taken_s = now_s
        return self._event


class _Events(Response):
    def __init__(self, live: Live) -> None:
        super().__init__()
        self._live = live

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        try:
            await while_connected(receive, self._live.follow(send))
        except ClientGone:
            return


_START = {
    "type": "http.response.start",
    "status": 200,
    "headers": [
        (b"content-type", b"text/event-stream; charset=utf-8"),
        (b"cache-control", b"no-cache"),
        (b"x-accel-buffering", b"no"),
    ],
}
