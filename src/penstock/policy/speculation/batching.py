"""Slots and prompts of an engine whose decodes yield several tokens a step.

First come, first served admission into a fixed number of slots. Prompts share the steps of the
decodes in chunks (AdaServe, Sarathi), or go first, whole and alone (vLLM without chunks).
"""

from __future__ import annotations

from collections import deque
from dataclasses import dataclass

from penstock.errors import SpecError


@dataclass(frozen=True, slots=True)
class SlotRules:
    """``prefill_tokens`` prompt tokens a step at most; ``batch_tokens`` limits them together
    with the decoding requests (None = not limited). ``chunked``: prompts share steps."""

    slots: int
    prefill_tokens: int
    batch_tokens: int | None = None
    chunked: bool = True

    def __post_init__(self) -> None:
        if self.slots < 1 or self.prefill_tokens < 1:
            raise SpecError("slots and prefill_tokens must be at least 1", key="slots")


@dataclass(frozen=True, slots=True)
class SlotBatch:
    """``prefill`` holds (row, tokens); ``decode`` says whether the decodes run in this step."""

    prefill: tuple[tuple[int, int], ...]
    decode: bool

    @property
    def prefill_tokens(self) -> int:
        return sum(tokens for _, tokens in self.prefill)


class SlotBatcher:
    """Forms the steps. Rows are the driver's names of requests.

    ``held`` slots are taken, ``decoding`` of them by decodes.
    """

    def __init__(self, rules: SlotRules) -> None:
        self._rules = rules
        self._waiting: deque[tuple[int, int]] = deque()
        self._prompts: deque[list[int]] = deque()
        self.held = 0
        self.decoding = 0

    def add(self, row: int, prompt_tokens: int) -> None:
        self._waiting.append((row, prompt_tokens))

    @property
    def waiting(self) -> int:
        return len(self._waiting)

    def admit(self) -> list[int]:
        """Give free slots to those who wait longest; return their rows."""
        admitted = []
        while self._waiting and self.held < self._rules.slots:
            row, tokens = self._waiting.popleft()
            self._prompts.append([row, tokens])
            self.held += 1
            admitted.append(row)
        return admitted

    @property
    def occupancy(self) -> float:
        """Share of the slots that are taken."""
        return self.held / self._rules.slots

    def next_batch(self) -> SlotBatch | None:
        """The next step, or None when there is nothing to run."""
        rules = self._rules
        room = rules.prefill_tokens
        if rules.batch_tokens is not None and rules.chunked:
            room = min(room, rules.batch_tokens - self.decoding)
        prefill = []
        for row, left in self._prompts:
            tokens = left if left <= room or rules.chunked else 0
            tokens = min(tokens, room)
            if tokens <= 0:
                break
            prefill.append((row, tokens))
            room -= tokens
        if not rules.chunked and not prefill and self._prompts:
            # A prompt longer than a step's tokens runs alone: it cannot be split.
            prefill = [(self._prompts[0][0], self._prompts[0][1])]
        decode = self.decoding > 0 and (rules.chunked or not prefill)
        if not prefill and not decode:
            return None
        return SlotBatch(tuple(prefill), decode)

    def commit(self, batch: SlotBatch) -> list[int]:
        """Book the prompts of a step; return the rows whose prompt is complete."""
        done = []
        for row, tokens in batch.prefill:
            head = self._prompts[0]
            assert head[0] == row, "prompts run in order of admission"
            head[1] -= tokens
            if head[1] == 0:
                self._prompts.popleft()
                self.decoding += 1
                done.append(row)
        return done

    def finish(self, requests: int) -> None:
        """Free the slots of ``requests`` decodes that ended."""
        self.decoding -= requests
        self.held -= requests

    def remove(self, row: int) -> None:
        """Take out a request that waits, whose prompt is unfinished, or that decodes (cancelled).

        It must not be part of a step that has not been committed.
        """
        waiting = [entry for entry in self._waiting if entry[0] != row]
        if len(waiting) < len(self._waiting):
            self._waiting = deque(waiting)
            return
        prompts = [entry for entry in self._prompts if entry[0] != row]
        if len(prompts) < len(self._prompts):
            self._prompts = deque(prompts)
            self.held -= 1
            return
        self.finish(1)
