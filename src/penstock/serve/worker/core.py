"""One worker: messages in, steps run in order, results out. Knows neither sockets nor clocks.

Whoever drives it calls ``accept`` for each message and, whenever nothing runs, ``begin``; what
``begin`` returns is finished by ``end`` after ``wait_s`` have passed. ``begin`` returns None where
there is nothing to run until another message comes.
"""

from __future__ import annotations

from collections import deque
from collections.abc import Callable
from dataclasses import dataclass
from typing import Protocol

from penstock.serve.pool import WorkerSpec
from penstock.serve.wire import (
    COORDINATOR,
    Free,
    KVLayer,
    Message,
    Ping,
    Pong,
    PushKV,
    Release,
    Step,
    Stop,
)
from penstock.serve.worker.executor import Buffer, Executor, Send, WorkerFault
from penstock.serve.worker.transfers import Transfers


@dataclass(frozen=True, slots=True)
class Running:
    """A step that has been computed; ``finish`` sends its results, due in ``wait_s``.

    It is told how many iterations have arrived but are not yet taken.
    """

    wait_s: float
    finish: Callable[[int], None]


class Duty(Protocol):
    """What a worker does with steps: run them as they come, or batch what waits."""

    def take(self, step: Step, buffer: Buffer | None) -> Running | None:
        """Run or queue ``step``."""
        ...

    def next(self) -> Running | None:
        """Run what was queued."""
        ...

    def release(self, seqs: tuple[int, ...]) -> None:
        """Forget all work for ``seqs``."""
        ...


class Worker:
    """The worker of ``spec``. ``stopped`` once it was told to end."""

    def __init__(self, spec: WorkerSpec, executor: Executor, duty: Duty, send: Send) -> None:
        self.spec = spec
        self.executor = executor
        self.stopped = False
        self._duty = duty
        self._send = send
        self._inbox: deque[tuple[Message, Buffer | None]] = deque()
        self._transfers = Transfers(spec, executor, send)

    def accept(self, message: Message, buffer: Buffer | None = None) -> None:
        """Queue ``message``; KV entries are moved at once, also while a null step waits."""
        if not self._inbox and isinstance(message, KVLayer | PushKV):
            self._handle(message, buffer)
        else:
            self._inbox.append((message, buffer))

    def begin(self) -> Running | None:
        """Run the next step. Raises ``WorkerFault`` and whatever the executor raises."""
        inbox = self._inbox
        while inbox and not self.stopped:
            message, buffer = inbox.popleft()
            if isinstance(message, Step):
                self._transfers.forget(c.seq for c in message.commands if isinstance(c, Free))
                running = self._duty.take(message, buffer)
                if message.commands:
                    self._transfers.retry()
                if running is not None:
                    return running
            else:
                self._handle(message, buffer)
        return None if self.stopped else self._duty.next()

    def end(self, running: Running) -> None:
        """Send the results of ``running``.

        KV entries that came meanwhile are taken first: their sequences then join the next step,
        which the coordinator forms when it has the results.
        """
        while self._inbox and isinstance(self._inbox[0][0], KVLayer | PushKV):
            self._handle(*self._inbox.popleft())
        steps = (message for message, _ in self._inbox if isinstance(message, Step))
        running.finish(sum(len(step.items) for step in steps))

    def _handle(self, message: Message, buffer: Buffer | None) -> None:
        if isinstance(message, PushKV):
            self._transfers.push(message)
        elif isinstance(message, KVLayer):
            self._transfers.receive(message, buffer or b"")
        elif isinstance(message, Release):
            self._duty.release(message.seqs)
            for seq in message.seqs:
                self.executor.apply(Free(seq))
        elif isinstance(message, Ping):
            used, cached, _ = self.executor.pages()
            self._send(COORDINATOR, Pong(message.number, self.spec.name, used, cached))
        elif isinstance(message, Stop):
            self.stopped = True
        else:
            raise WorkerFault(f"a worker cannot take {type(message).__name__}")
