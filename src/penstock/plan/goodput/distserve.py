"""DistServe's two placement searches (Zhong et al., OSDI 2024, algorithms 1 and 2).

Goodput is the largest rate per GPU at which the 90th percentiles of TTFT and of TPOT, taken apart
from each other, lie under their limits; it is found by bisection with a simulator that the caller
passes in. The published code tries all pairs of prefill and decode instances in both cases; the
paper optimises the phases apart where every pair of GPUs is well connected, and replicates.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass
from math import ceil
from typing import Literal

from penstock.errors import Infeasible, SpecError
from penstock.spec.model import ModelSpec

Affinity = Literal["high", "low"]


@dataclass(frozen=True, slots=True)
class Shape:
    """Parallelism of the instances; ``decode_tp`` 0 = one instance does both phases."""

    prefill_tp: int
    prefill_pp: int = 1
    decode_tp: int = 0
    decode_pp: int = 0
    prefill_instances: int = 1
    decode_instances: int = 1

    @property
    def num_gpus(self) -> int:
        prompts = self.prefill_tp * self.prefill_pp * self.prefill_instances
        return prompts + self.decode_tp * self.decode_pp * self.decode_instances

    def __str__(self) -> str:
        prompts = f"TP{self.prefill_tp} PP{self.prefill_pp}"
        if not self.decode_tp:
            return prompts
        return f"prefill {prompts}, decode TP{self.decode_tp} PP{self.decode_pp}"


Passes = Callable[[Shape, float], bool]
"""Whether instances of a shape meet the limits at a total rate (requests/s).

Raises ``SpecError`` or ``Infeasible`` for shapes without figures or memory.
"""


@dataclass(frozen=True, slots=True)
class Bisection:
    """Rates per GPU from 0 to ``most`` are halved until the interval is at most ``tolerance``."""

    most: float = 5.0
    tolerance: float = 0.25

    def __post_init__(self) -> None:
        if not 0 < self.tolerance <= self.most:
            raise SpecError(
                "must lie above 0 and at most at the largest rate",
                key="tolerance",
                value=self.tolerance,
            )


@dataclass(frozen=True, slots=True)
class Candidate:
    """A shape with its goodput per GPU, or with the reason why it has none."""

    shape: Shape
    rate_per_gpu: float
    probes: int
    problem: str = ""

    @property
    def rate_per_s(self) -> float:
        return self.rate_per_gpu * self.shape.num_gpus


@dataclass(frozen=True)
class Search:
    """All candidates, the best first (ties: fewer GPUs, then the order of enumeration)."""

    candidates: tuple[Candidate, ...]

    @property
    def best(self) -> Candidate:
        """Raises ``Infeasible`` when no shape meets the limits at any rate that was tried."""
        found = self.candidates[0] if self.candidates else None
        if found is None or found.rate_per_gpu <= 0:
            reasons = sorted({c.problem for c in self.candidates if c.problem})
            raise Infeasible(
                "no shape meets the limits at any rate"
                + (f" ({len(reasons)} kinds of shapes have no figures)" if reasons else ""),
                binding="TTFT and TPOT limits",
                fix="wider limits, more GPUs or a finer search",
            )
        return found


def pairs_of_instances(
    model: ModelSpec, affinity: Affinity, nodes: int, gpus_per_node: int
) -> list[Shape]:
    """All shapes that the published search tries.

    ``low``: stages of both phases that hold the same layers share a node, so that KV memory stays
    inside it; k such segments are chained over k nodes.
    """
    total = nodes * gpus_per_node
    most = total if affinity == "high" else gpus_per_node
    found: dict[Shape, None] = {}
    for segments in range(1, (1 if affinity == "high" else nodes) + 1):
        if model.num_hidden_layers % segments:
            continue
        instances = list(_instances(model, most, segments))
        for tp, pp in instances:
            for decode_tp, decode_pp in instances:
                gpus = tp * pp + decode_tp * decode_pp
                if gpus <= most and segments * gpus <= total:
                    found[Shape(tp, segments * pp, decode_tp, segments * decode_pp)] = None
    return list(found)


def colocated_instances(model: ModelSpec, gpus: int) -> list[Shape]:
    """All shapes of one instance for both phases on at most ``gpus`` GPUs."""
    return [Shape(tp, pp) for tp, pp in _instances(model, gpus, 1)]


def _instances(model: ModelSpec, most: int, segments: int) -> Iterable[tuple[int, int]]:
    for tp in range(1, most + 1):
        if model.num_attention_heads % tp:
            continue
        for pp in range(1, most // tp + 1):
            if model.num_hidden_layers % (segments * pp) == 0:
                yield tp, pp


def search_goodput(
    shapes: Sequence[Shape], passes: Passes, bisection: Bisection | None = None
) -> Search:
    """Bisect the rate of every shape."""
    bisection = bisection or Bisection()
    found = [_bisect(shape, passes, bisection) for shape in shapes]
    order = sorted(
        range(len(found)), key=lambda i: (-found[i].rate_per_gpu, found[i].shape.num_gpus, i)
    )
    return Search(tuple(found[i] for i in order))


def _bisect(shape: Shape, passes: Passes, bisection: Bisection) -> Candidate:
    low, high, probes = 0.0, bisection.most, 0
    while high - low > bisection.tolerance:
        rate = (low + high) / 2
        try:
            good = passes(shape, rate * shape.num_gpus)
        except (SpecError, Infeasible) as error:
            return Candidate(shape, 0.0, probes, str(error))
        probes += 1
        low, high = (rate, high) if good else (low, rate)
    return Candidate(shape, low, probes)


@dataclass(frozen=True, slots=True)
class Deployment:
    """Instances for a target rate; ``decode`` is None where one instance does both phases."""

    prefill: Candidate
    decode: Candidate | None
    prefill_instances: int
    decode_instances: int

    @property
    def num_gpus(self) -> int:
        gpus = self.prefill.shape.num_gpus * self.prefill_instances
        if self.decode is not None:
            gpus += self.decode.shape.num_gpus * self.decode_instances
        return gpus


def replicated(candidate: Candidate, rate_per_s: float) -> Deployment:
    """Copies of a unit that reach ``rate_per_s`` (algorithm 2, last line)."""
    _check_rate(rate_per_s)
    return Deployment(candidate, None, ceil(rate_per_s / candidate.rate_per_s), 0)


def phases_apart(
    shapes: Sequence[Shape],
    rate_per_s: float,
    prefill_passes: Passes,
    decode_passes: Passes,
    bisection: Bisection | None = None,
) -> Deployment:
    """Algorithm 1 as printed: the best instance of each phase, replicated for ``rate_per_s``.

    ``shapes`` are of single instances (``colocated_instances``) and serve for both phases.
    Raises ``Infeasible`` where a phase meets its limit nowhere.
    """
    _check_rate(rate_per_s)
    prefill = search_goodput(shapes, prefill_passes, bisection).best
    decode = search_goodput(shapes, decode_passes, bisection).best
    return Deployment(
        prefill,
        decode,
        ceil(rate_per_s / prefill.rate_per_s),
        ceil(rate_per_s / decode.rate_per_s),
    )


def _check_rate(rate_per_s: float) -> None:
    if not 0 < rate_per_s < float("inf"):
        raise SpecError("must be finite and above 0", key="rate", value=rate_per_s)
