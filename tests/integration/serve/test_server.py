"""``penstock serve`` as a user meets it: worker processes, HTTP, signals, one line per mistake."""

from __future__ import annotations

import importlib.util
import json
import os
import re
import shutil
import signal
import socket
import subprocess
import sys
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import replace
from pathlib import Path

import httpx
import pytest
from tiny_runtime import PLAN, ROOT, TINY, engines

from penstock.plan.document import write_plan
from penstock.plan.plan import Routing
from penstock.serve.local import LocalShape

PROCESSES = ("--workers", "processes", "--port", "0")


def command(*arguments: object) -> list[str]:
    return [sys.executable, "-m", "penstock", *map(str, arguments)]


def processes_below(pid: int) -> list[int]:
    """All descendants of a process that are not zombies."""
    parents: dict[int, int] = {}
    for entry in Path("/proc").glob("[0-9]*"):
        try:
            fields = (entry / "stat").read_text().rsplit(")", 1)[1].split()
        except OSError:
            continue
        if fields[0] != "Z":
            parents[int(entry.name)] = int(fields[1])
    found, front = [], {pid}
    while front:
        front = {child for child, parent in parents.items() if parent in front}
        found += front
    return found


def alive(pids: list[int]) -> list[int]:
    """Those of ``pids`` that still run a worker."""
    left = []
    for pid in pids:
        try:
            text = Path(f"/proc/{pid}/cmdline").read_bytes()
        except OSError:
            continue
        if b"penstock" in text:
            left.append(pid)
    return left


@contextmanager
def serving(
    *arguments: object, workers: str = "processes"
) -> Iterator[tuple[str, subprocess.Popen[str]]]:
    """A server that is up: its URL and its process; ended at the end."""
    child = subprocess.Popen(
        command("serve", *arguments, "--workers", workers, "--port", "0"),
        stderr=subprocess.PIPE,
        text=True,
    )
    try:
        assert child.stderr is not None
        line = child.stderr.readline()
        found = re.search(r"ready at (\S+)", line)
        assert found, line + child.stderr.read()
        yield found[1], child
    finally:
        if child.poll() is None:
            child.send_signal(signal.SIGINT)
            child.wait(60)
        if child.stderr is not None:
            child.stderr.close()


@pytest.fixture(scope="module")
def apart(tmp_path_factory: pytest.TempPathFactory) -> Iterator[str]:
    """A server with a prefill and two decode engines."""
    plan = engines(LocalShape(engines=3), ("prefill", "decode", "decode"))
    path = tmp_path_factory.mktemp("plan") / "apart.yaml"
    write_plan(plan, path)
    with serving(path, "--model", TINY) as (url, _):
        yield url


def complete(url: str, prompt: str = "def open(path):", tokens: int = 12) -> str:
    body = {"model": "tiny", "prompt": prompt, "max_tokens": tokens, "temperature": 0}
    response = httpx.post(f"{url}/v1/completions", json={**body, "ignore_eos": True}, timeout=60)
    assert response.status_code == 200, response.text
    answer = response.json()
    assert answer["usage"]["completion_tokens"] == tokens
    return answer["choices"][0]["text"]


def roles(url: str) -> list[tuple[str, str]]:
    answer = httpx.get(f"{url}/admin/engines", timeout=60).json()
    return [(engine["name"], engine["role"]) for engine in answer["engines"]]


def test_the_pool_changes_over_http(apart: str) -> None:
    """Engines are added, change roles and go, while answers stay the same."""
    text = complete(apart)
    post = httpx.post(
        f"{apart}/admin/engines", json={"like": "engine-1", "name": "more"}, timeout=120
    )
    assert post.json() == {"name": "more", "role": "decode"}
    url = f"{apart}/admin/engines/engine-1/role"
    assert httpx.post(url, json={"role": "prefill"}, timeout=60).status_code == 200
    assert dict(roles(apart))["engine-1"] == "prefill"
    assert complete(apart) == text
    assert httpx.post(url, json={"role": "decode"}, timeout=60).status_code == 200
    assert httpx.delete(f"{apart}/admin/engines/more", timeout=60).status_code == 200
    refused = httpx.delete(f"{apart}/admin/engines/engine-0", timeout=60)
    assert refused.status_code == 400
    assert "no engine of the role prefill" in refused.json()["error"]["message"]
    assert roles(apart) == [
        ("engine-0", "prefill"),
        ("engine-1", "decode"),
        ("engine-2", "decode"),
    ]
    assert complete(apart) == text


def test_operations_of_a_file_are_replayed(apart: str, tmp_path: Path) -> None:
    """Removed, added back in another role and changed again, at the times of the file."""
    steps = [
        {"timestamp": 0, "operation": "remove", "params": [2]},
        {"timestamp": 4, "operation": "add", "params": ["context", 2]},
        {"timestamp": 8, "operation": "change", "params": ["context", 2, "decoding", 2]},
    ]
    path = tmp_path / "ops.json"
    path.write_text(json.dumps(steps))
    replay = command("replay-ops", path, "--url", apart, "--speed", 10)
    result = subprocess.run(replay, capture_output=True, text=True, timeout=120, check=False)
    assert result.returncode == 0, result.stderr
    assert result.stderr.count("engine-2") == 3
    assert sorted(roles(apart)) == [
        ("engine-0", "prefill"),
        ("engine-1", "decode"),
        ("engine-2", "decode"),
    ]
    complete(apart)


def test_an_engine_may_be_another_server(tmp_path: Path) -> None:
    """Two engines in turn, one of them a server: equal tokens, also when the server is killed."""
    with serving("--model", TINY, workers="inline") as (other, child):
        plan = engines(LocalShape(engines=2))
        first = replace(plan.engines[0], url=other)
        plan = replace(
            plan,
            engines=(first, plan.engines[1]),
            routing=Routing(engine_router="round-robin"),
        )
        path = tmp_path / "mixed.yaml"
        write_plan(plan, path)
        with serving(path, "--model", TINY, workers="inline") as (url, _):
            assert len({complete(url) for _ in range(4)}) == 1
            status = httpx.get(f"{url}/admin/engines", timeout=60).json()["engines"]
            assert [engine["generation_tokens"] for engine in status] == [24, 24]
            cut_off = streamed(url, then=child.kill)
            assert child.wait(10) == -signal.SIGKILL
            assert streamed(url) == cut_off


def streamed(url: str, then: Callable[[], object] = lambda: None) -> str:
    """The text of a long answer; ``then`` is called after its first chunks."""
    body = {"model": "tiny", "prompt": "def", "max_tokens": 60, "temperature": 0}
    body |= {"ignore_eos": True, "stream": True}
    texts = []
    with httpx.stream("POST", f"{url}/v1/completions", json=body, timeout=60) as response:
        for line in response.iter_lines():
            if line.startswith("data: {"):
                texts.append(json.loads(line[6:])["choices"][0]["text"])
                if len(texts) == 5:
                    then()
    return "".join(texts)


def test_replaying_against_nobody_is_refused(tmp_path: Path) -> None:
    """One line with the address."""
    path = tmp_path / "ops.json"
    path.write_text("[]")
    replay = command("replay-ops", path, "--url", "http://127.0.0.1:1")
    result = subprocess.run(replay, capture_output=True, text=True, timeout=60, check=False)
    assert result.returncode == 2
    assert "no Penstock server answers at http://127.0.0.1:1" in result.stderr
    assert len(result.stderr.splitlines()) == 1


def test_kills_of_real_workers_lose_nothing() -> None:
    """Three workers of five are killed in turn under load: no token is lost or repeated."""
    run = [sys.executable, ROOT / "benchmarks" / "serve_kills.py", "--kills", "3"]
    result = subprocess.run(
        [*map(str, run), "--questions", "8", "--width", "4"],
        capture_output=True,
        text=True,
        timeout=280,
        check=False,
    )
    assert result.returncode == 0, result.stdout + result.stderr
    figures = json.loads(result.stdout.splitlines()[-1])
    assert figures["kills"] >= 2
    assert figures["requests_completed"] > 0


def broken(folder: Path, what: str) -> Path:
    """A copy of the tiny model with one thing wrong."""
    shutil.copytree(TINY, folder)
    weights = folder / "model.safetensors"
    if what == "no weights":
        weights.unlink()
    elif what == "cut weights":
        weights.write_bytes(weights.read_bytes()[:100_000])
    elif what == "no tokenizer":
        (folder / "tokenizer.json").unlink()
    elif what == "wrong tokenizer":
        (folder / "tokenizer.json").write_text('{"x": 1}')
    return folder


@pytest.mark.parametrize("what", ["no weights", "cut weights", "no tokenizer", "wrong tokenizer"])
def test_a_broken_checkpoint_is_refused_in_one_line(what: str, tmp_path: Path) -> None:
    """Named by file, exit code 2, no process left."""
    refused("--model", broken(tmp_path / "model", what), *PROCESSES, says="model")


def refused(*arguments: object, says: str) -> None:
    child = subprocess.Popen(command("serve", *arguments), stderr=subprocess.PIPE, text=True)
    assert child.stderr is not None
    below: set[int] = set()
    end_s = time.monotonic() + 60
    while child.poll() is None:
        if time.monotonic() > end_s:
            child.kill()
            pytest.fail("it started")
        below |= set(processes_below(child.pid))
        time.sleep(0.05)
    error = child.stderr.read()
    child.stderr.close()
    assert child.returncode == 2, error
    assert len(error.splitlines()) == 1, error
    assert error.startswith("penstock: ")
    assert says in error
    assert not alive(sorted(below))


def test_mistakes_are_refused_in_one_line(tmp_path: Path) -> None:
    """Port in use, too little memory, another model, a draft and a cluster that are not."""
    with socket.create_server(("127.0.0.1", 0)) as taken:
        port = taken.getsockname()[1]
        refused("--model", TINY, "--workers", "processes", "--port", port, says=f"{port}")
    refused("--model", TINY, *PROCESSES, "--kv-memory", "100 B", says="--kv-memory")
    refused("--model", TINY, *PROCESSES, "--kv-memory", "100 TiB", says="this machine has")
    refused(PLAN, "--model", TINY, *PROCESSES, "--kv-memory", "100 TiB", says="5 workers")
    refused("--model", TINY, *PROCESSES, "--draft-model", tmp_path / "none", says="none")
    other = tmp_path / "other.yaml"
    other.write_text(PLAN.read_text().replace("hidden_size: 256", "hidden_size: 512"))
    refused(other, "--model", TINY, *PROCESSES, says="hidden_size")
    if importlib.util.find_spec("ray"):
        refused("--model", TINY, "--port", "0", "--ray", "127.0.0.1:1", says="127.0.0.1:1")


@pytest.mark.parametrize("number", [signal.SIGINT, signal.SIGTERM])
def test_an_idle_server_ends_in_order(number: signal.Signals) -> None:
    """Exit code 0 within seconds, and no worker outlives it."""
    with serving("--model", TINY) as (url, child):
        complete(url)
        below = processes_below(child.pid)
        assert below
        child.send_signal(number)
        assert child.wait(20) == 0
        assert not alive(below)


@pytest.mark.skipif(importlib.util.find_spec("ray") is None, reason="Ray is not installed")
def test_a_server_on_ray_ends_in_order() -> None:
    """Ray's own handling of SIGTERM does not take the place of the server's."""
    with serving("--model", TINY, workers="ray") as (url, child):
        complete(url)
        child.send_signal(signal.SIGTERM)
        assert child.wait(30) == 0


def test_a_second_signal_does_not_wait_for_requests() -> None:
    """The first one drains, the second one ends what still runs."""
    with serving("--model", TINY, "--drain", "120 s") as (url, child):
        body = {"model": "tiny", "prompt": "def", "max_tokens": 2000, "stream": True}
        body["ignore_eos"] = True
        with httpx.stream("POST", f"{url}/v1/completions", json=body, timeout=60) as response:
            lines = response.iter_lines()
            assert next(lines).startswith("data: ")
            below = processes_below(child.pid)
            child.send_signal(signal.SIGINT)
            time.sleep(0.2)
            child.send_signal(signal.SIGINT)
            assert child.wait(20) == 0
        assert not alive(below)


def test_ctrl_c_while_loading_stops_at_once() -> None:
    """Exit code 130 and one line, and nothing is left."""
    child = subprocess.Popen(
        command("serve", "--model", TINY, *PROCESSES), stderr=subprocess.PIPE, text=True
    )
    below: list[int] = []
    while not below and child.poll() is None:
        time.sleep(0.02)
        below = processes_below(child.pid)
    os.kill(child.pid, signal.SIGINT)
    _, error = child.communicate(timeout=30)
    assert child.returncode == 130, error
    assert error == "penstock: stopped while loading\n"
    assert not alive(below)
