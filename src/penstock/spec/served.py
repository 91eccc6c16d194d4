"""A model that a pool is asked to serve: its shape, its stored forms, and what is wanted of it."""

from __future__ import annotations

from dataclasses import dataclass, replace

from penstock.errors import SpecError
from penstock.spec.intent import Wish
from penstock.spec.model import Dtype, ModelSpec
from penstock.spec.variants import Precision, Variant

WEIGHT_DTYPES: dict[str, Dtype] = {
    "float32": "fp32",
    "float16": "fp16",
    "bfloat16": "bf16",
    "fp8": "fp8",
    "int8": "int8",
    "int4": "int4",
    "int4_gptq": "int4",
}


@dataclass(frozen=True, slots=True)
class ServedModel:
    """One model of a pool. ``name`` is what requests ask for.

    ``model`` is the shape in its own precision; ``variants`` are the stored forms it may be
    served in, with their accuracy. ``checkpoint`` is the folder ``serve`` loads ("" = none).
    Higher ``priority`` first.
    """

    name: str
    model: ModelSpec
    variants: tuple[Variant, ...]
    wish: Wish
    priority: int = 0
    checkpoint: str = ""

    def __post_init__(self) -> None:
        if not self.variants:
            raise SpecError("has no stored form", key=self.name, fix="give at least one variant")


def in_precision(model: ModelSpec, precision: Precision) -> ModelSpec:
    """``model`` stored as ``precision`` says. Raises ``SpecError`` for an unknown one."""
    if precision.weights not in WEIGHT_DTYPES:
        raise SpecError(
            "unknown precision",
            key="precision",
            value=precision.weights,
            fix=f"use one of {', '.join(WEIGHT_DTYPES)}",
        )
    dtype = WEIGHT_DTYPES[precision.weights]
    computed: Dtype = dtype if dtype in ("fp32", "fp16", "bf16") else model.dtype
    kv: Dtype | None = "int8" if precision.int8_kv else None
    return replace(model, dtype=computed, weight_dtype=dtype, kv_dtype=kv)


def parse_precision(text: str) -> Precision:
    """The precision that ``str(Precision)`` writes: ``float16``, ``int4``, ``int8+kv8`` ...

    Raises ``SpecError`` for an unknown one.
    """
    weights, plus, cache = text.partition("+")
    if weights not in WEIGHT_DTYPES or (plus and cache != "kv8"):
        raise SpecError(
            "unknown precision",
            key="precision",
            value=text,
            fix=f"use one of {', '.join(WEIGHT_DTYPES)}, with +kv8 for int8 KV values",
        )
    return Precision(weights, bool(plus))
