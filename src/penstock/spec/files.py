"""Reading YAML, JSON and text: the one place where a file becomes plain data or one clear line."""

from __future__ import annotations

import json
import math
from collections.abc import Hashable, Mapping
from pathlib import Path
from typing import Any, cast

import yaml

try:
    from yaml import CSafeLoader as _SafeLoader
except ImportError:  # PyYAML built without libyaml: the same, slower
    from yaml import SafeLoader as _SafeLoader  # type: ignore[assignment]

from penstock.errors import SpecError

PRESETS = Path(__file__).parent / "presets"


class _StrictLoader(_SafeLoader):
    """The safe loader, which also refuses a key that is written twice."""

    def construct_mapping(self, node: yaml.MappingNode, deep: bool = False) -> dict[Hashable, Any]:
        self.flatten_mapping(node)
        mapping: dict[Hashable, Any] = {}
        for key_node, value_node in node.value:
            key = self.construct_object(key_node, deep=True)
            try:
                repeated = key in mapping
            except TypeError:
                raise yaml.constructor.ConstructorError(
                    None, None, "a key must be a plain word", key_node.start_mark
                ) from None
            if repeated:
                raise yaml.constructor.ConstructorError(
                    None, None, f"key {key!r} is written twice", key_node.start_mark
                )
            mapping[key] = self.construct_object(value_node, deep=deep)
        return mapping


def read_text(path: str | Path) -> str:
    """Return the file's text; every way in which that fails is one ``SpecError``."""
    path = Path(path)
    try:
        return path.read_text(encoding="utf-8-sig")
    except FileNotFoundError:
        raise SpecError("file not found", source=path, fix="check the path") from None
    except IsADirectoryError:
        raise SpecError("this is a folder", source=path, fix="name a file in it") from None
    except UnicodeDecodeError:
        raise SpecError(
            "not a text file", source=path, fix="give a UTF-8 file (YAML, JSON, ini or CSV)"
        ) from None
    except OSError as error:
        raise SpecError(f"cannot be read: {error.strerror}", source=path) from None


def read_yaml(path: str | Path) -> Mapping[str, object]:
    """Return the top-level mapping of a YAML (or JSON) file."""
    return parse_yaml(read_text(path), path)


def parse_yaml(text: str, source: str | Path) -> Mapping[str, object]:
    """As ``read_yaml``, for text that came from ``source``."""
    try:
        data = yaml.load(text, Loader=_StrictLoader)
    except yaml.MarkedYAMLError as error:
        mark = error.problem_mark
        raise SpecError(
            f"not valid YAML: {error.problem}",
            source=f"{source}:{mark.line + 1}" if mark else source,
            fix="check indentation, quotes and brackets there",
        ) from None
    except (yaml.YAMLError, ValueError, RecursionError) as error:
        raise SpecError(f"not valid YAML: {str(error).splitlines()[0]}", source=source) from None
    return _top_level(data, source)


def read_json(path: str | Path) -> object:
    """Return what a JSON file holds; NaN and Infinity are refused."""
    try:
        return json.loads(read_text(path), parse_constant=_refuse_constant)
    except (json.JSONDecodeError, RecursionError) as error:
        line = getattr(error, "lineno", 1)
        what = getattr(error, "msg", "nested too deeply")
        raise SpecError(
            f"not valid JSON: {what}", source=f"{path}:{line}", fix="check the file there"
        ) from None
    except _NotFinite as error:
        raise SpecError("numbers must be finite", source=path, value=str(error)) from None


class _NotFinite(Exception):  # noqa: N818 - never leaves this module
    pass


def _refuse_constant(name: str) -> float:
    raise _NotFinite(name)


def _top_level(data: object, source: str | Path) -> Mapping[str, object]:
    if data is None:
        raise SpecError("the file is empty", source=source, fix="see `penstock init` for a start")
    if not isinstance(data, dict) or not all(isinstance(key, str) for key in data):
        raise SpecError("the file must be a mapping of `key: value` lines", source=source)
    return cast(Mapping[str, object], data)


def is_finite_number(value: object) -> bool:
    return isinstance(value, (int, float)) and not isinstance(value, bool) and math.isfinite(value)
