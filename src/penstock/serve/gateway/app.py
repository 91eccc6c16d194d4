"""The ASGI app: routes, error handlers and the edge around them."""

from __future__ import annotations

from collections.abc import AsyncIterator, Callable
from contextlib import asynccontextmanager
from typing import Any

from fastapi import FastAPI
from fastapi.exceptions import RequestValidationError
from starlette.exceptions import HTTPException
from starlette.requests import Request
from starlette.responses import Response

import penstock
from penstock.errors import PenstockError
from penstock.serve.gateway.bodies import ChatBody, CompletionBody, DetokenizeBody, TokenizeBody
from penstock.serve.gateway.edge import Edge
from penstock.serve.gateway.errors import ApiError, InvalidRequest, as_api_error
from penstock.serve.gateway.gateway import Gateway
from penstock.serve.gateway.openapi import describe_bodies
from penstock.serve.gateway.settings import GatewaySettings
from penstock.serve.protocol import Generator, ServeError

_OBJECT = {"type": "object"}


def make_app(generator: Generator, settings: GatewaySettings | None = None) -> FastAPI:
    """The gateway in front of ``generator``.

    ``app.state.gateway`` is its ``Gateway``. Raises ``SpecError`` for settings that contradict
    the installation and for models whose tokenizer cannot be read.
    """
    settings = settings or GatewaySettings()
    gateway = Gateway(generator, settings)
    app = FastAPI(
        title="Penstock",
        version=penstock.__version__,
        docs_url=None,
        redoc_url=None,
        redirect_slashes=False,
        lifespan=_lifespan,
    )
    app.state.gateway = gateway
    _add_routes(app, gateway)
    _add_error_handlers(app)
    app.add_middleware(Edge, settings=settings, metrics=gateway.metrics)
    describe_bodies(app)
    return app


@asynccontextmanager
async def _lifespan(app: FastAPI) -> AsyncIterator[None]:
    yield
    app.state.gateway.live.closing.set()


def _add_routes(app: FastAPI, gateway: Gateway) -> None:
    def add(
        method: str,
        path: str,
        endpoint: Callable[..., Any],
        body: Any = None,
        *,
        shown: bool = True,
    ) -> None:
        extra = None
        if body is not None:
            content = {"application/json": {"schema": body}}
            extra = {"requestBody": {"required": True, "content": content}}
        app.add_api_route(
            path,
            endpoint,
            methods=[method],
            response_model=None,
            openapi_extra=extra,
            include_in_schema=shown,
        )

    add("POST", "/v1/completions", gateway.completions, CompletionBody)
    add("POST", "/v1/chat/completions", gateway.chat_completions, ChatBody)
    add("GET", "/v1/models", gateway.models)
    add("GET", "/v1/models/{name:path}", gateway.model)
    add("POST", "/tokenize", gateway.tokenize, TokenizeBody)
    add("POST", "/detokenize", gateway.detokenize, DetokenizeBody)
    for path in ("/health", "/ping"):
        add("GET", path, gateway.health)
    add("GET", "/ready", gateway.ready)
    add("GET", "/version", gateway.version)
    add("GET", "/metrics", gateway.metrics_page)
    add("GET", "/", gateway.page, shown=False)
    add("GET", "/static/{name}", gateway.static, shown=False)
    add("GET", "/events", gateway.events, shown=False)
    add("GET", "/admin/engines", gateway.engines)
    add("POST", "/admin/engines", gateway.add_engine, _OBJECT)
    add("DELETE", "/admin/engines", gateway.remove_named_engine, _OBJECT)
    add("DELETE", "/admin/engines/{name}", gateway.remove_engine)
    add("POST", "/admin/engines/{name}/role", gateway.set_role, _OBJECT)
    add("POST", "/update_resources", gateway.update_resources, _OBJECT)
    add("GET", "/admin/models", gateway.deployments)
    add("POST", "/admin/models", gateway.add_model, _OBJECT)
    add("DELETE", "/admin/models/{name:path}", gateway.remove_model)
    add("GET", "/admin/pool", gateway.pool)
    add("POST", "/admin/pool", gateway.set_pool, _OBJECT)


def _add_error_handlers(app: FastAPI) -> None:
    """Every error that is the client's to know, in the words of the OpenAI API."""

    async def shown(request: Request, error: Exception) -> Response:
        del request
        known = as_api_error(error)
        if known is None:
            raise error
        return known.response()

    async def invalid(request: Request, error: Exception) -> Response:
        del request
        return InvalidRequest(str(error)).response()

    for kind in (ApiError, ServeError, PenstockError, HTTPException):
        app.add_exception_handler(kind, shown)
    app.add_exception_handler(RequestValidationError, invalid)
