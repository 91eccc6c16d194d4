"""Rotary position embeddings: the angle of every position, computed once and looked up."""

from __future__ import annotations

import math
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

import torch

from penstock.errors import SpecError
from penstock.spec.model import ModelSpec
from penstock.spec.names import did_you_mean

KINDS = ("default", "linear", "dynamic", "llama3", "yarn")


@dataclass(frozen=True, slots=True)
class RopeConfig:
    """Names as in ``rope_parameters`` of a ``config.json``."""

    kind: str
    theta: float
    head_dim: int
    max_position_embeddings: int
    factor: float = 1.0
    original_max_position_embeddings: int = 0
    low_freq_factor: float = 1.0
    high_freq_factor: float = 4.0
    beta_fast: float = 32.0
    beta_slow: float = 1.0
    attention_factor: float = 1.0


def rope_from_config(data: Mapping[str, Any], shape: ModelSpec) -> RopeConfig:
    """Read ``rope_parameters`` (transformers 5) or ``rope_theta`` with ``rope_scaling``."""
    new = data.get("rope_parameters")
    raw = new if isinstance(new, Mapping) else data.get("rope_scaling")
    if raw is not None and not isinstance(raw, Mapping):
        raise SpecError("must be a mapping", key="rope_scaling", value=raw)
    scaling: Mapping[str, Any] = raw or {}
    kind = str(scaling.get("rope_type", scaling.get("type", "default")))
    if kind not in KINDS:
        raise SpecError(
            "this position scaling is not supported",
            key="rope_scaling.rope_type",
            value=kind,
            fix=did_you_mean(kind, KINDS),
        )
    if scaling.get("partial_rotary_factor", data.get("partial_rotary_factor", 1.0)) != 1.0:
        raise SpecError("partly rotated heads are not supported", key="partial_rotary_factor")
    theta = scaling.get("rope_theta", data.get("rope_theta", 10000.0))
    numbers = {"rope_theta": theta, "factor": scaling.get("factor", 1.0)}
    for key in ("low_freq_factor", "high_freq_factor", "beta_fast", "beta_slow"):
        if scaling.get(key) is not None:
            numbers[key] = scaling[key]
    for key, value in numbers.items():
        if isinstance(value, bool) or not isinstance(value, int | float) or not value > 0:
            raise SpecError("must be a number above 0", key=f"rope_scaling.{key}", value=value)
    if kind != "default" and "factor" not in scaling:
        raise SpecError("key is missing", key="rope_scaling.factor")
    longest = shape.max_position_embeddings
    original = scaling.get("original_max_position_embeddings") or longest
    factor = float(numbers.pop("factor"))
    numbers.pop("rope_theta")
    return RopeConfig(
        kind=kind,
        theta=float(theta),
        head_dim=shape.head_dim,
        max_position_embeddings=longest,
        factor=factor,
        original_max_position_embeddings=int(original),
        attention_factor=_attention_factor(kind, factor, scaling),
        **{key: float(value) for key, value in numbers.items()},
    )


def _attention_factor(kind: str, factor: float, scaling: Mapping[str, Any]) -> float:
    """YaRN section 3.4: attention is sharpened as the context is stretched."""
    if kind != "yarn":
        return 1.0
    for key in ("mscale", "mscale_all_dim"):
        if scaling.get(key):
            raise SpecError("this form of YaRN is not supported", key=f"rope_scaling.{key}")
    stated = scaling.get("attention_factor")
    if stated is not None:
        return float(stated)
    return 0.1 * math.log(factor) + 1.0 if factor > 1 else 1.0


def inverse_frequencies(config: RopeConfig) -> torch.Tensor:
    """Radians per position ``[head_dim / 2]`` in float32, after any fixed scaling."""
    exponents = torch.arange(0, config.head_dim, 2, dtype=torch.int64).float() / config.head_dim
    base = 1.0 / (config.theta**exponents)
    if config.kind == "linear":
        return base / config.factor
    if config.kind == "llama3":
        return _llama3(config, base)
    if config.kind == "yarn":
        return _yarn(config, base)
    return base


def _llama3(config: RopeConfig, base: torch.Tensor) -> torch.Tensor:
    """Llama 3.1: long waves are stretched, short ones kept, those between blended."""
    length, low, high = (
        config.original_max_position_embeddings,
        config.low_freq_factor,
        config.high_freq_factor,
    )
    waves = 2 * math.pi / base
    blend = (length / waves - low) / (high - low)
    blended = (1 - blend) * base / config.factor + blend * base
    scaled = torch.where(waves > length / low, base / config.factor, base)
    between = (waves <= length / low) & (waves >= length / high)
    return torch.where(between, blended, scaled)


def _yarn(config: RopeConfig, base: torch.Tensor) -> torch.Tensor:
    """YaRN section 3.2: dimensions that turn rarely are interpolated, fast ones kept."""
    dim, length = config.head_dim, config.original_max_position_embeddings

    def dimension(turns: float) -> float:
        return dim * math.log(length / (turns * 2 * math.pi)) / (2 * math.log(config.theta))

    low = max(math.floor(dimension(config.beta_fast)), 0)
    high = min(math.ceil(dimension(config.beta_slow)), dim - 1)
    width = max(high - low, 0.001)
    ramp = ((torch.arange(dim // 2, dtype=torch.float32) - low) / width).clamp(0, 1)
    return base / config.factor * ramp + base * (1 - ramp)


def angles(config: RopeConfig, positions: torch.Tensor) -> torch.Tensor:
    """Radians ``[t, head_dim / 2]`` in float32 at ``positions`` ``[t]``.

    Dynamic NTK scaling turns each position by the base of a sequence that ends there, so that a
    position means the same in every batch and chunk. That is what transformers does while a
    sequence grows token by token; it turns a prompt beyond ``max_position_embeddings`` as a whole.
    """
    at = positions.float()[:, None]
    if config.kind != "dynamic":
        return at * inverse_frequencies(config)
    longest = config.max_position_embeddings
    length = (positions + 1).clamp(min=longest).double()
    stretch = config.factor * length / longest - (config.factor - 1)
    dim = config.head_dim
    base = (config.theta * stretch ** (dim / (dim - 2))).float()[:, None]
    exponents = torch.arange(0, dim, 2, dtype=torch.int64).float() / dim
    return at * (1.0 / (base**exponents))


class RotaryTable:
    """Cosines and signed sines ``[positions, 1, head_dim]``, grown as longer sequences come."""

    def __init__(self, config: RopeConfig, dtype: torch.dtype, device: torch.device) -> None:
        self._config = config
        self._dtype = dtype
        self._device = device
        self._size = 0
        self._cos = self._sin = torch.empty(0)
        self._grow(min(config.max_position_embeddings, 4096))

    def _grow(self, size: int) -> None:
        turned = angles(self._config, torch.arange(size))
        factor = self._config.attention_factor
        cos, sin = turned.cos() * factor, turned.sin() * factor
        # x turns into x * cos + swapped halves of x * sin, where the first half takes -sin.
        self._cos = self._ready(torch.cat((cos, cos), dim=-1))
        self._sin = self._ready(torch.cat((-sin, sin), dim=-1))
        self._size = size

    def _ready(self, table: torch.Tensor) -> torch.Tensor:
        return table[:, None].to(self._device, self._dtype).contiguous()

    def at(self, positions: torch.Tensor, last: int) -> tuple[torch.Tensor, torch.Tensor]:
        """(cos, sin) ``[t, 1, head_dim]`` at ``positions`` ``[t]``, none above ``last``."""
        if last >= self._size:
            self._grow(max(last + 1, 2 * self._size))
        return self._cos.index_select(0, positions), self._sin.index_select(0, positions)
