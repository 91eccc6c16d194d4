"""What the gateway costs: python benchmarks/gateway_speed.py.

Against a runtime without a model that answers at once: milliseconds that a request spends in the
gateway (time of the app less time of the bare runtime), and streamed tokens per CPU second, first
as an ASGI app in this process, then through uvicorn and a socket, where the server's own CPU
time counts. Prints a table, then one JSON line.
"""

from __future__ import annotations

import asyncio
import json
import multiprocessing
import resource
import socket
import statistics
import time
from collections.abc import Awaitable, Callable
from multiprocessing.connection import Connection
from typing import Any

import uvloop
from fastapi import FastAPI

from penstock.serve.gateway import GatewayServer, GatewaySettings, make_app
from penstock.serve.null import NullGenerator
from penstock.serve.protocol import GenerationRequest, SamplingParams

REQUESTS = 1000
TOKENS = 32
STREAMS = 64
STREAM_TOKENS = 400
PROMPT = "Water runs downhill through the penstock. "

GOAL_OVERHEAD_MS = 2.0
GOAL_TOKENS_PER_S = 5000.0


def body(tokens: int, *, stream: bool) -> bytes:
    message = {"role": "user", "content": PROMPT * 4}
    document = {"model": "null", "messages": [message], "max_tokens": tokens, "stream": stream}
    return json.dumps(document).encode()


async def call(app: FastAPI, content: bytes) -> int:
    """One request through the ASGI app; bytes of the answer."""
    received = 0
    sent = False
    done = asyncio.Event()

    async def receive() -> dict[str, Any]:
        nonlocal sent
        if sent:
            await done.wait()
            return {"type": "http.disconnect"}
        sent = True
        return {"type": "http.request", "body": content, "more_body": False}

    async def send(message: Any) -> None:
        nonlocal received
        received += len(message.get("body", b""))

    scope = {
        "type": "http",
        "asgi": {"version": "3.0"},
        "http_version": "1.1",
        "method": "POST",
        "path": "/v1/chat/completions",
        "raw_path": b"/v1/chat/completions",
        "root_path": "",
        "scheme": "http",
        "query_string": b"",
        "headers": [(b"content-type", b"application/json"), (b"host", b"localhost")],
        "client": ("127.0.0.1", 1),
        "server": ("127.0.0.1", 80),
    }
    await app(scope, receive, send)
    done.set()
    return received


async def bare(generator: NullGenerator) -> None:
    request = GenerationRequest(
        "bare", tuple(range(97, 123)), SamplingParams(max_tokens=TOKENS), model="null"
    )
    async for _ in generator.generate(request):
        pass


async def median_ms(work: Callable[[], Awaitable[object]]) -> float:
    times = []
    for _ in range(REQUESTS):
        start = time.perf_counter()
        await work()
        times.append(1e3 * (time.perf_counter() - start))
    return statistics.median(times[REQUESTS // 10 :])


async def in_process() -> dict[str, float]:
    generator = NullGenerator()
    app = make_app(generator, GatewaySettings(log_requests=False))
    base_ms = await median_ms(lambda: bare(generator))
    whole_ms = await median_ms(lambda: call(app, body(TOKENS, stream=False)))
    stream_ms = await median_ms(lambda: call(app, body(TOKENS, stream=True)))
    content = body(STREAM_TOKENS, stream=True)
    start = time.process_time()
    await asyncio.gather(*(call(app, content) for _ in range(STREAMS)))
    cpu_s = time.process_time() - start
    return {
        "overhead_p50_ms": whole_ms - base_ms,
        "stream_overhead_p50_ms": stream_ms - base_ms,
        "asgi_tokens_per_cpu_s": STREAMS * STREAM_TOKENS / cpu_s,
    }


def serve(port: int, pipe: Connection) -> None:
    """A server in its own process; answers each message with its CPU seconds so far."""
    app = make_app(NullGenerator(), GatewaySettings(log_requests=False))
    server = GatewayServer(app, port=port)

    async def main() -> None:
        running = asyncio.create_task(server.serve())
        while not server.started:
            await asyncio.sleep(0.01)
        loop = asyncio.get_running_loop()
        pipe.send(_cpu_s())
        while await loop.run_in_executor(None, pipe.recv):
            pipe.send(_cpu_s())
        server.should_exit = True
        await running

    uvloop.run(main())


def _cpu_s() -> float:
    used = resource.getrusage(resource.RUSAGE_SELF)
    return used.ru_utime + used.ru_stime


async def read_stream(port: int) -> None:
    reader, writer = await asyncio.open_connection("127.0.0.1", port)
    content = body(STREAM_TOKENS, stream=True)
    writer.write(
        b"POST /v1/chat/completions HTTP/1.1\r\nhost: localhost\r\nconnection: close\r\n"
        b"content-type: application/json\r\ncontent-length: %d\r\n\r\n" % len(content) + content
    )
    answer = await reader.read(-1)
    writer.close()
    if b"[DONE]" not in answer:
        raise RuntimeError(f"no stream: {answer[:500]!r}")


def through_a_socket() -> dict[str, float]:
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        port = free.getsockname()[1]
    ours, theirs = multiprocessing.Pipe()
    process = multiprocessing.get_context("spawn").Process(target=serve, args=(port, theirs))
    process.start()
    before_s = ours.recv()

    async def load() -> None:
        await asyncio.gather(*(read_stream(port) for _ in range(STREAMS)))

    start = time.perf_counter()
    uvloop.run(load())
    wall_s = time.perf_counter() - start
    ours.send(True)
    cpu_s = ours.recv() - before_s
    ours.send(False)
    process.join()
    tokens = STREAMS * STREAM_TOKENS
    return {"socket_tokens_per_cpu_s": tokens / cpu_s, "socket_tokens_per_s": tokens / wall_s}


def main() -> None:
    figures = {**uvloop.run(in_process()), **through_a_socket()}
    for name, value in figures.items():
        print(f"{name:28} {value:12.3f}   {_goal(name)}")
    print(json.dumps({name: round(value, 3) for name, value in figures.items()}))


def _goal(name: str) -> str:
    if name.endswith("_ms"):
        return f"goal < {GOAL_OVERHEAD_MS:g}"
    return (
        f"goal >= {GOAL_TOKENS_PER_S:.0f}" if name.endswith("_cpu_s") else "client on this machine"
    )


if __name__ == "__main__":
    main()
