"""The step cost of each kind of engine, with its weights and its speculation."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from itertools import pairwise
from pathlib import Path

from penstock.cost.steps import StepCostModel
from penstock.errors import SpecError
from penstock.plan.goodput.speculative_cost import SpeculativeCost
from penstock.plan.settings import SpeculationSettings
from penstock.spec.files import is_finite_number, read_json, read_yaml
from penstock.spec.model import Dtype

LONGEST_CHAIN = 16


@dataclass(frozen=True)
class FleetCosts:
    """``base``: the model as it is; ``by_dtype``: the same model with other weights.

    ``draft`` and ``acceptance`` serve speculation: entry i is the share of steps that accept the
    draft's tokens 1 to i + 1.
    """

    base: StepCostModel
    by_dtype: Mapping[Dtype, StepCostModel] = field(default_factory=dict)
    draft: StepCostModel | None = None
    acceptance: tuple[float, ...] = ()

    def of(
        self, weight_dtype: Dtype | None, speculation: SpeculationSettings | None
    ) -> StepCostModel:
        """The cost model of engines of one variant (``EngineChoice.variant``)."""
        target = self.base if weight_dtype is None else self.by_dtype[weight_dtype]
        if speculation is None:
            return target
        if self.draft is None or not self.acceptance:
            raise SpecError(
                "needs a draft model and its acceptance",
                key="speculation",
                fix="give --draft-model and --acceptance",
            )
        return SpeculativeCost(target, self.draft, speculation, self.acceptance)


def constant_acceptance(share: float) -> tuple[float, ...]:
    """The curve of a draft each of whose tokens is accepted with chance ``share``."""
    if not 0 < share < 1:
        raise SpecError("must lie between 0 and 1", key="acceptance", value=share, fix="try 0.7")
    return tuple(share**i for i in range(1, LONGEST_CHAIN + 1))


def check_acceptance(curve: tuple[float, ...]) -> tuple[float, ...]:
    """``curve`` if it is one: shares in (0, 1] that never rise. Raises ``SpecError``."""
    shares = (1.0, *curve)
    if len(shares) < 2 or any(not 0 < b <= a for a, b in pairwise(shares)):
        raise SpecError(
            "must fall from at most 1 and stay above 0",
            key="acceptance",
            value=curve,
            fix="list the share of steps that accept draft token 1, 2, ...",
        )
    return curve


def read_acceptance(text: str) -> tuple[float, ...]:
    """A chance, or a file: a list, or a mapping with the key ``acceptance``."""
    try:
        return constant_acceptance(float(text))
    except ValueError:
        pass
    path = Path(text)
    raw = read_json(path) if path.suffix.lower() == ".json" else read_yaml(path)
    values = raw.get("acceptance") if isinstance(raw, Mapping) else raw
    if not isinstance(values, list) or not all(is_finite_number(value) for value in values):
        raise SpecError(
            "must be a list of shares",
            source=path,
            key="acceptance",
            fix="such as acceptance: [0.8, 0.62, 0.5]",
        )
    try:
        return check_acceptance(tuple(float(value) for value in values))
    except SpecError as error:
        raise error.at(path) from None
