"""Plain data of a document, taken key by key; every mistake is one ``SpecError``."""

from __future__ import annotations

import dataclasses
from collections.abc import Callable, Mapping, Sequence
from typing import Any, TypeVar, cast

from penstock.errors import SpecError
from penstock.spec.files import is_finite_number
from penstock.spec.names import did_you_mean

Item = TypeVar("Item")


class Fields:
    """The keys of one mapping, checked as they are taken."""

    def __init__(
        self, place: str, data: object, known: Sequence[str], optional: Sequence[str] = ()
    ) -> None:
        if not isinstance(data, Mapping):
            raise SpecError("must be a mapping of `key: value`", key=place, value=data)
        self.place, self.data = place, data
        for key in data:
            if key not in known:
                raise SpecError(
                    "unknown key", key=self.key(str(key)), fix=did_you_mean(str(key), known)
                )
        for key in known:
            if key not in data and key not in optional:
                raise SpecError("key is missing", key=self.key(key), fix=f"add {key}: ...")

    def key(self, name: str) -> str:
        return f"{self.place}.{name}" if self.place else name

    def fail(self, name: str, problem: str, fix: str | None = None) -> SpecError:
        return SpecError(problem, key=self.key(name), value=self.data.get(name), fix=fix)

    def text(self, name: str, default: str | None = None) -> str:
        value = self.data.get(name, default)
        if not isinstance(value, str):
            raise self.fail(name, "must be text", "put it in quotes")
        return value

    def truth(self, name: str) -> bool:
        value = self.data[name]
        if not isinstance(value, bool):
            raise self.fail(name, "must be true or false")
        return value

    def number(self, name: str) -> float:
        return to_number(self.key(name), self.data[name])

    def number_or_none(self, name: str) -> float | None:
        return None if self.data.get(name) is None else self.number(name)

    def whole(self, name: str) -> int:
        return to_whole(self.key(name), self.data[name])

    def mapping(self, name: str) -> Mapping[str, object]:
        value = self.data[name]
        if not isinstance(value, Mapping):
            raise self.fail(name, "must be a mapping of `key: value`")
        return value

    def rows(self, name: str) -> Sequence[object]:
        value = self.data.get(name, [])
        if not isinstance(value, list):
            raise self.fail(name, "must be a list")
        return value

    def one_of(self, name: str, known: Sequence[str]) -> str:
        value = self.text(name)
        if value not in known:
            raise self.fail(name, "unknown value", did_you_mean(value, known))
        return value


def to_number(key: str, value: object) -> float:
    """A finite number, 0 or more."""
    if not is_finite_number(value):
        raise SpecError("must be a finite number", key=key, value=value)
    number = float(cast(float, value))
    if number < 0:
        raise SpecError("must be 0 or more", key=key, value=value)
    return number


def to_whole(key: str, value: object) -> int:
    """A whole number, 0 or more."""
    if not isinstance(value, int) or isinstance(value, bool) or value < 0:
        raise SpecError("must be a whole number, 0 or more", key=key, value=value)
    return value


def nested(key: str, convert: Callable[[Mapping[str, object]], Item], data: object) -> Item:
    """What ``convert`` makes of ``data``; keys of its errors are put below ``key``."""
    try:
        return convert(cast(Mapping[str, object], data))
    except SpecError as error:
        joined = f"{key}.{error.key}" if error.key else key
        raise SpecError(error.problem, key=joined, value=error.value, fix=error.fix) from None


def rows_of(fields: Fields, name: str, convert: Callable[[str, object], Item]) -> tuple[Item, ...]:
    """Each row of the list ``name``, converted with its place."""
    return tuple(convert(f"{name}[{i}]", row) for i, row in enumerate(fields.rows(name)))


def to_list(place: str, row: object, what: Sequence[str]) -> list[object]:
    """A list of as many values as ``what`` names."""
    if not isinstance(row, list) or len(row) != len(what):
        raise SpecError(f"must be [{', '.join(what)}]", key=place, value=row)
    return row


def to_name(place: str, value: object) -> str:
    if not isinstance(value, str):
        raise SpecError("must be a name", key=place, value=value, fix="put it in quotes")
    return value


def to_text(place: str, value: object) -> str:
    if not isinstance(value, str):
        raise SpecError("must be text", key=place, value=value)
    return value


def to_settings(place: str, kind: type[Item], data: object) -> Item:
    """A dataclass of settings from its keys; each value must have the type of its default."""
    known = {field.name: field for field in dataclasses.fields(cast(Any, kind))}
    checked = Fields(place, data, tuple(known), tuple(known))
    for name, value in checked.data.items():
        allowed = [part.strip() for part in str(known[name].type).split("|")]
        if not any(_KINDS.get(part, _is_text)(value) for part in allowed):
            raise checked.fail(name, f"must be {' or '.join(map(_kind_name, allowed))}")
    try:
        return kind(**checked.data)
    except SpecError as error:
        last = (error.key or "").rpartition(".")[2]
        raise SpecError(
            error.problem, key=checked.key(last), value=error.value, fix=error.fix
        ) from None


def _is_text(value: object) -> bool:
    return isinstance(value, str)


_KINDS: Mapping[str, Callable[[object], bool]] = {
    "int": lambda value: isinstance(value, int) and not isinstance(value, bool),
    "float": lambda value: isinstance(value, (int, float)) and not isinstance(value, bool),
    "bool": lambda value: isinstance(value, bool),
    "None": lambda value: value is None,
}
_KIND_NAMES = {"int": "a whole number", "float": "a number", "bool": "true or false"}


def _kind_name(kind: str) -> str:
    return _KIND_NAMES.get(kind, "empty" if kind == "None" else "text")
