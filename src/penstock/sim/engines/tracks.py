"""The decode steps of one cohort of an engine, from its log, a chunk at a time."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from penstock.cost.steps import StepTimer
from penstock.sim.engines.recorder import EngineLog

Floats = NDArray[np.float64]
Ints = NDArray[np.int64]
Counts = NDArray[np.int32]

CHUNK_STEPS = 1 << 17
_TRACK, _STEPS, _START, _END, _SEQS, _KV = range(6)


@dataclass(frozen=True, slots=True)
class Chunk:
    """Steps of the segments ``low`` to ``high - 1``, ``[n]`` each.

    ``gaps_s`` is the time since the step before (NaN for the first step of all).
    """

    low: int
    high: int
    steps: Ints
    ends_s: Floats
    gaps_s: Floats

    def counts(self, staying: Counts, going_on: Counts) -> Ints:
        """Requests by step: ``staying`` ``[s]`` in a segment, ``going_on`` ``[s]`` into it."""
        count = np.repeat(staying[self.low : self.high].astype(np.int64), self.steps)
        count[np.cumsum(self.steps) - self.steps] = going_on[self.low : self.high]
        return count


class Track:
    """Decode segments of one cohort and the stays of requests in it.

    A stay begins and ends with a segment: within one nobody joins or leaves. ``rows``,
    ``first_step`` and ``end_step`` ``[n]`` are the stays.
    """

    def __init__(self, log: NDArray[np.float64], stays: Ints, timer: StepTimer) -> None:
        self._log = log
        self._timer = timer
        self._steps = log[:, _STEPS].astype(np.int64)
        at = np.cumsum(self._steps) - self._steps
        self.rows, self.first_step, self.end_step = stays[:, 0], stays[:, 2], stays[:, 3]
        self._first_segment = np.searchsorted(at, self.first_step)
        self._end_segment = np.searchsorted(at, self.end_step)
        self._first_end_s = np.full(len(at), np.nan)
        self._at = at

    @property
    def last_s(self) -> float:
        return float(self._log[-1, _END]) if len(self._log) else 0.0

    def followers(self, members: NDArray[np.bool_] | None = None) -> tuple[Counts, Counts]:
        """(requests in each segment, those of them that were in the one before).

        ``members`` ``[n]``: the stays that count; None = all.
        """
        first, end = self._first_segment, self._end_segment
        if members is not None:
            first, end = first[members], end[members]
        size = len(self._steps) + 1
        joined = np.bincount(first, minlength=size)
        staying = np.cumsum(joined - np.bincount(end, minlength=size))
        return staying[:-1].astype(np.int32), (staying - joined)[:-1].astype(np.int32)

    def chunks(self) -> Iterator[Chunk]:
        """All steps in order; a whole pass also notes when each segment's first step ends."""
        low, before = 0, np.nan
        while low < len(self._steps):
            limit = self._at[low] + CHUNK_STEPS
            high = max(low + 1, int(np.searchsorted(self._at, limit, side="right")) - 1)
            high = min(high, len(self._steps))
            steps = self._steps[low:high]
            ends = self._ends(low, high)
            self._first_end_s[low:high] = ends[np.cumsum(steps) - steps]
            yield Chunk(low, high, steps, ends, np.diff(ends, prepend=before))
            low, before = high, float(ends[-1])

    def pieces(self) -> tuple[Ints, Floats, Floats]:
        """(row, end of its first step, end of its last) of every stay, after a pass of chunks."""
        last = self._log[self._end_segment - 1, _END] if len(self._log) else np.zeros(0)
        return self.rows, self._first_end_s[self._first_segment], last

    def slowest_s(self) -> Floats:
        """``[n]`` the longest gap inside each stay; 0 for a single step."""
        inside, joint = np.zeros(len(self._steps)), np.zeros(len(self._steps))
        for chunk in self.chunks():
            first = np.cumsum(chunk.steps) - chunk.steps
            gaps = np.nan_to_num(chunk.gaps_s)
            joint[chunk.low : chunk.high] = gaps[first]
            gaps[first] = 0.0
            inside[chunk.low : chunk.high] = np.maximum.reduceat(gaps, first)
        slowest = inside[self._first_segment]
        whole = np.append(np.maximum(inside, joint), 0.0)
        several = np.flatnonzero(self._end_segment > self._first_segment + 1)
        bounds = np.stack([self._first_segment[several] + 1, self._end_segment[several]], axis=1)
        if len(several):
            longest = np.maximum.reduceat(whole, bounds.ravel())[::2]
            slowest[several] = np.maximum(slowest[several], longest)
        return slowest

    def _ends(self, low: int, high: int) -> Floats:
        """The ends of all steps of the segments ``low`` to ``high - 1``."""
        log, steps = self._log[low:high], self._steps[low:high]
        ends = np.repeat(log[:, _END], steps)
        offsets = np.cumsum(steps) - steps
        spans = np.flatnonzero(steps > 1)
        times_s = self._timer.decode_span_times_s
        for many, offset, row in zip(
            steps[spans].tolist(), offsets[spans].tolist(), log[spans].tolist(), strict=True
        ):
            times = times_s(int(row[_SEQS]), int(row[_KV]), many)
            # The last step ends where the segment does, whatever rounding says.
            ends[offset : offset + many - 1] = row[_START] + times[:-1]
        return ends


def tracks_of(log: EngineLog, timer: StepTimer) -> Iterator[Track]:
    """The cohorts of one engine, one after another."""
    table = log.segment_table()
    decodes = table[:, _SEQS] > 0
    stays = log.stay_table()
    for number in np.unique(table[decodes, _TRACK]).tolist():
        mine = decodes & (table[:, _TRACK] == number)
        # Segments of one track are in order of time already.
        own = stays[:, 1] == number
        yield Track(table if mine.all() else table[mine], stays if own.all() else stays[own], timer)
