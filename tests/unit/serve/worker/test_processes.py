"""Workers as processes: they talk, they die noticed, they leave nothing behind."""

from __future__ import annotations

import asyncio
import os
import signal
import socket
import subprocess
import sys
from collections.abc import AsyncIterator
from dataclasses import replace
from pathlib import Path

import pytest
import pytest_asyncio
import zmq
from worker_factory import Listener, decode_over_stages, hops, node, stage

from penstock.errors import InputError
from penstock.plan.settings import SpeculationSettings
from penstock.serve.processes import ProcessHandle, ProcessPool
from penstock.serve.wire import Item, Ping, Pong, Step
from penstock.serve.worker.null_executor import null_token
from penstock.serve.worker.port import Kind, Port
from penstock.serve.worker.run import Boot, decode_boot, encode_boot


@pytest_asyncio.fixture
async def pool() -> AsyncIterator[ProcessPool]:
    pool = ProcessPool()
    yield pool
    await pool.close()


def pid_of(pool: ProcessPool, worker: str) -> int:
    handle = pool._peers[worker].handle
    assert isinstance(handle, ProcessHandle)
    return handle.pid


def exists(pid: int) -> bool:
    try:
        os.kill(pid, 0)
    except ProcessLookupError:
        return False
    return Path(f"/proc/{pid}/stat").read_text().split()[2] != "Z"


async def test_steps_go_from_process_to_process(pool: ProcessPool) -> None:
    """Two stages give the tokens one null worker would give, in order."""
    listener = Listener(pool)
    first, last = stage("a", 0, 2), stage("b", 2, 4)
    await asyncio.gather(pool.start(first), pool.start(last))
    tokens = await decode_over_stages(pool, listener, hops(first, last), 7, (1, 2, 3), 5)
    assert tokens == [null_token(7, position) for position in range(3, 8)]


async def test_a_killed_worker_is_noticed_and_starts_anew_under_its_name(
    pool: ProcessPool,
) -> None:
    """The death is told once and at once; peers reach the successor, its memory is empty."""
    listener = Listener(pool)
    first, last = stage("a", 0, 2), stage("b", 2, 4)
    await asyncio.gather(pool.start(first), pool.start(last))
    await decode_over_stages(pool, listener, hops(first, last), 1, (1, 2, 3), 2)
    loop = asyncio.get_running_loop()
    killed_s = loop.time()
    os.kill(pid_of(pool, "b"), signal.SIGKILL)
    await listener.wait(lambda: listener.deaths)
    assert loop.time() - killed_s < 5.0
    assert listener.deaths == [("b", "its process was ended by SIGKILL (out of memory?)")]
    pool.send("b", Ping(1))
    await pool.start(last)
    tokens = await decode_over_stages(pool, listener, hops(first, last), 2, (5,), 3)
    assert tokens == [null_token(2, position) for position in range(1, 4)]
    pool.send("b", Ping(2))
    pong = await listener.pong()
    assert (pong.number, pong.pages_used) == (2, 2)
    assert len(listener.deaths) == 1


async def test_a_worker_that_hangs_is_taken_for_dead() -> None:
    """A stopped process gives no sign of life; it is killed and reported."""
    pool = ProcessPool(silence_s=1.0, alive_every_s=0.1)
    listener = Listener(pool)
    await pool.start(stage("a"))
    pid = pid_of(pool, "a")
    os.kill(pid, signal.SIGSTOP)
    await listener.wait(lambda: listener.deaths)
    assert listener.deaths == [("a", "no sign of life for 1 s")]
    assert not exists(pid)
    await pool.close()


async def test_a_fault_is_told_in_one_line(pool: ProcessPool) -> None:
    """A step that asks for more pages than there are ends the worker, with its reason."""
    listener = Listener(pool)
    spec = stage("a", num_pages=4)
    await pool.start(spec)
    await decode_over_stages(pool, listener, hops(spec), 1, (1, 2, 3), 1)
    pool.send("a", Step(1, (_item(2, 9),), (), hops(spec)))
    await listener.wait(lambda: listener.deaths)
    assert listener.deaths == [("a", "WorkerFault: 12 KV pages asked for, 0 free")]


def _item(seq: int, tokens: int) -> Item:
    return Item(seq, 0, tuple(range(tokens)), True, True)


async def test_what_cannot_be_loaded_is_an_input_error(pool: ProcessPool, tmp_path: Path) -> None:
    """The user reads which file is missing, on one line."""
    Listener(pool)
    spec = stage("a", executor="torch", checkpoint=str(tmp_path / "nowhere"))
    with pytest.raises(InputError, match="nowhere") as error:
        await pool.start(spec)
    assert "\n" not in str(error.value)
    await pool.start(stage("a"))


async def test_closing_leaves_no_process(pool: ProcessPool) -> None:
    """Also workers that do not listen any more are gone after ``close``."""
    Listener(pool)
    await asyncio.gather(*(pool.start(stage(name)) for name in "abc"))
    pids = [pid_of(pool, name) for name in "abc"]
    os.kill(pids[1], signal.SIGSTOP)
    await pool.close()
    assert not any(exists(pid) for pid in pids)


async def test_stopping_a_worker_is_no_death(pool: ProcessPool) -> None:
    """Whoever asked for the end is not told of it."""
    listener = Listener(pool)
    await pool.start(stage("a"))
    pid = pid_of(pool, "a")
    await pool.stop("a")
    await pool.stop("a")
    assert not exists(pid)
    assert listener.deaths == []


async def test_a_worker_that_dies_before_it_is_ready_did_not_start(pool: ProcessPool) -> None:
    """``start`` says so; no death follows, as nobody was told of its life."""
    listener = Listener(pool)
    await pool.start(stage("a"))
    paused = pid_of(pool, "a")
    # A peer that does not answer keeps the newcomer from being ready.
    os.kill(paused, signal.SIGSTOP)
    starting = asyncio.create_task(pool.start(stage("b")))
    async with asyncio.timeout(30):
        while "b" not in pool._peers or not pool._peers["b"].endpoint:
            await asyncio.sleep(0.01)
    os.kill(pid_of(pool, "b"), signal.SIGKILL)
    with pytest.raises(InputError, match=r"'b' did not start: .*SIGKILL"):
        await starting
    os.kill(paused, signal.SIGCONT)
    assert listener.deaths == []
    await pool.start(stage("b"))


async def test_a_listener_that_fails_still_gets_what_comes_next(pool: ProcessPool) -> None:
    """One message whose handling raises does not hold up the others."""
    seen: list[int] = []
    failures: list[object] = []
    done = asyncio.Event()

    def hear(message: object) -> None:
        assert isinstance(message, Pong)
        if message.number == 0:
            raise ValueError("cannot handle this")
        seen.append(message.number)
        if message.number == 4:
            done.set()

    pool.listen(hear, lambda _worker, _why: None)
    loop = asyncio.get_running_loop()
    loop.set_exception_handler(lambda _loop, context: failures.append(context["exception"]))
    await pool.start(stage("a"))
    for number in range(5):
        pool.send("a", Ping(number))
    await asyncio.wait_for(done.wait(), 30)
    assert seen == [1, 2, 3, 4]
    assert [type(failure) for failure in failures] == [ValueError]


ORPHAN = """
import asyncio, os, sys
sys.path.insert(0, {tests!r})
from worker_factory import Listener, stage
from penstock.serve.processes import ProcessPool

async def main():
    pool = ProcessPool()
    Listener(pool)
    await pool.start(stage("a"))
    print(pool._peers["a"].handle.pid, flush=True)
    await asyncio.sleep(600)

asyncio.run(main())
"""


async def test_workers_end_with_their_parent() -> None:
    """Nobody is left to serve when the coordinator is killed."""
    script = ORPHAN.format(tests=str(Path(__file__).parent))
    parent = subprocess.Popen([sys.executable, "-c", script], stdout=subprocess.PIPE)
    assert parent.stdout is not None
    pid = int(await asyncio.to_thread(parent.stdout.readline))
    assert exists(pid)
    parent.kill()
    parent.wait()
    parent.stdout.close()
    async with asyncio.timeout(10):
        while exists(pid):
            await asyncio.sleep(0.01)


def test_strangers_are_not_heard() -> None:
    """Frames without the secret, of other shapes or of other protocols are dropped."""
    port = Port(b"s" * 16, 0)
    context = zmq.Context()
    stranger = context.socket(zmq.PUSH)
    stranger.connect(port.endpoint)
    stranger.send_multipart([b"x" * 21, b""])
    stranger.send(b"hello")
    stranger.send_multipart([b"s" * 16, b"", b"", b""])
    raw = socket.create_connection(("127.0.0.1", int(port.endpoint.rsplit(":", 1)[1])))
    raw.sendall(b"GET / HTTP/1.1\r\n\r\n")
    friend = Port(b"s" * 16, 3)
    friend.learn({"port": port.endpoint})
    friend.post("port", Kind.ALIVE, b"")
    port.wait(10.0)
    frame = None
    while frame is None:
        frame = port.receive()
    assert (frame.kind, frame.sender) == (Kind.ALIVE, 3)
    assert port.receive() is None
    raw.close()
    stranger.close(linger=0)
    context.term()
    friend.close()
    port.close()


def test_messages_wait_for_a_peer_that_is_not_known_yet() -> None:
    """What is sent before the peer's endpoint is known arrives after it is, in order."""
    a, b = Port(b"s" * 16, 1), Port(b"s" * 16, 2)
    for number in range(3):
        a.send("b", Ping(number))
    a.learn({"b": b.endpoint})
    a.send("b", Ping(3), b"x" * 200_000)
    seen = []
    while len(seen) < 4:
        b.wait(10.0)
        while (frame := b.receive()) is not None:
            seen.append((frame.message(), None if frame.buffer is None else len(frame.buffer)))
    assert seen == [(Ping(n), None) for n in range(3)] + [(Ping(3), 200_000)]
    a.learn({"b": ""})
    a.send("b", Ping(4))
    b.wait(0.05)
    assert b.receive() is None
    a.close()
    b.close()


def test_a_frame_that_is_too_large_is_refused(monkeypatch: pytest.MonkeyPatch) -> None:
    """Its sender is cut off; others are heard."""
    monkeypatch.setattr("penstock.serve.worker.port.MAX_FRAME_BYTES", 1000)
    port, sender = Port(b"s" * 16, 1), Port(b"s" * 16, 2)
    sender.learn({"port": port.endpoint})
    sender.send("port", Ping(1), b"x" * 2000)
    other = Port(b"s" * 16, 3)
    other.learn({"port": port.endpoint})
    other.send("port", Ping(2))
    port.wait(10.0)
    frame = port.receive()
    assert frame is not None
    assert (frame.sender, frame.message()) == (3, Ping(2))
    for one in (port, sender, other):
        one.close()


def test_specs_survive_the_way_to_a_process() -> None:
    """What a worker is told is what the coordinator meant, limits and settings included."""
    spec = replace(
        node("a", 0, 2, entry_layers=(0, 1)), speculation=SpeculationSettings(draft_model="d")
    )
    boot = Boot(spec, b"\x00\xff" * 8, 3, "tcp://127.0.0.1:1")
    assert decode_boot(encode_boot(boot)) == boot
