"""Workers are killed while they serve: python benchmarks/serve_kills.py --kills 200.

A server with real worker processes answers a steady load over HTTP while one worker at a time is
killed (SIGKILL) at a random moment. Every request must complete with exactly the tokens of an
undisturbed greedy run. Prints the figures, then one JSON line; exits 1 where a request differs.
"""

from __future__ import annotations

import argparse
import asyncio
import json
import os
import random
import signal
import socket
import statistics
import subprocess
import sys
import time
from collections import Counter
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from pathlib import Path

import httpx

ROOT = Path(__file__).parents[1]
PLAN = ROOT / "examples" / "tiny-mixed" / "plan.yaml"
MODEL = ROOT / "models" / "tiny"
WORDS = (
    "def",
    "class",
    "return",
    "self",
    "import",
    "value",
    "for",
    "in",
    "open",
    "read",
    "close",
    "path",
)
LONG_S = 300.0
NOTICED_S = 5.0


@dataclass(frozen=True, slots=True)
class Ask:
    """A request: its prompt and the length of its answer."""

    prompt: str
    max_tokens: int


@dataclass(slots=True)
class Tally:
    """What the disturbed run brought. ``recoveries_s``: from a kill until all engines stand."""

    requests: int = 0
    tokens: int = 0
    wrong: list[int] = field(default_factory=list)
    failed: list[str] = field(default_factory=list)
    killed: Counter[str] = field(default_factory=Counter)
    recoveries_s: list[float] = field(default_factory=list)


def asks(count: int, seed: int) -> list[Ask]:
    """Requests of 3 to 60 words with answers of 8 to 96 tokens."""
    rng = random.Random(f"{seed}/asks")
    return [
        Ask(" ".join(rng.choices(WORDS, k=rng.randrange(3, 60))), rng.randrange(8, 96))
        for _ in range(count)
    ]


@contextmanager
def server(arguments: list[str]) -> Iterator[tuple[str, int]]:
    """A server in a process of its own: its address and process number."""
    with socket.create_server(("127.0.0.1", 0)) as probe:
        port = probe.getsockname()[1]
    command = [sys.executable, "-m", "penstock", "serve", *arguments, "--port", str(port)]
    child = subprocess.Popen([*command, "--workers", "processes", "--dtype", "float32"])
    url = f"http://127.0.0.1:{port}"
    try:
        _wait_until_ready(url, child)
        yield url, child.pid
    finally:
        child.send_signal(signal.SIGINT)
        child.wait(60)


def _wait_until_ready(url: str, child: subprocess.Popen[bytes]) -> None:
    end_s = time.monotonic() + LONG_S
    while time.monotonic() < end_s and child.poll() is None:
        try:
            if httpx.get(f"{url}/ready", timeout=5).status_code == 200:
                return
        except httpx.HTTPError:
            pass
        time.sleep(0.1)
    raise SystemExit("the server did not come up")


def workers_of(server_pid: int) -> list[int]:
    """Process numbers of the workers of a server."""
    found = []
    for entry in Path("/proc").glob("[0-9]*"):
        try:
            status = (entry / "stat").read_text().rsplit(")", 1)[1].split()
            command = (entry / "cmdline").read_bytes()
        except OSError:
            continue
        if (
            int(status[1]) == server_pid
            and status[0] != "Z"
            and b"penstock.serve.worker" in command
        ):
            found.append(int(entry.name))
    return found


async def answer(client: httpx.AsyncClient, ask: Ask) -> tuple[str, ...]:
    """The tokens of a streamed answer, as text. Raises ``RuntimeError`` where it does not end."""
    body = {
        "model": "tiny",
        "prompt": ask.prompt,
        "max_tokens": ask.max_tokens,
        "temperature": 0,
        "ignore_eos": True,
        "logprobs": 0,
        "stream": True,
    }
    tokens: list[str] = []
    reason = None
    async with client.stream("POST", "/v1/completions", json=body) as response:
        if response.status_code != 200:
            raise RuntimeError(f"HTTP {response.status_code}: {await response.aread()!r}")
        async for line in response.aiter_lines():
            if not line.startswith("data: {"):
                continue
            event = json.loads(line.removeprefix("data: "))
            if "error" in event:
                raise RuntimeError(event["error"]["message"])
            for choice in event["choices"]:
                tokens += (choice.get("logprobs") or {}).get("tokens", ())
                reason = choice["finish_reason"] or reason
    if reason != "length" or len(tokens) != ask.max_tokens:
        raise RuntimeError(f"{len(tokens)} of {ask.max_tokens} tokens, finish reason {reason}")
    return tuple(tokens)


async def undisturbed(url: str, questions: list[Ask], width: int) -> list[tuple[str, ...]]:
    """The answers to compare with."""
    gate = asyncio.Semaphore(width)

    async def one(ask: Ask) -> tuple[str, ...]:
        async with gate:
            return await answer(client, ask)

    async with httpx.AsyncClient(base_url=url, timeout=LONG_S) as client:
        return await asyncio.gather(*map(one, questions))


async def disturbed(
    url: str,
    server_pid: int,
    questions: list[Ask],
    wanted: list[tuple[str, ...]],
    options: argparse.Namespace,
) -> Tally:
    """Load without pause from ``width`` clients until all kills are done, then to the end."""
    tally, over = Tally(), asyncio.Event()
    rng = random.Random(f"{options.seed}/load")

    async def client_loop(client: httpx.AsyncClient) -> None:
        while not over.is_set():
            number = rng.randrange(len(questions))
            try:
                tokens = await answer(client, questions[number])
            except (RuntimeError, httpx.HTTPError) as error:
                tally.failed.append(f"{type(error).__name__}: {error}")
                continue
            tally.requests += 1
            tally.tokens += len(tokens)
            if tokens != wanted[number]:
                tally.wrong.append(number)

    async with httpx.AsyncClient(base_url=url, timeout=LONG_S) as client:
        loops = [asyncio.create_task(client_loop(client)) for _ in range(options.width)]
        await kill(client, server_pid, tally, options)
        over.set()
        await asyncio.gather(*loops)
    return tally


async def kill(
    client: httpx.AsyncClient, server_pid: int, tally: Tally, options: argparse.Namespace
) -> None:
    """Kill random workers, each at a random moment after all stood again."""
    rng = random.Random(f"{options.seed}/kills")
    end_s = time.monotonic() + options.seconds
    for _ in range(options.kills):
        if time.monotonic() > end_s:
            return
        await asyncio.sleep(rng.random() * options.pause)
        victim = rng.choice(sorted(workers_of(server_pid)))
        started_s = time.monotonic()
        os.kill(victim, signal.SIGKILL)
        names = await recovered(client)
        if names:
            tally.killed.update(names)
            tally.recoveries_s.append(time.monotonic() - started_s)


async def recovered(client: httpx.AsyncClient) -> list[str]:
    """Wait until the loss was noticed and all engines stand; the names that were down.

    None where the victim was the process that waits to replace a lost worker.
    """
    down: set[str] = set()
    start_s = time.monotonic()
    end_s = start_s + LONG_S
    while time.monotonic() < end_s:
        engines = (await client.get("/admin/engines")).json()["engines"]
        now = {engine["name"] for engine in engines if not engine["alive"]}
        if down and not now:
            return sorted(down)
        down |= now
        if not down and time.monotonic() > start_s + NOTICED_S:
            return []
        await asyncio.sleep(0.01)
    raise SystemExit("an engine did not come back")


def main() -> None:
    """Run the benchmark that the command line asks for."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--kills", type=int, default=200)
    parser.add_argument("--seconds", type=float, default=3600.0, help="stop killing after this")
    parser.add_argument("--width", type=int, default=12, help="clients")
    parser.add_argument("--questions", type=int, default=40)
    parser.add_argument("--pause", type=float, default=1.0, help="most seconds between kills")
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("serve", nargs="*", default=[str(PLAN), "--model", str(MODEL)])
    options = parser.parse_args()
    questions = asks(options.questions, options.seed)
    with server(options.serve) as (url, pid):
        wanted = asyncio.run(undisturbed(url, questions, options.width))
        tally = asyncio.run(disturbed(url, pid, questions, wanted, options))
    report(tally)


def report(tally: Tally) -> None:
    """Print the figures; exit 1 where a request was lost or came out different."""
    back = sorted(tally.recoveries_s)
    figures = {
        "kills": len(back),
        "killed": dict(sorted(tally.killed.items())),
        "requests_completed": tally.requests,
        "requests_failed": len(tally.failed),
        "requests_with_other_tokens": len(tally.wrong),
        "tokens": tally.tokens,
        "recovery_median_s": round(statistics.median(back), 3) if back else None,
        "recovery_max_s": round(back[-1], 3) if back else None,
    }
    for key, value in figures.items():
        print(f"{key:28} {value}")
    for problem in sorted(set(tally.failed)):
        print(f"failed: {problem}", file=sys.stderr)
    print(json.dumps(figures))
    if tally.failed or tally.wrong:
        sys.exit(1)


if __name__ == "__main__":
    main()
