"""Seconds of an engine step for any model on any accelerator, without a profile.

A step is the sum of its operators on one GPU of the group (they run one after another), plus what
the engine adds on the host:

    step = sum over layers (products + experts + attention + all-reduces + small kernels)
         + LM head + host(sequences, prompt tokens)

Products, experts and all-reduces depend on the number of tokens alone; decode attention is linear
in the context. So a decode step is ``a(seqs) + b * context`` and a span of steps has a closed form.
Coefficients and their errors: ``step_coefficients``; formulas: ``step_arithmetic``.
"""

from __future__ import annotations

from collections.abc import Collection
from math import ceil

from penstock.cost.arithmetic import activation_bytes
from penstock.cost.base import Provenance
from penstock.cost.step_arithmetic import (
    ACTIVATION_BYTES,
    LayerGroup,
    layer_groups,
    weight_bytes,
)
from penstock.cost.step_coefficients import (
    Band,
    StepCoefficients,
    bundled_step_coefficients,
)
from penstock.cost.step_rates import figures_name
from penstock.cost.step_timer import RooflineStepTimer
from penstock.cost.steps import EngineShape
from penstock.errors import Infeasible, SpecError
from penstock.spec.model import ModelSpec
from penstock.spec.names import did_you_mean

DEFAULT_ENGINE = "vllm"
# GPUs of the largest group with all-reduce and expert tables.
MEASURED_GROUP = 8
# Tokens of the largest step, which sizes the activations (vLLM's max_num_batched_tokens).
ACTIVATION_TOKENS = 8192


class StepRoofline:
    """Step cost model of any ``ModelSpec``.

    ``engine`` names whose host overhead to add (``vllm``, ``sglang``, ``trtllm``);
    ``enforce_eager`` turns CUDA graphs off: a layer then takes no less than its launches.
    """

    def __init__(
        self,
        model: ModelSpec,
        *,
        engine: str = DEFAULT_ENGINE,
        enforce_eager: bool = False,
        coefficients: StepCoefficients | None = None,
    ) -> None:
        self._model = model
        self._coefficients = coefficients or bundled_step_coefficients()
        self.engine = engine
        self.enforce_eager = enforce_eager
        hosts = self._coefficients.engines
        if engine not in hosts:
            raise SpecError(
                "no overheads are known of this engine",
                key="engine",
                value=engine,
                fix=did_you_mean(engine, hosts),
            )
        self._host = hosts[engine]

    @property
    def model(self) -> ModelSpec:
        return self._model

    @property
    def provenance(self) -> tuple[Provenance, ...]:
        c = self._coefficients
        measured = sorted(name for name, chip in c.chips.items() if chip.basis == "measured")
        return (
            Provenance("fitted", c.source, c.error, c.domain, c.notes),
            Provenance(
                "extrapolated",
                "accelerators without operator tables: datasheet peaks times the shares of their "
                "generation (or the median of all)",
                error=c.error,
                domain="accelerators other than " + ", ".join(measured),
            ),
        )

    def source_of(self, shape: EngineShape) -> Provenance:
        """Whether the figures of ``shape`` rest on measurements of its accelerator and range."""
        return self.provenance[0 if self._basis(shape) == "measured" else 1]

    def band(self, shape: EngineShape) -> Band:
        """Ratios to multiply predictions with for their 10th and 90th percentile."""
        return self._coefficients.bands[self._basis(shape)]

    def _basis(self, shape: EngineShape) -> str:
        """``measured`` inside the domain of the fit, ``extrapolated`` outside: another chip, a
        larger group, or a weight format without a table on this generation."""
        chip = self._coefficients.chip(shape.accelerator)
        if chip is None or chip.basis != "measured":
            return "extrapolated"
        if shape.tensor_parallel_size * shape.data_parallel_size > MEASURED_GROUP:
            return "extrapolated"
        arch = self._coefficients.architecture(chip)
        for group in self._groups(shape):
            formats: list[tuple[str, Collection[str]]] = [
                (p.weight_dtype, arch.products) for p in group.products
            ]
            if group.experts is not None:
                formats.append((group.experts.weight_dtype, arch.experts.compute))
            for dtype, known in formats:
                name = figures_name(shape.accelerator, dtype)
                widened = name == "bf16" and dtype not in ("bf16", "fp16")
                if widened or name not in known:
                    return "extrapolated"
        return "measured"

    def step_timer(self, shape: EngineShape) -> RooflineStepTimer:
        """Raises ``SpecError`` when the shape cannot split the model."""
        groups = self._groups(shape)
        return RooflineStepTimer(
            self._model,
            shape,
            groups,
            self._coefficients,
            host=self._host,
            enforce_eager=self.enforce_eager,
        )

    def request_s(self, prompt_tokens: int) -> float:
        """Seconds between client and scheduler: HTTP, tokenising, streaming the first token.

        Part of a measured TTFT and of no step.
        """
        return self._host.request_s + prompt_tokens * self._host.prompt_token_s

    def weight_bytes_per_accelerator(self, shape: EngineShape) -> float:
        """Weights the fullest GPU holds, embeddings included."""
        split = shape.tensor_parallel_size * shape.pipeline_parallel_size
        embeddings = self._model.embedding_parameters * ACTIVATION_BYTES / split
        if self._model.layer_weight_bytes_override is not None:
            layers = self._model.layer_weight_bytes_override * self._model.num_hidden_layers
            return layers / split + embeddings
        held = sum(group.count * _layer_bytes(group) for group in self._groups(shape))
        return held / shape.pipeline_parallel_size + embeddings

    def kv_capacity_tokens(self, shape: EngineShape) -> int:
        """Tokens of KV memory of the whole engine.

        Latent caches and KV heads fewer than GPUs are held once per GPU. Raises ``Infeasible``.
        """
        memory = self._coefficients.memory
        chip = self._coefficients.chip(shape.accelerator)
        share = (chip.usable_memory if chip else None) or memory.usable
        seen = shape.accelerator.memory_bytes * share
        work = activation_bytes(self._model, ACTIVATION_TOKENS) / shape.tensor_parallel_size
        weights = self.weight_bytes_per_accelerator(shape)
        free = seen * shape.gpu_memory_utilization - memory.reserved_bytes - work - weights
        layers = ceil(self._model.num_hidden_layers / shape.pipeline_parallel_size)
        per_token = self._groups(shape)[0].attention.kv_bytes * layers
        tokens = int(free / per_token) if free > 0 else 0
        if tokens < 1:
            short = (per_token - free) / 2**30
            raise Infeasible(
                f"{self._model.name} does not fit on {shape.num_accelerators} x "
                f"{shape.accelerator.name}: {short:.1f} GiB short per GPU",
                binding="accelerator memory",
                fix="more GPUs per engine, narrower weights or higher gpu_memory_utilization",
            )
        return tokens * shape.data_parallel_size

    def to_dict(self) -> dict[str, object]:
        """Coefficients other than the bundled ones are named only: ``step_cost_from_dict`` cannot
        rebuild them and says so."""
        own = self._coefficients != bundled_step_coefficients()
        return {
            "kind": "step-roofline",
            "engine": self.engine,
            "enforce_eager": self.enforce_eager,
            **({"coefficients": self._coefficients.source} if own else {}),
        }

    def _groups(self, shape: EngineShape) -> tuple[LayerGroup, ...]:
        _check(self._model, shape)
        return layer_groups(
            self._model,
            shape.tensor_parallel_size,
            expert_parallel_size=shape.expert_parallel_size,
            data_parallel_size=shape.data_parallel_size,
        )


def _layer_bytes(group: LayerGroup) -> float:
    """Weights of one layer of ``group`` on one GPU."""
    held = sum(p.n * p.k * weight_bytes(p.weight_dtype) for p in group.products)
    if group.experts is not None:
        e = group.experts
        held += e.held * e.matrices * e.hidden * e.width * weight_bytes(e.weight_dtype)
    return held


def _check(model: ModelSpec, shape: EngineShape) -> None:
    """Raises ``SpecError`` when ``shape`` cannot split ``model``."""
    heads, split = model.num_attention_heads, shape.tensor_parallel_size
    if heads % split:
        raise SpecError(
            f"does not divide the {heads} attention heads of {model.name}",
            key="tensor_parallel_size",
            value=split,
        )
    if shape.pipeline_parallel_size > model.num_hidden_layers:
        raise SpecError(
            f"{model.name} has only {model.num_hidden_layers} layers",
            key="pipeline_parallel_size",
            value=shape.pipeline_parallel_size,
        )
    gpus, experts = split * shape.data_parallel_size, shape.expert_parallel_size
    if gpus % experts:
        raise SpecError(
            f"does not divide the {gpus} GPUs of a stage", key="expert_parallel_size", value=experts
        )
