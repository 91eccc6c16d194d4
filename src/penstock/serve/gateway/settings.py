"""What an operator sets for the gateway."""

from __future__ import annotations

from dataclasses import dataclass

from penstock.errors import SpecError

MIB = 1 << 20


@dataclass(frozen=True, slots=True)
class GatewaySettings:
    """Keys, limits and switches. Empty ``api_keys`` = open to whoever reaches the port.

    ``admin_keys`` guard the admin endpoints; where there are none, the API keys do.
    ``requests_per_minute`` is per key, or per client address where there are no keys.
    ``request_timeout_s`` bounds every request; one may ask for less with ``deadline_s``.
    ``slo_classes`` are the names a request may give; where there are none, any name passes.
    """

    api_keys: tuple[str, ...] = ()
    admin_keys: tuple[str, ...] = ()
    max_body_bytes: int = 8 * MIB
    body_timeout_s: float = 30.0
    max_concurrent_requests: int = 1024
    requests_per_minute: float | None = None
    max_choices: int = 128
    request_timeout_s: float = 600.0
    slo_classes: tuple[str, ...] = ()
    log_requests: bool = True
    tracing: bool = False
    """OpenTelemetry spans, where ``opentelemetry`` is installed."""
    window_s: float = 300.0
    """How far back the percentiles of the live page reach."""
    events_interval_s: float = 1.0

    def __post_init__(self) -> None:
        for key in (
            "max_body_bytes",
            "body_timeout_s",
            "max_concurrent_requests",
            "requests_per_minute",
            "max_choices",
            "request_timeout_s",
            "window_s",
            "events_interval_s",
        ):
            value = getattr(self, key)
            if value is not None and not value > 0:
                raise SpecError("must be above 0", source="gateway settings", key=key, value=value)
        if not all((*self.api_keys, *self.admin_keys)):
            raise SpecError("a key must not be empty", source="gateway settings", key="api_keys")
