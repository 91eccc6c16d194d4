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
        first: Floats = self._first  # type: ignore[attr-defined]
        logs: Sequence[EngineLog] = self._logs  # type: ignore[attr-defined]
        timers: Sequence[StepTimer] = self._timers  # type: ignore[attr-defined]
        begun = np.flatnonzero(~np.isnan(first))
        # Pieces of the times of one request: where they lie in the pool, and how many.
        pool = [first[begun]]
        row, at, count = [begun], [np.arange(len(begun))], [np.ones(len(begun), np.int64)]
        size = len(begun)
        for log, timer in zip(logs, timers, strict=True):
            pool.append(np.array(log.prompt_times))
            row.append(np.array(log.prompt_rows, np.int64))
            at.append(size + np.arange(len(log.prompt_rows)))
            count.append(np.ones(len(log.prompt_rows), np.int64))
            size += len(log.prompt_rows)
            stays = log.stay_table()
            steps_of, ends = _step_ends(log, timer, int(stays[:, 1].max(initial=0)) + 1)
            base = size + np.cumsum(steps_of) - steps_of
            row.append(stays[:, 0])
            at.append(base[stays[:, 1]] + stays[:, 2])
            count.append(stays[:, 3] - stays[:, 2])
            pool.append(ends)
            size += len(ends)
        pieces = (np.concatenate(row), np.concatenate(at), np.concatenate(count))
        return _gather(len(first), np.concatenate(pool), *pieces)


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
