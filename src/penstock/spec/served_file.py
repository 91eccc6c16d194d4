"""The models of a pool as a file: what is to be served, in which forms, and what is wanted."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Annotated, Any

from pydantic import Field, ValidationInfo, field_validator
from pydantic_core import PydanticCustomError

from penstock.errors import SpecError
from penstock.spec.files import read_yaml
from penstock.spec.intent import INTENTS, Intent, Wish
from penstock.spec.names import did_you_mean
from penstock.spec.served import ServedModel, own_precision, parse_precision
from penstock.spec.strict import Duration, Strict, validate
from penstock.spec.variants import Precision, Variant
from penstock.spec.workload import SLO
from penstock.spec.workload_parts import limits_of
from penstock.spec.workload_schema import LimitsFile, WorkloadFile

Share = Annotated[float, Field(gt=0, le=1)]
_TRAFFIC = ("arrivals", "lengths", "classes")


def _known_precision(value: str) -> str:
    try:
        return str(parse_precision(value))
    except SpecError as error:
        raise PydanticCustomError(
            "precision", "{problem}", {"problem": error.problem, "fix": error.fix}
        ) from None


class VariantFile(Strict):
    """A stored form, and its accuracy as a share of the unquantised model's."""

    precision: str = Field(description="float16, bfloat16, int8, int4, ... ; +kv8: int8 KV values")
    accuracy: Share

    _known = field_validator("precision")(_known_precision)


class ServedFile(Strict):
    """One model. ``model`` is a preset, a config.json, the folder that holds one, or YAML."""

    name: str = Field(min_length=1)
    model: str
    checkpoint: str = Field(default="", description="folder that serve loads")
    priority: int = 0
    intent: Intent = Field(default="min_latency", validate_default=True)
    slo_latency: Duration | None = None
    accuracy_floor: Annotated[float, Field(ge=0, le=1)] = 0.0
    precisions: list[str] | None = Field(default=None, description="those allowed; default: all")
    variants: list[VariantFile] | None = None
    slo: LimitsFile | None = Field(default=None, description="limits where the workload gives none")

    @field_validator("intent", mode="before")
    @classmethod
    def _intent(cls, value: Any, _info: ValidationInfo) -> Any:
        if value not in INTENTS:
            raise PydanticCustomError(
                "intent",
                "{problem}",
                {"problem": "no such intent", "fix": did_you_mean(str(value), INTENTS)},
            )
        return value

    @field_validator("precisions")
    @classmethod
    def _precisions(cls, value: list[str] | None) -> list[str] | None:
        return None if value is None else [_known_precision(one) for one in value]


class ModelsFile(Strict):
    """The models of a pool."""

    models: list[ServedFile] = Field(min_length=1)


def load_served(path: str | Path) -> tuple[ServedModel, ...]:
    """Read the models of a pool. Raises one ``SpecError`` naming file, key, value and fix."""
    return served_from_dict(read_yaml(path), path)


def served_from_dict(data: object, source: str | Path = "models") -> tuple[ServedModel, ...]:
    """The models that ``data`` (the content of a models file) describes.

    Paths in it are taken from the folder of ``source``.
    """
    file = validate(ModelsFile, data, source)
    found: dict[str, ServedModel] = {}
    for i, entry in enumerate(file.models):
        key = f"models[{i}]"
        if entry.name in found:
            raise SpecError("model is named twice", source=source, key=key, value=entry.name)
        try:
            found[entry.name] = _served(entry, Path(str(source)))
        except SpecError as error:
            raise error.at(source, key) from None
    return tuple(found.values())


def is_served_file(path: str | Path) -> bool:
    """Whether a YAML or JSON file names models to serve, and not their traffic.

    Raises ``SpecError`` where it cannot be read.
    """
    if Path(path).suffix.lower() not in (".yaml", ".yml", ".json"):
        return False
    data = read_yaml(path)
    rows = data.get("models")
    others = set(WorkloadFile.model_fields) - {"models"}
    if rows is None or not others.isdisjoint(data):
        return False
    return not (isinstance(rows, list) and any(map(_traffic, rows)))


def _traffic(row: object) -> bool:
    return isinstance(row, Mapping) and any(key in row for key in _TRAFFIC)


def _served(entry: ServedFile, source: Path) -> ServedModel:
    from penstock.spec.load import load_model  # noqa: PLC0415 - load knows this file's schema

    model = load_model(_beside(source, entry.model))
    if entry.variants is None:
        variants: tuple[Variant, ...] = (Variant(own_precision(model), 1.0),)
    else:
        variants = tuple(
            Variant(parse_precision(one.precision), one.accuracy) for one in entry.variants
        )
    allowed = None
    if entry.precisions is not None:
        allowed = frozenset(parse_precision(one) for one in entry.precisions)
    _check(entry, variants, allowed)
    return ServedModel(
        entry.name,
        model,
        variants,
        Wish(entry.intent, entry.slo_latency, entry.accuracy_floor, allowed),
        entry.priority,
        _beside(source, entry.checkpoint) if entry.checkpoint else "",
        SLO() if entry.slo is None else limits_of(entry.slo),
    )


def _check(
    entry: ServedFile, variants: Sequence[Variant], allowed: frozenset[Precision] | None
) -> None:
    """Each form once, those allowed among them, and one that is accurate enough."""
    forms = [variant.precision for variant in variants]
    for i, form in enumerate(forms):
        if form in forms[:i]:
            raise SpecError(
                "precision is named twice", key=f"variants[{i}].precision", value=str(form)
            )
    if not forms:
        raise SpecError("the list is empty", key="variants", fix="leave it out, or name a form")
    missing = sorted((allowed or frozenset()) - set(forms))
    if missing or allowed == frozenset():
        value = ", ".join(map(str, missing))
        raise SpecError(
            f"there is no variant of it; there are {', '.join(map(str, forms))}",
            key="precisions",
            value=value,
            fix=f"add {{precision: {value or '...'}, accuracy: ...}} to variants",
        )
    best = max(one.accuracy for one in variants if allowed is None or one.precision in allowed)
    if best < entry.accuracy_floor:
        raise SpecError(
            f"no variant is as accurate; the best has {best:g}",
            key="accuracy_floor",
            value=entry.accuracy_floor,
        )


def _beside(source: Path, name: str) -> str:
    """``name``, or the file of that name in the folder of ``source`` where there is one."""
    path = source.parent / name
    return str(path) if not Path(name).is_absolute() and path.exists() else name
