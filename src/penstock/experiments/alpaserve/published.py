"""Figures of AlpaServe and of its use in MaverIQ, as measured or recomputed with their code."""

from __future__ import annotations

from dataclasses import dataclass

SEARCH_CPU_GOAL = 1 / 3
"""Share of the published search's CPU seconds that ours may take."""


@dataclass(frozen=True, slots=True)
class Corrected:
    """Attainment of a MaverIQ scenario at SLO 5x, misses and drops counted.

    ``own_view`` on the faulty input, ``true_input`` the same plan on the right one, ``replanned``
    the plan made from the right input, with its ``groups`` and the CPU seconds of its search.
    """

    models: str
    trace: str
    scale: float
    requests: int
    own_view: float
    true_input: float
    replanned: float
    search_cpu_s: float


CORRECTED = (
    Corrected("large", "code", 0.1, 1722, 0.803, 0.682, 0.993, 0.010),
    Corrected("large", "code", 0.2, 3488, 0.790, 0.856, 0.901, 0.013),
    Corrected("large", "code", 0.4, 7016, 0.790, 0.549, 0.646, 0.017),
    Corrected("large", "conversation", 0.1, 3826, 0.787, 0.699, 0.992, 0.013),
    Corrected("large", "conversation", 0.2, 7698, 0.774, 0.718, 0.832, 0.018),
    Corrected("large", "conversation", 0.3, 11568, 0.777, 0.438, 0.668, 0.024),
    Corrected("large", "conversation", 0.4, 15444, 0.775, 0.302, 0.575, 0.030),
    Corrected("regular", "code", 0.4, 7016, 0.897, 0.745, 0.982, 0.040),
    Corrected("twentyone", "conversation", 0.2, 7698, 0.627, 0.607, 0.579, 0.050),
    Corrected("twentyone", "conversation", 0.4, 15444, 0.632, 0.596, 0.652, 0.068),
)


@dataclass(frozen=True, slots=True)
class Speed:
    """CPU seconds of the published MP-search and of one pass of its fast simulator."""

    models: int
    gpus: int
    rate_rps: float
    requests: int
    search_cpu_s: float
    pass_cpu_s: float


SPEED = (
    Speed(48, 16, 64.0, 12898, 0.53, 0.0037),
    Speed(48, 32, 256.0, 52315, 2.4, 0.016),
    Speed(96, 64, 256.0, 51683, 12.3, 0.019),
    Speed(128, 64, 1024.0, 208053, 19.3, 0.062),
)
