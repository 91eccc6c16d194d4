"""Prompt and output lengths: distributions by their inverse CDF, and empirical tables."""

from __future__ import annotations

import math
from bisect import bisect_right
from collections.abc import Sequence
from dataclasses import dataclass
from functools import cached_property
from itertools import pairwise
from random import Random
from statistics import NormalDist
from typing import Protocol

from penstock.errors import SpecError

_NORMAL = NormalDist()
_SMALLEST = 1e-12


class Distribution(Protocol):
    """Token counts by inverse CDF: ``at(u)`` for u in [0, 1), not yet rounded."""

    def at(self, u: float) -> float: ...

    @property
    def mean(self) -> float: ...


@dataclass(frozen=True, slots=True)
class Fixed:
    tokens: int

    def at(self, u: float) -> float:
        return self.tokens

    @property
    def mean(self) -> float:
        return self.tokens


@dataclass(frozen=True, slots=True)
class Uniform:
    """Whole numbers from ``low`` to ``high``, both included."""

    low: int
    high: int

    def __post_init__(self) -> None:
        if not 1 <= self.low <= self.high:
            raise SpecError("needs 1 <= low <= high", key="uniform", value=[self.low, self.high])

    def at(self, u: float) -> float:
        return self.low + math.floor(u * (self.high - self.low + 1))

    @property
    def mean(self) -> float:
        return (self.low + self.high) / 2


@dataclass(frozen=True, slots=True)
class LogNormal:
    """exp(Normal(log ``median``, ``sigma``)), clipped to [``low``, ``high``]."""

    median: float
    sigma: float
    low: int = 1
    high: int = 1 << 20

    def __post_init__(self) -> None:
        if not (self.median > 0 and self.sigma >= 0 and 1 <= self.low <= self.high):
            raise SpecError(
                "needs median > 0, sigma >= 0 and 1 <= min <= max",
                key="lognormal",
                value=[self.median, self.sigma, self.low, self.high],
            )

    @classmethod
    def from_mean(cls, mean: float, cv: float, low: int = 1, high: int = 1 << 20) -> LogNormal:
        """With the mean and the coefficient of variation before clipping."""
        sigma = math.sqrt(math.log1p(cv * cv))
        return cls(mean / math.exp(sigma * sigma / 2), sigma, low, high)

    def at(self, u: float) -> float:
        z = _NORMAL.inv_cdf(max(u, _SMALLEST))
        value = self.median * math.exp(min(self.sigma * z, 700.0))
        return min(max(value, self.low), self.high)

    @property
    def mean(self) -> float:
        """Mean after clipping: low P(X<low) + E[X; low<=X<=high] + high P(X>high)."""
        mu, sigma = math.log(self.median), self.sigma
        if sigma == 0:
            return self.at(0.5)
        a, b = (math.log(self.low) - mu) / sigma, (math.log(self.high) - mu) / sigma
        inside = math.exp(mu + sigma * sigma / 2)
        inside *= _NORMAL.cdf(b - sigma) - _NORMAL.cdf(a - sigma)
        return self.low * _NORMAL.cdf(a) + inside + self.high * _NORMAL.cdf(-b)


@dataclass(frozen=True)
class Quantiles:
    """Piecewise linear inverse CDF through ``(probability, tokens)`` points, from 0 to 1."""

    points: tuple[tuple[float, float], ...]

    def __post_init__(self) -> None:
        p = [point[0] for point in self.points]
        v = [point[1] for point in self.points]
        ascending = all(a < b for a, b in pairwise(p))
        rising = all(a <= b for a, b in pairwise(v))
        if len(p) < 2 or p[0] != 0 or p[-1] != 1 or not ascending or not rising or v[0] < 1:
            raise SpecError(
                "must be [probability, tokens] pairs from probability 0 to 1, both rising, "
                "tokens at least 1",
                key="quantiles",
            )

    @cached_property
    def _probabilities(self) -> tuple[float, ...]:
        return tuple(point[0] for point in self.points)

    def at(self, u: float) -> float:
        i = min(bisect_right(self._probabilities, u), len(self.points) - 1)
        (p0, v0), (p1, v1) = self.points[i - 1], self.points[i]
        return v0 + (u - p0) * (v1 - v0) / (p1 - p0)

    @cached_property
    def mean(self) -> float:
        steps = pairwise(self.points)
        return sum((p1 - p0) * (v0 + v1) / 2 for (p0, v0), (p1, v1) in steps)


@dataclass(frozen=True, slots=True)
class MarginalLengths:
    """Prompt and output drawn from their own distributions, tied by a Gaussian copula.

    ``correlation`` is that of the underlying normals: a rank correlation r (Spearman) is given by
    ``2 sin(pi r / 6)``. Lengths are rounded to whole tokens, at least 1.
    """

    prompt: Distribution
    output: Distribution
    correlation: float = 0.0

    def __post_init__(self) -> None:
        if not -1 <= self.correlation <= 1:
            raise SpecError("must be between -1 and 1", key="correlation", value=self.correlation)

    def sample(self, rng: Random) -> tuple[int, int]:
        if self.correlation == 0:
            u, v = rng.random(), rng.random()
        else:
            a, b = rng.gauss(0.0, 1.0), rng.gauss(0.0, 1.0)
            b = self.correlation * a + math.sqrt(1 - self.correlation**2) * b
            u, v = _NORMAL.cdf(a), _NORMAL.cdf(b)
        return max(1, round(self.prompt.at(u))), max(1, round(self.output.at(v)))

    @property
    def mean_prompt_tokens(self) -> float:
        return self.prompt.mean

    @property
    def mean_output_tokens(self) -> float:
        return self.output.mean


@dataclass(frozen=True)
class EmpiricalLengths:
    """Pairs drawn with replacement from a table of (prompt tokens, output tokens).

    A draw is ``table[rng.randint(0, n - 1)]``: the published sampler, draw for draw. ``source``
    names the file the table came from.
    """

    table: Sequence[tuple[int, int]]
    source: str = ""

    def __post_init__(self) -> None:
        if not self.table:
            raise SpecError("the table of lengths is empty", source=self.source or None)

    def sample(self, rng: Random) -> tuple[int, int]:
        return self.table[rng.randint(0, len(self.table) - 1)]

    @cached_property
    def mean_prompt_tokens(self) -> float:
        return sum(row[0] for row in self.table) / len(self.table)

    @cached_property
    def mean_output_tokens(self) -> float:
        return sum(row[1] for row in self.table) / len(self.table)


def fixed_lengths(prompt_tokens: int, output_tokens: int) -> MarginalLengths:
    """Every request alike."""
    return MarginalLengths(Fixed(prompt_tokens), Fixed(output_tokens))
