"""Everything that is wrong has a status and an OpenAI error object."""

from __future__ import annotations

import asyncio
import json
from collections.abc import AsyncIterator
from pathlib import Path
from typing import Any

import pytest
from tests.unit.serve.gateway.talking import Scripted, error_of, events_of, talk_to

from penstock.errors import Infeasible, SpecError
from penstock.serve.gateway import GatewaySettings, make_app
from penstock.serve.gateway.errors import ApiError
from penstock.serve.gateway.limits import Limits
from penstock.serve.null import NullGenerator, NullSettings
from penstock.serve.protocol import (
    ModelCard,
    Overloaded,
    RequestTooLong,
    ServeError,
    TokenDelta,
    Unavailable,
)
from penstock.serve.text.byte_level import byte_tokenizer

BAD_COMPLETIONS: list[tuple[dict[str, Any], str]] = [
    ({"prompt": 3}, "prompt"),
    ({"prompt": None}, "prompt"),
    ({"prompt": []}, "prompt"),
    ({"prompt": ""}, "prompt"),
    ({"prompt": ["a", 1]}, "prompt"),
    ({"prompt": [[1], "a"]}, "prompt"),
    ({"prompt": [[]]}, "prompt"),
    ({"prompt": [True]}, "prompt"),
    ({"prompt": [260]}, "prompt"),
    ({"prompt": [-1]}, "prompt"),
    ({"prompt": ["a"] * 2000}, "prompt"),
    ({"max_tokens": 0}, "max_tokens"),
    ({"max_tokens": "5"}, "max_tokens"),
    ({"max_tokens": 1.5}, "max_tokens"),
    ({"max_tokens": True}, "max_tokens"),
    ({"max_tokens": 10**30}, "max_tokens"),
    ({"min_tokens": 17}, "min_tokens"),
    ({"temperature": -0.1}, "temperature"),
    ({"temperature": 2.1}, "temperature"),
    ({"temperature": "hot"}, "temperature"),
    ({"top_p": 0}, "top_p"),
    ({"top_k": -2}, "top_k"),
    ({"min_p": 1.5}, "min_p"),
    ({"repetition_penalty": 0}, "repetition_penalty"),
    ({"presence_penalty": 3}, "presence_penalty"),
    ({"n": 0}, "n"),
    ({"n": 129}, "n"),
    ({"best_of": 2}, "best_of"),
    ({"seed": 2**63}, "seed"),
    ({"logprobs": 21}, "logprobs"),
    ({"logprobs": True}, "logprobs"),
    ({"echo": True, "logprobs": 1}, "echo"),
    ({"stop": ""}, "stop"),
    ({"stop": [1]}, "stop"),
    ({"stop": ["a"] * 33}, "stop"),
    ({"stop_token_ids": [260]}, "stop_token_ids"),
    ({"stop_token_ids": "1"}, "stop_token_ids"),
    ({"stream": "yes"}, "stream"),
    ({"stream_options": {"usage": True}}, "stream_options.usage"),
    ({"suffix": "x"}, "suffix"),
    ({"logit_bias": {"5": 1}}, "logit_bias"),
    ({"response_format": {"type": "json_object"}}, "response_format"),
    ({"tpot_ms": 0}, "tpot_ms"),
    ({"deadline_s": -1}, "deadline_s"),
    ({"priority": 0.5}, "priority"),
    ({"temprature": 1}, "temprature"),
]


@pytest.mark.parametrize(("body", "param"), BAD_COMPLETIONS)
async def test_a_wrong_value_is_named(body: dict[str, Any], param: str) -> None:
    """400, and ``param`` says which value it is."""
    generator = Scripted()
    response = await talk_to(generator).complete(**{"prompt": "a", **body})
    assert response.status_code == 400
    error = error_of(response)
    assert error["type"] == "invalid_request_error"
    assert error["param"] == param
    assert param.rpartition(".")[2] in error["message"]
    assert not generator.asked


@pytest.mark.parametrize(
    ("body", "param"),
    [
        ({"messages": None}, "messages"),
        ({"messages": []}, "messages"),
        ({"messages": [{"role": "user"}]}, "messages[0].content"),
        ({"messages": [{"role": "robot", "content": "a"}]}, "messages[0].role"),
        ({"messages": [{"role": "user", "content": None}]}, "messages[0].content"),
        (
            {"messages": [{"role": "user", "content": [{"type": "image_url", "image_url": "x"}]}]},
            "messages[0].content[0].image_url",
        ),
        ({"top_logprobs": 2}, "top_logprobs"),
        ({"tools": [{"type": "function"}]}, "tools"),
        ({"chat_template": "{{ 1 }}"}, "chat_template"),
    ],
)
async def test_a_wrong_chat_is_named(body: dict[str, Any], param: str) -> None:
    """The place in the messages is named too."""
    response = await talk_to().chat("a", **body)
    assert (response.status_code, error_of(response)["param"]) == (400, param)


async def test_an_unknown_key_gets_the_nearest_known_one() -> None:
    """Misspelt settings are not silently dropped."""
    response = await talk_to().complete("a", temprature=1)
    assert "did you mean 'temperature'?" in error_of(response)["message"]


async def test_settings_that_ask_for_nothing_pass() -> None:
    """Clients send some fields always: ignored where they change no token."""
    nothing = {"suffix": None, "logit_bias": {}, "tools": [], "user": "me", "metadata": {"a": "b"}}
    formats = {"response_format": {"type": "text"}, "best_of": 1}
    assert (await talk_to().complete("a", **nothing, **formats)).status_code == 200


@pytest.mark.parametrize(
    "content",
    [b"", b"{", b"[]", b"null", b"3", b'"text"', b"\xff\xfe", b"[" * 100_000, b'{"a":' * 100_000,
     b'{"prompt": NaN}', b'{"prompt": "\\ud800"}', b'{"prompt": "a", "seed": 1e999}'],
)  # fmt: skip
@pytest.mark.parametrize(
    "path", ["/v1/completions", "/v1/chat/completions", "/tokenize", "/detokenize"]
)
async def test_what_is_not_a_json_object_is_refused(path: str, content: bytes) -> None:
    """Whatever the bytes are, the answer is a 400."""
    response = await talk_to().http.post(path, content=content)
    assert response.status_code == 400
    assert error_of(response)["code"] == "invalid_json"


async def test_a_long_value_is_not_sent_back_whole() -> None:
    """Messages stay short, whatever they quote."""
    response = await talk_to().complete("a", temperature="x" * 100_000)
    assert len(response.content) < 1000


async def test_paths_and_methods_that_do_not_exist() -> None:
    """404 and 405 are error objects too, and slashes do not redirect."""
    talk = talk_to()
    for path in ("/nothing", "/v1/completions/", "/static/../app.py", "/static/nothing.js"):
        response = await talk.get(path)
        assert (response.status_code, error_of(response)["code"]) == (404, "not_found")
    response = await talk.get("/v1/completions")
    assert (response.status_code, error_of(response)["code"]) == (405, "method_not_allowed")


async def test_an_unknown_model_is_a_404() -> None:
    """With the nearest known name."""
    response = await talk_to().complete("a", model="nul")
    assert (response.status_code, error_of(response)["code"]) == (404, "model_not_found")
    assert "did you mean 'null'?" in error_of(response)["message"]


async def test_a_prompt_that_does_not_fit_is_refused() -> None:
    """Prompt and completion together, in the words that clients look for."""
    response = await talk_to().complete("a" * 100, max_tokens=32_700)
    error = error_of(response)
    assert (response.status_code, error["code"]) == (400, "context_length_exceeded")
    assert "maximum context length is 32768 tokens" in error["message"]


FAULTS: list[tuple[Exception, int, str]] = [
    (Overloaded("full", retry_after_s=2.5), 429, "rate_limit_exceeded"),
    (Unavailable("no engine"), 503, "service_unavailable"),
    (RequestTooLong("long"), 400, "context_length_exceeded"),
    (ServeError("broken"), 500, "internal_error"),
    (Infeasible("no room"), 409, "infeasible"),
    (RuntimeError("secret"), 500, "internal_error"),
]


@pytest.mark.parametrize(("fault", "status", "code"), FAULTS)
@pytest.mark.parametrize("stream", [False, True])
async def test_errors_before_the_first_token_have_a_status(
    fault: Exception, status: int, code: str, stream: bool
) -> None:
    """Also for streams; a fault of ours tells the client nothing of its inside."""
    response = await talk_to(Scripted([fault])).complete("a", stream=stream)
    assert (response.status_code, error_of(response)["code"]) == (status, code)
    assert "secret" not in response.text
    if status == 429:
        assert response.headers["retry-after"] == "3"


@pytest.mark.parametrize(("fault", "status", "code"), FAULTS)
async def test_errors_after_the_first_token_end_the_stream(
    fault: Exception, status: int, code: str
) -> None:
    """The stream says what happened and ends properly; a whole answer has the status."""
    script = [TokenDelta((97,)), fault]
    events = events_of(await talk_to(Scripted(script)).complete("a", stream=True))
    assert events[0]["choices"][0]["text"] == "a"
    assert events[-1]["error"]["code"] == code
    assert (await talk_to(Scripted(script)).complete("a")).status_code == status


@pytest.mark.parametrize(
    ("script", "status"),
    [
        ([TokenDelta((97,), finish_reason="abort")], 503),
        ([TokenDelta((97,), finish_reason="error")], 500),
        ([TokenDelta((97,))], 500),
        ([], 500),
    ],
)
async def test_a_runtime_that_gives_up_is_an_error(script: list[TokenDelta], status: int) -> None:
    """An answer without a proper end is not passed off as one."""
    assert (await talk_to(Scripted(script)).complete("a")).status_code == status


@pytest.mark.parametrize("stream", [False, True])
async def test_a_deadline_ends_the_request(stream: bool) -> None:
    """504, and the runtime works on it no more."""
    generator = Scripted(settings=NullSettings(first_token_s=60))
    response = await talk_to(generator).complete("a", deadline_s=0.02, stream=stream)
    assert (response.status_code, error_of(response)["code"]) == (504, "deadline_exceeded")
    assert generator.running == 0


async def test_the_server_bounds_what_a_request_may_ask() -> None:
    """A request may shorten the server's limit, not lengthen it."""
    generator = Scripted()
    await talk_to(generator, request_timeout_s=5).complete("a", deadline_s=1000)
    assert generator.asked[0].deadline_s == 5


async def test_a_body_that_is_too_large_is_refused() -> None:
    """By what it declares, and by what arrives where it declares nothing."""
    talk = talk_to(max_body_bytes=1000)
    assert (await talk.complete("a" * 500)).status_code == 200
    large = await talk.complete("a" * 1000)
    assert (large.status_code, error_of(large)["code"]) == (413, "request_too_large")

    async def endless() -> AsyncIterator[bytes]:
        while True:
            yield b" " * 100

    streamed = await talk.http.post("/v1/completions", content=endless())
    assert streamed.status_code == 413


async def test_a_body_that_does_not_arrive_is_given_up() -> None:
    """408 for a client that sends half a body and waits."""

    async def stalled() -> AsyncIterator[bytes]:
        yield b'{"prompt"'
        await asyncio.sleep(60)

    response = await talk_to(body_timeout_s=0.02).http.post("/v1/completions", content=stalled())
    assert (response.status_code, error_of(response)["code"]) == (408, "request_timeout")


async def test_more_requests_than_places_are_refused() -> None:
    """429 with Retry-After at once, and the place is free again afterwards."""
    generator = Scripted(settings=NullSettings(first_token_s=0.05))
    talk = talk_to(generator, max_concurrent_requests=2)
    answers = await asyncio.gather(*(talk.complete("a") for _ in range(5)))
    assert sorted(answer.status_code for answer in answers) == [200, 200, 429, 429, 429]
    refused = next(answer for answer in answers if answer.status_code == 429)
    assert refused.headers["retry-after"] == "1"
    assert (await talk.complete("a")).status_code == 200


async def test_each_key_has_its_own_rate() -> None:
    """One key at its limit does not slow the other."""
    talk = talk_to(api_keys=("one", "two"), requests_per_minute=2)

    async def status(key: str) -> int:
        headers = {"authorization": f"Bearer {key}"}
        body = {"prompt": "a", "max_tokens": 1}
        return (await talk.post("/v1/completions", body, headers=headers)).status_code

    assert [await status("one") for _ in range(3)] == [200, 200, 429]
    assert await status("two") == 200


def test_a_bucket_fills_at_its_rate() -> None:
    """30 a minute: 30 at once, then one every two seconds, and the refusal says when."""
    limits = Limits(GatewaySettings(requests_per_minute=30))
    for _ in range(30):
        limits.spend("key", 100.0)
    with pytest.raises(ApiError, match="30 requests a minute") as caught:
        limits.spend("key", 101.0)
    assert caught.value.headers == {"retry-after": "1"}
    limits.spend("key", 102.0)
    with pytest.raises(ApiError):
        limits.spend("key", 102.0)
    for _ in range(30):
        limits.spend("key", 1e6)
    with pytest.raises(ApiError):
        limits.spend("key", 1e6)


KEYED = ["/v1/models", "/events", "/admin/engines", "/nothing"]
OPEN = ["/", "/health", "/ping", "/ready", "/version", "/metrics", "/static/page.js"]


@pytest.mark.parametrize("path", KEYED)
@pytest.mark.parametrize(
    "header", [None, "", "Bearer", "Bearer ", "Bearer wrong", "Basic right", "right", "Bearer é"]
)
async def test_without_its_key_a_path_is_closed(path: str, header: str | None) -> None:
    """Whatever is sent instead of the key."""
    headers = {} if header is None else {"authorization": header.encode("latin-1")}
    response = await talk_to(api_keys=("right",)).get(path, headers=headers)
    assert (response.status_code, error_of(response)["code"]) == (401, "invalid_api_key")
    assert response.headers["www-authenticate"] == "Bearer"


async def test_what_probes_and_browsers_need_is_open() -> None:
    """Health, metrics and the page's own files need no key; the page asks for it."""
    talk = talk_to(api_keys=("right",))
    assert [(await talk.get(path)).status_code for path in OPEN] == [200] * len(OPEN)


async def test_the_admin_key_guards_the_pool() -> None:
    """Where there is one, the API key does not open the pool."""
    talk = talk_to(api_keys=("user",), admin_keys=("admin",))

    async def status(path: str, key: str) -> int:
        return (await talk.get(path, headers={"authorization": f"Bearer {key}"})).status_code

    assert await status("/admin/engines", "user") == 401
    assert await status("/admin/engines", "admin") == 200
    assert await status("/v1/models", "user") == 200
    assert await status("/v1/models", "admin") == 401


async def test_the_request_id_comes_back() -> None:
    """On errors too; one that could not stand in a header is replaced."""
    talk = talk_to()
    for path in ("/v1/models", "/nothing"):
        response = await talk.get(path, headers={"x-request-id": "abc-1"})
        assert response.headers["x-request-id"] == "abc-1"
    response = await talk.get("/v1/models", headers={"x-request-id": "a b" * 100})
    assert response.headers["x-request-id"] not in ("", "a b" * 100)


async def test_a_model_without_a_template_has_no_chat(tmp_path: Path) -> None:
    """The error says what to use instead."""
    byte_tokenizer().save(str(tmp_path / "tokenizer.json"))
    card = ModelCard("base", 100, 260, str(tmp_path))
    talk = talk_to(NullGenerator((card,)))
    assert "use /v1/completions" in error_of(await talk.chat("a"))["message"]
    assert (await talk.complete("a", model="base")).status_code == 200


def test_a_model_whose_tokenizer_is_missing_is_refused_at_the_start(tmp_path: Path) -> None:
    """Not at its first request."""
    card = ModelCard("base", 100, 260, str(tmp_path))
    with pytest.raises(SpecError, match=r"tokenizer\.json"):
        make_app(NullGenerator((card,)))


async def test_a_broken_tokenizer_of_a_later_model_is_the_operators_business(
    tmp_path: Path,
) -> None:
    """503 without the paths of the machine; other models are served."""
    generator = NullGenerator()
    talk = talk_to(generator)
    generator._cards += (ModelCard("later", 100, 260, str(tmp_path)),)
    response = await talk.complete("a", model="later")
    assert response.status_code == 503
    assert str(tmp_path) not in error_of(response)["message"]
    assert (await talk.complete("a")).status_code == 200


@pytest.mark.parametrize(
    "wrong", [{"max_body_bytes": 0}, {"requests_per_minute": -1}, {"api_keys": ("",)}]
)
def test_settings_that_make_no_sense_are_refused(wrong: dict[str, Any]) -> None:
    """An empty key would open the server to everyone."""
    with pytest.raises(SpecError, match=next(iter(wrong))):
        GatewaySettings(**wrong)


def test_bodies_are_json_whatever_the_message() -> None:
    """Any text may stand in an error."""
    body = ApiError(400, 'quo"te \n \x00 é', code="c").body()
    assert json.loads(body)["error"]["message"] == 'quo"te \n \x00 é'
