"""The step cost of a plan of whole engines, with the speculation that its engines have."""

from __future__ import annotations

from collections.abc import Mapping

from penstock.cost.load import step_cost_from_dict
from penstock.cost.steps import StepCostModel
from penstock.errors import SpecError
from penstock.plan.goodput.costs import check_acceptance, read_acceptance
from penstock.plan.goodput.speculative_cost import SpeculativeCost
from penstock.plan.plan import Plan
from penstock.plan.settings import SpeculationSettings
from penstock.spec.load import load_model


def plan_cost(plan: Plan, acceptance: float | str | None = None) -> StepCostModel:
    """Rebuild what prices the steps of ``plan``.

    Engines that speculate need the share of draft tokens that are accepted: in the plan's cost
    model (kind ``speculative``), or as ``acceptance``: one chance for every token, or a file with
    the curve that was measured. Raises
    ``SpecError`` where there is none, where engines speculate differently, and for the method
    ``adaserve``, whose mean price nobody knows.
    """
    settings = _speculation(plan)
    document = plan.cost
    speculative = document.get("kind") == "speculative"
    if settings is None:
        base = _part(document, "target") if speculative else document
        return step_cost_from_dict(base, plan.model)
    if settings.method == "adaserve":
        raise SpecError(
            "fleets are simulated with the mean price of a token, which adaserve has not",
            key="speculation.method",
            value=settings.method,
            fix="use chain or penstock",
        )
    if speculative:
        target = step_cost_from_dict(_part(document, "target"), plan.model)
        draft = step_cost_from_dict(
            _part(document, "draft"), load_model(str(document.get("draft_model")))
        )
        curve = _curve(document.get("acceptance"))
    else:
        target = step_cost_from_dict(document, plan.model)
        if acceptance is None:
            raise SpecError(
                "engines speculate, and nothing says how much is accepted",
                key="cost.acceptance",
                fix="give --acceptance 0.7, or what was measured",
            )
        draft = step_cost_from_dict(document, load_model(settings.draft_model))
    if acceptance is not None:
        curve = read_acceptance(str(acceptance))
    return SpeculativeCost(target, draft, settings, curve)


def _speculation(plan: Plan) -> SpeculationSettings | None:
    """What the engines that decode have in common."""
    found = {engine.speculation for engine in plan.engines if engine.role != "prefill"}
    if len(found) > 1:
        raise SpecError(
            "engines of one plan are simulated with one speculation",
            key="engines.speculation",
            fix="give all engines that decode the same",
        )
    return next(iter(found), None)


def _part(document: Mapping[str, object], name: str) -> Mapping[str, object]:
    part = document.get(name)
    if not isinstance(part, Mapping):
        raise SpecError("must be a cost model", key=f"cost.{name}", value=part)
    return part


def _curve(value: object) -> tuple[float, ...]:
    if not isinstance(value, list | tuple) or not all(
        isinstance(share, int | float) and not isinstance(share, bool) for share in value
    ):
        raise SpecError("must list shares", key="cost.acceptance", value=value)
    return check_acceptance(tuple(float(share) for share in value))
