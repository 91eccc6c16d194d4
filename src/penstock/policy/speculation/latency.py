"""Seconds of a speculative step: draft passes and one verification, from a table."""

from __future__ import annotations

from bisect import bisect_right
from dataclasses import dataclass

from penstock.errors import SpecError


@dataclass(frozen=True, slots=True)
class LatencyTable:
    """Tokens in one target step -> seconds; linear between points and past the last one."""

    tokens: tuple[float, ...]
    seconds: tuple[float, ...]

    def __post_init__(self) -> None:
        if len(self.tokens) != len(self.seconds) or len(self.tokens) < 2:
            raise SpecError(
                "a latency table needs two or more points (tokens, seconds)", key="table"
            )
        if any(b <= a for a, b in zip(self.tokens, self.tokens[1:], strict=False)):
            raise SpecError("the tokens of a latency table must ascend", key="table")
        if any(b < a for a, b in zip(self.seconds, self.seconds[1:], strict=False)):
            raise SpecError("the seconds of a latency table must not fall", key="table")
        if self.seconds[0] < 0:
            raise SpecError("the seconds of a latency table must not be negative", key="table")

    def _segment(self, tokens: float) -> int:
        return min(max(bisect_right(self.tokens, tokens) - 1, 0), len(self.tokens) - 2)

    def marginal_s(self, tokens: float) -> float:
        """Seconds that one more token costs at ``tokens``."""
        i = self._segment(tokens)
        return (self.seconds[i + 1] - self.seconds[i]) / (self.tokens[i + 1] - self.tokens[i])

    def at(self, tokens: float) -> float:
        i = self._segment(tokens)
        value = self.seconds[i] + self.marginal_s(tokens) * (tokens - self.tokens[i])
        return max(value, self.seconds[0])

    def tokens_within(self, limit_s: float) -> float:
        """The most tokens whose step takes at most ``limit_s``; 0 where none does."""
        if limit_s < self.seconds[0]:
            return 0.0
        i = min(bisect_right(self.seconds, limit_s) - 1, len(self.tokens) - 2)
        slope = self.marginal_s(self.tokens[i])
        if slope <= 0:
            return self.tokens[i + 1]
        return self.tokens[i] + (limit_s - self.seconds[i]) / slope


@dataclass(frozen=True, slots=True)
class StepLatency:
    """``draft_pass_s`` a draft pass, ``verify`` a target step, ``overhead_s`` the host.

    ``draft`` gives a pass by its rows (nodes of all requests) where it was measured so.
    """

    draft_pass_s: float
    verify: LatencyTable
    overhead_s: float = 0.0
    draft: LatencyTable | None = None

    def pass_s(self, rows: int) -> float:
        return self.draft_pass_s if self.draft is None else self.draft.at(rows)

    def draft_s(self, passes: int) -> float:
        return passes * self.draft_pass_s

    def target_s(self, tokens: float) -> float:
        return self.verify.at(tokens) + self.overhead_s
