"""What a fleet search is asked, and what it answers."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from math import inf
from typing import Literal

from penstock.errors import SpecError
from penstock.plan.goodput.costs import FleetCosts
from penstock.plan.goodput.fleet import EngineChoice, Fleet, Probe
from penstock.plan.goodput.interval import Interval
from penstock.plan.goodput.rates import Judged
from penstock.plan.settings import SpeculationSettings
from penstock.spec.hardware import Accelerator
from penstock.spec.model import Dtype
from penstock.spec.workload import SLO

Goal = Literal["cheapest", "goodput"]


@dataclass(frozen=True, slots=True)
class Offer:
    """Accelerators that may be used: ``count`` of them (None = any).

    A tensor-parallel group is never larger than ``gpus_per_node`` (None = any size).
    """

    accelerator: Accelerator
    count: int | None = None
    gpus_per_node: int | None = None


@dataclass(frozen=True)
class Question:
    """What is asked.

    ``cheapest``: the least price per hour that sustains ``rate_per_s``. ``goodput``: the highest
    rate that the GPUs on offer sustain; every offer then needs a count, and ``rate_per_s`` is
    unused. A fleet sustains a rate when at least ``attainment`` of its requests meet all limits.

    ``max_queue_s`` limits the time until a request is first scheduled: with 5 s and an
    ``attainment`` of 0.99 that is the criterion of Vidur-Search (MLSys 2024).
    ``weight_dtypes``: None = as the model has them. ``speculations``: None = no speculation.
    """

    costs: FleetCosts
    slo: SLO
    rate_per_s: float
    mean_prompt_tokens: float
    mean_output_tokens: float
    offers: tuple[Offer, ...]
    attainment: float = 0.9
    seeds: tuple[int, ...] = (0, 1, 2)
    tensor_parallel_sizes: tuple[int, ...] = (1, 2, 4, 8)
    pipeline_parallel_sizes: tuple[int, ...] = (1, 2)
    schedulers: tuple[str, ...] = ("vllm",)
    chunks: tuple[int, ...] = (512, 2048)
    weight_dtypes: tuple[Dtype | None, ...] = (None,)
    speculations: tuple[SpeculationSettings | None, ...] = (None,)
    disaggregated: bool = True
    mixed: bool = True
    gpu_memory_utilization: float = 0.9
    max_queue_s: float | None = None
    goal: Goal = "cheapest"

    def __post_init__(self) -> None:
        if self.goal == "cheapest" and not 0 < self.rate_per_s < inf:
            raise SpecError("must be finite and above 0", key="rate", value=self.rate_per_s)
        if not 0 < self.attainment < 1:
            raise SpecError(
                "must lie between 0 and 1", key="attainment", value=self.attainment, fix="try 0.9"
            )
        limits = (self.slo.ttft_s, self.slo.tpot_s, self.slo.e2e_s, self.max_queue_s)
        if all(limit is None for limit in limits):
            raise SpecError("no limit is given", key="slo", fix="give --ttft, --tpot or both")
        if not self.offers:
            raise SpecError("no GPU is on offer", key="gpu", fix="give --gpu or --cluster")
        seen: set[str] = set()
        for offer in self.offers:
            self._check_offer(offer, seen)

    def _check_offer(self, offer: Offer, seen: set[str]) -> None:
        name = offer.accelerator.name
        if name in seen:
            raise SpecError("is offered twice", key=name, fix="give each GPU type once")
        seen.add(name)
        price = offer.accelerator.price_per_hour
        if price is None and self.goal == "cheapest":
            raise SpecError(
                "has no price", key=name, fix=f"give --price {name}=DOLLARS_PER_HOUR_AND_GPU"
            )
        if price is not None and not 0 <= price < inf:
            raise SpecError("must be a price of 0 or more", key=name, value=price)
        if offer.count is None and self.goal == "goodput":
            raise SpecError(
                "has no count, so that its goodput has no end",
                key=name,
                fix=f"say how many there are, such as --gpu {name}:16",
            )


@dataclass(frozen=True, slots=True)
class Measured:
    """An engine at one rate that it sustains: a point of the front of throughput and speed."""

    rate_per_s: float
    probe: Probe


@dataclass(frozen=True, slots=True)
class Capacity:
    """A choice with the rate it sustains (requests/s), or the limit that keeps it from any.

    ``points`` are all rates probed that it sustains.
    """

    choice: EngineChoice
    rate_per_s: float
    binding: str = ""
    reason: str = ""
    probe: Probe | None = None
    points: tuple[Measured, ...] = ()


@dataclass(frozen=True, slots=True)
class Tried:
    """A whole fleet and what its runs showed."""

    fleet: Fleet
    judged: Judged

    @property
    def rate_per_s(self) -> float:
        return self.judged.rate_per_s

    @property
    def attainment(self) -> float:
        return self.judged.attainment

    @property
    def interval(self) -> Interval:
        return self.judged.interval

    @property
    def probe(self) -> Probe:
        return self.judged.probe

    @property
    def passed(self) -> bool:
        return self.judged.passed

    @property
    def bound(self) -> bool:
        return self.judged.bound

    @property
    def binding(self) -> str:
        return self.probe.binding

    @property
    def price_per_million_tokens(self) -> float:
        """Dollars for a million output tokens."""
        tokens = self.probe.output_tokens_per_s * 3600.0 / 1e6
        return self.fleet.price_per_hour / tokens if tokens > 0 else inf


@dataclass(frozen=True)
class Sweep:
    """All that was found. ``best`` is None only where the search was stopped before.

    ``cheapest``: the fleet with the least price that passed. ``goodput``: the one that passed at
    the highest rate.
    """

    question: Question
    capacities: tuple[Capacity, ...]
    tried: tuple[Tried, ...]
    best: Tried | None
    not_searched: tuple[str, ...]
    interrupted: bool = False


def listed(values: Sequence[object]) -> str:
    return ", ".join(map(str, values))
