"""Token times rebuilt from segments when somebody asks for them."""

from __future__ import annotations

from collections.abc import Sequence
from functools import cached_property

import numpy as np
from numpy.typing import NDArray

from penstock.cost.steps import StepTimer
from penstock.measure.run import TokenTimes
from penstock.sim.engines.recorder import EngineLog

Floats = NDArray[np.float64]
Ints = NDArray[np.int64]


class SpanTokenTimes(TokenTimes):
    """``TokenTimes`` that holds segments and expands them at the first look.

    Some 100 bytes a request until then, 8 bytes a token afterwards.
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

    @cached_property
    def _expanded(self) -> tuple[Ints, Floats]:
        pool, row, at, count, _ = self._pieces
        per_row = np.zeros(len(self._first), np.int64)  # type: ignore[attr-defined]
        np.add.at(per_row, row, count)
        offsets = np.concatenate([np.zeros(1, np.int64), np.cumsum(per_row)])
        before = np.cumsum(count) - count
        index = np.repeat(at - before, count) + np.arange(int(count.sum()))
        return offsets, pool[index]

    def gaps(self) -> tuple[Floats, Ints]:
        """Inter-token latencies of all requests, pooled: (seconds, tokens that came so late).

        From segments: one entry a step of an engine and one a resumption, instead of one a token.
        """
        pool, row, at, count, (covered, same_track) = self._pieces
        follows = np.flatnonzero(row[1:] == row[:-1]) + 1
        resumed = pool[at[follows]] - pool[at[follows - 1] + count[follows - 1] - 1]
        inside = np.flatnonzero((covered > 0) & same_track)
        seconds = np.concatenate([pool[inside] - pool[inside - 1], resumed])
        return seconds, np.concatenate([covered[inside], np.ones(len(resumed), np.int64)])

    @cached_property
    def _pieces(self) -> tuple[Floats, Ints, Ints, Ints, tuple[Ints, NDArray[np.bool_]]]:
        """What token times are made of, by row and in order of time within a row.

        (pool of times, row, first place in the pool, tokens) of each piece; and for each place of
        the pool how many pieces hold it and the place before, and whether that is the step before.
        """
        first: Floats = self._first  # type: ignore[attr-defined]
        logs: Sequence[EngineLog] = self._logs  # type: ignore[attr-defined]
        timers: Sequence[StepTimer] = self._timers  # type: ignore[attr-defined]
        begun = np.flatnonzero(~np.isnan(first))
        pool = [first[begun]]
        row, at, count = [begun], [np.arange(len(begun))], [np.ones(len(begun), np.int64)]
        follows = [np.zeros(len(begun), np.bool_)]
        size = len(begun)
        for log, timer in zip(logs, timers, strict=True):
            again = len(log.prompt_rows)
            pool.append(np.array(log.prompt_times))
            row.append(np.array(log.prompt_rows, np.int64))
            at.append(size + np.arange(again))
            count.append(np.ones(again, np.int64))
            follows.append(np.zeros(again, np.bool_))
            size += again
            stays = log.stay_table()
            steps_of, ends = _step_ends(log, timer, int(stays[:, 1].max(initial=0)) + 1)
            start = np.cumsum(steps_of) - steps_of
            row.append(stays[:, 0])
            at.append(size + start[stays[:, 1]] + stays[:, 2])
            count.append(stays[:, 3] - stays[:, 2])
            pool.append(ends)
            follow = np.ones(len(ends), np.bool_)
            follow[start[steps_of > 0]] = False
            follows.append(follow)
            size += len(ends)
        times = np.concatenate(pool)
        rows, places, counts = (np.concatenate(part) for part in (row, at, count))
        order = np.lexsort((times[places], rows))
        rows, places, counts = rows[order], places[order], counts[order]
        change = np.zeros(size + 1, np.int64)
        np.add.at(change, places + 1, 1)
        np.add.at(change, places + counts, -1)
        covered = np.cumsum(change)[:size]
        return times, rows, places, counts, (covered, np.concatenate(follows))


def _step_ends(log: EngineLog, timer: StepTimer, tracks: int) -> tuple[Ints, Floats]:
    """(decode steps of each track, the ends of all of them, track after track)."""
    table = log.segment_table()
    decodes = np.flatnonzero(table.seqs)
    # Segments of one track are in order of time already; a stable sort keeps that.
    decodes = decodes[np.argsort(table.track[decodes], kind="stable")]
    steps = table.steps[decodes]
    ends = np.repeat(table.end_s[decodes], steps)
    offsets = np.cumsum(steps) - steps
    for place in np.flatnonzero(steps > 1).tolist():
        segment = int(decodes[place])
        many, offset = int(steps[place]), int(offsets[place])
        times = timer.decode_span_times_s(
            int(table.seqs[segment]), int(table.kv_tokens[segment]), many
        )
        # The last step ends where the segment does, whatever rounding says.
        ends[offset : offset + many - 1] = table.start_s[segment] + times[:-1]
    track = table.track[decodes]
    per_track = np.zeros(max(tracks, int(track.max(initial=0)) + 1), np.int64)
    np.add.at(per_track, track, steps)
    return per_track, ends
