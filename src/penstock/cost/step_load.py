"""Rebuild step cost models from documents: what ``to_dict`` gave, or what a user wrote."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from typing import Annotated, TypeVar

from pydantic import Field

from penstock.cost.base import Provenance, Source
from penstock.cost.distserve_host import DistServeHostCost
from penstock.cost.fingerprint_steps import FingerprintStepCost
from penstock.cost.linear import (
    DecodeLine,
    DistServeCost,
    DistServeEngine,
    LinearCoefficients,
    LinearStepCost,
)
from penstock.cost.operator_tables import OperatorTableCost
from penstock.cost.step_roofline import DEFAULT_ENGINE, StepRoofline
from penstock.cost.step_table import StepTable, read_step_table
from penstock.cost.steps import StepCostModel
from penstock.errors import SpecError
from penstock.spec.model import ModelSpec
from penstock.spec.names import did_you_mean
from penstock.spec.strict import Count, Strict, validate

Seconds = Annotated[float, Field(strict=True, ge=0)]
Line = tuple[Seconds, Seconds, Seconds]


class _Roofline(Strict):
    kind: str
    engine: str = DEFAULT_ENGINE
    enforce_eager: bool = Field(default=False, strict=True)
    coefficients: None = None


class _Table(Strict):
    kind: str
    path: str
    digest: str | None = None


class _Fingerprint(Strict):
    kind: str
    path: str
    digest: str | None = None


class _Operators(Strict):
    kind: str
    directory: str
    tag: str
    tensor_parallel_size: Count = 1
    max_tokens: Count = 4096
    digest: str | None = None


class _Provenance(Strict):
    kind: Source
    source: str
    error: str = ""
    domain: str = ""
    notes: tuple[str, ...] = ()


class _Linear(Strict):
    """``prefill_s``: fixed, per token, per pair of tokens. ``decode_s``: fixed, per context token,
    per sequence; ``decode_large_s`` the same from ``large_batch`` sequences on."""

    kind: str
    kv_tokens: Count
    prefill_s: Line
    decode_s: Line
    decode_large_s: Line | None = None
    large_batch: int = Field(default=0, strict=True, ge=0)
    provenance: _Provenance | None = None


class _DistServe(Strict):
    kind: str
    engine: DistServeEngine = "distserve"


def step_cost_from_dict(document: Mapping[str, object], model: ModelSpec) -> StepCostModel:
    """Rebuild the step cost model of ``StepCostModel.to_dict``.

    Kinds: ``step-roofline``, ``step-table``, ``fingerprint``, ``operator-tables``, ``linear``,
    ``distserve`` and ``distserve-host``. Raises ``SpecError`` for another kind, unknown keys,
    values of a wrong type, and files that are gone or differ from the ``digest`` in the document.
    """
    kind = document.get("kind")
    if kind is None:
        raise SpecError("key is missing", key="cost.kind", fix=f"use one of {', '.join(_BUILD)}")
    build = _BUILD.get(kind) if isinstance(kind, str) else None
    if build is None:
        raise SpecError(
            "is no cost model of whole engines",
            key="cost.kind",
            value=kind,
            fix=did_you_mean(str(kind), _BUILD)
            if kind not in ("roofline", "layer-table")
            else f"use one of {', '.join(_BUILD)}",
        )
    return build(document, model)


_Document = TypeVar("_Document", bound=Strict)


def _read(schema: type[_Document], document: Mapping[str, object]) -> _Document:
    try:
        return validate(schema, dict(document), "")
    except SpecError as error:
        raise error.at("", "cost") from None


def _check_digest(found: str, stated: str | None, source: str) -> None:
    if stated is not None and stated != found:
        raise SpecError(
            f"the measurements have changed since the document was written (now {found})",
            source=source,
            key="cost.digest",
            value=stated,
            fix="plan again, or remove the key to use them as they are",
        )


def _roofline(document: Mapping[str, object], model: ModelSpec) -> StepRoofline:
    if document.get("coefficients") is not None:
        raise SpecError(
            "was priced with coefficients of its own, which the document does not hold",
            key="cost.coefficients",
            value=document["coefficients"],
            fix="remove the key to use the bundled ones",
        )
    read = _read(_Roofline, document)
    try:
        return StepRoofline(model, engine=read.engine, enforce_eager=read.enforce_eager)
    except SpecError as error:
        raise error.at("", "cost") from None


def _table(document: Mapping[str, object], model: ModelSpec) -> StepTable:
    read = _read(_Table, document)
    cost = read_step_table(model, read.path)
    _check_digest(cost.digest, read.digest, read.path)
    return cost


def _fingerprint(document: Mapping[str, object], model: ModelSpec) -> FingerprintStepCost:
    read = _read(_Fingerprint, document)
    cost = FingerprintStepCost(model, read.path)
    _check_digest(cost.digest, read.digest, read.path)
    return cost


def _operators(document: Mapping[str, object], model: ModelSpec) -> OperatorTableCost:
    read = _read(_Operators, document)
    cost = OperatorTableCost(
        model, read.directory, read.tag, read.tensor_parallel_size, max_tokens=read.max_tokens
    )
    _check_digest(cost.digest, read.digest, f"{read.directory}/{read.tag}")
    return cost


def _linear(document: Mapping[str, object], model: ModelSpec) -> LinearStepCost:
    read = _read(_Linear, document)
    large = read.decode_large_s
    if (large is None) != (read.large_batch == 0):
        raise SpecError(
            "decode_large_s and the batch it holds from belong together",
            key="cost.large_batch",
            value=read.large_batch,
            fix="state both or neither",
        )
    for key in ("prefill_s", "decode_s", "decode_large_s"):
        line = getattr(read, key)
        if line is not None and not any(line):
            raise SpecError("steps would take no time", key=f"cost.{key}", value=list(line))
    coefficients = LinearCoefficients(
        *read.prefill_s,
        DecodeLine(*read.decode_s),
        None if large is None else DecodeLine(*large),
        large_batch=read.large_batch,
    )
    told = read.provenance
    provenance = None if told is None else Provenance(**told.model_dump())
    return LinearStepCost(model, coefficients, read.kv_tokens, provenance)


def _distserve(document: Mapping[str, object], model: ModelSpec) -> DistServeCost:
    return DistServeCost(model, _read(_DistServe, document).engine)


def _distserve_host(document: Mapping[str, object], model: ModelSpec) -> DistServeHostCost:
    return DistServeHostCost(model, _read(_DistServe, document).engine)


_BUILD: Mapping[str, Callable[[Mapping[str, object], ModelSpec], StepCostModel]] = {
    "step-roofline": _roofline,
    "step-table": _table,
    "fingerprint": _fingerprint,
    "operator-tables": _operators,
    "linear": _linear,
    "distserve": _distserve,
    "distserve-host": _distserve_host,
}
