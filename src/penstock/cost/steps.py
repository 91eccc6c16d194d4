"""What a step-cost model answers: seconds of one batch step, and of a span of equal decode steps.

An engine is a pipeline of tensor-parallel groups of one accelerator type. A step pushes one batch
through one pipeline stage; an engine of p stages has up to p batches in flight.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Protocol, runtime_checkable

import numpy as np
from numpy.typing import NDArray

from penstock.cost.base import Provenance
from penstock.spec.hardware import Accelerator
from penstock.spec.model import ModelSpec

PrefillChunk = tuple[int, int]
"""(tokens of this chunk, tokens of the same request already in KV memory)."""


@dataclass(frozen=True, slots=True)
class EngineShape:
    """Hardware under one engine: ``pipeline_parallel_size`` stages of ``tensor_parallel_size``.

    ``gpu_memory_utilization`` is the share of memory for weights, activations and KV together.
    ``data_parallel_size`` copies of attention work on parts of one batch and share the experts;
    ``expert_parallel_size`` of the ``tensor_parallel_size * data_parallel_size`` GPUs of a stage
    hold whole experts, the rest splits each of them.
    """

    accelerator: Accelerator
    tensor_parallel_size: int = 1
    pipeline_parallel_size: int = 1
    gpu_memory_utilization: float = 0.9
    expert_parallel_size: int = 1
    data_parallel_size: int = 1

    @property
    def num_accelerators(self) -> int:
        return self.tensor_parallel_size * self.pipeline_parallel_size * self.data_parallel_size


class StepTimer(Protocol):
    """Seconds of a step on ONE pipeline stage (all stages are equal), hand-over included.

    ``context_tokens`` sums, over the decoding sequences, the tokens each attends to in this step
    (its KV length before the step; whether the fed token counts is the model's own business).
    """

    def decode_s(self, seqs: int, context_tokens: int) -> float:
        """A step of ``seqs`` >= 1 decoding sequences."""
        ...

    def decode_span_s(self, seqs: int, context_tokens: int, steps: int) -> float:
        """``sum(decode_s(seqs, context_tokens + j * seqs) for j in range(steps))``.

        Closed form or vectorised; equal to the sum within 1e-12 relative.
        """
        ...

    def decode_span_times_s(
        self, seqs: int, context_tokens: int, steps: int
    ) -> NDArray[np.float64]:
        """``[steps]`` cumulative seconds: entry j is the end of step j + 1."""
        ...

    def steps_within(self, seqs: int, context_tokens: int, seconds: float, most: int) -> int:
        """The least number k of steps, at most ``most``, whose span reaches ``seconds``.

        Tells after which step an arrival ``seconds`` ahead can join; ``most`` if none reaches it.
        """
        ...

    def step_s(self, prefill: Sequence[PrefillChunk], seqs: int, context_tokens: int) -> float:
        """A step of prefill chunks and ``seqs`` >= 0 decoding sequences together."""
        ...


class StepCostModel(Protocol):
    """Seconds and memory of one model on engines of any shape."""

    @property
    def model(self) -> ModelSpec: ...

    @property
    def provenance(self) -> tuple[Provenance, ...]: ...

    def step_timer(self, shape: EngineShape) -> StepTimer:
        """Raises ``SpecError`` when there are no figures for ``shape``."""
        ...

    def kv_capacity_tokens(self, shape: EngineShape) -> int:
        """Tokens of KV memory of the whole engine. Raises ``Infeasible`` if weights do not fit."""
        ...

    def to_dict(self) -> dict[str, object]: ...


@runtime_checkable
class StagedStepCostModel(Protocol):
    """A cost model whose pipeline stages differ (the last one hands nothing over, say)."""

    def stage_timers(self, shape: EngineShape) -> tuple[StepTimer, ...]:
        """One timer per pipeline stage, in order."""
        ...


@runtime_checkable
class HostedCost(Protocol):
    """A cost model that knows what a request takes outside of steps."""

    def request_s(self, prompt_tokens: int) -> float:
        """Seconds between client and scheduler, in all: HTTP, tokenising, the first token's way."""
        ...


@runtime_checkable
class SharedMachineCost(Protocol):
    """A cost model that knows how engines on one machine slow each other down."""

    @property
    def beside(self) -> float:
        """What a step takes longer, as a share, while one other engine is busy."""
        ...


@runtime_checkable
class WeighedCost(Protocol):
    """A cost model that knows what a GPU holds beside KV memory, a runtime of its own included."""

    def weight_bytes_per_accelerator(self, shape: EngineShape) -> float:
        """Bytes on the fullest GPU of an engine of ``shape``."""
        ...


def stage_timers(cost: StepCostModel, shape: EngineShape) -> tuple[StepTimer, ...]:
    """One timer per pipeline stage of ``shape``, in order; equal stages by default."""
    if isinstance(cost, StagedStepCostModel):
        return cost.stage_timers(shape)
    return (cost.step_timer(shape),) * shape.pipeline_parallel_size
