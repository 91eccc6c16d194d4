"""KV memory on its way from the engine of a prompt to the engine of its decodes.

The rules are those of ``policy/fleet.py``: the source keeps its blocks until the transfer has
ended; a prompt that finds no decode engine with room waits, first come first served.
"""

from __future__ import annotations

from collections import deque
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field

from penstock.policy import fleet as rules
from penstock.policy.engine_routing import EngineRouter
from penstock.serve.coordinator.engine import Attempt, EngineDriver
from penstock.serve.wire import Hop, KVReceived, PushKV

SendPush = Callable[[str, PushKV], None]


@dataclass(slots=True)
class Transfer:
    """``missing`` names the receiving workers that have not confirmed yet."""

    attempt: Attempt
    source: EngineDriver
    held_blocks: int
    total_tokens: int
    target: EngineDriver | None = None
    number: int = 0
    missing: set[str] = field(default_factory=set)


class Handover:
    """All transfers of a fleet.

    ``restart`` computes a request again where its KV was lost; ``pump`` lets an engine form steps.
    """

    def __init__(
        self,
        router: EngineRouter,
        decoders: Callable[[], Sequence[EngineDriver]],
        push: SendPush,
        restart: Callable[[Attempt], None],
        pump: Callable[[EngineDriver], None],
    ) -> None:
        self.router = router
        self._decoders = decoders
        self._push = push
        self._restart = restart
        self._pump = pump
        self.done = 0
        self._numbers = 0
        self._pending: deque[Transfer] = deque()
        self._moving: dict[int, Transfer] = {}

    @property
    def waiting(self) -> int:
        return len(self._pending)

    @property
    def next_number(self) -> int:
        """The number of the next transfer."""
        return self._numbers + 1

    def uses(self, engine: EngineDriver) -> bool:
        """Whether prompts leave ``engine`` or come to it."""
        transfers = (*self._pending, *self._moving.values())
        return any(engine in (transfer.source, transfer.target) for transfer in transfers)

    def begin(self, attempt: Attempt, source: EngineDriver) -> None:
        """Hand over a prompt that ``source`` has just completed."""
        seq = attempt.seq
        total = len(attempt.live.tokens) + attempt.live.left
        seq.total_tokens = total
        held = rules.hold(source.scheduler, seq)
        transfer = Transfer(attempt, source, held, total)
        if self._pending or not self._try(transfer):
            self._pending.append(transfer)

    def retry(self) -> None:
        """Call when a decode engine may have room again."""
        while self._pending:
            transfer = self._pending[0]
            if not transfer.attempt.cancelled and not self._try(transfer):
                return
            self._pending.popleft()
            if transfer.attempt.cancelled:
                self._release_source(transfer)

    def received(self, message: KVReceived) -> None:
        """A receiver has all its layers, or says why not: then the prompt is computed again."""
        transfer = self._moving.get(message.transfer)
        if transfer is None:
            return
        if message.problem:
            del self._moving[message.transfer]
            self._give_up(transfer)
            self._release_source(transfer)
            self._restart(transfer.attempt)
            return
        transfer.missing.discard(message.worker)
        if transfer.missing:
            return
        del self._moving[message.transfer]
        self.done += 1
        self._release_source(transfer)
        target, attempt = transfer.target, transfer.attempt
        assert target is not None
        attempt.begun = False
        if attempt.cancelled:
            rules.unreserve(target.scheduler, attempt.seq)
            target.forget(attempt.seq.row)
        else:
            target.add(attempt)
        self._pump(target)

    def cancel(self, row: int) -> bool:
        """Note that the client has gone; True if the request is on its way here."""
        for transfer in (*self._pending, *self._moving.values()):
            if transfer.attempt.seq.row == row:
                transfer.attempt.cancelled = True
                return True
        return False

    def recall(self, source: EngineDriver) -> None:
        """Compute again elsewhere what waits to leave ``source``."""
        left = [transfer for transfer in self._pending if transfer.source is source]
        for transfer in left:
            self._pending.remove(transfer)
            self._release_source(transfer)
            if not transfer.attempt.cancelled:
                self._restart(transfer.attempt)

    def lost(self, engine: EngineDriver) -> None:
        """``engine`` is gone with its KV memory."""
        kept: deque[Transfer] = deque()
        orphans: list[Attempt] = []
        for transfer in self._pending:
            if transfer.source is engine:
                orphans.append(transfer.attempt)
            else:
                kept.append(transfer)
        self._pending = kept
        for number, transfer in list(self._moving.items()):
            if transfer.source is engine:
                del self._moving[number]
                self._give_up(transfer)
                orphans.append(transfer.attempt)
            elif transfer.target is engine:
                del self._moving[number]
                transfer.target = None
                self._pending.appendleft(transfer)
        for attempt in orphans:
            if not attempt.cancelled:
                self._restart(attempt)
        self.retry()

    def _try(self, transfer: Transfer) -> bool:
        """Start a transfer; False while no decode engine has room."""
        seq = transfer.attempt.seq
        able = {e.index: e for e in self._decoders() if rules.has_room(e.scheduler, seq)}
        if not able:
            return False
        target = able[self.router.pick(seq, list(able.values())).index]
        transfer.target = target
        rules.reserve(target.scheduler, seq)
        self._numbers += 1
        transfer.number = self._numbers
        transfer.missing = {stage.worker for stage in target.stages}
        self._moving[transfer.number] = transfer
        # Its workers make the room that its scheduler has counted.
        target.flush()
        for stage in transfer.source.stages:
            targets = tuple(part for hop in target.stages if (part := _overlap(stage, hop)))
            self._push(
                stage.worker,
                PushKV(transfer.number, seq.row, seq.row, seq.computed - 1, targets),
            )
        return True

    def _give_up(self, transfer: Transfer) -> None:
        """Let the receiver free what it has reserved and got."""
        target = transfer.target
        if target is not None and target.alive:
            rules.unreserve(target.scheduler, transfer.attempt.seq)
            target.forget(transfer.attempt.seq.row)
            self._pump(target)

    def _release_source(self, transfer: Transfer) -> None:
        source = transfer.source
        if source.alive:
            source.scheduler.blocks.give(transfer.held_blocks)
            source.forget(transfer.attempt.seq.row)
            self._pump(source)


def _overlap(stage: Hop, target: Hop) -> Hop | None:
    """The layers of ``stage`` that ``target`` holds."""
    start = max(stage.start_layer, target.start_layer)
    end = min(stage.end_layer, target.end_layer)
    return Hop(target.worker, start, end) if start < end else None
