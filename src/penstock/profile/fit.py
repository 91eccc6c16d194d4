"""From what probes saw to the points of a step table.

Times of a decode step are gaps between tokens of one sequence while all sequences of the probe
decode, so they hold what the host does between steps. With p pipeline stages a batch of b/p
sequences is in each stage, and a gap is one pass through all of them.
"""

from __future__ import annotations

from collections.abc import Iterable, Sequence
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


def typical_points(points: Iterable[tuple[int, DecodePoint]]) -> list[DecodePoint]:
    """The point of median seconds among those of the same (context asked for, batch)."""
    alike: dict[tuple[int, int], list[DecodePoint]] = {}
    for context, point in points:
        alike.setdefault((point.seqs, context), []).append(point)
    chosen = (sorted(own, key=lambda point: point.seconds) for own in alike.values())
    return [own[(len(own) - 1) // 2] for own in chosen]


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
