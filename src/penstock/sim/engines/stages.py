"""Step times of pipelines whose stages differ: other GPUs, other layers, links of the cluster."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
from numpy.typing import NDArray

from penstock.cost.steps import (
    EngineShape,
    PrefillChunk,
    StepCostModel,
    StepTimer,
    stage_timers,
)
from penstock.sim.engines.fleet import EngineSpec

_COUNT_HAND_OVER = ("step-roofline", "step-table", "fingerprint", "operator-tables")
"""Cost models that count the hand-over between stages of one machine themselves."""


def engine_timers(cost: StepCostModel, spec: EngineSpec) -> tuple[StepTimer, ...]:
    """One timer per stage of ``spec``.

    A stage takes the time of one of as many equal stages of its own GPUs, in proportion to its
    layers. To it comes what the cluster's link to the next stage takes longer than the link
    inside a machine that the cost model counts. Raises ``SpecError`` for shapes without figures.
    """
    timers = _timers(cost, spec)
    if spec.slowdown == 1.0:
        return timers
    return tuple(StageTimer(timer, spec.slowdown, 0.0, 0.0) for timer in timers)


def _timers(cost: StepCostModel, spec: EngineSpec) -> tuple[StepTimer, ...]:
    stages = spec.stages
    if not stages:
        return stage_timers(cost, spec.shape)
    count = len(stages)
    layers = sum(stage.num_layers for stage in stages)
    counted = cost.to_dict().get("kind") in _COUNT_HAND_OVER
    size = cost.model.activation_bytes_per_token
    timers: list[StepTimer] = []
    for i, stage in enumerate(stages):
        shape = EngineShape(stage.accelerator, stage.tensor_parallel_size, count)
        timer = stage_timers(cost, shape)[i]
        fixed_s = token_s = 0.0
        if stage.link is not None:
            inside = stage.accelerator.interconnect_bytes_per_s if counted else 0.0
            per_byte_s = 1 / stage.link.bandwidth_bytes_per_s - (1 / inside if inside else 0.0)
            fixed_s, token_s = stage.link.latency_s, size * max(0.0, per_byte_s)
        share = stage.num_layers * count / layers
        if share != 1.0 or fixed_s or token_s:
            timer = StageTimer(timer, share, fixed_s, token_s)
        timers.append(timer)
    return tuple(timers)


class StageTimer:
    """``share`` times the seconds of ``timer``, and ``fixed_s + tokens * token_s`` on the link."""

    def __init__(self, timer: StepTimer, share: float, fixed_s: float, token_s: float) -> None:
        self._timer = timer
        self._share, self._fixed_s, self._token_s = share, fixed_s, token_s

    def decode_s(self, seqs: int, context_tokens: int) -> float:
        return self._share * self._timer.decode_s(seqs, context_tokens) + self._link_s(seqs)

    def decode_span_s(self, seqs: int, context_tokens: int, steps: int) -> float:
        busy_s = self._timer.decode_span_s(seqs, context_tokens, steps)
        return self._share * busy_s + steps * self._link_s(seqs)

    def decode_span_times_s(
        self, seqs: int, context_tokens: int, steps: int
    ) -> NDArray[np.float64]:
        times = self._timer.decode_span_times_s(seqs, context_tokens, steps)
        return self._share * times + self._link_s(seqs) * np.arange(1, steps + 1)

    def steps_within(self, seqs: int, context_tokens: int, seconds: float, most: int) -> int:
        low, high = 0, most
        while high - low > 1:
            middle = (low + high) // 2
            if self.decode_span_s(seqs, context_tokens, middle) >= seconds:
                high = middle
            else:
                low = middle
        return high

    def step_s(self, prefill: Sequence[PrefillChunk], seqs: int, context_tokens: int) -> float:
        tokens = seqs + sum(chunk for chunk, _ in prefill)
        return self._share * self._timer.step_s(prefill, seqs, context_tokens) + self._link_s(
            tokens
        )

    def _link_s(self, tokens: int) -> float:
        return self._fixed_s + tokens * self._token_s
