"""How the sequences of a last stage draw their tokens, kept from ``Begin`` to ``Free``."""

from __future__ import annotations

from collections.abc import Sequence

import torch

from penstock.serve.model import Draw, sample
from penstock.serve.protocol import SamplingParams
from penstock.serve.wire import Drawn, Sampling
from penstock.serve.worker.executor import WorkerFault


class DrawState:
    """Position and, where penalties need them, the tokens of one sequence."""

    __slots__ = ("output", "params", "position", "sampling")

    def __init__(self, sampling: Sampling) -> None:
        self.sampling = sampling
        self.position = sampling.position
        self.output = list(sampling.output)
        self.params = SamplingParams(
            min_tokens=sampling.min_tokens,
            temperature=sampling.temperature,
            top_p=sampling.top_p,
            top_k=sampling.top_k,
            min_p=sampling.min_p,
            presence_penalty=sampling.presence_penalty,
            frequency_penalty=sampling.frequency_penalty,
            repetition_penalty=sampling.repetition_penalty,
            logprobs=sampling.logprobs,
        )

    def draw(self) -> Draw:
        """What the next token is drawn from."""
        return Draw(
            self.params,
            self.sampling.seed,
            self.position,
            self.sampling.prompt,
            self.output,
            self.sampling.stop,
        )

    def take(self, tokens: Sequence[int]) -> None:
        """Note tokens that were drawn."""
        self.position += len(tokens)
        if self.params.penalised:
            self.output.extend(tokens)


class Drawing:
    """The states of all sequences."""

    def __init__(self) -> None:
        self._states: dict[int, DrawState] = {}

    def begin(self, seq: int, sampling: Sampling) -> None:
        self._states[seq] = DrawState(sampling)

    def free(self, seq: int) -> None:
        self._states.pop(seq, None)

    def state(self, seq: int) -> DrawState:
        """Raises ``WorkerFault`` for a sequence that has not begun."""
        state = self._states.get(seq)
        if state is None:
            raise WorkerFault(f"sequence {seq} has to draw a token before it has begun")
        return state

    def draw(self, seqs: Sequence[int], logits: torch.Tensor) -> tuple[Drawn, ...]:
        """One token for each of ``seqs`` from ``logits`` ``[n, vocab]``."""
        states = [self.state(seq) for seq in seqs]
        found = sample(logits, [state.draw() for state in states])
        drawn = []
        for seq, state, token, logs in zip(seqs, states, found.tokens, found.logprobs, strict=True):
            state.take((token,))
            drawn.append(Drawn(seq, (token,), () if logs is None else ((logs.logprob, logs.top),)))
        return tuple(drawn)
