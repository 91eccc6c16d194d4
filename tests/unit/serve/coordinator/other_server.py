"""Servers that stand in for vLLM, llama.cpp and others: each answers with its prompt, repeated."""

from __future__ import annotations

import asyncio
import json
import socket
from collections.abc import AsyncIterator, Callable
from contextlib import asynccontextmanager
from dataclasses import dataclass, field
from typing import Any

import uvicorn
from starlette.applications import Starlette
from starlette.requests import Request
from starlette.responses import JSONResponse, Response, StreamingResponse
from starlette.routing import Route


class Site:
    """An ASGI app at one address, which can be killed and started again."""

    def __init__(self, app: Any) -> None:
        self._app = app
        with socket.socket() as free:
            free.bind(("127.0.0.1", 0))
            self.port: int = free.getsockname()[1]
        self.url = f"http://127.0.0.1:{self.port}"

    async def start(self) -> None:
        config = uvicorn.Config(
            self._app, lifespan="off", log_config=None, timeout_graceful_shutdown=0
        )
        self._server = uvicorn.Server(config)
        listener = socket.create_server(("127.0.0.1", self.port))
        self._task = asyncio.ensure_future(self._server._serve([listener]))
        while not self._server.started:
            await asyncio.sleep(0.005)

    async def stop(self) -> None:
        self._server.should_exit = self._server.force_exit = True
        await self._task

    @asynccontextmanager
    async def up(self) -> AsyncIterator[Site]:
        await self.start()
        try:
            yield self
        finally:
            await self.stop()


@dataclass
class Dialect:
    """A server's ways: one token is one byte of its text.

    ``known`` are the keys it takes, None for any; ``ids``: whether prompts may be token ids;
    ``tells`` adds what it says of the tokens of a chunk. ``fault`` answers instead of it.
    """

    known: frozenset[str] | None = None
    ids: bool = True
    tells: Callable[[list[int], dict[str, Any]], dict[str, Any]] = lambda _tokens, _body: {}
    fault: Callable[[dict[str, Any]], Response | None] = lambda _body: None
    card: dict[str, Any] = field(default_factory=lambda: {"id": "other"})
    bodies: list[dict[str, Any]] = field(default_factory=list)

    def app(self) -> Starlette:
        return Starlette(
            routes=[
                Route("/v1/models", self._models),
                Route("/v1/completions", self._complete, methods=["POST"]),
            ]
        )

    @property
    def asked(self) -> list[dict[str, Any]]:
        """Bodies of streamed requests."""
        return [body for body in self.bodies if body.get("stream")]

    async def _models(self, _request: Request) -> Response:
        return JSONResponse({"data": [self.card]})

    async def _complete(self, request: Request) -> Response:
        body = await request.json()
        self.bodies.append(body)
        unknown = set(body) - (self.known or set(body))
        if unknown or (isinstance(body["prompt"], list) and not self.ids):
            return JSONResponse({"error": {"message": f"no {unknown or 'ids'}"}}, 400)
        fault = self.fault(body)
        if fault is not None:
            return fault
        prompt = body["prompt"]
        source = list(prompt.encode()) if isinstance(prompt, str) else prompt
        tokens = [source[i % len(source)] for i in range(body["max_tokens"])]
        if not body.get("stream"):
            return JSONResponse({"choices": [self._choice(tokens, body, "length")]})
        return StreamingResponse(self._events(tokens, body), media_type="text/event-stream")

    async def _events(self, tokens: list[int], body: dict[str, Any]) -> AsyncIterator[bytes]:
        for i in range(0, len(tokens), 2):
            pair = tokens[i : i + 2]
            yield event({"choices": [self._choice(pair, body, None)]})
            await asyncio.sleep(0)
        yield event({"choices": [{"index": 0, "text": "", "finish_reason": "length"}]})
        yield b"data: [DONE]\n\n"

    def _choice(self, tokens: list[int], body: dict[str, Any], reason: object) -> dict[str, Any]:
        told = self.tells(tokens, body)
        return {"index": 0, "text": bytes(tokens).decode(), "finish_reason": reason, **told}


def event(document: object) -> bytes:
    return b"data: " + json.dumps(document, ensure_ascii=False).encode() + b"\n\n"


def vllm(tokens: list[int], body: dict[str, Any]) -> dict[str, Any]:
    """Ids where asked for; log probabilities by text, or by id where asked for."""
    told: dict[str, Any] = {}
    if body.get("return_token_ids"):
        told["token_ids"] = tokens
    told.update(older_vllm(tokens, body))
    return told


def older_vllm(tokens: list[int], body: dict[str, Any]) -> dict[str, Any]:
    """Ids only as names of log probabilities."""
    if body.get("logprobs") is None:
        return {}
    named = body.get("return_tokens_as_token_ids")
    names = [f"token_id:{token}" if named else chr(token) for token in tokens]
    tops = [{name: -0.5, f"token_id:{90}" if named else chr(90): -2.0} for name in names]
    listed = {"tokens": names, "token_logprobs": [-0.5] * len(names), "top_logprobs": tops}
    return {"logprobs": listed}


def llama_cpp(tokens: list[int], body: dict[str, Any]) -> dict[str, Any]:
    """Ids beside log probabilities; asking for none gives none."""
    if not body.get("logprobs"):
        return {}
    top = [{"id": 90, "logprob": -2.0}]
    return {
        "logprobs": {
            "content": [
                {"id": token, "token": chr(token), "logprob": -0.5, "top_logprobs": top}
                for token in tokens
            ]
        }
    }
