"""A cost model whose prompts cost nothing: the decode phase alone."""

from __future__ import annotations

from collections.abc import Sequence

from penstock.cost.steps import EngineShape, PrefillChunk, StepCostModel, StepTimer, stage_timers
from penstock.spec.model import ModelSpec


class NoPrompts:
    """``cost`` without its prompts."""

    def __init__(self, cost: StepCostModel) -> None:
        self._cost = cost
        self.model: ModelSpec = cost.model
        self.provenance = cost.provenance

    def step_timer(self, shape: EngineShape) -> StepTimer:
        return self.stage_timers(shape)[0]

    def stage_timers(self, shape: EngineShape) -> tuple[StepTimer, ...]:
        return tuple(_DecodeTimer(timer) for timer in stage_timers(self._cost, shape))

    def kv_capacity_tokens(self, shape: EngineShape) -> int:
        return self._cost.kv_capacity_tokens(shape)

    def to_dict(self) -> dict[str, object]:
        return self._cost.to_dict()


class _DecodeTimer:
    def __init__(self, timer: StepTimer) -> None:
        self.decode_s = timer.decode_s
        self.decode_span_s = timer.decode_span_s
        self.decode_span_times_s = timer.decode_span_times_s
        self.steps_within = timer.steps_within

    def step_s(self, prefill: Sequence[PrefillChunk], seqs: int, context_tokens: int) -> float:
        return self.decode_s(seqs, context_tokens) if seqs else 0.0
