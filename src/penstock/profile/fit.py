"""From what probes saw to the points of a step table.

Times of a decode step are gaps between tokens of one sequence while all sequences of the probe
decode, so they hold what the host does between steps. With p pipeline stages a batch of b/p
sequences is in each stage, and a gap is one pass through all of them.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np

from penstock.cost.step_table import DecodePoint, PrefillPoint, TableTimer, decode_lines
from penstock.errors import InputError

_TRIM = 0.1
_SETTLE = 2


@dataclass(frozen=True, slots=True)
class Row:
    """One request: prompt tokens, when its first step began, and its token times (seconds)."""

    prompt_tokens: int
    begun_s: float
    times_s: Sequence[float]


@dataclass(frozen=True, slots=True)
class Line:
    """``fixed + slope * x``; ``error`` is the median of the relative residuals."""

    fixed: float
    slope: float
    error: float = 0.0

    def at(self, x: float) -> float:
        return self.fixed + self.slope * x


def decode_point(rows: Sequence[Row], stages: int = 1) -> DecodePoint | None:
    """The mean step while all ``rows`` decode; None where they hardly do together."""
    start = max(row.times_s[0] for row in rows)
    end = min(row.times_s[-1] for row in rows)
    gaps: list[float] = []
    lengths = []
    for row in rows:
        times = np.asarray(row.times_s)
        inside = np.flatnonzero((times >= start) & (times <= end))[_SETTLE:]
        if len(inside) < 4:
            return None
        gaps += np.diff(times[inside]).tolist()
        lengths.append(row.prompt_tokens + float(inside[1:].mean()))
    seconds = trimmed_mean(gaps)
    if seconds <= 0:
        return None
    seqs = max(1, round(len(rows) / stages))
    return DecodePoint(
        seqs=seqs, context_tokens=round(sum(lengths) * seqs / len(rows)), seconds=seconds
    )


def prefill_points(
    first_s: Sequence[tuple[int, float]], chunk_tokens: int
) -> tuple[PrefillPoint, ...]:
    """Points of (prompt tokens, seconds until the first token) pairs.

    Equal sizes give one point, their median. A prompt of n whole chunks tells the time of its last
    chunk, which attends to those before it.
    """
    sizes: dict[int, list[float]] = {}
    for tokens, seconds in first_s:
        sizes.setdefault(tokens, []).append(seconds)
    medians = {tokens: float(np.median(own)) for tokens, own in sorted(sizes.items())}
    points = []
    for tokens, seconds in medians.items():
        if tokens <= chunk_tokens:
            points.append(PrefillPoint(tokens=tokens, seconds=max(seconds, 1e-6)))
            continue
        before = medians.get(tokens - chunk_tokens)
        if before is not None and seconds > before:
            cached = tokens - chunk_tokens
            points.append(
                PrefillPoint(tokens=chunk_tokens, cached_tokens=cached, seconds=seconds - before)
            )
    return tuple(points)


def mixed_saves_s(rows: Sequence[Row], timer: TableTimer, chunk_tokens: int) -> float | None:
    """What a step of prompts and decodes saves against a step of each; the median of all seen.

    Rows whose first tokens come together had their prompts in one step. None where no such step
    is among ``rows``.
    """
    ends_s = np.unique(np.concatenate([np.asarray(row.times_s) for row in rows] or [np.zeros(0)]))
    prompts: dict[float, list[Row]] = {}
    for row in rows:
        prompts.setdefault(row.times_s[0], []).append(row)
    saved = []
    for end_s, own in prompts.items():
        begun_s = min(row.begun_s for row in own)
        if np.searchsorted(ends_s, end_s) > np.searchsorted(ends_s, begun_s, side="right"):
            # Another step has ended since: the prompt took more than one.
            continue
        tokens = sum(row.prompt_tokens for row in own)
        contexts = [
            row.prompt_tokens + int(np.searchsorted(np.asarray(row.times_s), end_s))
            for row in rows
            if row.times_s[0] <= begun_s and end_s <= row.times_s[-1]
        ]
        if contexts and tokens + len(contexts) <= chunk_tokens:
            prompt_s = timer.step_s([(tokens, 0)], 0, 0)
            decode_s = timer.decode_s(len(contexts), sum(contexts))
            saved.append(prompt_s + decode_s - (end_s - begun_s))
    return max(0.0, float(np.median(saved))) if saved else None


def line(points: Sequence[tuple[float, float]]) -> Line:
    """The robust line through (x, y): Theil-Sen slope (median of all pairs), not below 0."""
    x = np.array([point[0] for point in points])
    y = np.array([point[1] for point in points])
    first, second = np.triu_indices(len(x), 1)
    apart = x[first] != x[second]
    first, second = first[apart], second[apart]
    slope = float(np.median((y[second] - y[first]) / (x[second] - x[first]))) if len(first) else 0.0
    slope = max(0.0, slope)
    fixed = max(0.0, float(np.median(y - slope * x)))
    guess = fixed + slope * x
    return Line(fixed, slope, float(np.median(np.abs(guess - y) / np.maximum(y, 1e-9))))


def trimmed_mean(values: Sequence[float]) -> float:
    """Mean without the tenth at either end: a pause of the machine is no step."""
    ordered = np.sort(np.asarray(values, dtype=np.float64))
    cut = int(len(ordered) * _TRIM)
    return float(ordered[cut : len(ordered) - cut].mean())


def decode_error(points: Sequence[DecodePoint]) -> tuple[float, float]:
    """(median, largest) relative residual of the decode lines at the points themselves."""
    if not points:
        raise InputError("no batch decoded together for long enough; profile an idle machine")
    timer = TableTimer(decode_lines(points), [(1, 1.0)], 0.0, 1)
    off = [abs(timer.decode_s(p.seqs, p.context_tokens) / p.seconds - 1) for p in points]
    return float(np.median(off)), max(off)
