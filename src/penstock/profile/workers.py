"""Workers of their own to measure: started, asked one step at a time, and ended."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator, Callable, Sequence
from contextlib import asynccontextmanager
from itertools import count
from pathlib import Path
from typing import TypeVar

from penstock.errors import InputError
from penstock.serve.pool import WorkerPool, WorkerSpec
from penstock.serve.processes import ProcessHandle, ProcessLauncher
from penstock.serve.socket_pool import SocketPool
from penstock.serve.wire import KVReceived, ToCoordinator, ToWorker
from penstock.serve.worker.run import Boot

_ANSWER_S = 60.0
_KIB = 1024

Answer = TypeVar("Answer")


class Post:
    """Sends to workers and waits for their answers. Raises ``InputError`` where one dies."""

    def __init__(self, pool: WorkerPool, processes: dict[str, int]) -> None:
        self._pool = pool
        self._processes = processes
        self._ranks: dict[str, tuple[int, ...]] = {}
        self.numbers = count(100)
        """Of transfers and of sequences at their targets: none is ever used again."""
        self._answers: asyncio.Queue[ToCoordinator | str] = asyncio.Queue()
        pool.listen(self._answers.put_nowait, self._died)

    def _died(self, worker: str, why: str) -> None:
        self._answers.put_nowait(f"{worker}: {why}")

    def tell(self, worker: str, message: ToWorker) -> None:
        """Send what has no answer."""
        self._pool.send(worker, message)

    async def ask(self, worker: str, message: ToWorker, kind: type[ToCoordinator]) -> float:
        """Seconds until an answer of ``kind``."""
        return (await self.answer(worker, message, kind))[1]

    async def answer(
        self, worker: str, message: ToWorker, kind: type[Answer]
    ) -> tuple[Answer, float]:
        """The answer of ``kind`` and the seconds until it came."""
        clock: Callable[[], float] = asyncio.get_running_loop().time
        start_s = clock()
        self._pool.send(worker, message)
        while True:
            try:
                answer = await asyncio.wait_for(self._answers.get(), _ANSWER_S)
            except TimeoutError:
                raise InputError(f"worker {worker} did not answer in {_ANSWER_S:g} s") from None
            if isinstance(answer, str):
                raise InputError(answer)
            if isinstance(answer, KVReceived) and answer.problem:
                raise InputError(f"worker {answer.worker}: {answer.problem}")
            if isinstance(answer, kind):
                return answer, clock() - start_s

    def resident_bytes(self, worker: str) -> int:
        """Resident memory of the processes of ``worker``, all its ranks."""
        return sum(_resident_bytes(pid) for pid in self._pids(worker))

    def waited_s(self, workers: Sequence[str]) -> float:
        """Seconds for which processes of ``workers`` were ready to run and had no CPU, in all."""
        pids = (pid for worker in workers for pid in self._pids(worker))
        return sum(_waited_s(pid) for pid in pids)

    def _pids(self, worker: str) -> tuple[int, ...]:
        if worker not in self._ranks:
            first = self._processes[worker]
            self._ranks[worker] = (first, *_children(first))
        return self._ranks[worker]


class _Launcher(ProcessLauncher):
    """Remembers process ids, and keeps no spare process, which would take time while we measure."""

    def __init__(self) -> None:
        super().__init__()
        self.processes: dict[str, int] = {}

    async def launch(self, boot: Boot) -> ProcessHandle:
        handle = await super().launch(boot)
        if self._refill is not None:
            self._refill.cancel()
        self.processes[boot.spec.name] = handle.pid
        return handle


@asynccontextmanager
async def workers(*specs: WorkerSpec) -> AsyncIterator[Post]:
    """Start all ``specs`` as processes; end all of them afterwards. Raises ``InputError``."""
    launcher = _Launcher()
    pool = SocketPool(launcher)
    post = Post(pool, launcher.processes)
    try:
        await asyncio.gather(*(pool.start(spec) for spec in specs))
        yield post
    finally:
        await pool.close()


def _children(pid: int) -> list[int]:
    try:
        text = Path(f"/proc/{pid}/task/{pid}/children").read_text(encoding="ascii")
    except OSError:
        return []
    return [int(part) for part in text.split()]


def _waited_s(pid: int) -> float:
    """Run delay of the main thread, which computes; 0 where the system does not say."""
    try:
        text = Path(f"/proc/{pid}/schedstat").read_text(encoding="ascii")
    except OSError:
        return 0.0
    return int(text.split()[1]) * 1e-9


def _resident_bytes(pid: int) -> int:
    try:
        lines = Path(f"/proc/{pid}/status").read_text(encoding="ascii", errors="replace")
    except OSError as error:
        raise InputError(f"the memory of process {pid} cannot be read ({error.strerror})") from None
    for line in lines.splitlines():
        if line.startswith("VmRSS:"):
            return int(line.split()[1]) * _KIB
    raise InputError(f"the memory of process {pid} cannot be read; it has ended")
