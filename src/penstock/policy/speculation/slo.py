"""Limits on the time per output token, and what a request must gain to keep its own."""

from __future__ import annotations

from dataclasses import dataclass
from math import inf

import numpy as np
from numpy.typing import NDArray

from penstock.errors import SpecError
from penstock.spec.units import parse_duration
from penstock.spec.workload import SLO, parse_multiple

Floats = NDArray[np.float64]

BEST_EFFORT_RATIO = 999.0
"""Encoded ratios above this mean that the request has no limit (FlexFlow Serve)."""


@dataclass(frozen=True, slots=True)
class TpotLimit:
    """Most seconds per output token: absolute, a multiple of the baseline, or none.

    The baseline is the time per token of the model at near-zero load. Exactly one of
    ``limit_s`` and ``multiple`` may be set; neither = best effort.
    """

    limit_s: float | None = None
    multiple: float | None = None

    def __post_init__(self) -> None:
        if self.limit_s is not None and self.multiple is not None:
            raise SpecError(
                "gives a time and a multiple of the baseline",
                key="tpot",
                fix="give one of them",
            )
        for value in (self.limit_s, self.multiple):
            if value is not None and not 0 < value < inf:
                raise SpecError("must be positive and finite", key="tpot", value=value)

    @property
    def relative(self) -> bool:
        return self.multiple is not None

    @property
    def best_effort(self) -> bool:
        return self.limit_s is None and self.multiple is None

    def seconds(self, baseline_s: float) -> float:
        """The limit for a model with this baseline; inf = none."""
        if self.multiple is not None:
            return self.multiple * baseline_s
        return inf if self.limit_s is None else self.limit_s


def tpot_limit(text: str) -> TpotLimit:
    """Read "1.2x" (multiple of the baseline), "50 ms" or "best effort". Raises ``SpecError``."""
    words = text.strip().lower()
    if words in ("best effort", "none", ""):
        return TpotLimit()
    multiple = parse_multiple(words)
    if multiple is not None:
        return TpotLimit(multiple=multiple)
    return TpotLimit(limit_s=parse_duration(text, positive=True))


def limit_of_ratio(slo_ratio: float) -> TpotLimit:
    """Read the published encoding: positive = multiple, negative = milliseconds, > 999 = none."""
    if slo_ratio > BEST_EFFORT_RATIO:
        return TpotLimit()
    if slo_ratio < 0:
        return TpotLimit(limit_s=-slo_ratio / 1000.0)
    return TpotLimit(multiple=slo_ratio)


def limit_of_slo(slo: SLO) -> TpotLimit:
    """The limit of a class of a workload: seconds, a multiple of the baseline, or none."""
    return TpotLimit(limit_s=slo.tpot_s, multiple=slo.tpot_multiple)


def required_gain(
    decode_s: Floats,
    tokens: Floats,
    tpot_s: Floats,
    step_s: float,
    *,
    margin: float = 1.0,
    margin_on_step_only: bool = False,
) -> Floats:
    """A(r) = (l + t) / TPOT - o: tokens a request must gain in a step of ``step_s`` seconds.

    ``decode_s`` l and ``tokens`` o count from the first decode step; all arrays ``[n]``; -inf
    where ``tpot_s`` is inf. ``margin`` scales l + t, or t alone. AdaServe Eq. 2 and 3; margins
    as in FlexFlow Serve.
    """
    due = decode_s + margin * step_s if margin_on_step_only else margin * (decode_s + step_s)
    gain: Floats = np.where(np.isinf(tpot_s), -np.inf, due / tpot_s - tokens)
    return gain
