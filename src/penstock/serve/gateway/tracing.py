"""OpenTelemetry spans, where it is installed and asked for; nothing otherwise."""

from __future__ import annotations

import importlib
import importlib.util
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from typing import Any

from starlette.types import Scope

from penstock.errors import SpecError
from penstock.serve.gateway.job import Job

Finish = Callable[[Mapping[str, object]], None]


class Tracing:
    """One span a request, named and annotated after the semantic conventions for GenAI."""

    def __init__(self, enabled: bool) -> None:
        """Raises ``SpecError`` if tracing is asked for and OpenTelemetry is missing."""
        self._tracer: Any = None
        if not enabled:
            return
        if importlib.util.find_spec("opentelemetry") is None:
            raise SpecError(
                "OpenTelemetry is not installed",
                source="gateway settings",
                key="tracing",
                fix="pip install opentelemetry-sdk, or leave tracing off",
            )
        self._tracer = importlib.import_module("opentelemetry.trace").get_tracer("penstock")
        self._propagate = importlib.import_module("opentelemetry.propagate")

    @contextmanager
    def span(self, job: Job, scope: Scope) -> Iterator[Finish]:
        """A span around the request, a child of the caller's; call the result at its end."""
        if self._tracer is None:
            yield _ignore
            return
        carrier = {
            name.decode("latin-1"): value.decode("latin-1") for name, value in scope["headers"]
        }
        operation = "chat" if job.chat else "text_completion"
        with self._tracer.start_as_current_span(
            f"{operation} {job.card.name}", context=self._propagate.extract(carrier)
        ) as span:
            span.set_attribute("gen_ai.operation.name", operation)
            span.set_attribute("gen_ai.request.model", job.card.name)
            span.set_attribute("gen_ai.request.max_tokens", job.requests[0].params.max_tokens)
            span.set_attribute("gen_ai.response.id", job.id)

            def finish(facts: Mapping[str, object]) -> None:
                span.set_attribute("gen_ai.usage.input_tokens", facts["prompt_tokens"])
                span.set_attribute("gen_ai.usage.output_tokens", facts["completion_tokens"])
                span.set_attribute("gen_ai.response.finish_reasons", [facts["finish_reason"]])
                if facts["ttft_s"] is not None:
                    span.set_attribute("gen_ai.server.time_to_first_token", facts["ttft_s"])

            yield finish


def _ignore(facts: Mapping[str, object]) -> None:
    del facts
