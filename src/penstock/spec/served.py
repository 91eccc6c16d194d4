"""A model that a pool is asked to serve: its shape, its stored forms, and what is wanted of it."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field, replace
from typing import Protocol

from penstock.errors import SpecError
from penstock.spec.intent import Wish
from penstock.spec.model import Dtype, ModelSpec
from penstock.spec.variants import Precision, Variant
from penstock.spec.workload import SLO, SLOClass, Workload

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
    Higher ``priority`` first. ``slo``: limits where the workload gives its
    requests none.
    """

    name: str
    model: ModelSpec
    variants: tuple[Variant, ...]
    wish: Wish
    priority: int = 0
    checkpoint: str = ""
    slo: SLO = field(default_factory=SLO)

    def __post_init__(self) -> None:
        if not self.variants:
            raise SpecError("has no stored form", key=self.name, fix="give at least one variant")

    @property
    def limits(self) -> SLO | None:
        """``slo`` as a plan carries it; None where it states no time."""
        slo = replace(self.slo, tpot_multiple=None)
        return None if slo == SLO() else slo


class Limited(Protocol):
    """A model with limits of its own: a ``ServedModel``, or a deployment of a pool plan."""

    @property
    def name(self) -> str: ...

    @property
    def slo(self) -> SLO | None: ...


def with_limits(workload: Workload, models: Sequence[Limited]) -> Workload:
    """``workload`` with the limits of ``models`` in the classes that have none.

    A class is that of a model when it has its name, as by default.
    """
    classes = filled_classes(workload.classes, models)
    return replace(workload, classes=classes)


def filled_classes(classes: Sequence[SLOClass], models: Sequence[Limited]) -> tuple[SLOClass, ...]:
    """``classes`` with the limits of ``models`` in those that have their names and no limits."""
    limits = {model.name: model.slo for model in models if model.slo is not None}
    return tuple(
        replace(entry, slo=limits.get(entry.name, entry.slo)) if entry.slo == SLO() else entry
        for entry in classes
    )


def own_precision(model: ModelSpec) -> Precision:
    """The precision in which ``model`` is described. Raises ``SpecError`` for an unnamed one."""
    stored = model.weight_dtype or model.dtype
    weights = [name for name, dtype in WEIGHT_DTYPES.items() if dtype == stored]
    if not weights:
        raise SpecError(
            "its own precision has no name here", key=model.name, value=stored, fix="name variants"
        )
    return Precision(weights[0], model.kv_dtype == "int8")


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
