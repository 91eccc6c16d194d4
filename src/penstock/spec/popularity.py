"""How one rate of requests is shared by models."""

from __future__ import annotations

import math
from typing import Literal

from penstock.errors import SpecError

PopularityLaw = Literal["uniform", "power_law", "halving"]


def popularity_rates(
    models: int, total_rate_per_s: float, law: PopularityLaw = "power_law", exponent: float = 0.5
) -> tuple[float, ...]:
    """Requests/s of each model, most popular first; they add up to ``total_rate_per_s``.

    ``power_law``: proportional to (i + 1) ** -exponent (AlpaServe: 0.5). ``halving``: each half
    of the one before. Raises ``SpecError``.
    """
    if models < 1:
        raise SpecError("must be at least 1", key="models", value=models)
    if not (math.isfinite(total_rate_per_s) and total_rate_per_s > 0):
        raise SpecError("must be finite and above 0", key="rate", value=total_rate_per_s)
    weights = {
        "uniform": [1.0] * models,
        "power_law": [(i + 1) ** -exponent for i in range(models)],
        "halving": [2.0**-i for i in range(models)],
    }[law]
    total = sum(weights)
    return tuple(total_rate_per_s * weight / total for weight in weights)
