"""The profile as a file: what ``penstock.cost.step_table`` reads, with all its sources."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import yaml

from penstock.cost.step_table import StepTableFile
from penstock.storage import write_text

_DIGITS = 6
_INLINE: dict[str, Any] = {"sort_keys": False, "default_flow_style": True, "width": 1000}


def profile_text(profile: StepTableFile) -> str:
    """``profile`` as YAML, one point a line, seconds as plain numbers."""
    given = profile.model_dump(exclude_none=True, exclude_defaults=True)
    points = {name: given.pop(name, ()) for name in ("decode", "prefill")}
    parts = [yaml.safe_dump(_rounded(given), sort_keys=False, allow_unicode=True)]
    for name, rows in points.items():
        parts.append(f"{name}:\n")
        parts += ["  - " + yaml.safe_dump(_rounded(row), **_INLINE) for row in rows]
    return "".join(parts)


def write_profile(profile: StepTableFile, path: Path) -> None:
    """Write ``profile_text`` to ``path``, whole or not at all."""
    write_text(path, profile_text(profile))


def _rounded(values: dict[str, object]) -> dict[str, object]:
    result: dict[str, object] = {}
    for key, value in values.items():
        if isinstance(value, dict):
            result[key] = _rounded(value)
        elif isinstance(value, float):
            result[key] = float(f"{value:.{_DIGITS}g}")
        else:
            result[key] = value
    return result
