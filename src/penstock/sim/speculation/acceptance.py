"""What a draft proposes and what the target thinks of it, drawn at random.

At every visited node the draft's best three children get probabilities q1 >= q2, q3:
q1 ~ Beta(m k, (1 - m) k), q2 = min(q1, (1 - q1) u), q3 = min(q2, (1 - q1 - q2) v) with
u, v ~ Beta(2.2, 1.8). The target's token is child 1, 2, 3 or another one with probabilities
q1, q2, q3 and the rest: the draft is calibrated, so that the expected number of generated
tokens is the sum of the path probabilities of the selected nodes, root included.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from itertools import pairwise
from types import MappingProxyType
from typing import Protocol

import numpy as np
from numpy.typing import NDArray

from penstock.errors import SpecError

Floats = NDArray[np.float64]
Ints = NDArray[np.int64]

CHILDREN = 3
OTHER = -2
"""Token of the target where it is none of the draft's children."""


@dataclass(frozen=True)
class Drawn:
    """``draft`` and ``target`` ``[..., 3]``: probabilities of the three children of each node."""

    draft: Floats
    target: Floats


class AcceptanceModel(Protocol):
    """``mean_of`` gives each request its mean once; ``draw`` the children of some nodes."""

    def mean_of(self, class_name: str, rng: np.random.Generator) -> float: ...

    def draw(self, means: Floats, nodes: int, depth: int, rng: np.random.Generator) -> Drawn:
        """``[n, nodes, 3]`` for requests with ``means`` ``[n]``, ``depth`` nodes below the root."""
        ...


@dataclass(frozen=True)
class BetaAcceptance:
    """The model of the module's head.

    mean           m: chance that the target takes the draft's best child
    concentration  k: small = nearly all or nothing
    class_means    m by class name, where it differs (code is easier than chat)
    spread         concentration of m over requests, Beta(m s, (1 - m) s); None = all alike
    sharpness      g: target probabilities are q^g, renormalised; < 1 = the draft is over-confident
    depth_factors  m by depth, as multiples of the request's mean; the last one holds on
    """

    mean: float
    concentration: float
    class_means: Mapping[str, float] = field(default_factory=lambda: MappingProxyType({}))
    spread: float | None = None
    sharpness: float = 1.0
    depth_factors: tuple[float, ...] = ()

    def __post_init__(self) -> None:
        for name, value in [("mean", self.mean), *self.class_means.items()]:
            if not 0 < value < 1:
                raise SpecError("must lie between 0 and 1", key=f"acceptance.{name}", value=value)
        if self.concentration <= 0 or self.sharpness <= 0 or (self.spread or 1.0) <= 0:
            raise SpecError(
                "concentration, spread and sharpness must be positive", key="acceptance"
            )

    def mean_of(self, class_name: str, rng: np.random.Generator) -> float:
        mean = self.class_means.get(class_name, self.mean)
        if self.spread is None:
            return mean
        return float(rng.beta(mean * self.spread, (1 - mean) * self.spread))

    def draw(self, means: Floats, nodes: int, depth: int, rng: np.random.Generator) -> Drawn:
        shape = (len(means), nodes)
        m = means
        if self.depth_factors:
            m = means * self.depth_factors[min(depth, len(self.depth_factors) - 1)]
        m = np.clip(m, 1e-3, 1 - 1e-3)
        alpha = (m * self.concentration)[:, None]
        q = np.empty((*shape, CHILDREN))
        q1 = rng.beta(alpha, self.concentration - alpha, shape)
        uv = rng.beta(2.2, 1.8, (*shape, 2))
        q[..., 0] = q1
        q[..., 1] = np.minimum(q1, (1 - q1) * uv[..., 0])
        q[..., 2] = np.minimum(q[..., 1], (1 - q1 - q[..., 1]) * uv[..., 1])
        if self.sharpness == 1.0:
            return Drawn(q, q)
        rest = np.maximum(0.0, 1 - q.sum(axis=-1, keepdims=True))
        power = np.concatenate([q, rest], axis=-1) ** self.sharpness
        target = power[..., :CHILDREN] / power.sum(axis=-1, keepdims=True)
        return Drawn(q, target)


LLAMA_70B_WITH_1B = BetaAcceptance(0.84, 1.0)
QWEN_32B_WITH_05B = BetaAcceptance(0.74, 0.6)
"""Pairs fitted to the published mean accepted tokens (specification of AdaServe, section 8)."""


def measured_acceptance(curve: Sequence[float], concentration: float = 1.0) -> BetaAcceptance:
    """A model of a measured curve: ``curve[i]`` = share of steps that accept draft token i + 1.

    This is what vLLM counts as acceptance per position, so the curve falls. A chain drawn from
    the model has exactly these expected shares; ``concentration`` shapes trees alone.
    """
    shares = [1.0, *curve]
    if len(shares) < 2 or any(not 0 < b <= a for a, b in pairwise(shares)):
        raise SpecError(
            "must fall from at most 1 and stay positive",
            key="acceptance.curve",
            value=tuple(curve),
            fix="give the share of steps that accept position 1, 2, ...",
        )
    steps = [b / a for a, b in pairwise(shares)]
    mean = min(steps[0], 1 - 1e-3)
    return BetaAcceptance(mean, concentration, depth_factors=tuple(step / mean for step in steps))


def draw_choices(target: Floats, rng: np.random.Generator) -> Ints:
    """The target's token at each node: rank of a child 0..2, or ``OTHER``."""
    u = rng.random(target.shape[:-1])
    bounds = np.cumsum(target, axis=-1)
    rank = (u[..., None] >= bounds).sum(axis=-1)
    return np.where(rank == CHILDREN, OTHER, rank)
