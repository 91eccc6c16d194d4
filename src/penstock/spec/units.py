"""Numbers with unit suffixes, turned into SI base units (bytes, bytes/s, seconds, $/h, FLOP/s).

``B`` is a byte and ``b`` a bit. ``GB`` is 1e9 bytes, ``GiB`` 2**30. A plain number is already in
the base unit.
"""

from __future__ import annotations

import math
import re
from collections.abc import Mapping
from dataclasses import dataclass

from penstock.errors import SpecError

_DECIMAL = {"": 1.0, "k": 1e3, "K": 1e3, "M": 1e6, "G": 1e9, "T": 1e12, "P": 1e15}
_BINARY = {"Ki": 2.0**10, "Mi": 2.0**20, "Gi": 2.0**30, "Ti": 2.0**40}
_NUMBER = re.compile(r"\s*([+-]?(?:\d[\d_]*\.?\d*|\.\d+)(?:[eE][+-]?\d+)?)\s*(.*?)\s*")


@dataclass(frozen=True, slots=True)
class Quantity:
    """A kind of number: the suffixes it accepts and how to explain them."""

    what: str
    units: Mapping[str, float]
    example: str
    prefix: str = ""


def _byte_units() -> dict[str, float]:
    units = {"": 1.0, "B": 1.0, "bytes": 1.0}
    for prefix, scale in (_DECIMAL | _BINARY).items():
        if prefix:
            units[prefix + "B"] = scale
            units[prefix] = scale
            units[(prefix + "b").lower()] = scale
    return units


def _bandwidth_units() -> dict[str, float]:
    units = {"": 1.0}
    for prefix, scale in (_DECIMAL | _BINARY).items():
        units |= {f"{prefix}B/s": scale, f"{prefix}Bps": scale}
        for bits in (f"{prefix}bit/s", f"{prefix}b/s", f"{prefix}bps"):
            units[bits] = scale / 8
        if prefix and prefix in _DECIMAL:
            units[f"{prefix.lower()}bps"] = scale / 8
    return units


def _flops_units() -> dict[str, float]:
    units = {"": 1.0}
    for prefix, scale in _DECIMAL.items():
        for suffix in ("FLOPS", "FLOP/s", "FLOPs", "OPS"):
            units[prefix + suffix] = scale
    return units


BYTES = Quantity("a size", _byte_units(), 'bytes, or with a unit as in "80 GB" or "16 GiB"')
BANDWIDTH = Quantity(
    "a bandwidth",
    _bandwidth_units(),
    'bytes/s, or with a unit as in "25 Gbit/s" (bits) or "1.25 GB/s" (bytes)',
)
DURATION = Quantity(
    "a duration",
    {
        "": 1.0,
        "s": 1.0,
        "sec": 1.0,
        "ms": 1e-3,
        "us": 1e-6,
        "µs": 1e-6,
        "ns": 1e-9,
        "min": 60.0,
        "m": 60.0,
        "h": 3600.0,
        "d": 86400.0,
    },
    'seconds, or with a unit as in "5 ms", "10 min" or "2 h"',
)
PRICE = Quantity(
    "a price",
    {"": 1.0, "/h": 1.0, "/hour": 1.0, "/hr": 1.0, "/month": 1 / 730.0},
    'dollars per hour, as in 1.2 or "$1.2/h"',
    prefix="$",
)
FLOPS = Quantity(
    "a FLOP rate", _flops_units(), 'FLOP/s, or with a unit as in "312 TFLOPS" (dense, not sparse)'
)
RATE = Quantity(
    "a rate",
    {"": 1.0, "/s": 1.0, "req/s": 1.0, "/min": 1 / 60.0, "/h": 1 / 3600.0},
    'requests per second, or with a unit as in "3 /s" or "90 /min"',
)


def parse(value: object, quantity: Quantity, *, positive: bool = False) -> float:
    """Return ``value`` in base units; raise ``SpecError`` (unplaced) with the fix.

    Zero is refused when ``positive``; negative and non-finite numbers always.
    """
    number = _to_number(value, quantity)
    if not math.isfinite(number):
        raise SpecError(f"{quantity.what} must be finite", value=value, fix="give a real number")
    if number < 0 or (positive and number == 0):
        bound = "greater than 0" if positive else "0 or more"
        raise SpecError(
            f"{quantity.what} must be {bound}", value=value, fix=f"give {quantity.example}"
        )
    return number


def _to_number(value: object, quantity: Quantity) -> float:
    if isinstance(value, bool) or not isinstance(value, (int, float, str)):
        raise SpecError(f"not {quantity.what}", value=value, fix=f"give {quantity.example}")
    if not isinstance(value, str):
        return float(value)
    text = value.strip()
    if text.lower().lstrip("+-.") in ("inf", "infinity", "nan"):
        return math.nan
    text = text.removeprefix(quantity.prefix) if quantity.prefix else text
    match = _NUMBER.fullmatch(text)
    if match is None:
        raise SpecError(f"not {quantity.what}", value=value, fix=f"give {quantity.example}")
    scale = quantity.units.get(match[2])
    if scale is None:
        raise SpecError(
            f"unit {match[2]!r} is not one of {quantity.what}",
            value=value,
            fix=f"give {quantity.example}",
        )
    return float(match[1]) * scale


def parse_bytes(value: object, *, positive: bool = True) -> int:
    return round(parse(value, BYTES, positive=positive))


def parse_bandwidth(value: object, *, positive: bool = True) -> float:
    return parse(value, BANDWIDTH, positive=positive)


def parse_duration(value: object, *, positive: bool = False) -> float:
    return parse(value, DURATION, positive=positive)


def parse_price(value: object) -> float:
    return parse(value, PRICE)


def parse_flops(value: object) -> float:
    return parse(value, FLOPS, positive=True)


def parse_rate(value: object) -> float:
    return parse(value, RATE, positive=True)
