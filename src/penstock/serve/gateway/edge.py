"""The outermost layer: request ids, keys, the log line, and errors that nobody foresaw.

A plain ASGI wrapper, so that streams pass through untouched.
"""

from __future__ import annotations

import logging
import re
import time
import uuid
from typing import Any

from starlette.datastructures import Headers
from starlette.types import ASGIApp, Message, Receive, Scope, Send

from penstock.serve.gateway.answer import FACTS
from penstock.serve.gateway.errors import ApiError, internal_error
from penstock.serve.gateway.keys import Keys
from penstock.serve.gateway.logs import FIELDS
from penstock.serve.gateway.metrics import Metrics
from penstock.serve.gateway.settings import GatewaySettings

CALLER = "penstock.caller"
"""Key of an ASGI scope: whose requests are counted together."""

_log = logging.getLogger("penstock.gateway")
_REQUEST_ID = re.compile(r"[\x21-\x7e]{1,128}")
_CLIENT_GONE = 499


class Edge:
    def __init__(self, app: ASGIApp, settings: GatewaySettings, metrics: Metrics) -> None:
        self._app = app
        self._keys = Keys(settings)
        self._log_requests = settings.log_requests
        self._failed = metrics.failed

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        if scope["type"] != "http":
            await self._app(scope, receive, send)
            return
        exchange = _Exchange(scope, send)
        try:
            key = self._keys.check(
                scope["path"], exchange.headers.get("authorization", "").encode()
            )
            scope[CALLER] = key or _address(scope)
            await self._app(scope, receive, exchange.send)
        except ApiError as error:
            await error.response()(scope, receive, exchange.send)
        except Exception:
            _log.exception("a request failed", extra={FIELDS: {"request_id": exchange.id}})
            if not exchange.status:
                await internal_error().response()(scope, receive, exchange.send)
        finally:
            self._account(scope, exchange)

    def _account(self, scope: Scope, exchange: _Exchange) -> None:
        status = exchange.status or _CLIENT_GONE
        if status >= 400:
            self._failed.labels(str(status)).inc()
        if not self._log_requests:
            return
        fields: dict[str, Any] = {
            "request_id": exchange.id,
            "method": scope["method"],
            "path": scope["path"],
            "status": status,
            "seconds": round(time.monotonic() - exchange.start_s, 6),
            "caller": scope.get(CALLER),
            **scope[FACTS],
        }
        _log.info("request", extra={FIELDS: fields})


class _Exchange:
    """One request and what was sent for it."""

    def __init__(self, scope: Scope, send: Send) -> None:
        self.headers = Headers(scope=scope)
        given = self.headers.get("x-request-id", "")
        self.id = given if _REQUEST_ID.fullmatch(given) else uuid.uuid4().hex
        self.start_s = time.monotonic()
        self.status = 0
        self._send = send
        scope[FACTS] = {}

    async def send(self, message: Message) -> None:
        if message["type"] == "http.response.start":
            self.status = message["status"]
            headers = [*message.get("headers", ()), (b"x-request-id", self.id.encode())]
            message = {**message, "headers": headers}
        await self._send(message)


def _address(scope: Scope) -> str:
    client = scope.get("client")
    return str(client[0]) if client else "unknown"
