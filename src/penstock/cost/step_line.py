"""Decode steps whose seconds are a line over the context, and closed forms of their spans."""

from __future__ import annotations

from abc import ABC, abstractmethod
from dataclasses import dataclass
from math import ceil, sqrt

import numpy as np
from numpy.typing import NDArray


@dataclass(frozen=True, slots=True)
class StepLine:
    """A decode step of ``seqs`` sequences takes ``fixed_s + context_s * context`` seconds.

    Every step adds one token per sequence, so k steps sum to an arithmetic series.
    """

    seqs: int
    fixed_s: float
    context_s: float

    def at(self, context_tokens: float) -> float:
        return self.fixed_s + self.context_s * context_tokens

    def span_s(self, context_tokens: int, steps: int) -> float:
        """Seconds of ``steps`` steps, the first over ``context_tokens``."""
        first = self.fixed_s + self.context_s * context_tokens
        return steps * (first + 0.5 * self.context_s * self.seqs * (steps - 1))

    def span_times_s(self, context_tokens: int, steps: int) -> NDArray[np.float64]:
        """``[steps]`` ends of the steps, in seconds from the start of the first."""
        k = np.arange(1, steps + 1, dtype=np.float64)
        context = k * context_tokens + self.seqs * (k * (k - 1) / 2)
        return np.asarray(k * self.fixed_s + self.context_s * context, dtype=np.float64)

    def steps_within(self, context_tokens: int, seconds: float, most: int) -> int:
        """Least k <= ``most`` whose span reaches ``seconds``; ``most`` if none does."""
        if seconds <= 0:
            return 0
        first = self.fixed_s + self.context_s * context_tokens
        half = 0.5 * self.context_s * self.seqs
        if most <= 0 or most * (first + half * (most - 1)) < seconds:
            return most
        # Root of half k^2 + (first - half) k = seconds, in the form that does not cancel when the
        # slope vanishes; then settle rounding.
        linear = first - half
        k = ceil(2 * seconds / (linear + sqrt(linear * linear + 4 * half * seconds)))
        k = min(most, max(1, k))
        while k > 1 and (k - 1) * (first + half * (k - 2)) >= seconds:
            k -= 1
        while k < most and k * (first + half * (k - 1)) < seconds:
            k += 1
        return k


class LineTimer(ABC):
    """The decode half of a ``StepTimer`` whose batch sizes each have a line, made once."""

    def __init__(self) -> None:
        self._lines: dict[int, StepLine] = {}

    @abstractmethod
    def _new_line(self, seqs: int) -> StepLine: ...

    def _line(self, seqs: int) -> StepLine:
        found = self._lines.get(seqs)
        if found is None:
            found = self._lines[seqs] = self._new_line(seqs)
        return found

    def decode_s(self, seqs: int, context_tokens: int) -> float:
        # Looked up here as well: a call less in the simulator's innermost loop.
        return (self._lines.get(seqs) or self._line(seqs)).at(context_tokens)

    def decode_span_s(self, seqs: int, context_tokens: int, steps: int) -> float:
        return (self._lines.get(seqs) or self._line(seqs)).span_s(context_tokens, steps)

    def decode_span_times_s(
        self, seqs: int, context_tokens: int, steps: int
    ) -> NDArray[np.float64]:
        return self._line(seqs).span_times_s(context_tokens, steps)

    def steps_within(self, seqs: int, context_tokens: int, seconds: float, most: int) -> int:
        return self._line(seqs).steps_within(context_tokens, seconds, most)
