"""Workers in the coordinator's own process and event loop: for tests, and for null engines."""

from __future__ import annotations

import asyncio
from collections.abc import Callable, Mapping
from typing import cast

from penstock.errors import InputError, PenstockError
from penstock.serve.pool import WorkerSpec
from penstock.serve.virtual_time import VirtualTimeLoop
from penstock.serve.wire import (
    COORDINATOR,
    Failed,
    Message,
    ToCoordinator,
    ToWorker,
    decode,
    encode,
)
from penstock.serve.worker.build import build_executor, build_worker
from penstock.serve.worker.core import Worker
from penstock.serve.worker.executor import Buffer, NodeTimer


class InlinePool:
    """A task per worker. Under ``VirtualTimeLoop`` null executors take no real time.

    ``timers`` say how long batches of nodes of paths take (null executors only). ``strict``
    encodes and decodes every message, as a wire would. Real models compute on the event loop.
    """

    def __init__(
        self, timers: Mapping[str, NodeTimer] | None = None, *, strict: bool = False
    ) -> None:
        self._timers = timers or {}
        self._strict = strict
        self._seats: dict[str, _Seat] = {}
        self._message: Callable[[ToCoordinator], None] = _unheard
        self._died: Callable[[str, str], None] = lambda _worker, _why: None

    def listen(
        self, message: Callable[[ToCoordinator], None], died: Callable[[str, str], None]
    ) -> None:
        self._message = message
        self._died = died

    async def start(self, spec: WorkerSpec) -> None:
        if spec.tensor_parallel_size > 1 and spec.executor == "torch":
            raise InputError(
                f"worker {spec.name!r}: tensor_parallel_size {spec.tensor_parallel_size} needs "
                "a process per rank; use a pool of processes"
            )
        await self.stop(spec.name)
        executor = build_executor(spec, self._timers.get(spec.name))
        self._seats[spec.name] = _Seat(build_worker(spec, executor, self._post), self._lost)

    def send(self, worker: str, message: ToWorker) -> None:
        self._post(worker, message)

    async def stop(self, worker: str) -> None:
        seat = self._seats.pop(worker, None)
        if seat is not None:
            await seat.end()

    def kill(self, worker: str) -> None:
        """Lose a worker and all that was in it, as when its process is killed."""
        seat = self._seats.pop(worker, None)
        if seat is not None:
            seat.cancel()
            self._died(worker, "killed")

    def worker(self, name: str) -> Worker:
        """The worker itself, to look into."""
        return self._seats[name].worker

    async def close(self) -> None:
        for name in tuple(self._seats):
            await self.stop(name)

    def _post(self, to: str, message: Message, buffer: Buffer | None = None) -> None:
        if self._strict:
            message = decode(encode(message))
            buffer = None if buffer is None else bytes(buffer)
        if to == COORDINATOR:
            # Not at once: the sender is in the middle of its step.
            asyncio.get_running_loop().call_soon(self._message, cast(ToCoordinator, message))
            return
        seat = self._seats.get(to)
        if seat is not None:
            seat.worker.accept(message, buffer)
            seat.wake()

    def _lost(self, seat: _Seat, failed: Failed) -> None:
        if self._seats.get(failed.worker) is seat:
            del self._seats[failed.worker]
            self._died(failed.worker, failed.problem)


class _Seat:
    """A worker and the task that drives it."""

    def __init__(self, worker: Worker, lost: Callable[[_Seat, Failed], None]) -> None:
        self.worker = worker
        self._lost = lost
        self._woken = asyncio.Event()
        self._task = asyncio.get_running_loop().create_task(self._drive())

    def wake(self) -> None:
        self._woken.set()

    def cancel(self) -> None:
        self._task.cancel()
        self.worker.executor.close()

    async def end(self) -> None:
        self.cancel()
        await asyncio.gather(self._task, return_exceptions=True)

    async def _drive(self) -> None:
        try:
            while not self.worker.stopped:
                await self._turn()
        except Exception as error:
            self.worker.executor.close()
            self._lost(self, Failed(self.worker.spec.name, _describe(error)))

    async def _turn(self) -> None:
        running = self.worker.begin()
        if running is None:
            await self._woken.wait()
            self._woken.clear()
            await _everything_else()
            return
        await asyncio.sleep(running.wait_s)
        self.worker.end(running)
        await _everything_else()


async def _everything_else() -> None:
    """Let what happens at this moment happen: arrivals come before batches are formed."""
    loop = asyncio.get_running_loop()
    if not isinstance(loop, VirtualTimeLoop):
        await asyncio.sleep(0)
        return
    idle = asyncio.Event()
    loop.call_when_idle(idle.set)
    await idle.wait()


def _describe(error: Exception) -> str:
    if isinstance(error, PenstockError):
        return str(error)
    return f"{type(error).__name__}: {error}".replace("\n", " ")


def _unheard(message: ToCoordinator) -> None:
    raise AssertionError(f"{type(message).__name__} came before anybody listened")
