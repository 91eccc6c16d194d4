"""Ends a run when its verdict is certain: too many requests are late, or enough are good."""

from __future__ import annotations

import numpy as np
from numpy.typing import NDArray

from penstock.sim.engines.recorder import EngineRecorder

Mask = NDArray[np.bool_]
Floats = NDArray[np.float64]


class Certain:
    """A ``Watch``. Counts are of the ``len(limits) - skipped`` requests after the warm-up.

    ``limits``: ``[n, 3]``, TTFT, TPOT and end to end of every request in seconds, infinity = none.
    ``from_arrival``: TPOT counts from the arrival (decodes alone). ``late`` requests cannot become
    good any more, ``good`` ones have ended well; the rest is open.
    """

    def __init__(
        self,
        limits: Floats,
        skipped: int,
        attainment: float,
        *,
        from_arrival: bool = False,
        max_queue_s: float | None = None,
        verdict_only: bool = False,
    ) -> None:
        self.limits = limits
        self.skipped = skipped
        self._judged = len(limits) - skipped
        self._most_late = (1 - attainment) * self._judged
        self._least_good = attainment * self._judged
        self.from_arrival = from_arrival
        self.max_queue_s = max_queue_s
        self._verdict_only = verdict_only
        self.certain = False
        self.late = self.late_first = self.late_rest = self.late_queue = self.good = 0

    def __call__(self, recorder: EngineRecorder, now_s: float) -> bool:
        n, skip = len(recorder), self.skipped
        limits = self.limits[skip:n]
        arrival = np.array(recorder.arrival[skip:n])
        first = np.array(recorder.first[skip:n])
        last = np.array(recorder.last[skip:n])
        until = np.where(np.isnan(last), now_s, last)
        over = np.where(np.isnan(first), now_s, first) - arrival > limits[:, 0]
        self.late_first, late = _count(over), over
        steps = np.maximum(np.array(recorder.output[skip:n]) - 1, 1)
        begun = arrival if self.from_arrival else first
        over = ~np.isnan(begun) & ((until - begun) / steps > limits[:, 1])
        self.late_rest, late = _count(over), late | over
        late |= until - arrival > limits[:, 2]
        if self.max_queue_s is not None:
            admitted = np.array(recorder.admitted[skip:n])
            over = np.where(np.isnan(admitted), now_s, admitted) - arrival > self.max_queue_s
            self.late_queue, late = _count(over), late | over
        self.late = _count(late)
        self.good = _count(~late & ~np.isnan(last))
        self.certain = self.late > self._most_late or (
            self._verdict_only and self.good >= self._least_good
        )
        return self.certain

    @property
    def joint(self) -> float:
        """The most the attainment can be where it fails, the least where it passes."""
        if self.late > self._most_late:
            return 1 - self.late / self._judged
        return self.good / self._judged

    def within(self, late: int) -> float:
        """The share of all judged requests that is not known to be ``late``."""
        return 1 - late / self._judged


def _count(mask: Mask) -> int:
    return int(np.count_nonzero(mask))
