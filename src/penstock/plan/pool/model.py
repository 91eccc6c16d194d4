"""The nouns of a pool: profiles by parallel shape, groups of GPUs, placements, traffic."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from functools import cached_property

import numpy as np
from numpy.typing import NDArray

from penstock.errors import InputError

Floats = NDArray[np.float64]
Ids = NDArray[np.int32]
NOBODY = -1
"""The model of a request that no model of the pool can serve."""


@dataclass(frozen=True, slots=True, order=True)
class Shape:
    """How a group splits every model it holds: ``op`` tensor-parallel ways, ``pp`` stages."""

    op: int
    pp: int

    def __post_init__(self) -> None:
        if self.op < 1 or self.pp < 1:
            raise InputError(f"a group of shape op {self.op}, pp {self.pp}: both start at 1")

    @property
    def gpus(self) -> int:
        return self.op * self.pp

    def __str__(self) -> str:
        return f"tp{self.op}pp{self.pp}"


@dataclass(frozen=True, slots=True)
class Timing:
    """One model in one shape: seconds of every stage by batch size, bytes of every stage.

    ``stage_latency_s[batch]`` has one entry a stage; batch 1 must be there. ``stage_weight_bytes``
    is per GPU of the stage.
    """

    stage_latency_s: Mapping[int, tuple[float, ...]]
    stage_weight_bytes: tuple[float, ...]

    def __post_init__(self) -> None:
        if 1 not in self.stage_latency_s:
            raise InputError("a latency profile needs the stage latencies of batch 1")
        lengths = {len(stages) for stages in self.stage_latency_s.values()}
        if len(lengths) != 1 or 0 in lengths or not self.stage_weight_bytes:
            raise InputError("a latency profile needs as many stages for every batch, and weights")
        if any(not s > 0 for stages in self.stage_latency_s.values() for s in stages):
            raise InputError("a stage latency must be a positive number of seconds")

    @property
    def most_weight_bytes(self) -> float:
        """What a replica costs on the fullest GPU of its group."""
        return max(self.stage_weight_bytes)

    @property
    def latency_s(self) -> tuple[float, ...]:
        """Stage latencies of batch 1."""
        return self.stage_latency_s[1]


@dataclass(frozen=True)
class LatencyProfile:
    """A model's timings by shape; a shape that is absent cannot hold the model."""

    name: str
    timings: Mapping[Shape, Timing]

    def __post_init__(self) -> None:
        for shape, timing in self.timings.items():
            if len(timing.latency_s) != shape.pp:
                raise InputError(f"{self.name}, {shape}: needs {shape.pp} stage latencies")

    def scaled(self, factor: float) -> LatencyProfile:
        """The same profile with every latency times ``factor``."""
        return replace(
            self,
            timings={
                shape: replace(
                    timing,
                    stage_latency_s={
                        batch: tuple(factor * s for s in stages)
                        for batch, stages in timing.stage_latency_s.items()
                    },
                )
                for shape, timing in self.timings.items()
            },
        )


@dataclass(frozen=True)
class PoolModel:
    """A model of the pool. ``slo_s`` and ``rate_rps`` are what planners without traffic use."""

    profile: LatencyProfile
    slo_s: float = float("inf")
    rate_rps: float = 0.0


@dataclass(frozen=True, slots=True)
class PoolCluster:
    """Equal GPUs. ``memory_bytes`` is what weights may fill on each."""

    gpus: int
    memory_bytes: float
    gpus_per_node: int = 8

    def __post_init__(self) -> None:
        if self.gpus < 1 or self.gpus_per_node < 1 or not self.memory_bytes > 0:
            raise InputError("a pool needs at least one GPU with memory")


@dataclass(frozen=True, slots=True)
class Group:
    """GPUs that run one pipeline, and the models whose replicas share it."""

    shape: Shape
    models: tuple[int, ...] = ()


@dataclass(frozen=True, slots=True)
class PoolPlacement:
    """Groups and the replicas each holds."""

    groups: tuple[Group, ...]

    @property
    def replicas(self) -> int:
        return sum(len(group.models) for group in self.groups)

    @property
    def gpus(self) -> int:
        return sum(group.shape.gpus for group in self.groups)

    def normalised(self) -> PoolPlacement:
        """Models sorted in every group, groups sorted by their models (stable)."""
        sorted_groups = [replace(g, models=tuple(sorted(g.models))) for g in self.groups]
        return PoolPlacement(tuple(sorted(sorted_groups, key=lambda group: group.models)))

    def adding(self, group: int, model: int) -> PoolPlacement:
        """The same with ``model`` as the last of ``group``."""
        groups = list(self.groups)
        groups[group] = replace(groups[group], models=(*groups[group].models, model))
        return PoolPlacement(tuple(groups))

    def __str__(self) -> str:
        return " | ".join(f"{g.shape}:{','.join(map(str, g.models))}" for g in self.groups)


@dataclass(frozen=True)
class PoolTraffic:
    """n requests in order of arrival; ``model`` is ``NOBODY`` where no model can serve one.

    ``arrival_s`` [n] seconds, ``model`` [n], ``slo_s`` [n] seconds from arrival to the deadline.
    """

    arrival_s: Floats
    model: Ids
    slo_s: Floats

    def __post_init__(self) -> None:
        if not len(self.arrival_s) == len(self.model) == len(self.slo_s):
            raise InputError("traffic needs as many arrivals as models and deadlines")
        if len(self.arrival_s) and not (np.isfinite(self.arrival_s).all() and self.ordered):
            raise InputError("arrivals must be finite seconds from 0 on, in ascending order")
        if np.isnan(self.slo_s).any():
            raise InputError("every request needs a deadline in seconds")

    @property
    def ordered(self) -> bool:
        return bool(self.arrival_s[0] >= 0 and (np.diff(self.arrival_s) >= 0).all())

    @property
    def num_requests(self) -> int:
        return len(self.arrival_s)

    def part(self, first: int, last: int) -> PoolTraffic:
        """Requests ``first`` to ``last - 1``."""
        chosen = slice(first, last)
        return PoolTraffic(self.arrival_s[chosen], self.model[chosen], self.slo_s[chosen])

    def renamed(self, ids: Sequence[int]) -> PoolTraffic:
        """Model i becomes ``ids[i]``; ``NOBODY`` stays."""
        table = np.array([*ids, NOBODY], dtype=np.int32)
        return PoolTraffic(self.arrival_s, table[self.model], self.slo_s)


@dataclass(frozen=True)
class PoolProblem:
    """Models, GPUs and the requests a placement is made for."""

    models: tuple[PoolModel, ...]
    cluster: PoolCluster
    traffic: PoolTraffic

    def __post_init__(self) -> None:
        ids = self.traffic.model
        if len(ids) and not (ids.min() >= NOBODY and ids.max() < len(self.models)):
            raise InputError(f"traffic names a model that is not among the {len(self.models)}")

    @cached_property
    def requests_of(self) -> NDArray[np.int64]:
        """[models] how many requests each has."""
        known = self.traffic.model[self.traffic.model != NOBODY]
        return np.bincount(known, minlength=len(self.models)).astype(np.int64)

    @cached_property
    def limit_s(self) -> Floats:
        """[requests] deadlines in single precision, as AlpaServe keeps them."""
        return self.traffic.slo_s.astype(np.float32).astype(np.float64)

    @cached_property
    def longest_limit_s(self) -> Floats:
        """[models] the longest deadline of any request; -inf for a model without requests."""
        longest = np.full(len(self.models) + 1, -np.inf)
        np.maximum.at(longest, self.traffic.model, self.limit_s)
        return longest[:-1]

    @cached_property
    def horizon_s(self) -> float:
        """Seconds from the first arrival to the last deadline; 0 without requests."""
        arrival = self.traffic.arrival_s
        return float((arrival + self.limit_s).max() - arrival[0]) if len(arrival) else 0.0

    def weight_bytes(self, model: int, shape: Shape) -> float:
        """Bytes of a replica on its fullest GPU; infinite where the shape cannot hold it."""
        timing = self.models[model].profile.timings.get(shape)
        return float("inf") if timing is None else timing.most_weight_bytes

    def used_bytes(self, group: Group) -> float:
        return sum(self.weight_bytes(model, group.shape) for model in group.models)

    def check(self, placement: PoolPlacement) -> None:
        """Raise ``InputError`` where ``placement`` does not fit."""
        if placement.gpus > self.cluster.gpus:
            raise InputError(f"the groups need {placement.gpus} of {self.cluster.gpus} GPUs")
        for number, group in enumerate(placement.groups):
            if len(set(group.models)) != len(group.models):
                raise InputError(f"group {number} ({group.shape}) holds a model twice")
            if any(not 0 <= model < len(self.models) for model in group.models):
                raise InputError(f"group {number} ({group.shape}) holds an unknown model")
            for model in group.models:
                if group.shape not in self.models[model].profile.timings:
                    name = self.models[model].profile.name
                    raise InputError(f"group {number}: {name} has no profile as {group.shape}")
            if not self.used_bytes(group) <= self.cluster.memory_bytes:
                raise InputError(f"group {number} ({group.shape}) needs more memory than a GPU has")
