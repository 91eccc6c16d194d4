"""A speculator from what a plan says and what the engine takes."""

from __future__ import annotations

from penstock.plan.settings import SpeculationSettings
from penstock.policy.speculation.controller import ControllerSettings, PricedSpeculator
from penstock.policy.speculation.latency import StepLatency
from penstock.policy.speculation.shape import AdaptiveShape
from penstock.policy.speculation.speculator import (
    AdaServeSettings,
    AdaServeSpeculator,
    ChainSpeculator,
    Speculator,
)

FAST_AS_DECODING = 1.25
"""A verification that takes no longer than this many decode steps of one request is cheap."""

PRIOR = 6.0
"""Judgements by which a draft's own probabilities are believed: few, as greedy targets accept far
more than an unsure draft promises."""
PROBE_STEPS = 32
"""Plain steps before one layer is drafted again: a probe costs about half a step, so 2 %."""
MEMORY = 0.9
"""What layers promise is forgotten fast: the first promises come before any verdict."""


def make_speculator(settings: SpeculationSettings, latency: StepLatency) -> Speculator:
    """``latency`` is the engine's, measured or modelled."""
    if settings.method == "chain":
        return ChainSpeculator(settings.num_speculative_tokens)
    if settings.method == "adaserve":
        budget = settings.verify_budget or cheap_tokens(settings, latency)
        shape = AdaptiveShape(
            budget, settings.max_num_seqs, 1, settings.max_depth, settings.max_width
        )
        draft_s = latency.draft_s(settings.max_depth)
        return AdaServeSpeculator(AdaServeSettings(shape, budget, draft_s, latency.verify))
    return PricedSpeculator(
        ControllerSettings(
            latency,
            max_depth=settings.max_depth,
            max_width=settings.max_width,
            draft_tokens=settings.max_num_seqs,
            prior=PRIOR,
            by_rank=True,
            memory=MEMORY,
            probe_steps=PROBE_STEPS,
        )
    )


def cheap_tokens(settings: SpeculationSettings, latency: StepLatency) -> int:
    """Tokens of a step about as fast as a decode step, at least two a request."""
    table = latency.verify
    return max(
        2 * settings.max_num_seqs, int(table.tokens_within(FAST_AS_DECODING * table.seconds[0]))
    )
