"""Fleets and what a run of one shows: kinds of engines, how many of each, jobs and probes."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, replace
from math import inf
from typing import Literal

from penstock.cost.steps import EngineShape
from penstock.plan.settings import SchedulerSettings, SpeculationSettings
from penstock.spec.model import Dtype

Phase = Literal["both", "prefill", "decode"]
MAX_NUM_SEQS = 256


@dataclass(frozen=True, slots=True)
class EngineChoice:
    """One kind of engine. ``max_num_batched_tokens`` is the chunk of its prompts.

    ``weight_dtype`` None = the weights as the model has them.
    """

    shape: EngineShape
    scheduler: str = "vllm"
    max_num_batched_tokens: int = 2048
    role: Phase = "both"
    weight_dtype: Dtype | None = None
    speculation: SpeculationSettings | None = None

    @property
    def num_gpus(self) -> int:
        return self.shape.num_accelerators

    @property
    def gpu(self) -> str:
        return self.shape.accelerator.name

    @property
    def price_per_hour(self) -> float:
        price = self.shape.accelerator.price_per_hour
        return (price if price is not None else 0.0) * self.num_gpus

    @property
    def variant(self) -> tuple[Dtype | None, SpeculationSettings | None]:
        """What all engines of one fleet share: they answer with the same weights."""
        return self.weight_dtype, self.speculation

    @property
    def settings(self) -> SchedulerSettings:
        """What the scheduler of such an engine is told."""
        return SchedulerSettings(
            self.scheduler,
            max_num_batched_tokens=self.max_num_batched_tokens,
            max_num_seqs=min(MAX_NUM_SEQS, self.max_num_batched_tokens),
        )

    def __str__(self) -> str:
        shape = self.shape
        text = f"{shape.accelerator.name} TP{shape.tensor_parallel_size}"
        if shape.pipeline_parallel_size > 1:
            text += f" PP{shape.pipeline_parallel_size}"
        if self.weight_dtype is not None:
            text += f" {self.weight_dtype}"
        if self.role == "both":
            text = f"{text} {self.scheduler} chunk {self.max_num_batched_tokens}"
        else:
            text = f"{self.role} {text}"
        if self.speculation is not None:
            text += f" {speculation_name(self.speculation)}"
        return text


def speculation_name(settings: SpeculationSettings) -> str:
    """``speculating chain 4`` or ``speculating by load``."""
    if settings.method == "chain":
        return f"speculating chain {settings.num_speculative_tokens}"
    return "speculating by load"


@dataclass(frozen=True, slots=True)
class Fleet:
    """Kinds of engines and how many of each; ``shares`` of the requests where kinds differ."""

    engines: tuple[tuple[EngineChoice, int], ...]
    shares: tuple[float, ...] = ()

    @property
    def num_gpus(self) -> int:
        return sum(choice.num_gpus * count for choice, count in self.engines)

    @property
    def price_per_hour(self) -> float:
        return sum(choice.price_per_hour * count for choice, count in self.engines)

    def gpus_by_type(self) -> Mapping[str, int]:
        found: dict[str, int] = {}
        for choice, count in self.engines:
            found[choice.gpu] = found.get(choice.gpu, 0) + choice.num_gpus * count
        return found

    def grown(self, place: int) -> Fleet:
        """One engine more of the kind at ``place``."""
        engines = tuple((kind, n + (i == place)) for i, (kind, n) in enumerate(self.engines))
        return replace(self, engines=engines)

    def __str__(self) -> str:
        return " + ".join(f"{count} x {choice}" for choice, count in self.engines)


@dataclass(frozen=True, slots=True)
class Probe:
    """What one run of a fleet showed; shares are over all requests sent after the warm-up.

    ``ended_early``: the run was stopped when its verdict was certain. Then ``joint`` is a bound:
    the most it could have been where it fails, the least where it passes, and the other figures
    are of the requests until then. ``requests`` is how many were judged.
    """

    joint: float
    ttft_share: float
    tpot_share: float
    ttft_p99_s: float
    tpot_p99_s: float
    output_tokens_per_s: float
    ended_early: bool = False
    queue_share: float = 1.0
    tpot_p50_s: float = inf
    requests: int = 0

    @property
    def binding(self) -> str:
        """The limit that fewest requests met."""
        shares = {"TPOT": self.tpot_share, "TTFT": self.ttft_share, "queueing": self.queue_share}
        return min(shares, key=lambda name: shares[name])


@dataclass(frozen=True, slots=True)
class Job:
    """A run to make: ``fleet`` at ``rate_per_s`` requests/s.

    ``phase`` leaves the other phase of requests out. ``verdict_only``: the run may end as soon
    as it is certain to pass, too.
    """

    fleet: Fleet
    rate_per_s: float
    seed: int = 0
    phase: Phase = "both"
    verdict_only: bool = False
