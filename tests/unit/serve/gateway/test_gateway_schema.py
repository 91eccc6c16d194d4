"""The OpenAPI document describes what is served, and what it allows never breaks the server."""

from __future__ import annotations

import warnings
from collections.abc import Iterator

import pytest
from hypothesis import HealthCheck, Phase, given, settings
from hypothesis import strategies as st
from tests.unit.serve.gateway.talking import run_server

from penstock.serve.gateway import GatewaySettings, make_app
from penstock.serve.null import NullGenerator
from penstock.serve.protocol import ModelCard

# A chat without a limit fills the context: a short one keeps the test short.
CARD = ModelCard("null", max_model_len=200, vocab_size=260, checkpoint="")
APP = make_app(NullGenerator((CARD,)), GatewaySettings(log_requests=False))
OPERATIONS = [
    (path, method.upper())
    for path, operations in APP.openapi()["paths"].items()
    for method in operations
]


@pytest.fixture(scope="module")
def address() -> Iterator[str]:
    with run_server(APP) as found:
        yield found


def test_every_endpoint_is_described() -> None:
    """Bodies with their fields, errors with their form."""
    document = APP.openapi()
    body = document["components"]["schemas"]["CompletionBody"]
    assert body["required"] == ["prompt"]
    assert body["additionalProperties"] is False
    assert {"top_k", "min_tokens", "slo_class", "deadline_s"} <= body["properties"].keys()
    assert ("/v1/chat/completions", "POST") in OPERATIONS
    for path, method in OPERATIONS:
        responses = document["paths"][path][method.lower()]["responses"]
        assert "422" not in responses
        assert responses["default"]["content"]["application/json"]["schema"]


@pytest.mark.filterwarnings("ignore")
@pytest.mark.parametrize(("path", "method"), OPERATIONS)
def test_what_the_document_allows_is_never_a_fault(path: str, method: str, address: str) -> None:
    """Schemathesis draws requests from the document: none is answered with a 5xx."""
    schemathesis = pytest.importorskip("schemathesis")
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        operation = schemathesis.openapi.from_dict(APP.openapi())[path][method]
        modes = [schemathesis.GenerationMode.POSITIVE, schemathesis.GenerationMode.NEGATIVE]
        strategies = [operation.as_strategy(generation_mode=mode) for mode in modes]

        @settings(
            max_examples=12,
            deadline=None,
            phases=[Phase.explicit, Phase.generate],
            suppress_health_check=list(HealthCheck),
        )
        @given(case=st.one_of(strategies))
        def check(case: object) -> None:
            response = case.call(base_url=address)  # type: ignore[attr-defined]
            assert response.status_code < 500, response.text

        check()
