"""Step times of MaverIQ's six models on its A6000 host, from the measured tables.

A batch of b sequences with prompts of p tokens and o output tokens took

    L = P + sum over j < o - 1 of (a(b) + k b (p + j))

where P is the prompt's step, a(b) a decode step of b sequences and k the seconds of one token of
context. k is the KV bytes of a token over the memory bandwidth, times one factor that is fitted
to gptj-6b, the one model that was measured in batches and whose context weighs. With k, the runs
of 50 and 200 tokens give a(b) of the batched tables, those of 10 and 200 that of batch 1.

Batches of models that were measured at batch 1 only: what a decode step grows by follows layers
x hidden size (products, all-reduces and activations do), from the two models measured in batches
in the same shape and precision. ``step_rows`` holds the error of that rule on models left out.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from functools import cached_property
from math import ceil
from pathlib import Path

import numpy as np

from penstock.cost.base import Provenance
from penstock.cost.fingerprint import Configuration, ProfileRow
from penstock.cost.step_line import StepLine
from penstock.cost.step_table import TableTimer
from penstock.cost.steps import EngineShape
from penstock.errors import Infeasible, SpecError
from penstock.experiments.maveriq.data import (
    FULL,
    FULL_BATCHED,
    GPU_BYTES,
    LONG_PROMPT_TOKENS,
    MODELS,
    OUTPUT_TOKENS,
    SHORT_PROMPT_TOKENS,
    model_of,
    profile,
)
from penstock.spec.model import ModelSpec
from penstock.spec.served import WEIGHT_DTYPES
from penstock.spec.variants import Precision

BATCHED = ("falcon-40b", "gptj-6b")
SIZES = (1, 8, 16, 32, 64)
BANDWIDTH_BYTES_PER_S = 768e9
_LEAST_STEP_S = 1e-4
Key = tuple[str, Configuration]


@dataclass(frozen=True, slots=True)
class Steps:
    """Of one configuration: the decode step by batch [s], without context, and prompts by tokens.

    ``context_s`` is what one token of context adds to a decode step.
    """

    decode_s: Mapping[int, float]
    prompt_s: tuple[tuple[int, float], ...]
    context_s: float

    def timer(self, stages: int) -> TableTimer:
        lines = [StepLine(b, s, self.context_s) for b, s in sorted(self.decode_s.items())]
        return TableTimer(lines, self.prompt_s, 0.0, stages)

    def latency_s(self, prompt: int, output: int, batch: int = 1) -> float:
        """Seconds of a whole batch from prompt to last token."""
        timer = self.timer(1)
        first_s = timer.step_s([(prompt, 0)] * batch, 0, 0)
        return first_s + timer.decode_span_s(batch, prompt * batch, output - 1)


class StepTables:
    """The measured tables under ``maveriq``, as steps of every configuration that ran.

    ``left_out`` models lend no batches to others: what they lend is what is to be judged.
    """

    def __init__(self, maveriq: Path, left_out: tuple[str, ...] = ()) -> None:
        self.maveriq = maveriq
        self._lenders = tuple(name for name in BATCHED if name not in left_out)
        self._own = frozenset(BATCHED) - frozenset(left_out)
        self._known: dict[Key, Steps] = {}

    @cached_property
    def _long(self) -> Mapping[Key, Mapping[int, ProfileRow]]:
        return _by_tokens(profile(self.maveriq / "profiles" / FULL))

    @cached_property
    def _batched(self) -> Mapping[Key, Mapping[tuple[int, int], float]]:
        found: dict[Key, dict[tuple[int, int], float]] = {}
        for row in profile(self.maveriq / "profiles" / FULL_BATCHED):
            own = found.setdefault((row.model, row.configuration), {})
            own[row.batch, row.output_tokens] = row.measurement.latency_s
        return found

    @cached_property
    def context_factor(self) -> float:
        """Seconds of reading a KV byte, as a multiple of the datasheet's: gptj-6b on one GPU.

        With three lengths the second difference of L is k b o^2 / 2 alone.
        """
        ratios = []
        for (name, shape), runs in self._batched.items():
            if name != "gptj-6b" or shape.tensor_parallel_size > 1:
                continue
            each_s = _kv_bytes(name, shape) / BANDWIDTH_BYTES_PER_S
            for batch in SIZES[1:]:
                late = (runs[batch, 200] - runs[batch, 100]) / 100
                early = (runs[batch, 100] - runs[batch, 50]) / 50
                # Mean contexts of the two spans lie 75 tokens apart.
                ratios.append((late - early) / (75 * batch * each_s))
        return float(np.median(ratios))

    def configurations(self, name: str) -> tuple[Configuration, ...]:
        return tuple(shape for model, shape in self._long if model == name)

    def ran(self, name: str, shape: Configuration) -> bool:
        return (name, shape) in self._long

    def memory_bytes(self, name: str, shape: Configuration) -> float:
        """Measured over all GPUs of the configuration, at batch 1 and 20 tokens."""
        return self._long[name, shape][OUTPUT_TOKENS].measurement.memory_bytes

    def steps(self, name: str, shape: Configuration) -> Steps:
        """Raises ``KeyError`` for a configuration that never ran."""
        if (name, shape) not in self._known:
            self._known[name, shape] = self._make(name, shape)
        return self._known[name, shape]

    def _make(self, name: str, shape: Configuration) -> Steps:
        runs = self._long[name, shape]
        tensor = shape.tensor_parallel_size
        context_s = self.context_factor * _kv_bytes(name, shape) / BANDWIDTH_BYTES_PER_S / tensor
        seconds = {tokens: row.measurement.latency_s for tokens, row in runs.items()}
        one_s = _step_s(seconds, (10, 200), LONG_PROMPT_TOKENS, 1, context_s)
        rest_s = 9 * (one_s + context_s * (LONG_PROMPT_TOKENS + 4))
        long_s = max(seconds[10] - rest_s, one_s)
        decode_s = {1: one_s}
        for batch in SIZES[1:]:
            more_s = self._more_s(name, shape, batch)
            if more_s is not None:
                decode_s[batch] = max(one_s + more_s, _LEAST_STEP_S)
        short_s = one_s + context_s * SHORT_PROMPT_TOKENS
        prompts = ((SHORT_PROMPT_TOKENS, short_s), (LONG_PROMPT_TOKENS, max(long_s, short_s)))
        return Steps(decode_s, prompts, context_s)

    def _more_s(self, name: str, shape: Configuration, batch: int) -> float | None:
        """What ``batch`` sequences add to the decode step of one; None where nobody ran it."""
        if name in self._own:
            return self._measured_more_s(name, shape, batch)
        lent = []
        for lender in self._lenders:
            more_s = self._measured_more_s(lender, _plain(shape), batch)
            if more_s is not None:
                lent.append((more_s * _size(name) / _size(lender), lender))
        if not lent:
            return None
        # The lender whose size is nearer counts alone where it was measured.
        near = min(lent, key=lambda one: abs(np.log(_size(name) / _size(one[1]))))
        return near[0]

    def _measured_more_s(self, name: str, shape: Configuration, batch: int) -> float | None:
        runs = self._batched.get((name, shape), {})
        if (batch, 200) not in runs or (1, 200) not in runs:
            return None
        tensor = shape.tensor_parallel_size
        context_s = self.context_factor * _kv_bytes(name, shape) / BANDWIDTH_BYTES_PER_S / tensor
        both = [
            _step_s(
                {tokens: runs[size, tokens] for tokens in (50, 200)},
                (50, 200),
                SHORT_PROMPT_TOKENS,
                size,
                context_s,
            )
            for size in (1, batch)
        ]
        return max(0.0, both[1] - both[0])


def _step_s(
    seconds: Mapping[int, float], ends: tuple[int, int], prompt: int, batch: int, context_s: float
) -> float:
    """A decode step without context, from runs of two lengths."""
    first, last = ends
    slope = (seconds[last] - seconds[first]) / (last - first)
    # Decode step j (from 0) reads prompt + j tokens; a run of o tokens has o - 1 of them.
    mean_context = prompt + (first + last - 3) / 2
    return max(slope - context_s * batch * mean_context, _LEAST_STEP_S)


def _by_tokens(rows: tuple[ProfileRow, ...]) -> Mapping[Key, Mapping[int, ProfileRow]]:
    found: dict[Key, dict[int, ProfileRow]] = {}
    for row in rows:
        found.setdefault((row.model, row.configuration), {})[row.output_tokens] = row
    return found


def _plain(shape: Configuration) -> Configuration:
    """The shape that was measured in batches: no quantised KV, GPTQ as int4."""
    weights = shape.precision.weights.removesuffix("_gptq")
    return Configuration(
        shape.tensor_parallel_size, shape.pipeline_parallel_size, Precision(weights)
    )


def _size(name: str) -> float:
    model = model_of(name)
    return float(model.num_hidden_layers * model.hidden_size)


def _kv_bytes(name: str, shape: Configuration) -> float:
    """KV bytes of a token over all layers."""
    model = model_of(name)
    full = float(model.kv_bytes_per_token_per_layer * model.num_hidden_layers)
    return full / 2 if shape.precision.int8_kv else full


class TableCost:
    """``StepCostModel`` of one model of MaverIQ in one precision, on A6000 groups."""

    def __init__(self, model: ModelSpec, tables: StepTables) -> None:
        self._model, self._tables = model, tables
        self._name = next((n for n in MODELS if model_of(n).name == model.name), "")
        if not self._name:
            raise SpecError("was not measured by MaverIQ", key="model", value=model.name)
        dtype = model.weight_dtype or model.dtype
        weights = next(name for name, known in WEIGHT_DTYPES.items() if known == dtype)
        self._precision = Precision(weights, model.kv_dtype == "int8")

    @property
    def model(self) -> ModelSpec:
        return self._model

    @property
    def provenance(self) -> tuple[Provenance, ...]:
        where = "8 x RTX A6000, TensorRT-LLM 0.9.0 (MaverIQ artifact)"
        return (
            Provenance("measured", f"{where}: batch 1, 10 to 200 tokens", domain="batch 1"),
            Provenance(
                "measured" if self._name in BATCHED else "fitted",
                f"{where}: batches of {' and '.join(BATCHED)}",
                error="see penstock reproduce maveriq steps",
                domain="batches of 8 to 64",
            ),
        )

    def step_timer(self, shape: EngineShape) -> TableTimer:
        """Raises ``SpecError`` for a shape that never ran."""
        return self._steps(shape).timer(shape.pipeline_parallel_size)

    def weight_bytes_per_accelerator(self, shape: EngineShape) -> float:
        """Measured memory of the fullest GPU at batch 1: weights, runtime, KV memory set aside."""
        total = self._tables.memory_bytes(self._name, self._configuration(shape))
        layers, stages = self._model.num_hidden_layers, shape.pipeline_parallel_size
        return total / shape.num_accelerators * (ceil(layers / stages) * stages / layers)

    def kv_capacity_tokens(self, shape: EngineShape) -> int:
        """Tokens of KV memory beside what was measured. Raises ``Infeasible``."""
        room = GPU_BYTES * shape.gpu_memory_utilization - self.weight_bytes_per_accelerator(shape)
        layers = ceil(self._model.num_hidden_layers / shape.pipeline_parallel_size)
        split = min(shape.tensor_parallel_size, self._model.num_key_value_heads)
        tokens = int(room / (self._model.kv_bytes_per_token_per_layer * layers / split))
        if room <= 0 or tokens < 1:
            raise Infeasible(
                f"{self._name} does not fit on {shape.num_accelerators} x A6000",
                binding="accelerator memory",
                fix="more GPUs per engine or narrower weights",
            )
        return tokens

    def to_dict(self) -> dict[str, object]:
        return {"kind": "maveriq-tables", "model": self._name, "precision": str(self._precision)}

    def _configuration(self, shape: EngineShape) -> Configuration:
        found = Configuration(
            shape.tensor_parallel_size, shape.pipeline_parallel_size, self._precision
        )
        if not self._tables.ran(self._name, found):
            raise SpecError(f"MaverIQ did not run {self._name} so", key="shape", value=str(found))
        return found

    def _steps(self, shape: EngineShape) -> Steps:
        return self._tables.steps(self._name, self._configuration(shape))
