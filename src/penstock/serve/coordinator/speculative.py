"""One engine with a draft model in real time: steps that yield several tokens a request.

Slots and prompts follow ``policy/speculation/batching.py``, as in the simulator. Who drafts how
much, and what is verified, is decided by the speculator beside the two models (in the worker):
the step only carries what the coordinator knows of each request.
"""

from __future__ import annotations

from math import inf

from penstock.errors import SpecError
from penstock.plan.plan import Engine
from penstock.policy.blocks import blocks_for
from penstock.policy.schedulers.sequence import Sequence as Served
from penstock.policy.speculation.batching import SlotBatch, SlotBatcher, SlotRules
from penstock.serve.coordinator.engine import Attempt, Decision, EngineDriver
from penstock.serve.wire import Decoding, Free, Item, Step, StepDone


def slot_rules(engine: Engine) -> SlotRules:
    """Slots that the KV memory of ``engine`` holds at full length.

    Raises ``SpecError`` where not even one fits.
    """
    settings, scheduler = engine.speculation, engine.scheduler
    assert settings is not None
    assert scheduler is not None
    # Draft tokens of a tree need entries of their own while they are verified.
    per_slot = settings.max_model_len + settings.max_depth * settings.max_width + 1
    blocks = blocks_for(per_slot, scheduler.block_size)
    slots = min(settings.max_num_seqs, engine.num_blocks // blocks)
    if slots < 1:
        raise SpecError(
            "the KV memory does not hold one request of this length",
            key=f"engines.{engine.name}.speculation.max_model_len",
            value=settings.max_model_len,
            fix="lower max_model_len",
        )
    prefill_tokens = scheduler.max_num_batched_tokens or 2048
    return SlotRules(slots, prefill_tokens, prefill_tokens, scheduler.enable_chunked_prefill)


class SpeculativeDriver(EngineDriver):
    """An ``EngineDriver`` whose steps are formed by slots. One step is in flight at a time."""

    def reset(self) -> None:
        super().reset()
        self._batcher = SlotBatcher(slot_rules(self.engine))
        self._computed: dict[int, int] = {}
        self._decoding: list[int] = []
        self._batch: SlotBatch | None = None

    @property
    def outstanding(self) -> int:
        return self._batcher.held + self._batcher.waiting

    @property
    def num_waiting(self) -> int:
        return self._batcher.waiting

    @property
    def kv_use(self) -> float:
        return self._batcher.occupancy

    @property
    def idle(self) -> bool:
        return self._batch is None and not self.attempts

    @property
    def in_flight(self) -> int:
        return int(self._batch is not None)

    def fits(self, seq: Served) -> bool:
        assert self.engine.speculation is not None
        return seq.total_tokens <= self.engine.speculation.max_model_len

    def add(self, attempt: Attempt) -> None:
        row = attempt.seq.row
        attempt.live.place = self.name
        self.attempts[row] = attempt
        self._computed[row] = 0
        self._batcher.add(row, attempt.seq.prompt_tokens)
        if self.standing is not None:
            self.standing.add(attempt.seq)

    def cancel(self, row: int) -> None:
        if self._batch is None:
            self._remove(row)
        else:
            self.attempts[row].cancelled = True

    def _remove(self, row: int) -> None:
        self._batcher.remove(row)
        if row in self._decoding:
            self._decoding.remove(row)
        self._forget(row)

    def _forget(self, row: int) -> None:
        attempt = self.attempts.pop(row)
        del self._computed[row]
        self._commands.append(Free(row))
        if self.standing is not None:
            self.standing.end(attempt.seq)

    def settle(self) -> None:
        if self._batch is None:
            self.flush()

    def step_off(self) -> bool:
        if not self.alive or self._batch is not None:
            return False
        now = self._clock()
        for row in self._batcher.admit():
            live = self.attempts[row].live
            if live.admitted_s != live.admitted_s:
                live.admitted_s = now
        batch = self._batcher.next_batch()
        if batch is None:
            return False
        self._batch = batch
        items = [self._prompt_item(row, tokens) for row, tokens in batch.prefill]
        decoding = list(self._decoding) if batch.decode else []
        items += [self._decode_item(row) for row in decoding]
        if self._trace is not None:
            self._trace.append(Decision(now, self.name, batch.prefill, tuple(decoding)))
        self._number += 1
        view = self._view(decoding, batch, now) if decoding else None
        commands, self._commands = tuple(self._commands), []
        step = Step(self._number, tuple(items), commands, self.stages, 0, view)
        self._send(self.stages[0].worker, step)
        return True

    def _prompt_item(self, row: int, tokens: int) -> Item:
        attempt = self.attempts[row]
        before = self._computed[row]
        draw = before + tokens == attempt.seq.prompt_tokens
        if draw:
            self._begin(attempt)
        fed = tuple(attempt.live.tokens[before : before + tokens])
        return Item(row, before, fed, draw, True)

    def _decode_item(self, row: int) -> Item:
        attempt = self.attempts[row]
        self._begin(attempt)
        tokens = attempt.live.tokens
        return Item(row, len(tokens) - 1, (tokens[-1],), True)

    def _view(self, rows: list[int], batch: SlotBatch, now: float) -> Decoding:
        lives = [self.attempts[row].live for row in rows]
        return Decoding(
            seqs=tuple(rows),
            decode_s=tuple(now - live.first_token_s for live in lives),
            tokens=tuple(live.output_tokens for live in lives),
            tpot=tuple(live.tpot.multiple or live.tpot.seconds(inf) for live in lives),
            relative=tuple(live.tpot.relative for live in lives),
            kind=tuple(live.class_index for live in lives),
            most=tuple(live.left for live in lives),
            prefill_tokens=batch.prefill_tokens,
            occupancy=self._batcher.occupancy,
        )

    def receive(self, done: StepDone) -> None:
        batch = self._batch
        if batch is None or done.number != self._number:
            return
        self._batch = None
        self.batches += 1
        if done.verified is not None:
            self.drafts += done.verified.drafts
            self.draft_tokens += done.verified.draft_tokens
            self.accepted_tokens += done.verified.accepted_tokens
        self.busy_s += done.busy_s
        self.prompt_tokens += batch.prefill_tokens
        for row, tokens in batch.prefill:
            self._computed[row] += tokens
        self._decoding.extend(self._batcher.commit(batch))
        now = self._clock()
        for drawn in done.drawn:
            attempt = self.attempts.get(drawn.seq)
            if attempt is None:
                continue
            self.generation_tokens += len(drawn.tokens)
            if attempt.live.take(drawn, now) and not attempt.cancelled:
                self.ended.append(attempt.live)
                attempt.cancelled = True
        for row in [row for row, attempt in self.attempts.items() if attempt.cancelled]:
            self._remove(row)
