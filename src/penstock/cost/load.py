"""Choose a cost model, and rebuild the one a plan was made with."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import cast, get_args

from penstock.cost.base import CostModel
from penstock.cost.roofline import GPU_MEMORY_UTILIZATION, RooflineCost
from penstock.cost.step_load import step_cost_from_dict
from penstock.cost.tables import LayerTableCost, OverFull
from penstock.errors import SpecError
from penstock.spec.model import ModelSpec

__all__ = ["cost_from_dict", "cost_model", "step_cost_from_dict"]


def cost_model(
    model: ModelSpec,
    profiles: Path | None = None,
    *,
    over_full: OverFull = "linear",
    gpu_memory_utilization: float = GPU_MEMORY_UTILIZATION,
) -> CostModel:
    """Return layer tables when a profile folder is given, else the bundled roofline.

    ``over_full`` belongs to the tables (``"largest"`` is the published rule),
    ``gpu_memory_utilization`` to the roofline: tables state their capacities.
    """
    if profiles is not None:
        return LayerTableCost(model, profiles, over_full=over_full)
    return RooflineCost(model, gpu_memory_utilization=gpu_memory_utilization)


def cost_from_dict(document: Mapping[str, object], model: ModelSpec) -> CostModel:
    """Rebuild a cost model from ``CostModel.to_dict``.

    Raises ``SpecError`` when a key is missing or the tables are gone or have changed.
    """
    match document.get("kind"):
        case "roofline":
            share = document.get("gpu_memory_utilization", GPU_MEMORY_UTILIZATION)
            if isinstance(share, bool) or not isinstance(share, int | float):
                raise SpecError("must be a number", key="cost.gpu_memory_utilization", value=share)
            return RooflineCost(model, gpu_memory_utilization=float(share))
        case "layer-table":
            return _tables_from_dict(document, model)
        case kind:
            raise SpecError(
                "unknown cost model", key="cost.kind", value=kind, fix="use roofline or layer-table"
            )


def _tables_from_dict(document: Mapping[str, object], model: ModelSpec) -> LayerTableCost:
    directory = document.get("directory")
    if not isinstance(directory, str):
        raise SpecError("must name the folder of profiles", key="cost.directory", value=directory)
    over_full = document.get("over_full", "largest")
    if over_full not in get_args(OverFull):
        raise SpecError(
            "unknown rule", key="cost.over_full", value=over_full, fix="use largest or linear"
        )
    doubles = document.get("decode_of_one_doubles", True)
    if not isinstance(doubles, bool):
        raise SpecError("must be true or false", key="cost.decode_of_one_doubles", value=doubles)
    cost = LayerTableCost(
        model,
        directory,
        decode_of_one_doubles=doubles,
        over_full=cast(OverFull, over_full),
    )
    digest = document.get("digest", cost.digest)
    if digest != cost.digest:
        raise SpecError(
            f"the tables have changed since the plan was made (now {cost.digest})",
            source=directory,
            key="cost.digest",
            value=digest,
            fix="plan again, or remove the key to use the tables as they are",
        )
    return cost
