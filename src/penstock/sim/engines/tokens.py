"""Token times rebuilt from segments when somebody asks for them."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from functools import cached_property

import numpy as np
from numpy.typing import NDArray

from penstock.cost.steps import StepTimer
from penstock.measure.tokens import GapBlock, TokenTimes
from penstock.sim.engines.recorder import EngineLog
from penstock.sim.engines.tracks import Track, tracks_of

Floats = NDArray[np.float64]
Ints = NDArray[np.int64]
Pieces = tuple[Ints, Floats, Floats]
"""(row, completion of its first token, of its last) of runs of tokens without a break."""


class SpanTokenTimes(TokenTimes):
    """``TokenTimes`` that holds segments and expands them at the first look.

    Some 200 bytes a request until then, 8 bytes a token afterwards. Gaps come from the segments,
    a block at a time, without expanding.
    """

    def __init__(
        self, first_token_s: Floats, logs: Sequence[EngineLog], timers: Sequence[StepTimer]
    ) -> None:
        object.__setattr__(self, "_first", first_token_s)
        object.__setattr__(self, "_logs", logs)
        object.__setattr__(self, "_timers", timers)

    @cached_property
    def offsets(self) -> Ints:
        return self._expanded[0]

    @cached_property
    def times_s(self) -> Floats:
        return self._expanded[1]

    @property
    def kept(self) -> bool:
        return bool(np.any(~np.isnan(self._first_s)))

    @property
    def last_s(self) -> float:
        first_s = float(np.nanmax(self._first_s)) if self.kept else 0.0
        return max([first_s, *(track.last_s for track in self._tracks())])

    def times_at(self, step: int) -> Floats:
        """The prompt's completion is known without expanding anything."""
        return self._first_s if step == 0 else super().times_at(step)

    def gap_blocks(self, class_index: NDArray[np.int16]) -> Iterator[GapBlock]:
        """All gaps: one entry a step and class for the requests that also ran the step before,
        and one entry each time a request starts or resumes decoding."""
        pieces = [self._single_tokens()]
        for track in self._tracks():
            own = class_index[track.rows]
            present = np.unique(own).tolist()
            followers = [
                track.followers(own == index if len(present) > 1 else None) for index in present
            ]
            for chunk in track.chunks():
                for index, (staying, going_on) in zip(present, followers, strict=True):
                    count = chunk.counts(staying, going_on)
                    yield GapBlock(
                        seconds=chunk.gaps_s,
                        end_s=chunk.ends_s,
                        count=count,
                        class_index=np.full(len(count), index, np.int16),
                        after_prompt=np.zeros(len(count), np.bool_),
                    )
            pieces.append(track.pieces())
        rows, seconds, ends, after_prompt = _resumed(pieces)
        yield GapBlock(seconds, ends, np.ones(len(rows), np.int64), class_index[rows], after_prompt)

    def slowest_gaps_s(self, skip: int) -> Floats:
        if skip:
            return super().slowest_gaps_s(skip)
        slowest = np.zeros(len(self._first_s))
        pieces = [self._single_tokens()]
        for track in self._tracks():
            np.maximum.at(slowest, track.rows, track.slowest_s())
            pieces.append(track.pieces())
        rows, seconds, _, _ = _resumed(pieces)
        np.maximum.at(slowest, rows, seconds)
        return slowest

    @property
    def _first_s(self) -> Floats:
        first: Floats = self._first  # type: ignore[attr-defined]
        return first

    def _tracks(self) -> Iterator[Track]:
        logs: Sequence[EngineLog] = self._logs  # type: ignore[attr-defined]
        timers: Sequence[StepTimer] = self._timers  # type: ignore[attr-defined]
        for log, timer in zip(logs, timers, strict=True):
            yield from tracks_of(log, timer)

    def _single_tokens(self) -> Pieces:
        """First tokens, and the tokens of prompts that were computed again."""
        logs: Sequence[EngineLog] = self._logs  # type: ignore[attr-defined]
        begun = np.flatnonzero(~np.isnan(self._first_s))
        again = [np.array(log.prompt_rows, np.int64) for log in logs]
        times = [np.array(log.prompt_times) for log in logs]
        rows = np.concatenate([begun, *again])
        at = np.concatenate([self._first_s[begun], *times])
        return rows, at, at

    @cached_property
    def _expanded(self) -> tuple[Ints, Floats]:
        rows, begin, _ = self._single_tokens()
        pool, row, at = [begin], [rows], [np.arange(len(rows))]
        count = [np.ones(len(rows), np.int64)]
        size = len(rows)
        for track in self._tracks():
            ends = [chunk.ends_s for chunk in track.chunks()]
            pool += ends
            row.append(track.rows)
            at.append(size + track.first_step)
            count.append(track.end_step - track.first_step)
            size += sum(len(part) for part in ends)
        times = np.concatenate(pool)
        rows, places, counts = (np.concatenate(part) for part in (row, at, count))
        order = np.lexsort((times[places], rows))
        rows, places, counts = rows[order], places[order], counts[order]
        per_row = np.zeros(len(self._first_s), np.int64)
        np.add.at(per_row, rows, counts)
        offsets = np.concatenate([np.zeros(1, np.int64), np.cumsum(per_row)])
        before = np.cumsum(counts) - counts
        index = np.repeat(places - before, counts) + np.arange(int(counts.sum()))
        return offsets, times[index]


def _resumed(pieces: Sequence[Pieces]) -> tuple[Ints, Floats, Floats, NDArray[np.bool_]]:
    """(row, seconds, end, whether after the prompt) of the gaps between pieces of one row."""
    rows, begin, end = (np.concatenate(part) for part in zip(*pieces, strict=True))
    order = np.lexsort((begin, rows))
    rows, begin, end = rows[order], begin[order], end[order]
    same = rows[1:] == rows[:-1]
    follows = np.flatnonzero(same) + 1
    first = np.ones(len(rows), np.bool_)
    first[1:] = ~same
    at = begin[follows]
    return rows[follows], at - end[follows - 1], at, first[follows - 1]
