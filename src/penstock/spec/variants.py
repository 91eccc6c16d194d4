"""Stored forms of a model: precision of weights and KV values, and what accuracy is left."""

from __future__ import annotations

from dataclasses import dataclass

from penstock.errors import SpecError


@dataclass(frozen=True, slots=True, order=True)
class Precision:
    """How weights are stored (float16, int8, int4, int4_gptq), and whether KV values are int8."""

    weights: str
    int8_kv: bool = False

    def __str__(self) -> str:
        return f"{self.weights}+kv8" if self.int8_kv else self.weights


@dataclass(frozen=True, slots=True)
class Variant:
    """A stored form of a model and its accuracy as a share of the unquantised one (0 to 1)."""

    precision: Precision
    accuracy: float

    def __post_init__(self) -> None:
        if not 0 < self.accuracy <= 1:
            raise SpecError(
                "must be above 0 and at most 1",
                key=f"accuracy of {self.precision}",
                value=self.accuracy,
            )
