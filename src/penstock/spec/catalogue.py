"""Accelerators by name: datasheet figures and where they come from."""

from __future__ import annotations

import re
from collections.abc import Mapping
from dataclasses import dataclass
from functools import cache
from pathlib import Path
from typing import Any, get_args

from penstock.errors import SpecError
from penstock.spec import units
from penstock.spec.files import PRESETS, read_yaml
from penstock.spec.hardware import Accelerator, Interconnect
from penstock.spec.model import DTYPE_BYTES
from penstock.spec.names import did_you_mean, normalise

_MACHINE = re.compile(r"(.+?)(?:x(\d+))?")


@dataclass(frozen=True)
class Catalogue:
    """Accelerators by canonical name, their aliases (folded) and short names."""

    accelerators: Mapping[str, Accelerator]
    names: Mapping[str, str]
    short_names: Mapping[str, str]

    def get(self, name: str) -> Accelerator:
        """Return the accelerator called ``name``, ignoring case and separators.

        Raises ``SpecError`` with the nearest known name.
        """
        found = self.names.get(normalise(name))
        if found is None:
            raise SpecError(
                "unknown accelerator", value=name, fix=did_you_mean(name, self.accelerators)
            )
        return self.accelerators[found]

    def short_name(self, name: str) -> str:
        return self.short_names.get(name, name)


@cache
def catalogue() -> Catalogue:
    """The bundled catalogue, read once."""
    return read_catalogue(PRESETS / "accelerators.yaml")


def read_catalogue(path: Path) -> Catalogue:
    accelerators: dict[str, Accelerator] = {}
    names: dict[str, str] = {}
    short_names: dict[str, str] = {}
    for name, raw in read_yaml(path).items():
        if not isinstance(raw, dict):
            raise SpecError("must hold the figures of one accelerator", source=path, key=name)
        try:
            accelerators[name] = _accelerator(name, raw)
        except SpecError as error:
            raise error.at(path, name) from None
        short_names[name] = str(raw.get("short", name))
        for alias in (name, *raw.get("aliases", ())):
            if names.setdefault(normalise(str(alias)), name) != name:
                raise SpecError("this name is taken twice", source=path, key=name, value=alias)
    return Catalogue(accelerators, names, short_names)


def _accelerator(name: str, raw: Mapping[str, Any]) -> Accelerator:
    if raw["interconnect"] not in get_args(Interconnect):
        raise SpecError("unknown interconnect", key="interconnect", value=raw["interconnect"])
    for dtype in raw["flops"]:
        if dtype not in DTYPE_BYTES:
            raise SpecError("unknown dtype", key="flops", value=dtype)
    price_source = raw.get("price_source")
    return Accelerator(
        name=name,
        memory_bytes=units.parse_bytes(raw["memory"]),
        memory_bandwidth_bytes_per_s=units.parse_bandwidth(raw["bandwidth"]),
        flops_per_s={dtype: units.parse_flops(value) for dtype, value in raw["flops"].items()},
        interconnect=raw["interconnect"],
        interconnect_bytes_per_s=units.parse_bandwidth(raw["interconnect_bandwidth"]),
        price_per_hour=units.parse_price(raw["price"]) if "price" in raw else None,
        source=raw["source"] + (f"; price: {price_source}, mid 2025" if price_source else ""),
    )


def accelerator(name: str) -> Accelerator:
    """The accelerator called ``name`` (or an alias: ``A100`` is the 40 GB one)."""
    return catalogue().get(name)


def machine_type(accelerator_name: str, count: int) -> str:
    """What a node of ``count`` such accelerators is called: ``A100``, ``T4x4``."""
    short = catalogue().short_name(accelerator_name)
    return short if count == 1 else f"{short}x{count}"


def parse_machine_type(name: str) -> tuple[Accelerator, int]:
    """The inverse of ``machine_type``: ``T4x4`` -> (T4, 4)."""
    match = _MACHINE.fullmatch(name.strip())
    if match is None:
        raise SpecError("empty machine type", value=name)
    return accelerator(match[1]), int(match[2] or 1)
