"""A node in virtual time: what arrives, the batch that runs, and the memory it takes."""

from __future__ import annotations

from collections.abc import Callable
from heapq import heappop, heappush
from math import inf
from typing import Protocol

from penstock.cost.base import LayerTimer
from penstock.policy.batching import Batch, Batcher
from penstock.policy.kv import KVPool
from penstock.sim.loop import ARRIVE, START, Loop
from penstock.sim.sequence import Sequence
from penstock.sim.series import Series

# Published costs of a node's first layer (artifact specification, section 5): the waiting inputs
# are concatenated on the host and copied to the device, bytes/s.
CONCATENATE_BYTES_PER_S = 4e9
COPY_TO_DEVICE_BYTES_PER_S = 5e9


class Surroundings(Protocol):
    """What a node needs from the rest of the simulation."""

    def depart(self, vertex: int, items: list[Sequence], now: float) -> None:
        """Send iterations that are done on engine ``vertex`` on their way."""
        ...

    def make_room(self, vertex: int, batch: list[Sequence]) -> None:
        """Preempt one request that holds, or wants, KV memory on engine ``vertex``."""
        ...


class NodeState:
    """One engine on its node.

    Messages lie in ``incoming`` until the node next looks, because nothing they could change
    happens before: a busy node takes them when its batch ends, an idle one is woken by the first.
    """

    def __init__(
        self,
        *,
        vertex: int,
        loop: Loop,
        batcher: Callable[[], Batcher[Sequence]],
        timer: LayerTimer,
        pool: KVPool,
        activation_bytes: int,
        per_layer: bool,
        series: Series | None,
    ) -> None:
        self.vertex = vertex
        self.pool = pool
        self.slow = 1.0
        self.alive = True
        self.incoming: list[tuple[float, float, int, list[Sequence]]] = []
        self.running: Batch[Sequence] | None = None
        self.wake_s = inf
        self._last_layer_s = 0.0
        self.busy_s = 0.0
        self.batches = 0
        self.prefill_tokens = 0
        self.decode_tokens = 0
        self.prompt_visits = 0
        self.prompt_residence_s = 0.0
        self._loop = loop
        self._new_batcher = batcher
        self._batcher = batcher()
        self._timer = timer
        self._copy_s = activation_bytes
        self._per_layer = per_layer
        self._series = series
        self._buffered_tokens = 0
        self._life = 0
        self._messages = 0
        self._around: Surroundings | None = None

    def attach(self, around: Surroundings) -> None:
        self._around = around

    def deliver(self, time_s: float, items: list[Sequence], sent_s: float) -> None:
        """Note that ``items`` arrive here at ``time_s`` (now or later), having left at ``sent_s``.

        At equal times, what left first is first.
        """
        self._messages += 1
        heappush(self.incoming, (time_s, sent_s, self._messages, items))
        if self.running is None and time_s < self.wake_s:
            self._wake_at(time_s)

    def left(self, item: Sequence, now: float) -> None:
        """Count the time a prompt spent here, from its arrival until it is sent on."""
        self.prompt_residence_s += now - item.arrived_s

    def queue_length(self, now: float) -> int:
        """Iterations that wait for the first layer."""
        self._take_in(now)
        return self._batcher.waiting_first

    def is_running(self, item: Sequence) -> bool:
        return self.running is not None and item in self.running.items

    def discard(self, item: Sequence) -> None:
        self._batcher.discard(item)

    def wake(self, now: float) -> None:
        """Look for work now, unless a batch runs already."""
        if now >= self.wake_s:
            self.wake_s = inf
        if self.running is None and self.alive:
            self._start(now)

    def fail(self) -> None:
        """Lose everything that runs, waits or arrives here."""
        self.alive = False
        self.running = None
        self.incoming = []
        self.wake_s = inf
        self._batcher = self._new_batcher()
        self._buffered_tokens = 0
        self._life += 1

    def _wake_at(self, time_s: float) -> None:
        self.wake_s = time_s
        self._loop.at(time_s, START, self.wake, time_s)

    def _take_in(self, now: float, sent_before_s: float = inf) -> None:
        """Queue what has arrived; of what arrives this very moment, what left in time."""
        incoming = self.incoming
        add = self._batcher.add
        while incoming and incoming[0][:2] < (now, sent_before_s):
            time_s, _, _, items = heappop(incoming)
            for item in items:
                if not item.dead:
                    item.arrived_s = time_s
                    self._buffered_tokens += item.tokens
                    add(item)

    def _start(self, now: float) -> None:
        """Form the next batch and run it, or sleep until something arrives."""
        while True:
            self._take_in(now)
            batch = self._batcher.next_batch()
            if batch is None:
                if self.incoming:
                    self._wake_at(self.incoming[0][0])
                return
            entries = 0
            for part in batch.parts:
                entries += part.num_layers * (part.prefill_tokens + part.decode_seqs)
            if self.pool.take(entries):
                break
            assert self._around is not None
            self._around.make_room(self.vertex, batch.items)
            alive = [item for item in batch.items if not item.dead]
            self._batcher.restore(batch._replace(items=alive))
        self._run(batch, now)

    def _run(self, batch: Batch[Sequence], now: float) -> None:
        end = last_layer = now
        overhead = 0.0
        if batch.first:
            size = self._buffered_tokens * self._copy_s
            overhead = size / CONCATENATE_BYTES_PER_S + size / COPY_TO_DEVICE_BYTES_PER_S
            self._buffered_tokens = 0
        for layers, prefill, decodes, context in batch.parts:
            seconds = self._timer(prefill, decodes, context) * self.slow
            if self._per_layer:
                # One addition a layer, as when each layer is an event of its own: the same bits.
                last_layer = end
                end += seconds + overhead
                for _ in range(layers - 1):
                    last_layer = end
                    end += seconds
            else:
                end += seconds * layers + overhead
            overhead = 0.0
        first = batch.parts[0]
        self.batches += 1
        self.busy_s += end - now
        if self._series is not None:
            waited = len(batch.items) * now - sum([item.arrived_s for item in batch.items])
            self._series.batch(self.vertex, now, end, waited, self.pool.used)
        self.running = batch
        self._last_layer_s = last_layer
        self._loop.at(end, ARRIVE, self._finish, (self._life, first), since_s=last_layer)

    def _finish(self, what: tuple[int, object]) -> None:
        if what[0] != self._life or self.running is None:
            return
        now = self._loop.now
        # Whoever has arrived by now queues ahead of the batch that moves to the next layers.
        self._take_in(now, self._last_layer_s)
        batch = self.running
        self.running = None
        leaving = self._batcher.commit(batch)
        if leaving:
            self._count(leaving, now)
            assert self._around is not None
            self._around.depart(self.vertex, leaving, now)
        self._start(now)

    def _count(self, leaving: list[Sequence], now: float) -> None:
        for item in leaving:
            if item.prefill:
                self.prefill_tokens += item.tokens
                self.prompt_visits += 1
            else:
                self.decode_tokens += 1
