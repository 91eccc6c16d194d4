"""A node of per-request paths: iterations wait here, run in batches and go on to their next hop."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import msgspec

from penstock.errors import InputError
from penstock.policy.batching import Batch, NodewiseBatcher
from penstock.serve.pool import WorkerSpec
from penstock.serve.wire import COORDINATOR, Begin, Command, Hop, Item, NodeBatch, Step, StepDone
from penstock.serve.worker.core import Running
from penstock.serve.worker.executor import Buffer, Executor, Job, Outcome, Send, Work, WorkerFault
from penstock.serve.worker.recent import Recent


@dataclass(slots=True, eq=False)
class Waiting:
    """An iteration as the batcher sees it; ``hidden`` are its rows, None at layer 0."""

    item: Item
    begin: Begin | None
    hidden: Buffer | None
    tokens: int
    context: int
    prefill: bool
    layer: int

    @property
    def hop(self) -> Hop:
        return self.item.hops[self.item.hop]


class NodePaths:
    """The duty of a node: batches by ``policy/batching.py``, as the simulator forms them.

    A batch that needs more KV pages than are free waits for what the coordinator is releasing.
    Iterations of released sequences are dropped, also those that arrive later.
    """

    def __init__(self, spec: WorkerSpec, executor: Executor, send: Send) -> None:
        if spec.limits is None:
            raise InputError(f"worker {spec.name!r} forms batches, but has no limits for them")
        self._spec = spec
        self._executor = executor
        self._send = send
        entries = spec.entry_layers or (spec.start_layer,)
        self._batcher: NodewiseBatcher[Waiting] = NodewiseBatcher(
            spec.start_layer, spec.end_layer, entries, spec.limits
        )
        self._waiting: dict[int, list[Waiting]] = {}
        self._released = Recent()
        self._arrived_tokens = 0
        self._batches = 0

    def take(self, step: Step, buffer: Buffer | None) -> Running | None:
        """Queue the items of ``step``."""
        begins = self._begins(step)
        at = 0
        width = _row_bytes(step.items, buffer)
        for item in step.items:
            hop = item.hops[item.hop]
            if hop.worker != self._spec.name or hop.end_layer > self._spec.end_layer:
                raise WorkerFault(f"layers up to {hop.end_layer} of {hop.worker} are not here")
            hidden = None
            if buffer is not None:
                hidden = memoryview(buffer)[at : at + width * len(item.tokens)]
                at += width * len(item.tokens)
            if item.seq >= self._spec.first_seq and item.seq not in self._released:
                self._add(item, begins.get(item.seq), hidden)
        return None

    def _begins(self, step: Step) -> dict[int, Begin]:
        """Carry out commands, but those that go on to the last hop of an item."""
        onward = {item.seq for item in step.items if item.hop + 1 < len(item.hops)}
        begins: dict[int, Begin] = {}
        for command in step.commands:
            if not isinstance(command, Begin):
                self._executor.apply(command)
            elif command.seq in onward:
                begins[command.seq] = command
            elif command.seq not in self._released:
                self._executor.apply(command)
        return begins

    def _add(self, item: Item, begin: Begin | None, hidden: Buffer | None) -> None:
        tokens = len(item.tokens)
        layer = item.hops[item.hop].start_layer
        waiting = Waiting(item, begin, hidden, tokens, item.context, item.prefill, layer)
        self._waiting.setdefault(item.seq, []).append(waiting)
        self._arrived_tokens += tokens
        self._batcher.add(waiting)

    def release(self, seqs: tuple[int, ...]) -> None:
        for seq in seqs:
            for waiting in self._waiting.pop(seq, ()):
                self._batcher.discard(waiting)
        self._released.add(seqs)

    def next(self) -> Running | None:
        batch = self._batcher.next_batch()
        if batch is None:
            return None
        jobs = [_job(waiting) for waiting in batch.items]
        if self._executor.pages_missing(jobs) > 0:
            self._batcher.restore(batch)
            return None
        hidden = [w.hidden for w in batch.items if w.hidden is not None]
        work = Work(jobs, hidden, parts=batch.parts, arrived_tokens=self._arrived_tokens)
        self._arrived_tokens = 0
        outcome = self._executor.run(work)
        return Running(outcome.wait_s, lambda queued: self._finish(batch, outcome, queued))

    def _finish(self, batch: Batch[Waiting], outcome: Outcome, queued: int) -> None:
        self._batches += 1
        leaving = self._batcher.commit(batch)
        for waiting in leaving:
            rest = self._waiting[waiting.item.seq]
            rest.remove(waiting)
            if not rest:
                del self._waiting[waiting.item.seq]
        self._report(leaving, outcome.busy_s, queued)
        self._pass_on(leaving, outcome.hidden)
        last = tuple(w.item.seq for w in leaving if w.hop.end_layer == self._spec.num_layers)
        if last:
            name = self._spec.name
            done = StepDone(self._batches, name, outcome.drawn, outcome.busy_s, last)
            self._send(COORDINATOR, done)

    def _report(self, leaving: Sequence[Waiting], busy_s: float, queued: int) -> None:
        report = NodeBatch(
            self._spec.name,
            seqs=tuple(waiting.item.seq for waiting in leaving),
            prefill_tokens=sum(waiting.tokens for waiting in leaving if waiting.prefill),
            decode_seqs=sum(1 for waiting in leaving if not waiting.prefill),
            busy_s=busy_s,
            queued_first=self._batcher.waiting_first + queued,
        )
        self._send(COORDINATOR, report)

    def _pass_on(self, leaving: Sequence[Waiting], hidden: Buffer | None) -> None:
        """Send what has layers left to its next hop, one message for each worker."""
        groups: dict[str, list[tuple[Waiting, Buffer | None]]] = {}
        rows = sum(waiting.tokens for waiting in leaving)
        width = 0 if hidden is None else len(hidden) // rows
        at = 0
        for waiting in leaving:
            end = at + waiting.tokens * width
            if waiting.hop.end_layer < self._spec.num_layers:
                piece = None if hidden is None else memoryview(hidden)[at:end]
                onward = waiting.item.hops[waiting.item.hop + 1].worker
                groups.setdefault(onward, []).append((waiting, piece))
            at = end
        for worker, members in groups.items():
            items = tuple(msgspec.structs.replace(w.item, hop=w.item.hop + 1) for w, _ in members)
            commands: tuple[Command, ...] = tuple(w.begin for w, _ in members if w.begin)
            if len(members) == len(leaving):
                buffer = hidden
            else:
                pieces = [piece for _, piece in members if piece is not None]
                buffer = b"".join(pieces) if pieces else None
            self._send(worker, Step(0, items, commands), buffer)


def _job(waiting: Waiting) -> Job:
    item, hop = waiting.item, waiting.hop
    return Job(item.seq, item.context, item.tokens, hop.start_layer, hop.end_layer, item.draw)


def _row_bytes(items: Sequence[Item], buffer: Buffer | None) -> int:
    if buffer is None:
        return 0
    rows = sum(len(item.tokens) for item in items)
    if not rows or len(buffer) % rows:
        raise WorkerFault(f"{len(buffer)} bytes of hidden states are not {rows} rows")
    return len(buffer) // rows
