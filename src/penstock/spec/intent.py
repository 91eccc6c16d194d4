"""What a user wants of a deployment: an intent, and the limits it must keep."""

from __future__ import annotations

from dataclasses import dataclass
from math import inf
from typing import Literal, get_args

from penstock.errors import SpecError
from penstock.spec.names import did_you_mean
from penstock.spec.variants import Precision

Intent = Literal["min_latency", "min_cost", "min_memory", "min_gpu_cost"]
INTENTS: tuple[Intent, ...] = get_args(Intent)


@dataclass(frozen=True, slots=True)
class Wish:
    """What is asked of one deployment.

    latency_slo_s   seconds a batch must stay below
    accuracy_floor  share of the unquantised model's accuracy
    precisions      those allowed; None = all
    or_nearest      take the lowest latency that fits where nothing meets the SLO (as MaverIQ)
    """

    intent: Intent
    latency_slo_s: float | None = None
    accuracy_floor: float = 0.0
    precisions: frozenset[Precision] | None = None
    or_nearest: bool = False

    def __post_init__(self) -> None:
        if self.intent not in INTENTS:
            raise SpecError(
                "no such intent",
                key="intent",
                value=self.intent,
                fix=did_you_mean(self.intent, INTENTS),
            )
        if self.latency_slo_s is not None and not 0 < self.latency_slo_s < inf:
            raise SpecError(
                "must be finite and above 0", key="latency_slo_s", value=self.latency_slo_s
            )
        if not 0 <= self.accuracy_floor <= 1:
            raise SpecError("must be from 0 to 1", key="accuracy_floor", value=self.accuracy_floor)
