"""Many seconds as few pairs (seconds, how often): exact while they fit, merged finely beyond."""

from __future__ import annotations

from math import log, nan, sqrt

import numpy as np
from numpy.typing import NDArray

Floats = NDArray[np.float64]
Counts = NDArray[np.int64]

EXACT_PAIRS = 1 << 19
"""Pairs kept as they came. Beyond them, seconds that differ by less than ``RESOLUTION`` merge."""
RESOLUTION = 1e-4
"""Relative width of a bin, hence the largest relative error of a percentile of merged pairs."""
_SMALLEST_S = 1e-12


class PooledSeconds:
    """A mergeable sample of non-negative seconds with counts.

    Count, mean, standard deviation, minimum and maximum are exact. Order statistics are exact up
    to ``EXACT_PAIRS`` pairs and within ``RESOLUTION`` of the true value beyond; memory is bounded.
    ``exact`` keeps all pairs, however many.
    """

    def __init__(self, *, exact: bool = False) -> None:
        self.count = 0
        self.minimum = nan
        self.maximum = nan
        self._mean = 0.0
        self._squares = 0.0
        self._seconds: list[Floats] = []
        self._counts: list[Counts] = []
        self._pairs = 0
        self._exact = exact

    def add(self, seconds: Floats, counts: Counts | None = None) -> None:
        """Add ``seconds`` ``[n]``, each ``counts`` ``[n]`` times (once by default)."""
        if counts is None:
            counts = np.ones(len(seconds), np.int64)
        elif len(counts) and not counts.all():
            kept = counts > 0
            seconds, counts = seconds[kept], counts[kept]
        if not len(seconds):
            return
        number = int(counts.sum())
        mean = float(seconds @ counts) / number
        self._moments(number, mean, float((seconds - mean) ** 2 @ counts))
        self.minimum = float(np.fmin(self.minimum, seconds.min()))
        self.maximum = float(np.fmax(self.maximum, seconds.max()))
        self._keep(seconds, counts)

    def merge(self, other: PooledSeconds) -> None:
        """Add everything ``other`` holds."""
        if not other.count:
            return
        self._moments(other.count, other._mean, other._squares)
        self.minimum = float(np.fmin(self.minimum, other.minimum))
        self.maximum = float(np.fmax(self.maximum, other.maximum))
        for seconds, counts in zip(other._seconds, other._counts, strict=True):
            self._keep(seconds, counts)

    @property
    def mean(self) -> float:
        return self._mean if self.count else nan

    @property
    def std(self) -> float:
        return sqrt(self._squares / self.count) if self.count else nan

    def quantiles(self, fractions: Floats) -> Floats:
        """Values at ``fractions`` of the order, interpolated between samples as NumPy does."""
        place = fractions * (self.count - 1)
        low = np.floor(place).astype(np.int64)
        high = np.minimum(low + 1, self.count - 1)
        below = self.at_ranks(low)
        values: Floats = below + (self.at_ranks(high) - below) * (place - low)
        return values

    def at_ranks(self, ranks: Counts) -> Floats:
        """The values at ``ranks`` of the ascending order, counted from 0."""
        seconds, counts = self._sorted()
        return seconds[np.searchsorted(np.cumsum(counts), ranks, side="right")]

    def values(self, most: int) -> Floats:
        """All samples in ascending order, or ``most`` evenly spaced quantiles if they are more."""
        if self.count > most:
            return self.quantiles(np.linspace(0.0, 1.0, most))
        return np.repeat(*self._sorted())

    def _moments(self, count: int, mean: float, squares: float) -> None:
        """Chan, Golub and LeVeque's update of mean and squared deviations."""
        total = self.count + count
        apart = mean - self._mean
        self._squares += squares + apart * apart * (self.count * count / total)
        self._mean += apart * (count / total)
        self.count = total

    def _keep(self, seconds: Floats, counts: Counts) -> None:
        self._seconds.append(seconds)
        self._counts.append(counts)
        self._pairs += len(seconds)
        if self._pairs > EXACT_PAIRS and not self._exact:
            self._merge_bins()

    def _sorted(self) -> tuple[Floats, Counts]:
        """The pairs in ascending order, kept so for the next question."""
        if len(self._seconds) != 1 or np.any(np.diff(self._seconds[0]) < 0):
            seconds, counts = self._joined()
            order = np.argsort(seconds, kind="stable")
            self._seconds, self._counts = [seconds[order]], [counts[order]]
        return self._seconds[0], self._counts[0]

    def _joined(self) -> tuple[Floats, Counts]:
        empty = (np.zeros(0), np.zeros(0, np.int64))
        return (
            np.concatenate([*self._seconds, empty[0]]),
            np.concatenate([*self._counts, empty[1]]),
        )

    def _merge_bins(self) -> None:
        """Merge pairs of one bin into their mean; the bins are ``RESOLUTION`` wide."""
        seconds, counts = self._joined()
        bins = np.log(np.maximum(seconds, _SMALLEST_S))
        bins -= log(_SMALLEST_S)
        bins /= RESOLUTION
        places = bins.astype(np.int64)
        first = int(places.min())
        places -= first
        number = np.bincount(places, counts)
        used = np.flatnonzero(number)
        total = np.bincount(places, counts * seconds)
        self._seconds = [total[used] / number[used]]
        self._counts = [number[used].astype(np.int64)]
        self._pairs = len(used)
