"""A stage of a real model: its layers, its KV pages, and the draws of the last stage."""

from __future__ import annotations

from collections.abc import Sequence
from time import perf_counter

import numpy as np
import numpy.typing as npt
import torch

from penstock.errors import InputError
from penstock.serve.model import (
    LayerSlice,
    OutOfPages,
    SequencePages,
    StepInput,
    StepItem,
    TensorParallel,
    TokenTree,
    load_slice,
)
from penstock.serve.pool import WorkerSpec
from penstock.serve.wire import Begin, Command, Drawn, Evict, Free, Share, Store
from penstock.serve.worker.drawing import Drawing
from penstock.serve.worker.executor import (
    Buffer,
    Job,
    NoRoom,
    Outcome,
    PageCount,
    TransferRefused,
    Work,
    WorkerFault,
)


class TorchExecutor:
    """One rank of a stage. Under tensor parallelism all ranks make the same calls."""

    def __init__(self, spec: WorkerSpec, model: LayerSlice) -> None:
        self.model = model
        self._spec = spec
        self._piece_pages = spec.piece_tokens // spec.page_size
        self._pages: dict[int, SequencePages] = {}
        self._pieces: dict[int, np.ndarray] = {}
        self.drawing = Drawing()
        cache = model.cache.layout
        self.layout = (
            f"{cache.page_size} tokens x {cache.kv_heads} heads x {cache.head_dim} of "
            f"{cache.dtype}, tensor_parallel_size {cache.tensor_parallel_size}"
        )

    @classmethod
    def load(cls, spec: WorkerSpec, tp: TensorParallel | None = None) -> TorchExecutor:
        """Read the weights and make the KV pages. Raises ``InputError`` where that fails."""
        device = spec.device
        if device == "cuda" and tp is not None:
            device = f"cuda:{tp.rank}"
        try:
            model = load_slice(
                spec.checkpoint,
                spec.start_layer,
                spec.end_layer,
                tp=tp,
                dtype=spec.dtype,
                device=device,
                num_pages=spec.num_pages,
                page_size=spec.page_size,
            )
        except (RuntimeError, MemoryError) as error:
            reason = str(error).strip().splitlines()
            raise InputError(
                f"worker {spec.name!r} cannot load layers [{spec.start_layer}, {spec.end_layer}) "
                f"with {spec.num_pages} KV pages on {device}: {reason[0] if reason else error!r}"
            ) from error
        return cls(spec, model)

    # -- commands -----------------------------------------------------------------------------

    def apply(self, command: Command) -> None:
        if isinstance(command, Begin):
            if self.model.holds_head:
                self.drawing.begin(command.seq, command.sampling)
        elif isinstance(command, Free):
            self.drawing.free(command.seq)
            pages = self._pages.pop(command.seq, None)
            if pages is not None:
                pages.release()
        elif isinstance(command, Share):
            self._share(command)
        elif isinstance(command, Store):
            self._store(command)
        elif isinstance(command, Evict):
            if command.piece not in self._pieces:
                raise WorkerFault(f"piece {command.piece} is not cached")
            self.model.pool.give(self._pieces.pop(command.piece))

    def _share(self, command: Share) -> None:
        if command.seq in self._pages or any(p not in self._pieces for p in command.pieces):
            raise WorkerFault(f"sequence {command.seq} cannot share pieces now")
        pages = self._new_pages(command.seq, self._spec.start_layer, self._spec.end_layer)
        pages.share(np.concatenate([self._pieces[piece] for piece in command.pieces], axis=1))

    def _store(self, command: Store) -> None:
        pages = self._pages.get(command.seq)
        start, end = (i * self._piece_pages for i in (command.index, command.index + 1))
        if pages is None or pages.table.shape[1] < end or command.piece in self._pieces:
            raise WorkerFault(f"piece {command.index} of sequence {command.seq} cannot be stored")
        kept = pages.table[:, start:end].copy()
        self.model.pool.share(kept)
        self._pieces[command.piece] = kept

    def _new_pages(self, seq: int, start: int, end: int) -> SequencePages:
        pages = SequencePages(self.model.pool, self._spec.page_size, start, end)
        self._pages[seq] = pages
        return pages

    # -- steps --------------------------------------------------------------------------------

    def run(self, work: Work) -> Outcome:
        started_s = perf_counter()
        hidden = self.forward(work.jobs, self.read_hidden(work.jobs, work.hidden))
        return self.outcome(work.jobs, hidden, started_s)

    def read_hidden(self, jobs: Sequence[Job], pieces: Sequence[Buffer]) -> torch.Tensor | None:
        """Hidden states ``[tokens, hidden_size]`` of all jobs; rows of layer 0 are not set."""
        if not pieces:
            return None
        width = self.model.config.shape.hidden_size
        raw = np.concatenate([np.frombuffer(piece, np.uint8) for piece in pieces])
        counts = [len(job.tokens) for job in jobs]
        enters = np.repeat([job.start_layer > 0 for job in jobs], counts)
        size = int(enters.sum()) * width * self.model.dtype.itemsize
        if len(raw) != size:
            raise WorkerFault(f"{len(raw)} bytes of hidden states came in place of {size}")
        given = torch.from_numpy(raw).view(self.model.dtype).view(-1, width)
        if enters.all():
            return given
        hidden = torch.zeros(len(enters), width, dtype=self.model.dtype)
        hidden[torch.from_numpy(enters)] = given
        return hidden

    def forward(self, jobs: Sequence[Job], hidden: torch.Tensor | None) -> torch.Tensor:
        """Run ``jobs`` and return hidden states ``[tokens, hidden_size]``, in order."""
        items = [self.item(job, len(job.tokens)) for job in jobs]
        tokens = None
        if any(job.start_layer == 0 for job in jobs):
            tokens = torch.tensor([token for job in jobs for token in job.tokens])
        return self.model.forward(StepInput(items, tokens=tokens, hidden=hidden))

    def item(self, job: Job, rows: int, tree: TokenTree | None = None) -> StepItem:
        """``rows`` new tokens of the sequence of ``job``, with pages for them."""
        pages = self._pages.get(job.seq)
        if pages is None:
            pages = self._new_pages(job.seq, job.start_layer, job.end_layer)
        try:
            pages.reserve(job.context + rows)
        except OutOfPages as error:
            raise WorkerFault(str(error)) from error
        return StepItem(rows, job.context, pages.table, job.start_layer, job.end_layer, tree)

    def sequence(self, seq: int) -> SequencePages:
        """The pages of a sequence that has run."""
        return self._pages[seq]

    def logits(self, jobs: Sequence[Job], hidden: torch.Tensor) -> torch.Tensor | None:
        """Logits ``[n, vocab]`` of the jobs that draw; None where none does."""
        if not self.model.holds_head:
            return None
        ends = np.cumsum([len(job.tokens) for job in jobs]) - 1
        rows = [int(end) for end, job in zip(ends, jobs, strict=True) if self._draws(job)]
        if not rows:
            return None
        if len(rows) < len(hidden):
            hidden = hidden[torch.tensor(rows, device=hidden.device)]
        return self.model.head(hidden)

    def outcome(self, jobs: Sequence[Job], hidden: torch.Tensor, started_s: float) -> Outcome:
        """What follows from the hidden states of ``jobs``: tokens here, rows for elsewhere."""
        logits = self.logits(jobs, hidden)
        drawn: tuple[Drawn, ...] = ()
        if logits is not None:
            drawn = self.drawing.draw([job.seq for job in jobs if self._draws(job)], logits)
        leaves = any(job.end_layer < self._spec.num_layers for job in jobs)
        buffer = _to_bytes(hidden) if leaves else None
        return Outcome(buffer, drawn, perf_counter() - started_s)

    def _draws(self, job: Job) -> bool:
        return job.draw and job.end_layer == self._spec.num_layers

    # -- pages --------------------------------------------------------------------------------

    def pages_missing(self, jobs: Sequence[Job]) -> int:
        size = self._spec.page_size
        needed = 0
        for job in jobs:
            pages = self._pages.get(job.seq)
            held = 0 if pages is None else pages.table.shape[1]
            more = -(-(job.context + len(job.tokens)) // size) - held
            needed += max(0, more) * (job.end_layer - job.start_layer)
        return needed - self.model.pool.free

    def pages(self) -> PageCount:
        held = [pages.table.reshape(-1) for pages in self._pages.values()]
        stored = [pages.reshape(-1) for pages in self._pieces.values()]
        cached = len(np.unique(np.concatenate(stored))) if stored else 0
        both = held + stored
        taken = len(np.unique(np.concatenate(both))) if both else 0
        count = PageCount(taken - cached, cached, self.model.pool.free)
        assert sum(count) == self._spec.num_pages, f"{count} are not {self._spec.num_pages} pages"
        return count

    def export_layer(self, seq: int, layer: int, tokens: int) -> Buffer:
        pages = self._pages.get(seq)
        if pages is None or pages.capacity_tokens < tokens:
            raise WorkerFault(f"sequence {seq} has no {tokens} KV entries to send")
        count = -(-tokens // self._spec.page_size)
        return self.model.cache.export(pages.table[layer - pages.start, :count])

    def load_layer(self, seq: int, layer: int, tokens: int, content: Buffer) -> None:
        pages = self._pages.get(seq)
        if pages is None:
            pages = self._new_pages(seq, self._spec.start_layer, self._spec.end_layer)
        try:
            pages.reserve(tokens)
        except OutOfPages as error:
            raise NoRoom(str(error)) from error
        count = -(-tokens // self._spec.page_size)
        ids = pages.table[layer - pages.start, :count]
        cache = self.model.cache
        try:
            cache.load(ids, memoryview(content), cache.layout)
        except InputError as error:
            raise TransferRefused(str(error)) from error

    def close(self) -> None:
        return


def _to_bytes(hidden: torch.Tensor) -> Buffer:
    raw: npt.NDArray[np.uint8] = hidden.cpu().contiguous().view(torch.uint8).numpy()
    return raw.reshape(-1).data
