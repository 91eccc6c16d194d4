"""A stage without a model: it counts KV pages exactly, and its steps take the modelled time."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

from penstock.serve.pool import WorkerSpec
from penstock.serve.wire import Command, Drawn, Evict, Free, Share, Store
from penstock.serve.worker.executor import (
    Buffer,
    Job,
    NodeTimer,
    NoRoom,
    Outcome,
    PageCount,
    Work,
    WorkerFault,
)


def null_token(seq: int, position: int) -> int:
    """The token at ``position`` (prompt included) of sequence ``seq``; never a usual EOS id."""
    return 3 + (31 * seq + 17 * position) % 250


@dataclass(slots=True)
class _Held:
    """Pages a sequence has per layer; the first ``shared`` belong to prompt pieces."""

    layers: int
    pages: int = 0
    shared: int = 0


class NullExecutor:
    """``timer`` says how long a batch of a node of paths takes."""

    def __init__(self, spec: WorkerSpec, timer: NodeTimer | None = None) -> None:
        self._spec = spec
        self._timer = timer
        self._layers = spec.end_layer - spec.start_layer
        self._piece_pages = spec.piece_tokens // spec.page_size
        self._held: dict[int, _Held] = {}
        self._pieces: set[int] = set()
        self._free = spec.num_pages
        self.layout = f"null, pages of {spec.page_size}"

    def apply(self, command: Command) -> None:
        if isinstance(command, Free):
            held = self._held.pop(command.seq, None)
            if held is not None:
                self._free += held.layers * (held.pages - held.shared)
        elif isinstance(command, Share):
            count = len(command.pieces) * self._piece_pages
            if command.seq in self._held or not self._pieces.issuperset(command.pieces):
                raise WorkerFault(f"sequence {command.seq} cannot share pieces now")
            self._held[command.seq] = _Held(self._layers, count, count)
        elif isinstance(command, Store):
            self._store(command)
        elif isinstance(command, Evict):
            if command.piece not in self._pieces:
                raise WorkerFault(f"piece {command.piece} is not cached")
            self._pieces.remove(command.piece)
            self._free += self._layers * self._piece_pages

    def _store(self, command: Store) -> None:
        held = self._held.get(command.seq)
        start = command.index * self._piece_pages
        if held is None or held.pages < start + self._piece_pages or command.piece in self._pieces:
            raise WorkerFault(f"piece {command.index} of sequence {command.seq} cannot be stored")
        self._pieces.add(command.piece)
        held.shared += self._piece_pages

    def run(self, work: Work) -> Outcome:
        for job in work.jobs:
            self._reserve(job.seq, job.end_layer - job.start_layer, job.context + len(job.tokens))
        drawn = tuple(
            Drawn(job.seq, (null_token(job.seq, job.context + len(job.tokens)),))
            for job in work.jobs
            if job.draw and job.end_layer == self._spec.num_layers
        )
        seconds = work.null_s
        if work.parts and self._timer is not None:
            seconds = self._timer(work.parts, work.arrived_tokens)
        return Outcome(None, drawn, seconds, seconds)

    def _pages_for(self, tokens: int) -> int:
        return -(-tokens // self._spec.page_size)

    def _reserve(self, seq: int, layers: int, tokens: int) -> None:
        held = self._held.setdefault(seq, _Held(layers))
        more = max(0, self._pages_for(tokens) - held.pages)
        if more * held.layers > self._free:
            raise WorkerFault(f"{more * held.layers} KV pages asked for, {self._free} free")
        held.pages += more
        self._free -= more * held.layers

    def pages_missing(self, jobs: Sequence[Job]) -> int:
        needed = 0
        for job in jobs:
            held = self._held.get(job.seq)
            pages = self._pages_for(job.context + len(job.tokens))
            layers = job.end_layer - job.start_layer
            needed += max(0, pages - (held.pages if held else 0)) * layers
        return needed - self._free

    def pages(self) -> PageCount:
        used = sum(held.layers * (held.pages - held.shared) for held in self._held.values())
        cached = len(self._pieces) * self._layers * self._piece_pages
        count = PageCount(used, cached, self._free)
        assert sum(count) == self._spec.num_pages, f"{count} are not {self._spec.num_pages} pages"
        return count

    def export_layer(self, seq: int, layer: int, tokens: int) -> Buffer:
        if seq not in self._held:
            raise WorkerFault(f"sequence {seq} has no KV entries to send")
        return b""

    def load_layer(self, seq: int, layer: int, tokens: int, content: Buffer) -> None:
        try:
            self._reserve(seq, self._layers, tokens)
        except WorkerFault as error:
            raise NoRoom(str(error)) from None

    def close(self) -> None:
        return
