"""How far an attainment can be trusted: Wilson over requests, Student's t over seeds."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from math import sqrt
from statistics import fmean, stdev

NORMAL_975 = 1.959964
# 97.5 % quantiles of Student's t for 1, 2, ... degrees of freedom.
STUDENT_975 = (
    12.7062, 4.3027, 3.1824, 2.7764, 2.5706, 2.4469, 2.3646, 2.3060, 2.2622, 2.2281,
    2.2010, 2.1788, 2.1604, 2.1448, 2.1314, 2.1199, 2.1098, 2.1009, 2.0930, 2.0860,
    2.0796, 2.0739, 2.0687, 2.0639, 2.0595, 2.0555, 2.0518, 2.0484, 2.0452, 2.0423,
)  # fmt: skip


@dataclass(frozen=True, slots=True)
class Interval:
    """A 95 % confidence interval of a share."""

    low: float
    high: float

    def widened(self, other: Interval) -> Interval:
        return Interval(min(self.low, other.low), max(self.high, other.high))


def wilson(share: float, count: int) -> Interval:
    """Interval of a share of ``count`` independent requests (Wilson, 1927)."""
    if count < 1:
        return Interval(0.0, 1.0)
    z2 = NORMAL_975**2
    middle = (share + z2 / (2 * count)) / (1 + z2 / count)
    half = NORMAL_975 * sqrt(share * (1 - share) / count + z2 / (4 * count**2)) / (1 + z2 / count)
    # Rounding must not push the share itself out of its interval.
    return Interval(max(0.0, min(share, middle - half)), min(1.0, max(share, middle + half)))


def student(shares: Sequence[float]) -> Interval:
    """Interval of the mean of two or more runs, whatever ties the requests of one together."""
    freedom = len(shares) - 1
    quantile = STUDENT_975[min(freedom, len(STUDENT_975)) - 1]
    half = quantile * stdev(shares) / sqrt(len(shares))
    mean = fmean(shares)
    return Interval(max(0.0, mean - half), min(1.0, mean + half))


def attainment_interval(shares: Sequence[float], counts: Sequence[int]) -> Interval:
    """The wider of both: requests of one run share their queues, and seeds are few."""
    found = wilson(fmean(shares), sum(counts))
    return found if len(shares) < 2 else found.widened(student(shares))
