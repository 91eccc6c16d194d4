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
    def offsets(self) -> Ints:  # type: ignore[override]
        return self._expanded[0]

    @cached_property
    def times_s(self) -> Floats:  # type: ignore[override]
        return self._expanded[1]

    @cached_property
    def _expanded(self) -> tuple[Ints, Floats]:
        first: Floats = self._first  # type: ignore[attr-defined]
        logs: Sequence[EngineLog] = self._logs  # type: ignore[attr-defined]
        timers: Sequence[StepTimer] = self._timers  # type: ignore[attr-defined]
        begun = np.flatnonzero(~np.isnan(first))
        # Pieces of the times of one request: where they lie in the pool, and how many.
        pool = [first[begun]]
        row, at, count = [begun], [np.arange(len(begun))], [np.ones(len(begun), np.int64)]
        size = len(begun)
        for log, timer in zip(logs, timers, strict=True):
            pool.append(np.array(log.first_times))
            row.append(np.array(log.first_rows, np.int64))
            at.append(size + np.arange(len(log.first_rows)))
            count.append(np.ones(len(log.first_rows), np.int64))
            size += len(log.first_rows)
            steps_of, ends = _step_ends(log, timer)
            base = size + np.concatenate([np.zeros(1, np.int64), np.cumsum(steps_of)])
            begin = np.array(log.stay_first, np.int64)
            row.append(np.array(log.stay_row, np.int64))
            at.append(base[np.array(log.stay_track, np.int64)] + begin)
            count.append(np.array(log.stay_end, np.int64) - begin)
            pool.append(ends)
            size += len(ends)
        return _gather(len(first), *(np.concatenate(part) for part in (pool, row, at, count)))


def _gather(requests: int, pool: Floats, row: Ints, at: Ints, count: Ints) -> tuple[Ints, Floats]:
    """Ragged rows from pieces ``pool[at:at + count]``, in order of time within a row."""
    order = np.lexsort((pool[at], row))
    row, at, count = row[order], at[order], count[order]
    per_row = np.zeros(requests, np.int64)
    np.add.at(per_row, row, count)
    offsets = np.concatenate([np.zeros(1, np.int64), np.cumsum(per_row)])
    before = np.cumsum(count) - count
    index = np.repeat(at - before, count) + np.arange(int(count.sum()))
    return offsets, pool[index]


def _step_ends(log: EngineLog, timer: StepTimer) -> tuple[Ints, Floats]:
    """(decode steps of each track, the ends of all of them, track after track)."""
    seqs = np.array(log.seqs, np.int64)
    decodes = np.flatnonzero(seqs)
    if not len(decodes):
        return np.zeros(1 + max(log.stay_track, default=0), np.int64), np.zeros(0)
    track = np.array(log.track, np.int64)[decodes]
    # Segments of one track are in order of time already; a stable sort keeps that.
    decodes = decodes[np.argsort(track, kind="stable")]
    steps = np.array(log.steps, np.int64)[decodes]
    ends = np.repeat(np.array(log.end)[decodes], steps)
    offsets = np.cumsum(steps) - steps
    start, kv_tokens = log.start, log.kv_tokens
    for place in np.flatnonzero(steps > 1).tolist():
        segment = int(decodes[place])
        many, offset = int(steps[place]), int(offsets[place])
        ends[offset : offset + many] = start[segment] + timer.decode_span_times_s(
            int(seqs[segment]), kv_tokens[segment], many
        )
    per_track = np.zeros(int(track.max()) + 1, np.int64)
    np.add.at(per_track, np.array(log.track, np.int64)[decodes], steps)
    return per_track, ends
