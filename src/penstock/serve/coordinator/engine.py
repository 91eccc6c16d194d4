"""One whole engine in real time: its scheduler forms steps, its workers run them."""

from __future__ import annotations

from collections import deque
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from typing import NamedTuple, Protocol

from penstock.cost.steps import StepTimer
from penstock.plan.plan import Engine
from penstock.policy.fleet import EngineView, engine_scheduler
from penstock.policy.schedulers.base import Scheduler
from penstock.policy.schedulers.sequence import Batch
from penstock.policy.schedulers.sequence import Sequence as Served
from penstock.serve.coordinator.live import Live
from penstock.serve.coordinator.standing import Standing
from penstock.serve.protocol import EngineStatus
from penstock.serve.wire import (
    Begin,
    Command,
    Evict,
    Free,
    Hop,
    Item,
    Share,
    Step,
    StepDone,
    Store,
)

Send = Callable[[str, Step], None]


@dataclass(slots=True)
class Attempt:
    """A request on an engine. ``begun``: the workers know how to draw its tokens."""

    live: Live
    seq: Served
    begun: bool = False
    cancelled: bool = False


class TurnTaking(Protocol):
    """Engines on the same nodes, whose steps go in turn (``serve/many/turns.py``)."""

    def pump(self) -> None:
        """Send off as many of their steps as the nodes take."""
        ...


class Flight(NamedTuple):
    """A step on its way through the stages."""

    number: int
    batch: Batch
    sent_s: float


@dataclass(frozen=True, slots=True)
class Decision:
    """A batch as it was formed: (row, tokens) of prompts, rows of decodes."""

    at_s: float
    engine: str
    prefill: tuple[tuple[int, int], ...]
    decode: tuple[int, ...]


class EngineDriver(EngineView):
    """Steps of one engine. ``handed`` collects prompts that are complete here, for another engine.

    ``timers`` (one per stage) say how long null executors take; empty with real ones.
    ``trace`` collects every batch where it is a list.
    """

    scheduler: Scheduler

    def __init__(
        self,
        index: int,
        engine: Engine,
        weight: float,
        *,
        model: str,
        stages: tuple[Hop, ...],
        send: Send,
        clock: Callable[[], float],
        timers: Sequence[StepTimer] = (),
        time_scale: float = 1.0,
        trace: list[Decision] | None = None,
    ) -> None:
        super().__init__(index, engine_scheduler(engine), weight)
        self.engine = engine
        self.model = model
        self.stages = stages
        self.alive = False
        self.draining = False
        self.first_free_s = 0.0
        self.turns: TurnTaking | None = None
        self.standing: Standing | None = None
        self.attempts: dict[int, Attempt] = {}
        self.handed: list[Attempt] = []
        self.ended: list[Live] = []
        self.busy_s = 0.0
        self.batches = 0
        self.prompt_tokens = 0
        self.generation_tokens = 0
        self.preemptions = 0
        self.drafts = self.draft_tokens = self.accepted_tokens = 0
        self._send = send
        self._clock = clock
        self._timers = timers
        self._scale = time_scale
        self._trace = trace
        self._flight: deque[Flight] = deque()
        self._commands: list[Command] = []
        self._pieces: set[int] = set()
        self._number = 0
        self._started_s = clock()
        self.reset()

    @property
    def name(self) -> str:
        return self.engine.name

    @property
    def accepting(self) -> bool:
        return self.alive and not self.draining

    @property
    def idle(self) -> bool:
        return not self._flight and not self.attempts

    @property
    def in_flight(self) -> int:
        """Steps on their way."""
        return len(self._flight)

    @property
    def under_way(self) -> Iterator[Batch]:
        return (flight.batch for flight in self._flight)

    def fits(self, seq: Served) -> bool:
        """Whether the empty engine could serve ``seq``."""
        return self.scheduler.fits(seq)

    def reset(self) -> None:
        """Begin with empty KV memory: the workers are new, or have been told to free all."""
        self.scheduler = engine_scheduler(self.engine)
        if self.scheduler.settings.enable_prefix_caching:
            self.scheduler.blocks.changes = []
        self._flight.clear()
        self._commands.clear()
        self._pieces.clear()
        if self.standing is not None:
            self.standing.clear(attempt.seq for attempt in self.attempts.values())
        self.attempts.clear()
        self.handed.clear()

    def empty(self) -> None:
        """Let the workers free what they still keep, and begin anew."""
        self._commands += [Evict(piece) for piece in sorted(self._pieces)]
        self.flush()
        self.reset()

    # -- requests -----------------------------------------------------------------------------

    def add(self, attempt: Attempt) -> None:
        """Take a request in; ``pump`` afterwards."""
        attempt.live.place = self.name
        self.attempts[attempt.seq.row] = attempt
        self.scheduler.add(attempt.seq)
        if self.standing is not None:
            self.standing.add(attempt.seq)

    def cancel(self, row: int) -> None:
        """Free what a request holds, at once or when the step it is in has ended."""
        attempt = self.attempts[row]
        if self.scheduler.remove(attempt.seq):
            self.forget(row)
        else:
            attempt.cancelled = True

    def forget(self, row: int) -> None:
        """Let the workers free the pages of a sequence that the scheduler has released."""
        attempt = self.attempts.pop(row, None)
        self._commands.append(Free(row))
        if attempt is not None and self.standing is not None:
            self.standing.end(attempt.seq)

    # -- steps --------------------------------------------------------------------------------

    def pump(self) -> None:
        """Send off as many steps as the pipeline takes, in turn with engines of other models."""
        if self.turns is not None:
            self.turns.pump()
            return
        while self.step_off():
            pass
        self.settle()

    def step_off(self) -> bool:
        """Send off one step, if there is one and the pipeline takes it."""
        if not self.alive or len(self._flight) >= len(self.stages):
            return False
        batch = self.scheduler.next_batch()
        if self.scheduler.preempted:
            self._preempted()
        self._note_pieces({})
        if batch is None:
            return False
        self._dispatch(batch)
        return True

    def settle(self) -> None:
        """No further step goes now: tell the workers what would wait for it."""
        self.scheduler.stays.clear()
        if not self._flight:
            self.flush()

    def flush(self) -> None:
        """Tell the workers what else would wait for the next step."""
        if self.alive and self._commands:
            self._post((), ())

    def _preempted(self) -> None:
        for seq in self.scheduler.preempted:
            if self.standing is not None:
                self.standing.backlog.preempted(seq)
            attempt = self.attempts[seq.row]
            attempt.begun = False
            attempt.live.preemptions += 1
            self.preemptions += 1
            self._commands.append(Free(seq.row))
        self.scheduler.preempted.clear()

    def _dispatch(self, batch: Batch) -> None:
        now = self._clock()
        items: list[Item] = []
        for seq in batch.admitted:
            self._admitted(self.attempts[seq.row], now)
        for seq in batch.cohort:
            n = batch.cohort.computed(seq)
            attempt = self.attempts[seq.row]
            self._begin(attempt)
            items.append(Item(seq.row, n - 1, (attempt.live.tokens[n - 1],), True))
        for (seq, tokens), (_, before) in zip(batch.prefill, batch.chunks, strict=True):
            attempt = self.attempts[seq.row]
            draw = before + tokens == seq.prompt_tokens
            if draw:
                self._begin(attempt)
            fed = tuple(attempt.live.tokens[before : before + tokens])
            items.append(Item(seq.row, before, fed, draw, True))
        self._number += 1
        self._flight.append(Flight(self._number, batch, now))
        if self.standing is not None:
            self.first_free_s = now + self._scale * self.standing.first_stage_s(batch)
            if len(self.stages) > 1:
                self.standing.sent(batch)
        if self._trace is not None:
            self._trace.append(_decision(now, self.name, batch))
        self._post(tuple(items), self._null_s(batch))

    def _admitted(self, attempt: Attempt, now: float) -> None:
        live, seq = attempt.live, attempt.seq
        if live.admitted_s != live.admitted_s:
            live.admitted_s = now
            live.cached_tokens = seq.computed
        if seq.shared:
            self._commands.append(Share(seq.row, seq.shared))

    def _begin(self, attempt: Attempt) -> None:
        if not attempt.begun:
            attempt.begun = True
            self._commands.append(Begin(attempt.seq.row, attempt.live.sampling()))

    def _null_s(self, batch: Batch) -> tuple[float, ...]:
        seqs, kv_tokens = batch.seqs, batch.kv_tokens
        return tuple(
            self._scale
            * (
                timer.step_s(batch.chunks, seqs, kv_tokens)
                if batch.chunks
                else timer.decode_s(seqs, kv_tokens)
            )
            for timer in self._timers
        )

    def _post(self, items: tuple[Item, ...], null_s: tuple[float, ...]) -> None:
        commands = tuple(self._commands)
        self._commands.clear()
        number = self._number if items else 0
        step = Step(number, items, commands, self.stages, 0, None, null_s)
        self._send(self.stages[0].worker, step)

    # -- what comes back ----------------------------------------------------------------------

    def receive(self, done: StepDone) -> None:
        """Book a step; ended requests are in ``ended``, complete prompts of others in ``handed``.

        A step of an earlier life of the engine is ignored.
        """
        if not self._flight or done.number != self._flight[0].number:
            return
        batch = self._flight.popleft().batch
        self.batches += 1
        self.busy_s += done.busy_s
        self.prompt_tokens += sum(tokens for tokens, _ in batch.chunks)
        owners = self._owners(batch)
        prompts, finished = self.scheduler.commit(batch)
        self._note_pieces(owners)
        released = [seq.row for seq in finished]
        now = self._clock()
        if self.standing is not None:
            self.standing.ran(batch, prompts, finished, now)
        for drawn in done.drawn:
            attempt = self.attempts.get(drawn.seq)
            if attempt is None:
                continue
            self.generation_tokens += len(drawn.tokens)
            if attempt.live.take(drawn, now) and not attempt.cancelled:
                self.ended.append(attempt.live)
                attempt.cancelled = True
        for row in released:
            attempt = self.attempts[row]
            if attempt.cancelled:
                self.forget(row)
            else:
                # Its prompt is complete, and that was all this engine does for it.
                del self.attempts[row]
                self.handed.append(attempt)
        for row in [row for row, attempt in self.attempts.items() if attempt.cancelled]:
            if self.scheduler.remove(self.attempts[row].seq):
                self.forget(row)

    def _owners(self, batch: Batch) -> dict[int, tuple[int, int]]:
        """Prompt pieces that this step completes: their sequence and place in it."""
        size = self.scheduler.blocks.piece_tokens
        owners: dict[int, tuple[int, int]] = {}
        for (seq, tokens), (_, before) in zip(batch.prefill, batch.chunks, strict=True):
            last = min((before + tokens) // size, len(seq.hashes))
            for index in range(before // size, last):
                owners.setdefault(seq.hashes[index], (seq.row, index))
        return owners

    def _note_pieces(self, owners: dict[int, tuple[int, int]]) -> None:
        """Tell the workers which prompt pieces came into the cache and which were evicted."""
        changes = self.scheduler.blocks.changes
        if changes:
            for what, piece in changes:
                if what == "evict":
                    self._pieces.remove(piece)
                    self._commands.append(Evict(piece))
                else:
                    self._pieces.add(piece)
                    self._commands.append(Store(*owners[piece], piece))
            changes.clear()

    # -- for reports --------------------------------------------------------------------------

    def status(self) -> EngineStatus:
        span_s = max(self._clock() - self._started_s, 1e-9)
        return EngineStatus(
            name=self.name,
            role=self.engine.role,
            model=self.model,
            nodes=tuple(stage.node for stage in self.engine.stages),
            start_layer=self.engine.start_layer,
            end_layer=self.engine.end_layer,
            alive=self.alive,
            draining=self.draining,
            running=self.outstanding - self.num_waiting,
            waiting=self.num_waiting,
            kv_use=self.kv_use,
            prompt_tokens=self.prompt_tokens,
            generation_tokens=self.generation_tokens,
            preemptions=self.preemptions,
            busy_share=min(1.0, self.busy_s / span_s),
        )


def _decision(now: float, engine: str, batch: Batch) -> Decision:
    prefill = tuple((seq.row, tokens) for seq, tokens in batch.prefill)
    return Decision(now, engine, prefill, tuple(seq.row for seq in batch.cohort))
