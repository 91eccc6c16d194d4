"""OpenTelemetry spans: only where asked for."""

from __future__ import annotations

import importlib.util
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

import pytest
from tests.unit.serve.gateway.talking import talk_to

from penstock.errors import SpecError


class Tracer:
    """Remembers spans: name, parent and attributes."""

    def __init__(self) -> None:
        self.spans: list[dict[str, Any]] = []

    @contextmanager
    def start_as_current_span(self, name: str, context: Any) -> Iterator[Tracer]:
        self.spans.append({"name": name, "context": context})
        yield self

    def set_attribute(self, key: str, value: Any) -> None:
        self.spans[-1][key] = value


async def test_a_request_is_a_span_of_its_caller(monkeypatch: pytest.MonkeyPatch) -> None:
    """Named and annotated after the GenAI conventions, below the trace of the header."""
    trace = pytest.importorskip("opentelemetry.trace")
    tracer = Tracer()
    monkeypatch.setattr(trace, "get_tracer", lambda name: tracer)
    talk = talk_to(tracing=True)
    parent = "0af7651916cd43dd8448eb211c80319c"
    headers = {"traceparent": f"00-{parent}-b7ad6b7169203331-01"}
    await talk.post("/v1/completions", {"prompt": "abc", "max_tokens": 4}, headers=headers)
    [span] = tracer.spans
    assert span["name"] == "text_completion null"
    assert span["gen_ai.usage.input_tokens"] == 3
    assert span["gen_ai.usage.output_tokens"] == 4
    assert span["gen_ai.response.finish_reasons"] == ["length"]
    found = trace.get_current_span(span["context"]).get_span_context().trace_id
    assert found == int(parent, 16)


async def test_without_being_asked_there_is_no_span(monkeypatch: pytest.MonkeyPatch) -> None:
    """Whether OpenTelemetry is installed or not."""
    monkeypatch.setattr(importlib.util, "find_spec", lambda name: None)
    assert (await talk_to().complete()).status_code == 200


def test_tracing_without_opentelemetry_is_refused(monkeypatch: pytest.MonkeyPatch) -> None:
    """At the start, with what to install."""
    monkeypatch.setattr(importlib.util, "find_spec", lambda name: None)
    with pytest.raises(SpecError, match="pip install opentelemetry-sdk"):
        talk_to(tracing=True)
