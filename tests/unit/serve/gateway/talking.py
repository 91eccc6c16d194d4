"""A gateway to talk to: in this process, or under uvicorn on a free port."""

from __future__ import annotations

import json
import threading
import time
from collections.abc import AsyncIterator, Callable, Iterator, Sequence
from contextlib import contextmanager
from typing import Any

import httpx
from fastapi import FastAPI

from penstock.serve.gateway import GatewayServer, GatewaySettings, make_app
from penstock.serve.null import NullGenerator, NullSettings
from penstock.serve.protocol import GenerationRequest, TokenDelta

Script = Sequence[TokenDelta | Exception]


class Scripted(NullGenerator):
    """Says what it is told to, and remembers what it was asked."""

    def __init__(self, script: Script | None = None, settings: NullSettings | None = None) -> None:
        super().__init__(settings=settings or NullSettings())
        self.script = script
        self.asked: list[GenerationRequest] = []
        self.administered: list[tuple[str, dict[str, object]]] = []
        self.is_ready = True

    async def generate(self, request: GenerationRequest) -> AsyncIterator[TokenDelta]:
        self.asked.append(request)
        if self.script is None:
            async for delta in super().generate(request):
                yield delta
            return
        self.running += 1
        try:
            for event in self.script:
                if isinstance(event, Exception):
                    raise event
                yield event
        finally:
            self.running -= 1

    def ready(self) -> bool:
        return self.is_ready

    async def administer(self, action: str, body: Any) -> dict[str, object]:
        self.administered.append((action, dict(body)))
        return {"done": action}


class Talk:
    """Requests to one app without a socket."""

    def __init__(self, app: FastAPI) -> None:
        self.app = app
        transport = httpx.ASGITransport(app)
        self.http = httpx.AsyncClient(transport=transport, base_url="http://gateway")

    async def post(self, path: str, body: Any = None, **more: Any) -> httpx.Response:
        return await self.http.post(path, json=body, **more)

    async def get(self, path: str, **more: Any) -> httpx.Response:
        return await self.http.get(path, **more)

    async def complete(self, prompt: Any = "abc", **body: Any) -> httpx.Response:
        return await self.post("/v1/completions", {"model": "null", "prompt": prompt, **body})

    async def chat(self, content: Any = "abc", **body: Any) -> httpx.Response:
        messages = [{"role": "user", "content": content}]
        return await self.post("/v1/chat/completions", {"messages": messages, **body})


def events_of(response: httpx.Response) -> list[dict[str, Any]]:
    """Documents of a stream, which must end in ``[DONE]``."""
    assert response.headers["content-type"] == "text/event-stream; charset=utf-8"
    lines = [line for line in response.text.split("\n\n") if line]
    assert lines[-1] == "data: [DONE]"
    return [json.loads(line.removeprefix("data: ")) for line in lines[:-1]]


def error_of(response: httpx.Response) -> dict[str, Any]:
    """The error of an answer, which must be an OpenAI error object."""
    document = response.json()
    assert document.keys() == {"error"}
    assert document["error"].keys() == {"message", "type", "param", "code"}
    assert document["error"]["message"]
    return document["error"]


@contextmanager
def run_server(app: FastAPI) -> Iterator[str]:
    """Serve ``app`` on a free port in a thread; gives its address."""
    server = GatewayServer(app, port=0, drain_s=5)
    thread = threading.Thread(target=server.run, daemon=True)
    thread.start()
    while not server.started:
        assert thread.is_alive()
        time.sleep(0.005)
    port = server.servers[0].sockets[0].getsockname()[1]
    try:
        yield f"http://127.0.0.1:{port}"
    finally:
        server.should_exit = True
        thread.join(10)
    assert not thread.is_alive()


def until(condition: Callable[[], bool], patience_s: float = 10.0) -> None:
    """Wait for ``condition``, which other threads bring about."""
    end = time.monotonic() + patience_s
    while not condition():
        assert time.monotonic() < end, "it never came true"
        time.sleep(0.002)


def talk_to(generator: NullGenerator | None = None, **settings: Any) -> Talk:
    """Make an app for ``generator`` and talk to it."""
    settings.setdefault("log_requests", False)
    return Talk(make_app(generator or NullGenerator(), GatewaySettings(**settings)))
