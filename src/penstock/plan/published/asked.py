"""What the published planners read from a question: mean requests, deadlines, forms, bytes."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from functools import cached_property
from math import ceil, inf

import numpy as np

from penstock.cost.steps import EngineShape, StepCostModel, WeighedCost, stage_timers
from penstock.errors import Infeasible, SpecError
from penstock.plan.goodput.machines import Machines
from penstock.plan.goodput.publish import even_stages
from penstock.plan.pool.model import NOBODY, PoolTraffic
from penstock.plan.pool_question import PoolQuestion
from penstock.spec.model import ModelSpec
from penstock.spec.served import ServedModel, in_precision
from penstock.spec.variants import Precision, Variant
from penstock.spec.workload import Request, SLOClass

BLOCK_TOKENS = 16


@dataclass(frozen=True, slots=True)
class Mean:
    """Requests of one model: mean lengths, the longest one's tokens, their number and rate."""

    prompt_tokens: int
    output_tokens: int
    longest_tokens: int
    requests: int
    rate_per_s: float


@dataclass(frozen=True)
class Asked:
    """``question`` on ``machines``, with its requests walked once."""

    question: PoolQuestion
    machines: Machines

    @cached_property
    def requests(self) -> tuple[Request, ...]:
        return tuple(self.question.workload.requests())

    @cached_property
    def names(self) -> tuple[str, ...]:
        return tuple(model.name for model in self.question.models)

    @cached_property
    def means(self) -> Mapping[str, Mean]:
        """By model; a model without requests has the mean of all."""
        every = list(self.requests)
        if not every:
            raise SpecError("has no requests to plan for", key="workload",
                            value=self.question.workload.name)  # fmt: skip
        span_s = max(self.question.workload.duration_s, every[-1].arrival_s) or 1.0
        own: dict[str, list[Request]] = {name: [] for name in self.names}
        for request in every:
            if request.model in own:
                own[request.model].append(request)
        return {name: _mean(found or every, len(found), span_s) for name, found in own.items()}

    @cached_property
    def traffic(self) -> PoolTraffic:
        """Arrivals, model of each, and seconds from arrival to the limit of its last token."""
        ids = {name: i for i, name in enumerate(self.names)}
        classes = {entry.name: entry for entry in self.question.workload.classes}
        return PoolTraffic(
            np.array([request.arrival_s for request in self.requests]),
            np.array([ids.get(request.model, NOBODY) for request in self.requests], np.int32),
            np.array([limit_s(request, classes) for request in self.requests]),
        )

    def shape(self, tensor: int, pipeline: int) -> EngineShape:
        return EngineShape(
            self.machines.accelerator, tensor, pipeline, self.question.gpu_memory_utilization
        )

    def cost(self, served: ServedModel, precision: Precision) -> StepCostModel:
        return self.question.cost_of(in_precision(served.model, precision))

    def latency_s(self, cost: StepCostModel, name: str, shape: EngineShape) -> tuple[float, ...]:
        """Seconds of every stage for a mean request alone, prompt and output together.

        Raises ``SpecError`` where the cost has no figures for ``shape``.
        """
        mean = self.means[name]
        return tuple(
            timer.step_s([(mean.prompt_tokens, 0)], 0, 0)
            + timer.decode_span_s(1, mean.prompt_tokens, mean.output_tokens - 1)
            for timer in stage_timers(cost, shape)
        )

    def held_bytes(
        self, cost: StepCostModel, name: str, shape: EngineShape, requests: int
    ) -> float:
        """What the fullest GPU holds of a model with KV memory for ``requests`` longest ones."""
        return weight_bytes(cost, shape) + self.kv_tokens(name, requests) * kv_bytes(
            cost.model, shape
        )

    def kv_tokens(self, name: str, requests: int) -> int:
        """Whole blocks for ``requests`` of the longest requests of a model."""
        return requests * ceil(self.means[name].longest_tokens / BLOCK_TOKENS) * BLOCK_TOKENS

    def room_bytes(self, cost: StepCostModel, name: str) -> float:
        """What a GPU can hold of a model: its weights and KV memory where it fits first.

        0 where no pipeline holds it. The cost model knows what it keeps for other things.
        """
        for tensor in self.machines.tensor_parallel_sizes:
            for pipeline in range(1, self.machines.num_gpus // tensor + 1):
                shape = self.shape(tensor, pipeline)
                try:
                    tokens = cost.kv_capacity_tokens(shape)
                except (Infeasible, SpecError):
                    continue
                held = weight_bytes(cost, shape) + tokens * kv_bytes(cost.model, shape)
                # A cost model need not know the memory of this very accelerator.
                memory = self.machines.accelerator.memory_bytes
                return min(held, memory * self.question.gpu_memory_utilization)
        return 0.0


def _mean(requests: list[Request], count: int, span_s: float) -> Mean:
    prompts = [request.prompt_tokens for request in requests]
    outputs = [request.output_tokens for request in requests]
    longest = max(p + o for p, o in zip(prompts, outputs, strict=True))
    mean_prompt, mean_output = (max(1, round(sum(v) / len(v))) for v in (prompts, outputs))
    return Mean(mean_prompt, mean_output, longest, count, count / span_s)


def limit_s(request: Request, classes: Mapping[str, SLOClass]) -> float:
    """Seconds within which the last token must come; infinite without a limit on it.

    Raises ``SpecError`` for a limit that is a multiple of the baseline.
    """
    entry = classes.get(request.class_name)
    if entry is None:
        return inf
    slo = entry.slo
    if slo.tpot_multiple is not None:
        raise SpecError("needs a time, not a multiple", key=f"classes.{entry.name}.tpot",
                        fix='give a time such as "50 ms"')  # fmt: skip
    if slo.e2e_s is not None:
        return slo.e2e_s
    if slo.ttft_s is None or slo.tpot_s is None:
        return inf
    return slo.ttft_s + slo.tpot_s * (request.output_tokens - 1)


def weight_bytes(cost: StepCostModel, shape: EngineShape) -> float:
    """Weights that the fullest GPU of ``shape`` holds."""
    if isinstance(cost, WeighedCost):
        return cost.weight_bytes_per_accelerator(shape)
    stages = even_stages([""] * shape.pipeline_parallel_size, cost.model.num_hidden_layers)
    held = max(cost.model.slice_weight_bytes(one.start_layer, one.end_layer) for one in stages)
    return held / shape.tensor_parallel_size


def kv_bytes(model: ModelSpec, shape: EngineShape) -> float:
    """Bytes of a token's KV values on the fullest GPU; heads fewer than GPUs are held by each."""
    heads = 1 if model.mla is not None else model.num_key_value_heads
    split = min(shape.tensor_parallel_size, heads)
    layers = ceil(model.num_hidden_layers / shape.pipeline_parallel_size)
    return model.kv_bytes_per_token_per_layer * layers / split


def best_form(served: ServedModel) -> Variant:
    """The most accurate stored form that is allowed, for planners that do not choose one.

    Raises ``Infeasible`` where none is.
    """
    forms = allowed_forms(served)
    return max(forms, key=lambda one: one.accuracy)


def allowed_forms(served: ServedModel) -> tuple[Variant, ...]:
    """Stored forms within the limits of the wish. Raises ``Infeasible`` where there is none."""
    wish = served.wish
    found = tuple(
        one
        for one in served.variants
        if one.accuracy >= wish.accuracy_floor
        and (wish.precisions is None or one.precision in wish.precisions)
    )
    if not found:
        raise Infeasible(
            f"{served.name}: no stored form is within its limits",
            binding="accuracy_floor or precisions",
            fix="allow one of " + ", ".join(str(one.precision) for one in served.variants),
        )
    return found
