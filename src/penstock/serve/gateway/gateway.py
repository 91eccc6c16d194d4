"""The endpoints: each reads a request, asks the runtime, and words the answer."""

from __future__ import annotations

import asyncio
import time
from collections.abc import Mapping
from dataclasses import asdict

import msgspec
from starlette.exceptions import HTTPException
from starlette.requests import Request
from starlette.responses import Response

import penstock
from penstock.serve.gateway.answer import Answer
from penstock.serve.gateway.bodies import ChatBody, CompletionBody, DetokenizeBody, TokenizeBody
from penstock.serve.gateway.edge import CALLER
from penstock.serve.gateway.errors import InvalidRequest, retry_after
from penstock.serve.gateway.job import Job, chat_job, completion_job
from penstock.serve.gateway.limits import Limits
from penstock.serve.gateway.live import Live, page_file
from penstock.serve.gateway.metrics import Metrics
from penstock.serve.gateway.prompts import chat_prompt
from penstock.serve.gateway.reading import read_body, read_json
from penstock.serve.gateway.record import Journal
from penstock.serve.gateway.settings import GatewaySettings
from penstock.serve.gateway.texts import Texts, encode
from penstock.serve.gateway.tracing import Tracing
from penstock.serve.protocol import Generator, ModelCard, UnknownModel


def as_json(document: object, status: int = 200) -> Response:
    return Response(msgspec.json.encode(document), status, media_type="application/json")


class Gateway:
    """State of one app, and its endpoints as methods."""

    def __init__(self, generator: Generator, settings: GatewaySettings) -> None:
        """Raises ``SpecError`` for a model whose tokenizer cannot be read."""
        self._generator = generator
        self._settings = settings
        self._texts = Texts(generator)
        self._texts.preload(generator.models())
        self._limits = Limits(settings)
        self.metrics = Metrics(generator)
        self._journal = Journal(self.metrics, settings.window_s)
        self._tracing = Tracing(settings.tracing)
        self._created_s = int(time.time())
        self.live = Live(generator, self._journal, self._limits, settings)

    # The OpenAI API

    async def completions(self, request: Request) -> Response:
        """Complete prompts."""
        arrival_s = self._arrive(request)
        body = await read_body(request, CompletionBody, self._settings)
        job = await completion_job(body, request.headers, self._texts, self._settings)
        return self._answer(job, arrival_s)

    async def chat_completions(self, request: Request) -> Response:
        """Answer a chat."""
        arrival_s = self._arrive(request)
        body = await read_body(request, ChatBody, self._settings)
        job = await chat_job(body, request.headers, self._texts, self._settings)
        return self._answer(job, arrival_s)

    async def models(self, request: Request) -> Response:
        """Models that are served."""
        del request
        data = [self._model(card) for card in self._generator.models()]
        return as_json({"object": "list", "data": data})

    async def model(self, request: Request, name: str) -> Response:
        """One model."""
        del request
        for card in self._generator.models():
            if card.name == name:
                return as_json(self._model(card))
        raise UnknownModel(f"model: no model {name[:200]!r}")

    def _model(self, card: ModelCard) -> dict[str, object]:
        return {
            "id": card.name,
            "object": "model",
            "created": self._created_s,
            "owned_by": "penstock",
            "max_model_len": card.max_model_len,
        }

    def _arrive(self, request: Request) -> float:
        now_s = time.monotonic()
        self._limits.spend(request.scope[CALLER], now_s)
        return now_s

    def _answer(self, job: Job, arrival_s: float) -> Response:
        return Answer(
            job,
            generator=self._generator,
            journal=self._journal,
            limits=self._limits,
            tracing=self._tracing,
            arrival_s=arrival_s,
        )

    # Tokens

    async def tokenize(self, request: Request) -> Response:
        """Token ids of a text or a chat."""
        body = await read_body(request, TokenizeBody, self._settings)
        card, text = await self._texts.find(body.model)
        if (body.prompt is None) == (body.messages is None):
            raise InvalidRequest("prompt: give either prompt or messages", param="prompt")
        special = body.add_special_tokens
        prompt = body.prompt or ""
        if body.messages is not None:
            prompt = chat_prompt(text, card, body.messages, body.add_generation_prompt)
            special = special or False
        tokenizer = text.tokenizer
        tokens = await encode(tokenizer, prompt, add_special_tokens=special is not False)
        document: dict[str, object] = {
            "count": len(tokens),
            "max_model_len": card.max_model_len,
            "tokens": tokens,
        }
        if body.return_token_strs:
            document["token_strs"] = [tokenizer.name(token) for token in tokens]
        return as_json(document)

    async def detokenize(self, request: Request) -> Response:
        """Text of token ids."""
        body = await read_body(request, DetokenizeBody, self._settings)
        card, text = await self._texts.find(body.model)
        wrong = max(body.tokens, default=0)
        if wrong >= card.vocab_size:
            raise InvalidRequest(f"tokens: {card.name} has no token {wrong}", param="tokens")
        prompt = await asyncio.to_thread(text.tokenizer.decode_long, body.tokens)
        return as_json({"prompt": prompt})

    # The server itself

    async def health(self, request: Request) -> Response:
        """The process answers."""
        del request
        return Response(status_code=200)

    async def ready(self, request: Request) -> Response:
        """Whether requests can be served now."""
        del request
        if self._generator.ready():
            return as_json({"ready": True})
        response = as_json({"ready": False}, 503)
        response.headers.update(retry_after(1.0))
        return response

    async def version(self, request: Request) -> Response:
        """The version that runs."""
        del request
        return as_json({"version": penstock.__version__})

    async def metrics_page(self, request: Request) -> Response:
        """Metrics in the text format of Prometheus."""
        del request
        return Response(self.metrics.page(), media_type="text/plain; version=0.0.4; charset=utf-8")

    async def page(self, request: Request) -> Response:
        """The live page."""
        return await self.static(request, "index.html")

    async def static(self, request: Request, name: str) -> Response:
        """Files of the live page."""
        del request
        response = page_file(name)
        if response is None:
            raise HTTPException(404)
        return response

    async def events(self, request: Request) -> Response:
        """What the live page shows, as server-sent events."""
        del request
        return self.live.response()

    # The pool

    async def engines(self, request: Request) -> Response:
        """Engines of the pool."""
        del request
        return as_json({"engines": [asdict(engine) for engine in self._generator.engines()]})

    async def add_engine(self, request: Request) -> Response:
        """Start an engine."""
        return await self._administer("engines.add", await self._json(request))

    async def remove_engine(self, request: Request, name: str) -> Response:
        """Drain an engine and stop it."""
        del request
        return await self._administer("engines.remove", {"name": name})

    async def remove_named_engine(self, request: Request) -> Response:
        """Drain the engine that the body names and stop it."""
        return await self._administer("engines.remove", await self._json(request))

    async def set_role(self, request: Request, name: str) -> Response:
        """Make an engine prefill, decode or both."""
        body = await self._json(request)
        if body.keys() != {"role"} or body["role"] not in ("prefill", "decode", "both"):
            raise InvalidRequest('role: give {"role": "prefill" | "decode" | "both"}', param="role")
        return await self._administer("engines.role", {"name": name, "role": body["role"]})

    async def update_resources(self, request: Request) -> Response:
        """Apply operations to the pool."""
        return await self._administer("operations", await self._json(request))

    async def deployments(self, request: Request) -> Response:
        """Models of the pool: how and where each is served."""
        del request
        return await self._administer("models.get", {})

    async def add_model(self, request: Request) -> Response:
        """Serve one more model."""
        return await self._administer("models.add", await self._json(request))

    async def remove_model(
        self, request: Request, name: str, drain_s: float | None = None, force: bool = False
    ) -> Response:
        """Stop serving a model: when its requests are over, or at once with ``force``."""
        del request
        limits = {"drain_s": drain_s, "force": force or None}
        given = {key: value for key, value in limits.items() if value is not None}
        return await self._administer("models.remove", {"name": name, **given})

    async def pool(self, request: Request) -> Response:
        """The pool plan that is served."""
        del request
        return await self._administer("pool.get", {})

    async def set_pool(self, request: Request) -> Response:
        """Go over to another pool plan."""
        return await self._administer("pool.set", await self._json(request))

    async def _json(self, request: Request) -> dict[str, object]:
        return await read_json(request, self._settings)

    async def _administer(self, action: str, body: Mapping[str, object]) -> Response:
        return as_json(await self._generator.administer(action, body))
