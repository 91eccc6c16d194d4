"""Steps as linear functions of batch, tokens and context; DistServe's fitted coefficients.

Formulas of DistServe's simulator (LLMServe/DistServe 82831f1, OSDI 2024): a prefill step takes
``a + b * sum(L) + c * sum(L^2)`` ms, a decode step ``a + b * sum(context) + c * batch`` ms with
other coefficients from a batch of 95 on. Pipeline stages divide both; a prefill stage takes one
ms more per stage of the pipeline.
"""

from __future__ import annotations

from bisect import bisect_right
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass
from functools import cache
from math import ceil, sqrt
from pathlib import Path
from typing import Any, Literal

import numpy as np
import yaml
from numpy.typing import NDArray

from penstock.cost.base import Provenance
from penstock.cost.steps import EngineShape, PrefillChunk, StepTimer
from penstock.errors import Infeasible, SpecError
from penstock.spec.model import ModelSpec
from penstock.spec.names import did_you_mean, normalise

DISTSERVE = Path(__file__).with_name("distserve_coefficients.yaml")
DistServeEngine = Literal["distserve", "vllm"]


@dataclass(frozen=True, slots=True)
class DecodeLine:
    """A decode step: ``fixed_s + per_context_token_s * context + per_seq_s * seqs`` seconds."""

    fixed_s: float
    per_context_token_s: float
    per_seq_s: float


@dataclass(frozen=True, slots=True)
class LinearCoefficients:
    """Seconds of one engine that is not pipelined.

    A chunk of t tokens over c cached ones counts t tokens and (c + t)^2 - c^2 pairs, so that the
    chunks of a prompt add up to the whole. ``decode_large`` holds from ``large_batch`` sequences.
    A step of both phases costs its prefill and what the decodes add to it.
    """

    prefill_fixed_s: float
    prefill_per_token_s: float
    prefill_per_pair_s: float
    decode: DecodeLine
    decode_large: DecodeLine | None = None
    large_batch: int = 0


class LinearTimer:
    """``StepTimer`` of one of ``stages`` equal pipeline stages; spans in closed form."""

    def __init__(
        self, coefficients: LinearCoefficients, stages: int = 1, prefill_stage_s: float = 0.0
    ) -> None:
        self._c = coefficients
        self._stages = stages
        self._extra_s = prefill_stage_s
        large = coefficients.decode_large
        limit = coefficients.large_batch if large is not None else 0
        small = self._divided(coefficients.decode)
        self._lines = (small,) if large is None else (small, self._divided(large))
        self._limits = (limit,) if large is not None else ()
        self._single = small if large is None else None

    def _divided(self, line: DecodeLine) -> tuple[float, float, float]:
        p = self._stages
        return (line.fixed_s / p, line.per_context_token_s / p, line.per_seq_s / p)

    def _line(self, seqs: int) -> tuple[float, float, float]:
        return self._lines[bisect_right(self._limits, seqs)]

    def decode_s(self, seqs: int, context_tokens: int) -> float:
        fixed, per_token, per_seq = self._line(seqs)
        return fixed + per_token * context_tokens + per_seq * seqs

    def decode_span_s(self, seqs: int, context_tokens: int, steps: int) -> float:
        fixed, per_token, per_seq = self._single or self._line(seqs)
        first = fixed + per_token * context_tokens + per_seq * seqs
        return steps * (first + 0.5 * per_token * seqs * (steps - 1))

    def decode_span_times_s(
        self, seqs: int, context_tokens: int, steps: int
    ) -> NDArray[np.float64]:
        fixed, per_token, per_seq = self._single or self._line(seqs)
        first = fixed + per_token * context_tokens + per_seq * seqs
        k = np.arange(1, steps + 1)
        times: NDArray[np.float64] = k * (first + 0.5 * per_token * seqs * (k - 1))
        return times

    def steps_within(self, seqs: int, context_tokens: int, seconds: float, most: int) -> int:
        fixed, per_token, per_seq = self._single or self._line(seqs)
        first = fixed + per_token * context_tokens + per_seq * seqs
        half = 0.5 * per_token * seqs
        if seconds <= first:
            return 1 if seconds > 0 else 0
        if most * (first + half * (most - 1)) <= seconds:
            return most
        # half * k^2 + (first - half) * k = seconds, solved without cancellation.
        linear = first - half
        steps = ceil(2 * seconds / (linear + sqrt(linear * linear + 4 * half * seconds)))
        while steps * (first + half * (steps - 1)) < seconds:
            steps += 1
        while steps > 1 and (steps - 1) * (first + half * (steps - 2)) >= seconds:
            steps -= 1
        return min(steps, most)

    def step_s(self, prefill: Sequence[PrefillChunk], seqs: int, context_tokens: int) -> float:
        if not prefill:
            return self.decode_s(seqs, context_tokens)
        c = self._c
        tokens = pairs = 0
        for chunk, cached in prefill:
            tokens += chunk
            pairs += chunk * (chunk + 2 * cached)
        total = c.prefill_fixed_s + c.prefill_per_token_s * tokens + c.prefill_per_pair_s * pairs
        total = total / self._stages + self._extra_s
        if seqs:
            fixed, per_token, per_seq = self._line(seqs)
            total += per_token * context_tokens + per_seq * seqs
            alone = fixed - c.prefill_fixed_s / self._stages
            if alone > 0:
                total += alone
        return total


class LinearStepCost:
    """``StepCostModel`` from coefficients that a user states, the same for every shape.

    ``kv_tokens`` is the KV capacity of an engine in tokens.
    """

    def __init__(
        self,
        model: ModelSpec,
        coefficients: LinearCoefficients,
        kv_tokens: int,
        provenance: Provenance | None = None,
    ) -> None:
        self._model = model
        self._coefficients = coefficients
        self._kv_tokens = kv_tokens
        self._provenance = provenance or Provenance("assumed", "coefficients given by the user")

    @property
    def model(self) -> ModelSpec:
        return self._model

    @property
    def provenance(self) -> tuple[Provenance, ...]:
        return (self._provenance,)

    def step_timer(self, shape: EngineShape) -> StepTimer:
        return LinearTimer(self._coefficients, shape.pipeline_parallel_size)

    def kv_capacity_tokens(self, shape: EngineShape) -> int:
        return self._kv_tokens

    def to_dict(self) -> dict[str, object]:
        c = self._coefficients
        lines = {"decode": c.decode, "decode_large": c.decode_large}
        return {
            "kind": "linear",
            "prefill_s": [c.prefill_fixed_s, c.prefill_per_token_s, c.prefill_per_pair_s],
            "large_batch": c.large_batch,
            "kv_tokens": self._kv_tokens,
            "provenance": asdict(self._provenance),
            **{
                f"{name}_s": [line.fixed_s, line.per_context_token_s, line.per_seq_s]
                for name, line in lines.items()
                if line is not None
            },
        }


class DistServeCost:
    """DistServe's latency model of OPT-13B and OPT-66B on A100-SXM-80GB.

    ``engine`` chooses the coefficients of DistServe's own engine or of its vLLM baseline.
    """

    def __init__(self, model: ModelSpec, engine: DistServeEngine = "distserve") -> None:
        self._model = model
        self._engine = engine
        self._name = _distserve_model(model.name)

    @property
    def model(self) -> ModelSpec:
        return self._model

    @property
    def provenance(self) -> tuple[Provenance, ...]:
        return (
            Provenance(
                "fitted",
                f"DistServe profiler-a100-80g, {self._engine} (LLMServe/DistServe 82831f1)",
                domain="A100-SXM-80GB; OPT-13B TP 1, 2, 4; OPT-66B TP 2, 3, 4, 8; batch <= 192, "
                "prompts <= 2020 tokens",
                notes=("pipeline stages divide ideally, links cost nothing",),
            ),
        )

    def coefficients(self, tensor_parallel_size: int) -> LinearCoefficients:
        """Raises ``SpecError`` for a degree that was not profiled."""
        table = distserve_table()[self._engine].get(self._name, {})
        found = table.get(tensor_parallel_size)
        if found is None:
            raise SpecError(
                f"DistServe profiled no {self._name} at this degree",
                key="tensor_parallel_size",
                value=tensor_parallel_size,
                fix=f"use one of {', '.join(map(str, table))}",
            )
        return found

    def step_timer(self, shape: EngineShape) -> StepTimer:
        stages = shape.pipeline_parallel_size
        return LinearTimer(
            self.coefficients(shape.tensor_parallel_size), stages, prefill_stage_s=1e-3 * stages
        )

    def kv_capacity_tokens(self, shape: EngineShape) -> int:
        """From DistServe's table; raises ``Infeasible`` for shapes that it leaves out."""
        key = (shape.tensor_parallel_size, shape.pipeline_parallel_size)
        found = distserve_capacities().get(self._name, {}).get(key)
        if found is None:
            raise Infeasible(
                f"{self._name} with TP {key[0]} and PP {key[1]} is not in DistServe's table of "
                "KV capacities",
                binding="GPU memory",
                fix="use more GPUs per instance",
            )
        return found

    def to_dict(self) -> dict[str, object]:
        return {"kind": "distserve", "engine": self._engine}


def _distserve_model(name: str) -> str:
    known = {normalise(model): model for model in distserve_capacities()}
    folded = normalise(name.rsplit("/", maxsplit=1)[-1])
    if folded not in known:
        raise SpecError(
            "DistServe has no latency model for this model",
            key="model",
            value=name,
            fix=did_you_mean(name, known.values()),
        )
    return known[folded]


@cache
def _distserve_document() -> dict[str, Any]:
    document: dict[str, Any] = yaml.safe_load(DISTSERVE.read_text(encoding="utf-8"))
    return document


def _coefficients(lines: Mapping[str, Sequence[float]]) -> LinearCoefficients:
    """From ms: the rows prefill, decode_below_95 and decode_from_95 of the file."""
    rows = {name: [1e-3 * value for value in row] for name, row in lines.items()}
    fixed, per_token, per_pair = rows["prefill"]
    return LinearCoefficients(
        fixed,
        per_token,
        per_pair,
        DecodeLine(*rows["decode_below_95"]),
        DecodeLine(*rows["decode_from_95"]),
        large_batch=95,
    )


@cache
def distserve_table() -> Mapping[str, Mapping[str, Mapping[int, LinearCoefficients]]]:
    """Engine -> model -> tensor-parallel degree -> coefficients (seconds)."""
    return {
        engine: {
            model: {int(degree): _coefficients(lines) for degree, lines in degrees.items()}
            for model, degrees in models.items()
        }
        for engine, models in _distserve_document()["latency_ms"].items()
    }


@cache
def distserve_capacities() -> Mapping[str, Mapping[tuple[int, int], int]]:
    """Model -> (TP, PP) -> tokens of KV memory of one instance (prompt tokens of a batch)."""
    return {
        model: {
            (int(tp), int(pp)): int(tokens)
            for tp, stages in degrees.items()
            for pp, tokens in stages.items()
        }
        for model, degrees in _distserve_document()["kv_capacity_tokens"].items()
    }
