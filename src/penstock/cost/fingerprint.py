"""Fingerprints: what the first layers of a model cost, and how such files are read.

A fingerprint holds measurements of the same checkpoint cut to its first n layers. From these an
estimator extrapolates to the whole model (``fingerprint_maveriq``, ``fingerprint_physical``).
"""

from __future__ import annotations

import csv
import math
from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Protocol

from penstock.errors import InputError, SpecError
from penstock.spec.variants import Precision

GIB = 2.0**30
COLUMNS = (
    "model",
    "tp",
    "pp",
    "pp_map",
    "dtype",
    "int8_kv_cache",
    "output_length",
    "batch_size",
    "latency",
    "memory_after_run",
)


@dataclass(frozen=True, slots=True, order=True)
class Configuration:
    """One way to run a model on a host."""

    tensor_parallel_size: int
    pipeline_parallel_size: int
    precision: Precision

    def __post_init__(self) -> None:
        for key in ("tensor_parallel_size", "pipeline_parallel_size"):
            if getattr(self, key) < 1:
                raise SpecError("must be at least 1", key=key, value=getattr(self, key))

    @property
    def gpus(self) -> int:
        return self.tensor_parallel_size * self.pipeline_parallel_size

    def __str__(self) -> str:
        return f"TP{self.tensor_parallel_size} PP{self.pipeline_parallel_size} {self.precision}"


@dataclass(frozen=True, slots=True)
class Demand:
    """One batch: prompt tokens and output tokens of each sequence, and their number."""

    prompt_tokens: int
    output_tokens: int
    batch: int = 1

    def __post_init__(self) -> None:
        for key in ("prompt_tokens", "output_tokens", "batch"):
            if getattr(self, key) < 1:
                raise SpecError("must be at least 1", key=key, value=getattr(self, key))


@dataclass(frozen=True, slots=True)
class Cut:
    """What was run: (TP, PP), layers, output tokens and batch."""

    tensor_parallel_size: int
    pipeline_parallel_size: int
    layers: int
    output_tokens: int
    batch: int


@dataclass(frozen=True, slots=True)
class Measurement:
    """Seconds of one batch from start to end, and bytes over all GPUs after it."""

    latency_s: float
    memory_bytes: float


@dataclass(frozen=True, slots=True)
class Fingerprint:
    """The measured cuts of one model in one precision."""

    model: str
    precision: Precision
    cuts: Mapping[Cut, Measurement]

    def at(self, cut: Cut) -> Measurement:
        """The measurement of ``cut``. Raises ``InputError`` naming it where there is none."""
        try:
            return self.cuts[cut]
        except KeyError:
            raise InputError(
                f"the fingerprint of {self.model} ({self.precision}) has no run at "
                f"TP{cut.tensor_parallel_size} PP{cut.pipeline_parallel_size}, {cut.layers} "
                f"layers, {cut.output_tokens} tokens, batch {cut.batch}; profile it"
            ) from None

    def has(self, tensor_parallel_size: int) -> bool:
        """Whether cuts of one layer were run over ``tensor_parallel_size`` GPUs."""
        return Cut(tensor_parallel_size, 1, 1, 10, 1) in self.cuts


@dataclass(frozen=True, slots=True)
class ProfileRow:
    """One line of a profile: a model, how it ran, and what that took."""

    model: str
    configuration: Configuration
    layers: int
    output_tokens: int
    batch: int
    measurement: Measurement


class Estimator(Protocol):
    """Seconds and bytes of a whole model, extrapolated from its fingerprint."""

    def latency_s(self, configuration: Configuration, demand: Demand) -> float: ...

    def memory_bytes(self, configuration: Configuration, demand: Demand) -> float: ...


def read_profile(path: Path) -> tuple[ProfileRow, ...]:
    """Read a profile CSV (``COLUMNS``; GiB, seconds). Raises ``InputError`` and ``SpecError``."""
    try:
        with path.open(encoding="utf-8", newline="") as stream:
            reader = csv.DictReader(stream)
            for column in COLUMNS:
                if column not in (reader.fieldnames or []):
                    raise SpecError(
                        "the column is missing", source=path, key=column, fix="add the column"
                    )
            return tuple(_row(row, path, line) for line, row in enumerate(reader, start=2))
    except OSError as error:
        raise InputError(f"{path}: cannot be read ({error.strerror}); check the path") from error
    except (UnicodeDecodeError, csv.Error) as error:
        raise SpecError("is not a CSV table", source=path, value=str(error)) from error


def _row(row: Mapping[str, str | None], path: Path, line: int) -> ProfileRow:
    source = f"{path}:{line}"
    text = {name: row.get(name) or "" for name in COLUMNS}
    try:
        layers = sum(int(part) for part in text["pp_map"].split())
        precision = Precision(text["dtype"], _flag(text["int8_kv_cache"], source))
        configuration = Configuration(int(text["tp"]), int(text["pp"]), precision)
        output_tokens, batch = int(text["output_length"]), int(text["batch_size"])
        seconds, gib = float(text["latency"]), float(text["memory_after_run"])
    except ValueError as error:
        raise SpecError("a number cannot be read", source=source, value=str(error)) from error
    for key, value in (("latency", seconds), ("memory_after_run", gib)):
        if not (math.isfinite(value) and value > 0):
            raise SpecError("must be finite and above 0", source=source, key=key, value=value)
    measured = Measurement(seconds, gib * GIB)
    return ProfileRow(text["model"], configuration, layers, output_tokens, batch, measured)


def _flag(text: str, source: str) -> bool:
    if text not in {"True", "False"}:
        raise SpecError("must be True or False", source=source, key="int8_kv_cache", value=text)
    return text == "True"


def fingerprints(rows: Iterable[ProfileRow]) -> Mapping[tuple[str, Precision], Fingerprint]:
    """Group the cuts by model and precision."""
    cuts: dict[tuple[str, Precision], dict[Cut, Measurement]] = {}
    for row in rows:
        shape = row.configuration
        cut = Cut(
            shape.tensor_parallel_size,
            shape.pipeline_parallel_size,
            row.layers,
            row.output_tokens,
            row.batch,
        )
        cuts.setdefault((row.model, shape.precision), {})[cut] = row.measurement
    return {key: Fingerprint(*key, found) for key, found in cuts.items()}
