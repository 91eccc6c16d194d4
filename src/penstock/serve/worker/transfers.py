"""KV entries on their way between workers, layer by layer, each with its checksum."""

from __future__ import annotations

from collections.abc import Iterable
from zlib import crc32

from penstock.serve.pool import WorkerSpec
from penstock.serve.wire import COORDINATOR, Free, KVLayer, KVReceived, PushKV
from penstock.serve.worker.executor import Buffer, Executor, NoRoom, Send, TransferRefused
from penstock.serve.worker.recent import Recent


class Transfers:
    """What leaves and what arrives. A transfer that fails leaves no pages behind.

    A sequence that was freed here is not pushed here again: what comes for it comes late, from a
    sender that had not heard yet. Layers that find no pages wait for what is being freed: the
    coordinator has counted the room, but its word may travel another way than the entries.
    """

    def __init__(self, spec: WorkerSpec, executor: Executor, send: Send) -> None:
        self._spec = spec
        self._executor = executor
        self._send = send
        self._missing: dict[int, int] = {}
        self._refused: dict[int, int] = {}
        self._freed = Recent()
        self._held: list[tuple[KVLayer, Buffer]] = []

    def forget(self, seqs: Iterable[int]) -> None:
        """Drop what still comes for ``seqs``."""
        self._freed.add(seqs)

    def retry(self) -> None:
        """Try again what had no room; call when pages were freed."""
        held, self._held = self._held, []
        for message, content in held:
            self.receive(message, content)

    def push(self, message: PushKV) -> None:
        """Send each layer as soon as it is copied, so that the receiver writes meanwhile."""
        for target in message.targets:
            start = max(target.start_layer, self._spec.start_layer)
            for layer in range(start, min(target.end_layer, self._spec.end_layer)):
                content = self._executor.export_layer(message.seq, layer, message.tokens)
                part = KVLayer(
                    message.transfer,
                    message.target_seq,
                    layer,
                    message.tokens,
                    self._executor.layout,
                    crc32(content),
                )
                self._send(target.worker, part, content)

    def receive(self, message: KVLayer, content: Buffer) -> None:
        layers = self._spec.end_layer - self._spec.start_layer
        number = message.transfer
        if number < self._spec.first_transfer:
            return
        if message.seq in self._freed:
            self._missing.pop(number, None)
            self._refused.pop(number, None)
            return
        if number in self._refused:
            self._count_refused(number)
            return
        try:
            self._write(message, content)
        except NoRoom:
            self._held.append((message, content))
            return
        except TransferRefused as error:
            left = self._missing.pop(number, layers) - 1
            if left:
                self._refused[number] = left
            self._executor.apply(Free(message.seq))
            self._send(COORDINATOR, KVReceived(number, self._spec.name, str(error)))
            return
        left = self._missing.get(number, layers) - 1
        if left:
            self._missing[number] = left
        else:
            self._missing.pop(number, None)
            self._send(COORDINATOR, KVReceived(number, self._spec.name))

    def _write(self, message: KVLayer, content: Buffer) -> None:
        ours = self._executor.layout
        if message.layout != ours:
            raise TransferRefused(
                f"KV pages cannot be exchanged: the sender has {message.layout}, the receiver "
                f"{ours}; use engines with equal settings"
            )
        if crc32(content) != message.crc32:
            raise TransferRefused(
                f"KV entries of layer {message.layer} were damaged on the way (checksum differs)"
            )
        self._executor.load_layer(message.seq, message.layer, message.tokens, content)

    def _count_refused(self, number: int) -> None:
        self._refused[number] -= 1
        if not self._refused[number]:
            del self._refused[number]
