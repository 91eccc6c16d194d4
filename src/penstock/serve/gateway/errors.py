"""Errors as the OpenAI API words them: ``{"error": {message, type, param, code}}``."""

from __future__ import annotations

import math
from collections.abc import Mapping

import msgspec
from starlette.exceptions import HTTPException
from starlette.responses import Response

from penstock.errors import Infeasible, InputError, SpecError
from penstock.serve.protocol import Overloaded, ServeError

_LONGEST_MESSAGE = 600

_TYPES = {
    401: "authentication_error",
    403: "permission_error",
    404: "not_found_error",
    408: "timeout_error",
    429: "rate_limit_error",
}


class ApiError(Exception):
    """An answer to the client that is not what it asked for."""

    def __init__(
        self,
        status: int,
        message: str,
        *,
        code: str,
        param: str | None = None,
        headers: Mapping[str, str] | None = None,
    ) -> None:
        super().__init__(message)
        self.status = status
        self.message = message
        self.code = code
        self.param = param
        self.headers = dict(headers or {})

    def body(self) -> bytes:
        message = self.message
        if len(message) > _LONGEST_MESSAGE:
            message = message[:_LONGEST_MESSAGE] + " ..."
        kind = _TYPES.get(
            self.status, "server_error" if self.status >= 500 else "invalid_request_error"
        )
        error = {"message": message, "type": kind, "param": self.param, "code": self.code}
        return msgspec.json.encode({"error": error})

    def response(self) -> Response:
        return Response(
            self.body(), self.status, headers=self.headers, media_type="application/json"
        )


class InvalidRequest(ApiError):  # noqa: N818 - what the client is told
    """400: the body or a value in it cannot be accepted."""

    def __init__(
        self, message: str, *, param: str | None = None, code: str = "invalid_value"
    ) -> None:
        super().__init__(400, message, code=code, param=param)


def too_many(message: str, retry_after_s: float) -> ApiError:
    """429 that says when to come back, in whole seconds."""
    return ApiError(429, message, code="rate_limit_exceeded", headers=retry_after(retry_after_s))


def retry_after(seconds: float) -> dict[str, str]:
    return {"retry-after": str(max(1, math.ceil(seconds)))}


def as_api_error(error: BaseException) -> ApiError | None:
    """``error`` as the client sees it; None for a fault of ours."""
    if isinstance(error, ApiError):
        return error
    if isinstance(error, Overloaded):
        return too_many(str(error), error.retry_after_s)
    if isinstance(error, ServeError):
        headers = retry_after(1.0) if error.status == 503 else {}
        return ApiError(error.status, str(error), code=error.code, headers=headers)
    if isinstance(error, SpecError):
        return InvalidRequest(str(error), param=error.key)
    if isinstance(error, InputError):
        return InvalidRequest(str(error))
    if isinstance(error, Infeasible):
        return ApiError(409, str(error), code="infeasible")
    if isinstance(error, HTTPException):
        code = {404: "not_found", 405: "method_not_allowed"}.get(error.status_code, "http_error")
        return ApiError(
            error.status_code, str(error.detail), code=code, headers=error.headers or {}
        )
    return None


def internal_error() -> ApiError:
    return ApiError(500, "the server failed; its log says why", code="internal_error")
