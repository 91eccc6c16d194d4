"""Workers as processes of this machine."""

from __future__ import annotations

import asyncio
import contextlib
import signal
import subprocess
import sys
import threading
from struct import pack
from typing import TypeAlias

from penstock.errors import InputError
from penstock.serve.socket_pool import End, SocketPool
from penstock.serve.worker.run import FAULT, RANK_ENDED, Boot, encode_boot

Child: TypeAlias = "subprocess.Popen[bytes]"
_SPARE_AFTER_S = 1.0


class ProcessPool(SocketPool):
    """A process per stage, more under tensor parallelism; all end with this process."""

    def __init__(self, *, silence_s: float = 15.0, alive_every_s: float = 1.0) -> None:
        super().__init__(ProcessLauncher(), silence_s=silence_s, alive_every_s=alive_every_s)


class ProcessLauncher:
    """See ``socket_pool.Launcher``.

    While workers with a model run, one more process waits that has imported torch already, which
    is most of what a start takes: so that a lost worker is back soon.
    """

    host = "127.0.0.1"

    def __init__(self) -> None:
        self._spare: Child | None = None
        self._refill: asyncio.TimerHandle | None = None

    async def open(self) -> None:
        return

    async def launch(self, boot: Boot) -> ProcessHandle:
        if boot.spec.executor != "torch":
            return ProcessHandle(boot, _child())
        spare, self._spare = self._spare, None
        if self._refill is not None:
            self._refill.cancel()
        # Not at once: workers that are loading come first.
        self._refill = asyncio.get_running_loop().call_later(_SPARE_AFTER_S, self._prepare)
        if spare is not None and spare.poll() is None:
            return ProcessHandle(boot, spare)
        return ProcessHandle(boot, _child())

    def _prepare(self) -> None:
        if self._spare is None:
            with contextlib.suppress(InputError):
                self._spare = _child("--warm")

    async def close(self) -> None:
        if self._refill is not None:
            self._refill.cancel()
        if self._spare is not None:
            self._spare.kill()
            self._spare.communicate()
            self._spare = None


def _child(*arguments: str) -> Child:
    """A worker process that does not know yet what it is. Raises ``InputError``."""
    try:
        # A session of its own: Ctrl-C reaches the parent, which ends its workers in order.
        return subprocess.Popen(
            [sys.executable, "-m", "penstock.serve.worker", *arguments],
            stdin=subprocess.PIPE,
            start_new_session=True,
        )
    except OSError as error:
        raise InputError(f"a worker cannot be started: {error.strerror}") from error


class ProcessHandle:
    """A child that was told over its stdin what it is; closing stdin ends it."""

    def __init__(self, boot: Boot, child: Child) -> None:
        self._child = child
        data = encode_boot(boot)
        assert self._child.stdin is not None
        try:
            self._child.stdin.write(pack("!I", len(data)) + data)
            self._child.stdin.flush()
        except BrokenPipeError:
            pass  # It has ended already; ``ended`` says how.
        self._loop = asyncio.get_running_loop()
        self._end: asyncio.Future[End] = self._loop.create_future()
        threading.Thread(target=self._wait, daemon=True).start()

    @property
    def pid(self) -> int:
        return self._child.pid

    def kill(self) -> None:
        if self._child.poll() is None:
            self._child.kill()

    async def ended(self) -> End:
        return await asyncio.shield(self._end)

    def _wait(self) -> None:
        status = self._child.wait()
        if self._child.stdin is not None:
            self._child.stdin.close()
        try:
            self._loop.call_soon_threadsafe(self._note, _describe(status))
        except RuntimeError:
            return  # The loop has closed: nobody asks any more.

    def _note(self, end: End) -> None:
        if not self._end.done():
            self._end.set_result(end)


def _describe(status: int) -> End:
    if status == FAULT:
        return End("its process ended after a fault", spoke=True)
    if status == RANK_ENDED:
        return End("another rank of its tensor parallel group has ended")
    if status < 0:
        name = signal.Signals(-status).name
        hint = " (out of memory?)" if name == "SIGKILL" else ""
        return End(f"its process was ended by {name}{hint}")
    return End(f"its process ended with status {status}")
