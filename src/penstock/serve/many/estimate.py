"""Seconds and bytes of a whole model in every configuration, from a model of its steps."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field

from penstock.cost.fingerprint import Configuration, Demand
from penstock.cost.load import step_cost_from_dict
from penstock.cost.steps import EngineShape, StepCostModel, stage_timers
from penstock.spec.hardware import Accelerator
from penstock.spec.model import ModelSpec
from penstock.spec.served import in_precision
from penstock.spec.variants import Precision


@dataclass(frozen=True)
class StepEstimator:
    """A ``cost.fingerprint.Estimator``. ``cost`` is the document of a step cost model.

    ``kv_tokens`` is the KV memory of an engine.
    """

    model: ModelSpec
    accelerator: Accelerator
    cost: Mapping[str, object]
    kv_tokens: int
    _costs: dict[Precision, StepCostModel] = field(default_factory=dict, repr=False)

    def latency_s(self, configuration: Configuration, demand: Demand) -> float:
        """Seconds from the start of a batch that is alone to its last token."""
        shape = EngineShape(
            self.accelerator,
            configuration.tensor_parallel_size,
            configuration.pipeline_parallel_size,
        )
        cost = self._cost_in(configuration.precision)
        prompts = [(demand.prompt_tokens, 0)] * demand.batch
        context, steps = demand.batch * demand.prompt_tokens, demand.output_tokens - 1
        # One batch visits the stages in turn.
        return sum(
            timer.step_s(prompts, 0, 0)
            + (timer.decode_span_s(demand.batch, context, steps) if steps else 0.0)
            for timer in stage_timers(cost, shape)
        )

    def _cost_in(self, precision: Precision) -> StepCostModel:
        if precision not in self._costs:
            model = in_precision(self.model, precision)
            self._costs[precision] = step_cost_from_dict(self.cost, model)
        return self._costs[precision]

    def memory_bytes(self, configuration: Configuration, demand: Demand) -> float:
        """Weights and KV memory over all GPUs, every stage with room for the embeddings."""
        del demand  # The engine's KV memory does not depend on it.
        model = in_precision(self.model, configuration.precision)
        layers = model.num_hidden_layers
        whole = model.slice_weight_bytes(0, layers)
        ends = max(0, whole - layers * model.layer_weight_bytes)
        kv = self.kv_tokens * layers * model.kv_bytes_per_token_per_layer
        return whole + (configuration.pipeline_parallel_size - 1) * ends + kv
