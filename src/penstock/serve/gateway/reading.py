"""Bodies off the wire: bounded in bytes and seconds, JSON, then checked."""

from __future__ import annotations

import asyncio
from typing import Any, TypeVar

import msgspec
from starlette.requests import ClientDisconnect, Request

from penstock.errors import SpecError
from penstock.serve.gateway.bodies import ASKS_NOTHING, IGNORED, UNSUPPORTED, Body
from penstock.serve.gateway.errors import ApiError, InvalidRequest
from penstock.serve.gateway.settings import GatewaySettings
from penstock.spec.strict import validate

_Body = TypeVar("_Body", bound=Body)


async def read_body(request: Request, model: type[_Body], settings: GatewaySettings) -> _Body:
    """The body as ``model``; raises ``ApiError`` for whatever is wrong with it."""
    data = await read_json(request, settings)
    for key in [key for key in data if key in IGNORED or key in UNSUPPORTED]:
        if key in UNSUPPORTED and data[key] not in ASKS_NOTHING:
            raise InvalidRequest(
                f"{key}: is not supported by this server; leave it out",
                param=key,
                code="unsupported_parameter",
            )
        if key not in model.model_fields:
            del data[key]
    try:
        return validate(model, data, "body")
    except SpecError as error:
        raise InvalidRequest(str(error), param=error.key) from None


async def read_json(request: Request, settings: GatewaySettings) -> dict[str, Any]:
    """The body as a JSON object."""
    try:
        data = msgspec.json.decode(await _read_bytes(request, settings))
    except (msgspec.DecodeError, UnicodeDecodeError, RecursionError) as error:
        reason = str(error) or "nested too deeply"
        raise InvalidRequest(f"the body is not JSON: {reason}", code="invalid_json") from None
    if not isinstance(data, dict):
        raise InvalidRequest("the body must be a JSON object", code="invalid_json")
    return data


async def _read_bytes(request: Request, settings: GatewaySettings) -> bytes:
    most = settings.max_body_bytes
    too_large = ApiError(413, f"the body is larger than {most} bytes", code="request_too_large")
    declared = request.headers.get("content-length", "")
    if declared.isdigit() and int(declared[:20]) > most:
        raise too_large
    parts: list[bytes] = []
    size = 0
    try:
        async with asyncio.timeout(settings.body_timeout_s):
            async for part in request.stream():
                size += len(part)
                if size > most:
                    raise too_large
                parts.append(part)
    except TimeoutError:
        raise ApiError(
            408,
            f"the body did not arrive within {settings.body_timeout_s:g} s",
            code="request_timeout",
        ) from None
    except ClientDisconnect:
        raise ApiError(499, "the client is gone", code="client_disconnected") from None
    return b"".join(parts)
