"""Who may ask: bearer keys, compared in constant time."""

from __future__ import annotations

import hmac
from collections.abc import Iterable

from penstock.serve.gateway.errors import ApiError
from penstock.serve.gateway.settings import GatewaySettings

_OPEN = frozenset({"/", "/health", "/ready", "/ping", "/version", "/metrics", "/openapi.json"})
_OPEN_FOLDER = "/static/"


class Keys:
    """Which key a path needs. Paths that are not known to be open need one."""

    def __init__(self, settings: GatewaySettings) -> None:
        self._api = [key.encode() for key in settings.api_keys]
        self._admin = [key.encode() for key in settings.admin_keys]

    def check(self, path: str, authorization: bytes) -> str | None:
        """A name for the key that was used, None where none is needed.

        Raises ``ApiError`` 401.
        """
        accepted = self._accepted(path)
        if not accepted:
            return None
        scheme, _, given = authorization.partition(b" ")
        index = _find(accepted, given.strip())
        if scheme.lower() != b"bearer" or index is None:
            raise ApiError(
                401,
                "a valid key is needed: Authorization: Bearer <key>",
                code="invalid_api_key",
                headers={"www-authenticate": "Bearer"},
            )
        return f"key-{index}"

    def _accepted(self, path: str) -> list[bytes]:
        if path in _OPEN or path.startswith(_OPEN_FOLDER):
            return []
        if path.startswith("/admin/") or path == "/update_resources":
            return self._admin or self._api
        return self._api


def _find(keys: Iterable[bytes], given: bytes) -> int | None:
    """Position of ``given``; every key is compared, so time tells nothing."""
    found = None
    for index, key in enumerate(keys):
        if hmac.compare_digest(key, given):
            found = index
    return found
