"""Open-loop arrivals: lazy streams of times, so that lengths are drawn between them.

Each ``times`` draws from ``rng`` only what its next times need. The order of draws is therefore
part of the result; for ``BucketArrivals`` it is the published one.
"""

from __future__ import annotations

import math
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from random import Random

from penstock.errors import SpecError


def _check_rate(rate_per_s: float) -> None:
    if not (math.isfinite(rate_per_s) and rate_per_s > 0):
        raise SpecError("must be finite and above 0", key="rate", value=rate_per_s)


@dataclass(frozen=True, slots=True)
class PoissonArrivals:
    """Exponential gaps."""

    rate_per_s: float

    def __post_init__(self) -> None:
        _check_rate(self.rate_per_s)

    def times(self, rng: Random, duration_s: float) -> Iterator[float]:
        time_s = rng.expovariate(self.rate_per_s)
        while time_s < duration_s:
            yield time_s
            time_s += rng.expovariate(self.rate_per_s)


@dataclass(frozen=True, slots=True)
class GammaArrivals:
    """Gamma gaps with coefficient of variation ``cv``: 1 is Poisson, above 1 is bursty."""

    rate_per_s: float
    cv: float

    def __post_init__(self) -> None:
        _check_rate(self.rate_per_s)
        if not (math.isfinite(self.cv) and self.cv > 0):
            raise SpecError("must be finite and above 0", key="cv", value=self.cv)

    def times(self, rng: Random, duration_s: float) -> Iterator[float]:
        shape = 1 / self.cv**2
        scale = 1 / (self.rate_per_s * shape)
        time_s = rng.gammavariate(shape, scale)
        while time_s < duration_s:
            yield time_s
            time_s += rng.gammavariate(shape, scale)


@dataclass(frozen=True, slots=True)
class UniformArrivals:
    """Equal gaps, the first request at 0."""

    rate_per_s: float

    def __post_init__(self) -> None:
        _check_rate(self.rate_per_s)

    def times(self, rng: Random, duration_s: float) -> Iterator[float]:
        number = 0
        while number / self.rate_per_s < duration_s:
            yield number / self.rate_per_s
            number += 1


@dataclass(frozen=True, slots=True)
class AllAtOnce:
    """``count`` requests at time 0."""

    count: int

    def __post_init__(self) -> None:
        if self.count < 1:
            raise SpecError("must be at least 1", key="count", value=self.count)

    def times(self, rng: Random, duration_s: float) -> Iterator[float]:
        for _ in range(self.count):
            yield 0.0


@dataclass(frozen=True)
class BucketArrivals:
    """Arrivals per bucket drawn from a histogram scaled to ``rate_per_s`` (Helix online mode).

    For each interval: one draw of a bucket, its scaled count plus the rounding remainder carried
    over, that many uniform times, sorted. Burstiness is that of the trace, its order in time is
    not. Lengths are drawn after the times of their interval (checked against the published
    sequences; artifact specification, section 5).
    """

    histogram: Sequence[int]
    rate_per_s: float
    bucket_s: float = 3.0

    def __post_init__(self) -> None:
        _check_rate(self.rate_per_s)
        if not self.histogram or min(self.histogram) < 0 or sum(self.histogram) == 0:
            raise SpecError("needs counts of 0 or more, not all 0", key="histogram")
        if not (math.isfinite(self.bucket_s) and self.bucket_s > 0):
            raise SpecError("must be finite and above 0", key="bucket", value=self.bucket_s)

    def times(self, rng: Random, duration_s: float) -> Iterator[float]:
        last = len(self.histogram) - 1
        mean = sum(self.histogram) / len(self.histogram)
        scale = self.rate_per_s * self.bucket_s / mean
        start_s = carry = 0.0
        while start_s < duration_s:
            wanted = self.histogram[rng.randint(0, last)] * scale + carry
            count = round(wanted)
            carry = wanted - count
            end_s = start_s + self.bucket_s
            yield from sorted([rng.uniform(start_s, end_s) for _ in range(count)])
            start_s = end_s


@dataclass(frozen=True)
class IntervalArrivals:
    """Gamma gaps with one rate and one coefficient of variation an interval (AlpaServe).

    Shape 1 / cv^2 and scale cv^2 / rate; each interval of ``interval_s`` starts anew, and one
    without rate is empty. ``cvs`` holds one value for each of ``rates_per_s``.
    """

    rates_per_s: tuple[float, ...]
    cvs: tuple[float, ...]
    interval_s: float

    def __post_init__(self) -> None:
        if len(self.cvs) != len(self.rates_per_s):
            raise SpecError("needs one value a rate", key="cvs", value=len(self.cvs))
        if not all(math.isfinite(rate) and rate >= 0 for rate in self.rates_per_s):
            raise SpecError("must be finite, 0 or more", key="rates")
        if not all(math.isfinite(cv) and cv > 0 for cv in self.cvs):
            raise SpecError("must be finite and above 0", key="cvs")
        if not (math.isfinite(self.interval_s) and self.interval_s > 0):
            raise SpecError("must be finite and above 0", key="interval", value=self.interval_s)

    @property
    def rate_per_s(self) -> float:
        """Mean rate over all intervals."""
        return sum(self.rates_per_s) / max(1, len(self.rates_per_s))

    def times(self, rng: Random, duration_s: float) -> Iterator[float]:
        for number, (rate, cv) in enumerate(zip(self.rates_per_s, self.cvs, strict=True)):
            start_s = number * self.interval_s
            if start_s >= duration_s:
                return
            if rate > 0:
                inside_s = min(self.interval_s, duration_s - start_s)
                gaps = GammaArrivals(rate, cv).times(rng, inside_s)
                yield from (start_s + time_s for time_s in gaps)


@dataclass(frozen=True)
class GivenArrivals:
    """Ascending times, as they are."""

    times_s: tuple[float, ...]

    def __post_init__(self) -> None:
        if not all(math.isfinite(time_s) and time_s >= 0 for time_s in self.times_s):
            raise SpecError("must be finite, 0 or more", key="times")
        if any(later < time for time, later in zip(self.times_s, self.times_s[1:], strict=False)):
            raise SpecError("must not go back in time", key="times", fix="sort them")

    @property
    def rate_per_s(self) -> float:
        """Mean rate up to the last of them."""
        last_s = self.times_s[-1] if self.times_s else 0.0
        return len(self.times_s) / last_s if last_s > 0 else math.inf

    def times(self, rng: Random, duration_s: float) -> Iterator[float]:
        yield from (time_s for time_s in self.times_s if time_s < duration_s)
