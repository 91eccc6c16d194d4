"""The loop of a worker that has a process, or an actor, of its own."""

from __future__ import annotations

import os
import sys
import threading
import time
import traceback
from dataclasses import dataclass

import msgspec

from penstock.errors import PenstockError
from penstock.serve.pool import WorkerSpec
from penstock.serve.wire import COORDINATOR, Failed
from penstock.serve.worker.build import build_executor, build_worker
from penstock.serve.worker.core import Worker
from penstock.serve.worker.executor import Executor
from penstock.serve.worker.port import Kind, Port

FAULT = 70
"""Exit status of a worker process after a fault that it has reported."""
RANK_ENDED = 71
"""Exit status of a worker process of which another rank has ended."""


@dataclass(frozen=True, slots=True)
class Boot:
    """What a worker is told when it is started. ``sender`` numbers all starts of a pool.

    Ranks above 0 of a tensor parallel group meet at ``store_port`` and need no more.
    """

    spec: WorkerSpec
    secret: bytes = b""
    sender: int = 0
    coordinator: str = ""
    host: str = "127.0.0.1"
    alive_every_s: float = 1.0
    rank: int = 0
    store_port: int = 0


def encode_boot(boot: Boot) -> bytes:
    return msgspec.msgpack.encode(boot)


def decode_boot(data: bytes) -> Boot:
    return msgspec.msgpack.decode(data, type=Boot)


def run_worker(boot: Boot) -> bool:
    """Load, tell the coordinator, and work until told to stop; False after a fault.

    A fault is reported to the coordinator in one line, and to stderr where it is ours.
    """
    port = Port(boot.secret, boot.sender, boot.host)
    port.learn({COORDINATOR: boot.coordinator})
    ended = threading.Event()
    pulse = threading.Thread(target=_pulse, args=(boot, ended), daemon=True)
    pulse.start()
    executor: Executor | None = None
    try:
        limit_threads(boot.spec)
        executor = build_executor(boot.spec)
        worker = build_worker(boot.spec, executor, port.send)
        port.post(COORDINATOR, Kind.HELLO, port.endpoint.encode())
        _work(worker, port)
    except Exception as error:
        problem = str(error)
        if not isinstance(error, PenstockError):
            traceback.print_exc(file=sys.stderr)
            problem = f"{type(error).__name__}: {error}"
        port.send(COORDINATOR, Failed(boot.spec.name, problem.replace("\n", " ")))
        return False
    finally:
        ended.set()
        pulse.join()
        port.close(linger_s=1.0)
        if executor is not None:
            executor.close()
    return True


def limit_threads(spec: WorkerSpec) -> None:
    """Let this process compute with ``spec.threads`` threads."""
    if spec.executor == "torch":
        os.environ["OMP_NUM_THREADS"] = str(spec.threads)
        import torch  # noqa: PLC0415 - only workers with a model need it

        torch.set_num_threads(spec.threads)


def _work(worker: Worker, port: Port) -> None:
    """Steps one by one; between them, what has arrived."""
    while not worker.stopped:
        running = worker.begin()
        if running is not None:
            if running.wait_s > 0:
                time.sleep(running.wait_s)
            worker.end(running)
        elif not worker.stopped:
            port.wait()
        while (frame := port.receive()) is not None:
            if frame.kind is Kind.MESSAGE:
                worker.accept(frame.message(), frame.buffer)
            elif frame.kind is Kind.PEERS:
                number, peers = msgspec.msgpack.decode(frame.body, type=tuple[int, dict[str, str]])
                port.learn(peers)
                port.post(COORDINATOR, Kind.PEERS_KNOWN, msgspec.msgpack.encode(number))


def _pulse(boot: Boot, ended: threading.Event) -> None:
    """Signs of life, also while a step runs or weights load."""
    port = Port(boot.secret, boot.sender, boot.host)
    port.learn({COORDINATOR: boot.coordinator})
    while not ended.wait(boot.alive_every_s):
        port.post(COORDINATOR, Kind.ALIVE, b"")
    port.close()
