"""How much at a time: requests in flight, and requests a minute for each key."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager

from penstock.serve.gateway.errors import too_many
from penstock.serve.gateway.settings import GatewaySettings

_MOST_KEYS = 10_000


class Limits:
    """Token buckets: a key may send a minute's worth at once, then at the steady rate.

    Times are seconds on any clock that never goes back; callers pass them in.
    """

    def __init__(self, settings: GatewaySettings) -> None:
        self._most = settings.max_concurrent_requests
        self._per_minute = settings.requests_per_minute
        self._buckets: dict[str, tuple[float, float]] = {}
        self.in_flight = 0

    def spend(self, key: str, now_s: float) -> None:
        """Take one request from the bucket of ``key``; raises ``ApiError`` 429 if it is empty."""
        if self._per_minute is None:
            return
        rate = self._per_minute / 60.0
        full = max(1.0, self._per_minute)
        level, since_s = self._buckets.pop(key, (full, now_s))
        level = min(full, level + (now_s - since_s) * rate)
        allowed = level >= 1.0
        self._buckets[key] = (level - 1.0 if allowed else level, now_s)
        if len(self._buckets) > _MOST_KEYS:
            self._buckets.pop(next(iter(self._buckets)))
        if not allowed:
            raise too_many(
                f"more than {self._per_minute:g} requests a minute", (1.0 - level) / rate
            )

    @contextmanager
    def slot(self) -> Iterator[None]:
        """Hold a place among the requests in flight; raises ``ApiError`` 429 if all are taken."""
        if self.in_flight >= self._most:
            raise too_many(f"{self.in_flight} requests are in flight", 1.0)
        self.in_flight += 1
        try:
            yield
        finally:
            self.in_flight -= 1
