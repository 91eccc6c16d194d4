"""The strict edge: pydantic types with units, unknown keys refused, one-line errors."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Annotated, Any, TypeVar

from pydantic import (
    BaseModel,
    BeforeValidator,
    ConfigDict,
    Field,
    ValidationError,
    WithJsonSchema,
    model_validator,
)
from pydantic_core import PydanticCustomError

from penstock.errors import SpecError
from penstock.spec import units
from penstock.spec.names import did_you_mean


def _checked(parse: Callable[[object], float]) -> Callable[[object], float]:
    def convert(value: object) -> float:
        try:
            return parse(value)
        except SpecError as error:
            raise PydanticCustomError(
                "spec", "{problem}", {"problem": error.problem, "fix": error.fix}
            ) from None

    return convert


def _schema(quantity: units.Quantity) -> WithJsonSchema:
    return WithJsonSchema(
        {
            "anyOf": [{"type": "number", "minimum": 0}, {"type": "string"}],
            "description": quantity.example,
        }
    )


Bytes = Annotated[int, BeforeValidator(_checked(units.parse_bytes)), _schema(units.BYTES)]
Bandwidth = Annotated[
    float, BeforeValidator(_checked(units.parse_bandwidth)), _schema(units.BANDWIDTH)
]
Duration = Annotated[
    float, BeforeValidator(_checked(units.parse_duration)), _schema(units.DURATION)
]
Price = Annotated[float, BeforeValidator(_checked(units.parse_price)), _schema(units.PRICE)]
Flops = Annotated[float, BeforeValidator(_checked(units.parse_flops)), _schema(units.FLOPS)]
Rate = Annotated[float, BeforeValidator(_checked(units.parse_rate)), _schema(units.RATE)]
Count = Annotated[int, Field(strict=True, ge=1, le=10**12)]
Name = Annotated[str, Field(pattern=r"^[A-Za-z0-9_.:/+-]+$")]


class Strict(BaseModel):
    """A mapping of a file: unknown keys are refused with the nearest known one."""

    model_config = ConfigDict(
        extra="forbid", populate_by_name=True, allow_inf_nan=False, frozen=True
    )

    @model_validator(mode="before")
    @classmethod
    def _known_keys(cls, data: Any) -> Any:
        if isinstance(data, dict):
            known = [field.alias or name for name, field in cls.model_fields.items()]
            extra = [alias for field in cls.model_fields.values() for alias in _choices(field)]
            for key in data:
                if key not in known and key not in cls.model_fields and key not in extra:
                    raise PydanticCustomError(
                        "unknown_key",
                        "unknown key",
                        {"key": str(key), "fix": did_you_mean(str(key), [*known, *extra])},
                    )
        return data


def _choices(field: Any) -> list[str]:
    alias = field.validation_alias
    return [str(choice) for choice in getattr(alias, "choices", [alias] if alias else [])]


_Model = TypeVar("_Model", bound=Strict)


def validate(model: type[_Model], data: object, source: str | Path) -> _Model:
    """Return ``data`` as ``model``; raise the most telling mistake as one ``SpecError``."""
    try:
        return model.model_validate(data)
    except ValidationError as error:
        raise _spec_error(error.errors(include_url=False), data, source) from None


_MISMATCH = ("int_type", "string_type", "model_type", "dict_type", "list_type", "tuple_type")


def _spec_error(errors: Sequence[Any], data: object, source: str | Path) -> SpecError:
    """The deepest error tells most: where a value may take several forms, pydantic reports each
    form that did not match, and only the one that was meant got further than its type.
    """
    paths = [_path(error, data) for error in errors]
    best = max(
        range(len(errors)), key=lambda i: (len(paths[i]), errors[i]["type"] not in _MISMATCH, -i)
    )
    error, context = errors[best], errors[best].get("ctx") or {}
    key = ""
    for part in paths[best]:
        key += f"[{part}]" if isinstance(part, int) else f".{part}" if key else str(part)
    value = error["input"]
    if error["type"] in ("unknown_key", "missing") or isinstance(value, (dict, list)):
        value = None
    problem = {
        "missing": "key is missing",
        "dict_type": "must be a mapping of `key: value` lines",
        "model_type": "must be a mapping of `key: value` lines",
        "list_type": "must be a list",
        "greater_than_equal": f"must be at least {context.get('ge')}",
        "less_than_equal": f"must be at most {context.get('le')}",
        "int_type": "must be a whole number",
        "string_pattern_mismatch": "may hold letters, digits and _ . : / + - only",
    }.get(error["type"], error["msg"][:1].lower() + error["msg"][1:])
    return SpecError(problem, source=source, key=key or None, value=value, fix=context.get("fix"))


def _path(error: Any, data: object) -> list[str | int]:
    """The keys that lead to the error, without the names pydantic gives to forms of a union."""
    path: list[str | int] = []
    at: Any = data
    for i, part in enumerate(error["loc"]):
        in_list = isinstance(at, (list, tuple)) and isinstance(part, int) and part < len(at)
        if in_list or (isinstance(at, dict) and part in at):
            at = at[part]
        elif not (error["type"] == "missing" and i == len(error["loc"]) - 1):
            continue
        path.append(part)
    unknown = (error.get("ctx") or {}).get("key")
    return path if unknown is None else [*path, unknown]
