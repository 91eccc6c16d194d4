"""A verification table as a cost model of engines without speculation.

With it the batch schedulers of ``policy/schedulers`` (priority, FastServe's queues, VTC, ...) run
on the very step times that speculation is judged by.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from math import ceil

import numpy as np
from numpy.typing import NDArray

from penstock.cost.base import Provenance
from penstock.cost.steps import EngineShape, PrefillChunk
from penstock.policy.speculation.latency import StepLatency
from penstock.spec.model import ModelSpec


@dataclass(frozen=True)
class TableTimer:
    """Step time by tokens alone: the table knows no context length."""

    latency: StepLatency

    def decode_s(self, seqs: int, context_tokens: int) -> float:
        return self.latency.target_s(seqs)

    def decode_span_s(self, seqs: int, context_tokens: int, steps: int) -> float:
        return steps * self.latency.target_s(seqs)

    def decode_span_times_s(
        self, seqs: int, context_tokens: int, steps: int
    ) -> NDArray[np.float64]:
        return np.arange(1.0, steps + 1.0) * self.latency.target_s(seqs)

    def steps_within(self, seqs: int, context_tokens: int, seconds: float, most: int) -> int:
        return max(1, min(most, ceil(seconds / self.latency.target_s(seqs))))

    def step_s(self, prefill: Sequence[PrefillChunk], seqs: int, context_tokens: int) -> float:
        return self.latency.target_s(seqs + sum(tokens for tokens, _ in prefill))


@dataclass(frozen=True)
class TableCost:
    """One engine's table; ``kv_tokens`` is its KV memory. The shape of the engine is ignored."""

    model: ModelSpec
    latency: StepLatency
    kv_tokens: int
    source: Provenance

    @property
    def provenance(self) -> tuple[Provenance, ...]:
        return (self.source,)

    def step_timer(self, shape: EngineShape) -> TableTimer:
        return TableTimer(self.latency)

    def kv_capacity_tokens(self, shape: EngineShape) -> int:
        return self.kv_tokens

    def to_dict(self) -> dict[str, object]:
        table = self.latency.verify
        return {
            "kind": "verification table",
            "tokens": list(table.tokens),
            "seconds": list(table.seconds),
            "overhead_s": self.latency.overhead_s,
        }
