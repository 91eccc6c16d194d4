"""Speculative decoding as a step cost: every decode step yields one token, at its mean price.

A verification step of n draft tokens takes n draft passes and one target step over n + 1 tokens
for each request, and yields E(n) = 1 + sum of the acceptance curve up to n tokens on average
(Leviathan et al., ICML 2023). A decode step here costs that time over E(n), so that the
schedulers of whole fleets run unchanged. What it leaves out: luck differs between requests, and
tokens come in bursts. ``sim/speculation`` draws both, for one engine.

Method ``chain`` always drafts n = ``num_speculative_tokens``. Method ``penstock`` takes the n up
to ``max_depth``, 0 included, that makes a token cheapest for the number of running requests: the
controller of ``policy/speculation`` for requests that all matter alike, with chains for trees.
"""

from __future__ import annotations

from collections.abc import Sequence
from math import ceil

import numpy as np
from numpy.typing import NDArray

from penstock.cost.base import Provenance
from penstock.cost.step_line import StepLine
from penstock.cost.steps import EngineShape, HostedCost, PrefillChunk, StepCostModel, StepTimer
from penstock.errors import Infeasible, SpecError
from penstock.plan.settings import SpeculationSettings
from penstock.spec.model import ModelSpec

TYPICAL_CONTEXT_TOKENS = 1024
"""Context per request at which the depth is chosen, so that it holds through a span of steps."""


class SpeculativeCost:
    """``target`` with ``draft`` beside it on the same GPUs; pipelines are refused."""

    def __init__(
        self,
        target: StepCostModel,
        draft: StepCostModel,
        settings: SpeculationSettings,
        acceptance: Sequence[float],
    ) -> None:
        self._target = target
        self._draft = draft
        self._settings = settings
        self._acceptance = tuple(acceptance)

    @property
    def model(self) -> ModelSpec:
        return self._target.model

    @property
    def provenance(self) -> tuple[Provenance, ...]:
        assumed = Provenance(
            "assumed",
            f"speculation by {self._draft.model.name}: mean accepted tokens per step from the "
            "acceptance that was given; draft passes priced as decode steps of the draft",
            domain="mean acceptance; its spread over requests is not simulated",
        )
        return (*self._target.provenance, assumed)

    def step_timer(self, shape: EngineShape) -> SpeculativeTimer:
        """Raises ``SpecError`` for pipelines, and for shapes that cannot split either model."""
        if shape.pipeline_parallel_size > 1:
            raise SpecError("speculation in a pipeline is not modelled", key="speculation")
        for model in (self._target.model, self._draft.model):
            if model.sliding_window is not None:
                raise SpecError(
                    f"{model.name} has a sliding window, whose speculation is not modelled",
                    key="speculation",
                )
        timers = self._target.step_timer(shape), self._draft.step_timer(shape)
        return SpeculativeTimer(*timers, self._settings, self._acceptance)

    def kv_capacity_tokens(self, shape: EngineShape) -> int:
        """Tokens whose KV entries of both models fit beside both weights, in whole tokens.

        The draft's weights and entries come out of what the target alone would have.
        """
        tokens = self._target.kv_capacity_tokens(shape)
        entry = _kv_bytes_per_token(self._target.model, shape)
        draft = _kv_bytes_per_token(self._draft.model, shape)
        held = _weight_bytes(self._draft.model) / shape.tensor_parallel_size
        left = int((tokens * entry - held) / (entry + draft))
        if left < 1:
            raise Infeasible(
                f"{self._draft.model.name} does not fit beside {self._target.model.name} on "
                f"{shape.num_accelerators} x {shape.accelerator.name}",
                binding="accelerator memory",
                fix="more GPUs per engine, narrower weights or no speculation",
            )
        return left

    def request_s(self, prompt_tokens: int) -> float:
        """What the target's host takes outside of steps; the draft adds nothing to it."""
        target = self._target
        return target.request_s(prompt_tokens) if isinstance(target, HostedCost) else 0.0

    def to_dict(self) -> dict[str, object]:
        return {
            "kind": "speculative",
            "target": self._target.to_dict(),
            "draft_model": self._draft.model.name,
            "draft": self._draft.to_dict(),
            "acceptance": list(self._acceptance),
        }


def _kv_bytes_per_token(model: ModelSpec, shape: EngineShape) -> float:
    """On the fullest GPU: heads fewer than GPUs and latent caches are held once per GPU."""
    layers = ceil(model.num_hidden_layers / shape.pipeline_parallel_size)
    whole = model.kv_bytes_per_token_per_layer * layers
    if model.mla is not None:
        return float(whole)
    heads = ceil(model.num_key_value_heads / shape.tensor_parallel_size)
    return whole * heads / model.num_key_value_heads


def _weight_bytes(model: ModelSpec) -> float:
    return model.parameters * model.weight_bytes_per_parameter


class SpeculativeTimer:
    """``StepTimer`` whose decode step is the mean price of one token of every sequence."""

    def __init__(
        self,
        target: StepTimer,
        draft: StepTimer,
        settings: SpeculationSettings,
        acceptance: Sequence[float],
    ) -> None:
        self._target = target
        self._draft = draft
        known = len(acceptance)
        self._depths: tuple[int, ...]
        if settings.method == "chain":
            self._depths = (min(settings.num_speculative_tokens, known),)
        else:
            self._depths = tuple(range(min(settings.max_depth, known) + 1))
        self._yields = 1.0 + np.concatenate([[0.0], np.cumsum(acceptance)])
        self._chosen: dict[int, tuple[int, StepLine]] = {}

    def depth(self, seqs: int) -> int:
        """Draft tokens of each request while ``seqs`` of them decode."""
        return self._of(seqs)[0]

    def decode_s(self, seqs: int, context_tokens: int) -> float:
        return self._of(seqs)[1].at(context_tokens)

    def decode_span_s(self, seqs: int, context_tokens: int, steps: int) -> float:
        return self._of(seqs)[1].span_s(context_tokens, steps)

    def decode_span_times_s(
        self, seqs: int, context_tokens: int, steps: int
    ) -> NDArray[np.float64]:
        return self._of(seqs)[1].span_times_s(context_tokens, steps)

    def steps_within(self, seqs: int, context_tokens: int, seconds: float, most: int) -> int:
        return self._of(seqs)[1].steps_within(context_tokens, seconds, most)

    def step_s(self, prefill: Sequence[PrefillChunk], seqs: int, context_tokens: int) -> float:
        """Prompts run through both models; the decodes beside them pay their share of a step."""
        if not prefill:
            return self.decode_s(seqs, context_tokens)
        alone_s = self._target.step_s(prefill, 0, 0)
        prompts_s = alone_s + self._draft.step_s(prefill, 0, 0)
        if not seqs:
            return prompts_s
        depth = self.depth(seqs)
        together_s = self._target.step_s(prefill, seqs * (depth + 1), context_tokens)
        more_s = together_s - alone_s + self._drafting_s(depth, seqs, context_tokens)
        return prompts_s + more_s / float(self._yields[depth])

    def _of(self, seqs: int) -> tuple[int, StepLine]:
        found = self._chosen.get(seqs)
        if found is None:
            context = seqs * TYPICAL_CONTEXT_TOKENS
            depth = min(self._depths, key=lambda n: (self._token_s(n, seqs, context), n))
            fixed_s = self._token_s(depth, seqs, 0)
            slope_s = (self._token_s(depth, seqs, context) - fixed_s) / context
            found = self._chosen[seqs] = depth, StepLine(seqs, fixed_s, slope_s)
        return found

    def _token_s(self, depth: int, seqs: int, context_tokens: int) -> float:
        """Seconds for one token of each sequence on average.

        The verified tokens of a request read its KV memory once, together.
        """
        step_s = self._target.decode_s(seqs * (depth + 1), context_tokens)
        step_s += self._drafting_s(depth, seqs, context_tokens)
        return step_s / float(self._yields[depth])

    def _drafting_s(self, depth: int, seqs: int, context_tokens: int) -> float:
        return depth * self._draft.decode_s(seqs, context_tokens) if depth else 0.0
