"""Measured layer times in Helix's profile format: piecewise linear tables, one per phase.

A profile folder holds ``<model>/<machine>/{prompt,decode}_bs2time.csv`` (batch size, milliseconds
of one layer) and ``node_capacity.csv`` (KV entries and batch limits by number of held layers).
Source of the format and of its reading: Helix (ASPLOS'25) artifact, profiles and simulator.
"""

from __future__ import annotations

import csv
import hashlib
import math
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path
from typing import Literal

import numpy as np
from numpy.typing import NDArray

from penstock.cost.base import BatchLimits, LayerTimer, Provenance
from penstock.errors import SpecError
from penstock.spec.hardware import Node
from penstock.spec.model import ModelSpec

# Sizes the published runs use for loading times and the half-memory rule (Helix artifact,
# model definitions); the arithmetic of the true shapes gives 1.07 and 1.71 GB.
PUBLISHED_LAYER_BYTES: Mapping[str, int] = {
    "llama1_30b": 1_000_000_000,
    "llama2_70b": 1_530_000_000,
}
# Decode context the published batch limits allow a sequence.
ONE_SEQUENCE_TOKENS = 1000
OverFull = Literal["largest", "linear"]
_ALIASES = {"llama30b": "llama130b", "llama133b": "llama130b", "llama33b": "llama130b"}
_SUFFIXES = ("hf", "chat", "instruct")
_CAPACITY_FILE = "node_capacity.csv"
_PROMPT_FILE = "prompt_bs2time.csv"
_DECODE_FILE = "decode_bs2time.csv"


def normalised_model_name(name: str) -> str:
    """Return ``name`` without case, punctuation, organisation and the usual suffixes."""
    text = "".join(ch for ch in name.rsplit("/", 1)[-1].lower() if ch.isalnum())
    for suffix in _SUFFIXES:
        text = text.removesuffix(suffix)
    return _ALIASES.get(text, text)


@dataclass(frozen=True)
class LatencyTable:
    """Seconds of one layer over batch size, piecewise linear between the measured points."""

    path: Path
    sizes: NDArray[np.int64]
    seconds: NDArray[np.float64]

    @property
    def largest(self) -> int:
        return int(self.sizes[-1])

    def at(self, size: int) -> float:
        """Seconds at ``size``; ``SpecError`` outside the table."""
        if not self.sizes[0] <= size <= self.sizes[-1]:
            raise self.outside(size)
        return float(self._interpolate(np.array([size]))[0])

    @cached_property
    def dense(self) -> list[float]:
        """Seconds at every whole batch size from 0 to ``largest``."""
        return [float(t) for t in self._interpolate(np.arange(self.largest + 1))]

    def outside(self, size: int) -> SpecError:
        return SpecError(
            f"a batch of {size} lies outside the table ({self.sizes[0]} to {self.sizes[-1]})",
            source=self.path,
            fix="lower the batch limits of the node or profile larger batches",
        )

    def _interpolate(self, size: NDArray[np.int64]) -> NDArray[np.float64]:
        right = np.clip(np.searchsorted(self.sizes, size), 1, len(self.sizes) - 1)
        x0, x1 = self.sizes[right - 1], self.sizes[right]
        t0, t1 = self.seconds[right - 1], self.seconds[right]
        between: NDArray[np.float64] = t0 + (size - x0) * (t1 - t0) / (x1 - x0)
        # Measured points are returned as measured, whatever the rounding of the line.
        return np.where(size == x1, t1, between)


def read_latency_table(path: Path) -> LatencyTable:
    """Read ``batch size, milliseconds`` rows (no header); sizes ascend from 0."""
    sizes: list[int] = []
    seconds: list[float] = []
    for number, row in _rows(path):
        key = f"line {number}"
        if len(row) != 2:
            raise SpecError("expected two columns: batch size, milliseconds", source=path, key=key)
        size = _number(path, key, row[0])
        if not size.is_integer() or (sizes and size <= sizes[-1]):
            raise SpecError(
                "batch sizes must be whole numbers that ascend", source=path, key=key, value=row[0]
            )
        sizes.append(int(size))
        seconds.append(_number(path, key, row[1]) / 1000.0)
    if len(sizes) < 2 or sizes[0] != 0:
        raise SpecError(
            "the table needs at least two points, the first at batch size 0", source=path
        )
    return LatencyTable(path, np.array(sizes, dtype=np.int64), np.array(seconds))


@dataclass(frozen=True, slots=True)
class Capacity:
    """What a machine offers beside ``layers`` held layers."""

    layers: int
    kv_layer_tokens: int
    limits: BatchLimits


@dataclass(frozen=True)
class MachineProfile:
    """Both tables of one machine type and its capacities, by held layers 1..max in order."""

    prompt: LatencyTable
    decode: LatencyTable
    capacities: tuple[Capacity, ...]
    max_layers: int

    def capacity(self, layers: int) -> Capacity:
        """Capacity at ``layers``; beyond the largest profiled count that of the largest."""
        return self.capacities[min(layers, len(self.capacities)) - 1]


class LayerTableCost:
    """A cost model read from a profile folder. Decode times do not depend on context length.

    ``decode_of_one_doubles`` applies the rule of the published system at run time: exactly one
    decode sequence costs twice its interpolated time. The planner's timer never applies it.
    ``over_full`` says what KV memory a node has beside more layers than were profiled: that of
    the ``"largest"`` profiled count (the published ``force_set``), or what is left when each layer
    takes what the profiled ones took (``"linear"``, the honest figure).
    """

    def __init__(
        self,
        model: ModelSpec,
        directory: str | Path,
        *,
        decode_of_one_doubles: bool = True,
        over_full: OverFull = "largest",
    ) -> None:
        self._model = model
        self.directory = Path(directory)
        self.decode_of_one_doubles = decode_of_one_doubles
        self.over_full: OverFull = over_full
        self._folder = _find_folder(self.directory, model)
        self._machines = _machine_folders(self._folder)
        self._capacities = _read_capacities(self.directory / _CAPACITY_FILE, self._folder.name)
        self._profiles: dict[str, MachineProfile] = {}

    @property
    def model(self) -> ModelSpec:
        return self._model

    @property
    def profile_name(self) -> str:
        """Name of the model's folder (``llama2_70b``)."""
        return self._folder.name

    @property
    def provenance(self) -> tuple[Provenance, ...]:
        return (
            Provenance(
                kind="measured",
                source=f"layer tables of {self.profile_name} (Helix profile format)",
                domain="machines: " + ", ".join(sorted(self._machines)),
                notes=(
                    "prefill and decode times are added",
                    "decode time ignores context length",
                    "piecewise linear; batches outside a table are refused",
                ),
            ),
        )

    def source_of(self, node: Node) -> Provenance:
        self.profile(node)
        return self.provenance[0]

    def profile(self, node: Node) -> MachineProfile:
        """Tables and capacities of the machine type of ``node``."""
        key = node.machine_type.lower()
        if key not in self._profiles:
            self._profiles[key] = self._load(node.machine_type)
        return self._profiles[key]

    def interpolate_prompt(self, node: Node, tokens: int) -> float:
        """Seconds of one layer for ``tokens`` prompt tokens."""
        return self.profile(node).prompt.at(tokens)

    def interpolate_decode(self, node: Node, seqs: int) -> float:
        """Seconds of one layer for ``seqs`` decode sequences, without run-time rules."""
        return self.profile(node).decode.at(seqs)

    def planning_timer(self, node: Node) -> LayerTimer:
        profile = self.profile(node)
        return _timer(profile.prompt, profile.decode, profile.decode.dense)

    def layer_timer(self, node: Node) -> LayerTimer:
        profile = self.profile(node)
        decode = profile.decode.dense
        if self.decode_of_one_doubles:
            decode = [decode[0], 2 * decode[1], *decode[2:]]
        return _timer(profile.prompt, profile.decode, decode)

    @property
    def layer_weight_bytes(self) -> int:
        return PUBLISHED_LAYER_BYTES.get(self.profile_name, self._model.layer_weight_bytes)

    def max_layers(self, node: Node) -> int:
        return min(self.profile(node).max_layers, self._model.num_hidden_layers)

    def hard_max_layers(self, node: Node) -> int:
        layers = self.max_layers(node)
        while layers < self._model.num_hidden_layers:
            free = self._linear_kv_layer_tokens(node, layers + 1)
            if free < ONE_SEQUENCE_TOKENS * (layers + 1):
                break
            layers += 1
        return layers

    def kv_capacity_layer_tokens(self, node: Node, layers: int) -> int:
        """Entries of the table; beyond the largest profiled count as ``over_full`` says."""
        if layers <= 0:
            return 0
        if self.over_full == "linear":
            return self._linear_kv_layer_tokens(node, layers)
        return self.profile(node).capacity(layers).kv_layer_tokens

    def _linear_kv_layer_tokens(self, node: Node, layers: int) -> int:
        rows = self.profile(node).capacities
        beyond = layers - len(rows)
        if beyond <= 0:
            return rows[layers - 1].kv_layer_tokens
        if len(rows) < 2:
            return 0
        per_layer = (rows[0].kv_layer_tokens - rows[-1].kv_layer_tokens) / (len(rows) - 1)
        return max(0, int(rows[-1].kv_layer_tokens - beyond * per_layer))

    def batch_limits(self, node: Node, layers: int) -> BatchLimits:
        return self.profile(node).capacity(max(layers, 1)).limits

    def to_dict(self) -> dict[str, object]:
        return {
            "kind": "layer-table",
            "directory": str(self.directory),
            "digest": self.digest,
            "decode_of_one_doubles": self.decode_of_one_doubles,
            "over_full": self.over_full,
        }

    @cached_property
    def digest(self) -> str:
        """SHA-256 (first 16 hex digits) over the tables of this model."""
        files = [self.directory / _CAPACITY_FILE]
        for _, folder in sorted(self._machines.items()):
            files += [folder / name for name in (_PROMPT_FILE, _DECODE_FILE)]
        total = hashlib.sha256()
        for path in files:
            try:
                total.update(path.read_bytes())
            except OSError as error:
                raise SpecError(f"cannot be read: {error.strerror}", source=path) from error
        return total.hexdigest()[:16]

    def _load(self, machine_type: str) -> MachineProfile:
        folder = self._machines.get(machine_type.lower())
        capacities = self._capacities.get(machine_type.lower())
        if folder is None or capacities is None:
            raise SpecError(
                f"no profile of machine type {machine_type!r} for {self.profile_name}",
                source=self._folder if folder is None else self.directory / _CAPACITY_FILE,
                fix="profiled: " + ", ".join(sorted(self._machines)) + "; or drop --profiles",
            )
        rows, max_layers = capacities
        prompt = read_latency_table(folder / _PROMPT_FILE)
        decode = read_latency_table(folder / _DECODE_FILE)
        return MachineProfile(prompt, decode, rows, max_layers)


def _timer(prompt: LatencyTable, decode: LatencyTable, decode_s: list[float]) -> LayerTimer:
    prompt_s = prompt.dense

    def seconds(prefill_tokens: int, decode_seqs: int, _decode_context_tokens: int) -> float:
        try:
            return prompt_s[prefill_tokens] + decode_s[decode_seqs]
        except IndexError:
            inside = prefill_tokens <= prompt.largest
            raise (
                decode.outside(decode_seqs) if inside else prompt.outside(prefill_tokens)
            ) from None

    return seconds


def _find_folder(directory: Path, model: ModelSpec) -> Path:
    if not directory.is_dir():
        raise SpecError("is not a folder of profiles", source=directory)
    folders = sorted(p for p in directory.iterdir() if p.is_dir())
    wanted = normalised_model_name(model.name)
    for folder in folders:
        if normalised_model_name(folder.name) == wanted:
            return folder
    raise SpecError(
        f"no profiles of model {model.name!r}",
        source=directory,
        fix="profiled: " + (", ".join(p.name for p in folders) or "none") + "; or drop --profiles",
    )


def _machine_folders(folder: Path) -> dict[str, Path]:
    return {p.name.lower(): p for p in sorted(folder.iterdir()) if p.is_dir()}


def _read_capacities(path: Path, model: str) -> dict[str, tuple[tuple[Capacity, ...], int]]:
    """Rows of ``model`` by machine type (lower case), and the largest recommended layer count."""
    found: dict[str, list[Capacity]] = {}
    largest: dict[str, int] = {}
    rows = _rows(path)
    header = [name.strip() for name in rows[0][1]] if rows else []
    for number, row in rows[1:]:
        values = dict(zip(header, row, strict=False))
        if values.get("model") != model:
            continue
        whole = _whole_reader(path, f"line {number}", values)
        machine = values.get("machine", "").lower()
        entries = found.setdefault(machine, [])
        layers = whole("num_layers")
        if layers != len(entries) + 1:
            raise SpecError(
                f"num_layers of machine {machine!r} must count 1, 2, 3, ...",
                source=path,
                key=f"line {number}",
                value=layers,
            )
        limits = BatchLimits(
            whole("prompt_max_requests"),
            whole("prompt_max_tokens"),
            whole("decode_max_tokens"),
            whole("decode_max_context_tokens"),
        )
        entries.append(Capacity(layers, whole("kv_cache_capacity_entries"), limits))
        largest[machine] = whole("max_num_layers")
    return {machine: (tuple(rows), largest[machine]) for machine, rows in found.items()}


def _whole_reader(path: Path, key: str, values: Mapping[str, str]) -> Callable[[str], int]:
    def whole(column: str) -> int:
        if column not in values:
            raise SpecError(f"column {column} is missing", source=path, key=key)
        value = _number(path, f"{key}, {column}", values[column])
        if not value.is_integer():
            raise SpecError(
                "must be a whole number", source=path, key=f"{key}, {column}", value=values[column]
            )
        return int(value)

    return whole


def _rows(path: Path) -> list[tuple[int, list[str]]]:
    """Non-empty rows with their line numbers."""
    try:
        with path.open(newline="", encoding="utf-8") as file:
            return [(i, row) for i, row in enumerate(csv.reader(file), 1) if any(row)]
    except (OSError, UnicodeDecodeError, csv.Error) as error:
        raise SpecError(f"cannot be read: {error}", source=path) from error


def _number(path: Path, key: str, text: str) -> float:
    try:
        value = float(text)
    except ValueError:
        value = math.nan
    if not math.isfinite(value) or value < 0:
        raise SpecError("must be a number, 0 or more", source=path, key=key, value=text)
    return value
