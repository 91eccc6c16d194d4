"""When the iterations of requests completed, and the gaps between them."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

Floats = NDArray[np.float64]
Ints = NDArray[np.int64]
Mask = NDArray[np.bool_]

BLOCK_TOKENS = 1 << 20
"""Iterations that are looked at together: bounds the memory of every pass over a run."""


@dataclass(frozen=True, slots=True)
class GapBlock:
    """Some of the gaps between successive iterations of a request, ``[n]`` each.

    ``count`` requests waited ``seconds`` for an iteration that completed at ``end_s``.
    ``after_prompt``: the earlier iteration was the prompt's.
    """

    seconds: Floats
    end_s: Floats
    count: Ints
    class_index: NDArray[np.int16]
    after_prompt: Mask


@dataclass(frozen=True)
class TokenTimes:
    """Completion time of every iteration of every request, ragged.

    Row i of ``RequestTable`` owns ``times_s[offsets[i]:offsets[i + 1]]``: the prompt's completion
    first, then one time per decode iteration.
    """

    offsets: Ints
    times_s: Floats

    @property
    def kept(self) -> bool:
        """Whether the run recorded any iteration."""
        return len(self.times_s) > 0

    @property
    def last_s(self) -> float:
        """When the last iteration completed; 0 without any."""
        return float(self.times_s.max()) if len(self.times_s) else 0.0

    def times_at(self, step: int) -> Floats:
        """``[r]`` completion of iteration ``step`` of each request; NaN where it never was."""
        has = np.diff(self.offsets) > step
        result = np.full(len(has), np.nan)
        result[has] = self.times_s[self.offsets[:-1][has] + step]
        return result

    def gap_blocks(self, class_index: NDArray[np.int16]) -> Iterator[GapBlock]:
        """All gaps of all requests, block by block; ``class_index`` ``[r]`` is of the requests."""
        for rows, low, high in self._row_blocks():
            owner = np.repeat(np.arange(rows.start, rows.stop), np.diff(self.offsets[_ends(rows)]))
            times = self.times_s[low:high]
            inside = np.flatnonzero(owner[1:] == owner[:-1]) + 1
            places = inside + low
            yield GapBlock(
                seconds=times[inside] - times[inside - 1],
                end_s=times[inside],
                count=np.ones(len(inside), np.int64),
                class_index=class_index[owner[inside]],
                after_prompt=places - self.offsets[owner[inside]] == 1,
            )

    def slowest_gaps_s(self, skip: int) -> Floats:
        """``[r]`` longest gap of each request, its first ``skip`` left out; 0 where none is."""
        slowest = np.zeros(len(self.offsets) - 1)
        for rows, low, high in self._row_blocks():
            gaps = np.diff(self.times_s[low:high], prepend=0.0)
            first = self.offsets[rows.start : rows.stop] - low
            for step in range(1 + skip):
                there = np.diff(self.offsets[_ends(rows)]) > step
                gaps[first[there] + step] = 0.0
            some = np.diff(self.offsets[_ends(rows)]) > 0
            if some.any():
                found = np.maximum.reduceat(gaps, first[some])
                slowest[rows.start : rows.stop][some] = found
        return slowest

    def _row_blocks(self) -> Iterator[tuple[range, int, int]]:
        """(rows, first place, end) of blocks of whole requests."""
        offsets, row, end = self.offsets, 0, len(self.offsets) - 1
        while row < end:
            low = int(offsets[row])
            stop = int(np.searchsorted(offsets, low + BLOCK_TOKENS, side="right")) - 1
            stop = min(max(stop, row + 1), end)
            yield range(row, stop), low, int(offsets[stop])
            row = stop


def _ends(rows: range) -> slice:
    """The offsets around ``rows``."""
    return slice(rows.start, rows.stop + 1)
