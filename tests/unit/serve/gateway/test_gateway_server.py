"""The gateway under uvicorn: real sockets, the official client, and people who mean no good."""

from __future__ import annotations

import json
import random
import socket
import threading
from collections.abc import Iterator
from typing import Any
from urllib.parse import urlsplit

import httpx
import pytest
from tests.unit.serve.gateway.talking import Scripted, run_server, until

from penstock.serve.gateway import GatewaySettings, answer, make_app
from penstock.serve.null import NullSettings

KEY = "sk-test"


def settings(**more: Any) -> GatewaySettings:
    return GatewaySettings(log_requests=False, events_interval_s=0.05, **more)


@pytest.fixture(scope="module")
def generator() -> Scripted:
    return Scripted()


@pytest.fixture(scope="module")
def address(generator: Scripted) -> Iterator[str]:
    """An open server that bounds bodies and waits little."""
    limits = settings(max_body_bytes=200_000, body_timeout_s=0.5)
    with run_server(make_app(generator, limits)) as found:
        yield found


def test_the_official_client_works_unchanged() -> None:
    """Completions, chats, streams, log probabilities, models and errors, with a key."""
    openai = pytest.importorskip("openai")
    generator = Scripted()
    with run_server(make_app(generator, settings(api_keys=(KEY,)))) as address:
        client = openai.OpenAI(base_url=f"{address}/v1", api_key=KEY, max_retries=0)
        with client:
            assert [model.id for model in client.models.list()] == ["null"]
            assert client.models.retrieve("null").owned_by == "penstock"
            whole = client.completions.create(model="null", prompt="abc", max_tokens=4, logprobs=1)
            assert whole.choices[0].text == "abca"
            assert whole.choices[0].logprobs.tokens == ["a", "b", "c", "a"]
            assert whole.usage.total_tokens == 7
            _check_chat(client)
            _check_errors(openai, client)
        wrong = openai.OpenAI(base_url=f"{address}/v1", api_key="other", max_retries=0)
        with wrong, pytest.raises(openai.AuthenticationError):
            wrong.models.list()
    assert generator.running == 0


def _check_chat(client: Any) -> None:
    messages = [{"role": "user", "content": "né!"}]
    chat = client.chat.completions.create(
        model="null", messages=messages, max_completion_tokens=5, logprobs=True, top_logprobs=2
    )
    assert chat.choices[0].message.content == "né!"
    assert chat.choices[0].finish_reason == "length"
    assert len(chat.choices[0].logprobs.content[0].top_logprobs) == 2
    stream = client.chat.completions.create(
        model="null",
        messages=messages,
        max_completion_tokens=6,
        stream=True,
        stream_options={"include_usage": True},
        extra_body={"top_k": 5, "slo_class": "chat"},
    )
    chunks = list(stream)
    assert "".join(c.choices[0].delta.content or "" for c in chunks if c.choices) == "né!"
    assert chunks[-1].usage.completion_tokens == 6


def _check_errors(openai: Any, client: Any) -> None:
    with pytest.raises(openai.NotFoundError) as missing:
        client.completions.create(model="other", prompt="a")
    assert missing.value.code == "model_not_found"
    with pytest.raises(openai.BadRequestError) as invalid:
        client.completions.create(model="null", prompt="a", temperature=9)
    assert invalid.value.param == "temperature"


def test_tokens_arrive_as_they_come() -> None:
    """The first token of a stream is read long before its last could be there."""
    generator = Scripted(settings=NullSettings(token_s=60))
    with (
        run_server(make_app(generator, settings())) as address,
        httpx.stream("POST", f"{address}/v1/completions", json=_stream(), timeout=10) as response,
    ):
        line = next(response.iter_lines())
        assert json.loads(line.removeprefix("data: "))["choices"][0]["text"] == "a"
        response.close()
        until(lambda: generator.running == 0)


@pytest.mark.parametrize("stream", [False, True])
def test_a_client_that_leaves_frees_the_runtime(stream: bool) -> None:
    """While it still waits for the first token, too."""
    generator = Scripted(settings=NullSettings(first_token_s=60))
    with run_server(make_app(generator, settings())) as address:
        connection = _connect(address)
        connection.sendall(_request("/v1/completions", {"prompt": "abc", "stream": stream}))
        until(lambda: generator.running == 1)
        connection.close()
        until(lambda: generator.running == 0)
        page = httpx.get(f"{address}/metrics").text
        assert 'vllm:request_success_total{finished_reason="abort",model_name="null"} 1.0' in page


def test_a_slow_reader_does_not_hold_the_runtime_up() -> None:
    """A client that reads nothing: generation ends all the same, and others are served."""
    generator = Scripted(settings=NullSettings(tokens_per_step=10))
    with run_server(make_app(generator, settings())) as address:
        connection = _connect(address)
        body = {"prompt": "abc" * 1000, "max_tokens": 25_000, "stream": True}
        connection.sendall(_request("/v1/completions", body))
        until(lambda: len(generator.asked) == 1)
        until(lambda: generator.running == 0)
        answer = httpx.post(f"{address}/v1/completions", json={"prompt": "a"})
        assert answer.status_code == 200
        connection.close()


@pytest.mark.parametrize("stream", [False, True])
def test_a_client_that_never_reads_loses_its_place(
    stream: bool, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Its connection stays open, its place among the requests in flight does not."""
    monkeypatch.setattr(answer, "LAST_SEND_S", 0.05)
    generator = Scripted(settings=NullSettings(tokens_per_step=1000))
    app = make_app(generator, settings(max_concurrent_requests=1))
    with run_server(app) as address, socket.socket() as connection:
        connection.setsockopt(socket.SOL_SOCKET, socket.SO_RCVBUF, 4096)
        connection.connect((urlsplit(address).hostname, urlsplit(address).port))
        body = {"prompt": "abc", "max_tokens": 30_000, "logprobs": 20, "deadline_s": 3}
        connection.sendall(_request("/v1/completions", {**body, "stream": stream}))
        until(lambda: len(generator.asked) == 1)
        short = {"prompt": "a"}
        until(lambda: httpx.post(f"{address}/v1/completions", json=short).status_code == 200)


def test_an_open_page_does_not_hold_the_server_up() -> None:
    """Leaving ``run_server`` stops the server while somebody watches."""
    with run_server(make_app(Scripted(), settings())) as address:
        connection = _connect(address)
        connection.sendall(b"GET /events HTTP/1.1\r\nhost: a\r\n\r\n")
        assert b"text/event-stream" in connection.recv(4096)
    connection.close()


def test_hostile_requests_leave_it_serving(address: str, generator: Scripted) -> None:
    """A thousand malformed, huge, slow and broken-off requests: no 5xx, nothing left running."""
    chance = random.Random(7)
    statuses: dict[int, int] = {}
    lock = threading.Lock()

    def attack(requests: list[bytes], slow: bool) -> None:
        for raw in requests:
            status = _send(address, raw, leave=chance.random() < 0.3, slow=slow)
            with lock:
                statuses[status] = statuses.get(status, 0) + 1

    groups = [[_hostile(chance) for _ in range(250)] for _ in range(4)]
    threads = [threading.Thread(target=attack, args=(group, False)) for group in groups]
    threads += [threading.Thread(target=attack, args=([_half(chance)], True)) for _ in range(8)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join(120)
        assert not thread.is_alive()
    assert sum(statuses.values()) == 1008
    assert not [status for status in statuses if status >= 500], statuses
    assert statuses.get(400, 0) > 100, statuses
    until(lambda: generator.running == 0)
    answer = httpx.post(f"{address}/v1/completions", json={"prompt": "ab", "max_tokens": 3})
    assert answer.json()["choices"][0]["text"] == "aba"


PATHS = [
    "/v1/completions", "/v1/chat/completions", "/tokenize", "/detokenize", "/admin/engines",
    "/admin/engines/x/role", "/update_resources", "/admin/models", "/v1/models/x", "/nothing",
    "/static/..%2f..%2fapp.py", "/static/%00", "/v1/models/%ff%fe", "/?" + "a" * 3000,
]  # fmt: skip
WORDS = [
    "prompt", "messages", "max_tokens", "stream", "stop", "logprobs", "n", "tokens", "role",
    "content", "stream_options", "seed", "top_k", "model", "echo", "temperature",
]  # fmt: skip
VALUES: list[Any] = [
    None, True, -1, 0, 1, 2**70, 1e300, "", "a", "x" * 3000, "\x00", "é🦫", [], [[]], [1, 2], ["a"],
    {}, {"a": {}}, [[1], [2]], [{"role": "user", "content": "a"}], "null", [None], {"type": "text"},
]  # fmt: skip


def _hostile(chance: random.Random) -> bytes:
    kind = chance.randrange(6)
    path = chance.choice(PATHS[:9])
    if kind == 0:
        return chance.randbytes(chance.randrange(1, 400))
    if kind == 1:
        method = chance.choice(["GET", "PUT", "DELETE", "PATCH", "HEAD", "OPTIONS", "BREW", ""])
        return f"{method} {chance.choice(PATHS)} HTTP/1.1\r\nhost: a\r\n\r\n".encode()
    if kind == 2:
        return _request(path, raw=chance.randbytes(chance.randrange(1, 2000)))
    if kind == 3:
        return _request(path, raw=b'{"prompt": "' + b"a" * 300_000 + b'"}')
    body = {chance.choice(WORDS): chance.choice(VALUES) for _ in range(chance.randrange(1, 5))}
    if kind == 4:
        body["prompt"] = chance.choice(VALUES)
    whole = _request(path, body)
    return whole if chance.random() < 0.8 else whole[: chance.randrange(1, len(whole))]


def _half(chance: random.Random) -> bytes:
    whole = _request("/v1/completions", {"prompt": "a" * 100})
    return whole[: len(whole) - chance.randrange(1, 90)]


def _request(path: str, body: Any = None, *, raw: bytes | None = None) -> bytes:
    content = json.dumps(body).encode() if raw is None else raw
    head = f"POST {path} HTTP/1.1\r\nhost: a\r\ncontent-length: {len(content)}\r\n"
    return f"{head}content-type: application/json\r\nconnection: close\r\n\r\n".encode() + content


def _connect(address: str) -> socket.socket:
    parts = urlsplit(address)
    return socket.create_connection((str(parts.hostname), int(parts.port or 0)), timeout=30)


def _send(address: str, raw: bytes, *, leave: bool, slow: bool) -> int:
    """Status of the answer; 0 where the connection ended without one."""
    with _connect(address) as connection:
        try:
            connection.sendall(raw)
            if leave:
                return 0
            if not slow:
                connection.shutdown(socket.SHUT_WR)
            answer = connection.recv(65_536)
        except OSError:
            return 0
    return int(answer.split()[1]) if answer.startswith(b"HTTP/1.1 ") else 0


def _stream() -> dict[str, Any]:
    return {"prompt": "abc", "max_tokens": 3, "stream": True}
