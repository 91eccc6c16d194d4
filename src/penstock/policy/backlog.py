"""What an engine has to do for its requests, kept up request by request and step by step."""

from __future__ import annotations

from collections.abc import Iterable
from typing import NamedTuple

from penstock.policy.schedulers.sequence import Batch, Sequence


class Load(NamedTuple):
    """What is left of an engine's work besides its ``batches`` under way.

    ``prompts`` have ``prompt_tokens`` in all that are in no batch yet, ``decode_tokens`` follow
    them. ``requests`` counts those in batches too; ``ending`` of them are over with these.
    """

    requests: int
    prompts: int
    prompt_tokens: int
    decode_tokens: int
    context_tokens: float
    batches: int = 0
    ending: int = 0


class Backlog:
    """What an engine still has to do, kept up by its driver.

    ``prompt_tokens`` of ``prompts`` prompts that are not complete, ``decode_tokens`` after them,
    ``requests`` in all; ``context_tokens`` they will hold on the average of their lives.
    """

    def __init__(self) -> None:
        self.requests = 0
        self.prompt_tokens = 0
        self.decode_tokens = 0
        self._left: dict[int, int] = {}
        self._twice: dict[int, int] = {}
        self._twice_held = 0

    @property
    def prompts(self) -> int:
        return len(self._left)

    @property
    def context_tokens(self) -> float:
        return self._twice_held / 2

    def load(self, under_way: Iterable[Batch] = ()) -> Load:
        """What is left when all batches ``under_way`` have entered the first stage."""
        prompts, prompt_tokens = len(self._left), self.prompt_tokens
        decode_tokens = self.decode_tokens
        batches = ending = 0
        for batch in under_way:
            batches += 1
            decode_tokens -= batch.seqs
            ending += len(batch.ending)
            for (seq, tokens), (_, before) in zip(batch.prefill, batch.chunks, strict=True):
                left = self._left.get(seq.row)
                if left is None:
                    continue
                if before + tokens < seq.prompt_tokens:
                    prompt_tokens -= tokens
                    continue
                prompts -= 1
                prompt_tokens -= left
        return Load(
            self.requests,
            prompts,
            max(0, prompt_tokens),
            max(0, decode_tokens),
            self.context_tokens,
            batches,
            ending,
        )

    def add(self, seq: Sequence) -> None:
        """A request has come, with its prompt to compute."""
        self.requests += 1
        self._left[seq.row] = seq.prompt_tokens
        self.prompt_tokens += seq.prompt_tokens
        self.decode_tokens += seq.total_tokens - seq.prompt_tokens - 1
        self._twice[seq.row] = held = seq.prompt_tokens + seq.total_tokens
        self._twice_held += held

    def computed(self, prefill: Iterable[tuple[Sequence, int]], decoded: int) -> None:
        """A batch has ended: chunks of prompts, and ``decoded`` tokens beside them."""
        self.decode_tokens -= decoded
        for seq, tokens in prefill:
            if seq.row in self._left:
                self._left[seq.row] -= tokens
                self.prompt_tokens -= tokens

    def first(self, seq: Sequence) -> None:
        """A prompt is complete; what the prefix cache had of it was not computed."""
        self.prompt_tokens -= self._left.pop(seq.row, 0)

    def preempted(self, seq: Sequence) -> None:
        """A request has to compute all its tokens so far again."""
        if seq.row not in self._left:
            self.decode_tokens -= 1
        self.prompt_tokens += seq.prompt_tokens - self._left.get(seq.row, 0)
        self._left[seq.row] = seq.prompt_tokens

    def end(self, seq: Sequence, undone_tokens: int = 0) -> None:
        """A request has ended, or goes elsewhere with ``undone_tokens`` decodes left."""
        self.requests -= 1
        self.prompt_tokens -= self._left.pop(seq.row, 0)
        self.decode_tokens -= undone_tokens
        self._twice_held -= self._twice.pop(seq.row)
