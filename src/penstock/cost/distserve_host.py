"""DistServe's latency model as its own simulator applies it.

Beside the fitted lines of ``DistServeCost``, simdistserve counts the fed token into the context of
a decode and adds 2 ms and 0.1 us a token of host work to every step of the first pipeline stage
(LLMServe/DistServe 82831f1).
"""

from __future__ import annotations

from dataclasses import replace

from penstock.cost.linear import DecodeLine, DistServeCost, LinearCoefficients, LinearTimer
from penstock.cost.steps import EngineShape, StepTimer

HOST_STEP_S = 2e-3
HOST_TOKEN_S = 1e-7
PREFILL_STAGE_S = 1e-3


class DistServeHostCost(DistServeCost):
    """``DistServeCost`` with simdistserve's host overhead; ``StagedStepCostModel``."""

    def step_timer(self, shape: EngineShape) -> StepTimer:
        return self.stage_timers(shape)[0]

    def stage_timers(self, shape: EngineShape) -> tuple[StepTimer, ...]:
        """One timer per stage; only the first pays for the host. Raises ``SpecError``."""
        stages = shape.pipeline_parallel_size
        fitted = self.coefficients(shape.tensor_parallel_size)
        first, later = (_with_host(fitted, stages * host) for host in (1, 0))
        extra_s = PREFILL_STAGE_S * stages
        timers = (LinearTimer(first, stages, extra_s), LinearTimer(later, stages, extra_s))
        return (timers[0], *(timers[1],) * (stages - 1))

    def to_dict(self) -> dict[str, object]:
        return {**super().to_dict(), "kind": "distserve-host"}


def _with_host(c: LinearCoefficients, times: int) -> LinearCoefficients:
    """``times``: the host's share is divided by the number of stages like all others."""
    step_s, token_s = HOST_STEP_S * times, HOST_TOKEN_S * times

    def line(decode: DecodeLine) -> DecodeLine:
        per_token_s = decode.per_context_token_s
        return DecodeLine(
            decode.fixed_s + step_s, per_token_s + token_s, decode.per_seq_s + per_token_s
        )

    return replace(
        c,
        prefill_fixed_s=c.prefill_fixed_s + step_s,
        prefill_per_token_s=c.prefill_per_token_s + token_s,
        decode=line(c.decode),
        decode_large=None if c.decode_large is None else line(c.decode_large),
    )
