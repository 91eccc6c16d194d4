"""What a run says of its cost model: the document, the sources, and how far off it may be."""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import asdict
from typing import Protocol, runtime_checkable

from penstock.cost.base import Provenance
from penstock.cost.step_coefficients import Band
from penstock.cost.steps import EngineShape, StepCostModel


@runtime_checkable
class BandedCost(Protocol):
    """A cost model that knows its error, and whether a shape lies within its measurements."""

    def band(self, shape: EngineShape) -> Band: ...

    def source_of(self, shape: EngineShape) -> Provenance: ...


def cost_header(cost: StepCostModel, shapes: Iterable[EngineShape]) -> dict[str, object]:
    """Header entries of a run of engines of ``shapes``.

    ``cost``: the document, and the provenance of what was used. ``band``, where the model has
    one: the ratios of measured to predicted times at the 10th and 90th percentile (the widest of
    all engines), and the accelerators that are ``extrapolated``.
    """
    distinct: list[EngineShape] = []
    for shape in shapes:
        if shape not in distinct:
            distinct.append(shape)
    if not isinstance(cost, BandedCost):
        return {"cost": _entry(cost, cost.provenance)}
    sources = [cost.source_of(shape) for shape in distinct]
    bands = [cost.band(shape) for shape in distinct]
    beyond = [
        shape.accelerator.name
        for shape, source in zip(distinct, sources, strict=True)
        if source.kind == "extrapolated"
    ]
    return {
        "cost": _entry(cost, dict.fromkeys(sources)),
        "band": {
            "low": min(band.low for band in bands),
            "high": max(band.high for band in bands),
            "extrapolated": sorted(set(beyond)),
        },
    }


def _entry(cost: StepCostModel, provenance: Iterable[Provenance]) -> dict[str, object]:
    return {"document": cost.to_dict(), "provenance": [asdict(entry) for entry in provenance]}
