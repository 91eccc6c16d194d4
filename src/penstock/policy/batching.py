"""Which waiting iterations an engine runs together.

``LayerwiseBatcher`` keeps Helix's published queues, one per layer; ``NodewiseBatcher`` runs an
iteration through all its layers on the engine in one step, as real engines do. Both take
iterations in order of arrival under the same limits. One that does not fit is overtaken by later
ones that do; the oldest is looked at first in every batch, so that none waits for ever. An
iteration that exceeds a limit by itself runs as the only one of its kind.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Generic, NamedTuple, Protocol, TypeVar

from penstock.cost.base import BatchLimits


class Iteration(Protocol):
    """One pass of one request: ``tokens`` new tokens after ``context`` cached ones.

    ``layer`` is the next layer to run.
    """

    tokens: int
    context: int
    prefill: bool
    layer: int


T = TypeVar("T", bound=Iteration)


class Part(NamedTuple):
    """Layers that run with one batch shape."""

    num_layers: int
    prefill_tokens: int
    decode_seqs: int
    decode_context_tokens: int


class Batch(NamedTuple, Generic[T]):
    """What runs next: ``items`` through the layers of ``parts``, in order.

    ``first`` says that the batch starts at the engine's first layer, where inputs are copied in.
    """

    items: list[T]
    parts: tuple[Part, ...]
    end_layer: int
    first: bool


class Batcher(Protocol[T]):
    """Queues of one engine."""

    def add(self, item: T) -> None: ...

    def next_batch(self) -> Batch[T] | None:
        """Take the next batch from the queues, or None when nothing waits."""
        ...

    def commit(self, batch: Batch[T]) -> list[T]:
        """Note that ``batch`` has run; return the items that are done on this engine."""
        ...

    def restore(self, batch: Batch[T]) -> None:
        """Put the items of a batch that did not run back, ahead of all others."""
        ...

    def discard(self, item: T) -> None:
        """Forget ``item`` if it waits here."""
        ...

    @property
    def waiting(self) -> int: ...

    @property
    def waiting_first(self) -> int:
        """Number of iterations that wait for the engine's first layer."""
        ...


def take(queue: list[T], limits: BatchLimits) -> tuple[list[T], list[T], int, int, int]:
    """Split ``queue`` into (taken, left, prefill tokens, decode sequences, decode context)."""
    taken: list[T] = []
    left: list[T] = []
    prompts = prefill_tokens = decodes = context = 0
    max_prompts, max_tokens = limits.max_prefill_seqs, limits.max_prefill_tokens
    max_decodes, max_context = limits.max_decode_seqs, limits.max_decode_context_tokens
    for item in queue:
        if item.prefill:
            tokens = prefill_tokens + item.tokens
            if prompts and (prompts >= max_prompts or tokens > max_tokens):
                left.append(item)
                continue
            prompts += 1
            prefill_tokens = tokens
        else:
            longer = context + item.context
            if decodes and (decodes >= max_decodes or longer > max_context):
                left.append(item)
                continue
            decodes += 1
            context = longer
        taken.append(item)
    return taken, left, prefill_tokens, decodes, context


class LayerwiseBatcher(Generic[T]):
    """Helix's published batching (section 5): a queue per layer, batches sink through the layers.

    After a batch has run a layer, the engine turns to the next layer in cyclic order that has
    waiting iterations. Only at ``entry_layers`` can a batch meet others, so that it runs from one
    entry layer to the next in one go. With every layer an entry layer, each layer is a step.
    """

    def __init__(
        self, start_layer: int, end_layer: int, entry_layers: Sequence[int], limits: BatchLimits
    ) -> None:
        self._bounds = (*entry_layers, end_layer)
        self._number = {layer: i for i, layer in enumerate(entry_layers)}
        self._queues: list[list[T]] = [[] for _ in entry_layers]
        self._at = 0
        self._limits = limits
        self._end = end_layer

    def add(self, item: T) -> None:
        self._queues[self._number[item.layer]].append(item)

    def next_batch(self) -> Batch[T] | None:
        queues = self._queues
        self._turn()
        if not queues[self._at]:
            return None
        at = self._at
        items, queues[at], prefill, decodes, context = take(queues[at], self._limits)
        start, end = self._bounds[at], self._bounds[at + 1]
        return Batch(items, (Part(end - start, prefill, decodes, context),), end, at == 0)

    def commit(self, batch: Batch[T]) -> list[T]:
        self._at = (self._at + 1) % len(self._queues)
        if batch.end_layer == self._end:
            self._turn()
            return batch.items
        for item in batch.items:
            item.layer = batch.end_layer
        self._queues[self._at].extend(batch.items)
        return []

    def _turn(self) -> None:
        """Turn to the next queue that has something, or stay where none has."""
        for step in range(len(self._queues)):
            at = (self._at + step) % len(self._queues)
            if self._queues[at]:
                self._at = at
                return

    def restore(self, batch: Batch[T]) -> None:
        self._queues[self._at][:0] = batch.items

    def discard(self, item: T) -> None:
        for i, queue in enumerate(self._queues):
            self._queues[i] = [other for other in queue if other is not item]

    @property
    def waiting(self) -> int:
        return sum(map(len, self._queues))

    @property
    def waiting_first(self) -> int:
        return len(self._queues[0])


class NodewiseBatcher(Generic[T]):
    """One queue; a batch runs all the layers its iterations need on the engine.

    Iterations that enter part way join the batch at their layer.
    """

    def __init__(
        self, start_layer: int, end_layer: int, entry_layers: Sequence[int], limits: BatchLimits
    ) -> None:
        self._bounds = (*entry_layers, end_layer)
        self._end = end_layer
        self._limits = limits
        self._queue: list[T] = []

    def add(self, item: T) -> None:
        self._queue.append(item)

    def next_batch(self) -> Batch[T] | None:
        if not self._queue:
            return None
        items, self._queue, prefill, decodes, context = take(self._queue, self._limits)
        if len(self._bounds) == 2:
            start = self._bounds[0]
            return Batch(
                items, (Part(self._end - start, prefill, decodes, context),), self._end, True
            )
        return Batch(items, self._parts(items), self._end, True)

    def _parts(self, items: list[T]) -> tuple[Part, ...]:
        parts = []
        for start, end in zip(self._bounds, self._bounds[1:], strict=False):
            running = [item for item in items if item.layer <= start]
            if running:
                decodes = [item for item in running if not item.prefill]
                prefill = sum(item.tokens for item in running if item.prefill)
                context = sum(item.context for item in decodes)
                parts.append(Part(end - start, prefill, len(decodes), context))
        return tuple(parts)

    def commit(self, batch: Batch[T]) -> list[T]:
        return batch.items

    def restore(self, batch: Batch[T]) -> None:
        self._queue[:0] = batch.items

    def discard(self, item: T) -> None:
        self._queue = [other for other in self._queue if other is not item]

    @property
    def waiting(self) -> int:
        return len(self._queue)

    @property
    def waiting_first(self) -> int:
        return len(self._queue)
