"""MaverIQ's estimator: four latency terms and three memory terms, then exponents for TP and PP.

Formulas: MaverIQ (SC 2025), as specified from its artifact. It knows no prompt length.
"""

from __future__ import annotations

import csv
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path

from penstock.cost.fingerprint import Configuration, Cut, Demand, Fingerprint
from penstock.errors import InputError, SpecError
from penstock.spec.variants import Precision

SHORT, LONG = 10, 20


@dataclass(frozen=True, slots=True)
class Exponents:
    """``alpha`` of PP, ``beta`` of TP, ``gamma`` of TP's overhead under PP, ``delta`` of PP's."""

    alpha: float
    beta: float
    gamma: float
    delta: float


@dataclass(frozen=True, slots=True)
class LatencyTerms:
    """Seconds: a layer and all else, of a token and of the prompt."""

    token_layer_s: float
    token_other_s: float
    prompt_layer_s: float
    prompt_other_s: float

    def seconds(self, layers: int, output_tokens: int) -> float:
        """TTFT + output tokens x TPOT of ``layers`` layers."""
        ttft_s = layers * self.prompt_layer_s + self.prompt_other_s
        return ttft_s + output_tokens * (layers * self.token_layer_s + self.token_other_s)


def latency_terms(fingerprint: Fingerprint, tensor_parallel_size: int, batch: int) -> LatencyTerms:
    """Solve the four terms from runs of 1 and 2 layers at 10 and 20 tokens."""

    def run(layers: int, tokens: int) -> float:
        return fingerprint.at(Cut(tensor_parallel_size, 1, layers, tokens, batch)).latency_s

    slope = LONG - SHORT
    layer_short, layer_long = run(2, SHORT) - run(1, SHORT), run(2, LONG) - run(1, LONG)
    token_layer = (layer_long - layer_short) / slope
    token_other = (run(1, LONG) - run(1, SHORT)) / slope - token_layer
    prompt_layer = layer_short - SHORT * token_layer
    prompt_other = run(1, SHORT) - prompt_layer - SHORT * (token_layer + token_other)
    return LatencyTerms(token_layer, token_other, prompt_layer, prompt_other)


@dataclass(frozen=True, slots=True)
class MaverIQEstimator:
    """A whole model of ``layers`` layers from its fingerprints, one a precision."""

    layers: int
    fingerprints: Mapping[Precision, Fingerprint]
    exponents: Mapping[Precision, Exponents]

    def latency_s(self, configuration: Configuration, demand: Demand) -> float:
        """Seconds of a batch; linear in the batch from two points."""
        one = self._latency_s(configuration, demand.output_tokens, 1)
        if demand.batch == 1:
            return one
        two = self._latency_s(configuration, demand.output_tokens, 2)
        return one + (demand.batch - 1) * max(0.0, two - one)

    def _latency_s(self, configuration: Configuration, tokens: int, batch: int) -> float:
        found, power = self._found(configuration.precision)
        tp, pp = configuration.tensor_parallel_size, configuration.pipeline_parallel_size
        base = latency_terms(found, 1, batch).seconds(self.layers, tokens)
        pipeline = max(0.0, base - base / 2**power.alpha)
        tensor = 0.0
        if tp > 1:
            double = latency_terms(found, 2, batch).seconds(self.layers, tokens)
            tensor = max(0.0, double - base / 2)
        seconds: float = (
            base / (tp * float(pp) ** power.alpha)
            + float(tp - 1) ** power.beta / float(pp) ** power.gamma * tensor
            + float(pp - 1) ** power.delta * pipeline
        )
        return seconds

    def memory_bytes(self, configuration: Configuration, demand: Demand) -> float:
        """Bytes over all GPUs; no dependence on lengths."""
        one = self._memory_bytes(configuration, 1)
        if demand.batch == 1:
            return one
        return one + (demand.batch - 1) * max(0.0, self._memory_bytes(configuration, 2) - one)

    def _memory_bytes(self, configuration: Configuration, batch: int) -> float:
        found, _ = self._found(configuration.precision)
        tp, pp = configuration.tensor_parallel_size, configuration.pipeline_parallel_size

        def whole(tensor: int, pipeline: int) -> float:
            first = found.at(Cut(tensor, pipeline, pipeline, SHORT, batch)).memory_bytes
            second = found.at(Cut(tensor, pipeline, pipeline + 1, SHORT, batch)).memory_bytes
            return first + (self.layers - pipeline) * (second - first)

        base = whole(1, 1)
        tensor = max(0.0, whole(2, 1) - base) if tp > 1 else 0.0
        pipeline = max(0.0, whole(1, 2) - base) if pp > 1 else 0.0
        return base + (tp - 1) * tensor + tp * (pp - 1) * pipeline

    def _found(self, precision: Precision) -> tuple[Fingerprint, Exponents]:
        try:
            return self.fingerprints[precision], self.exponents[precision]
        except KeyError:
            known = ", ".join(sorted(str(one) for one in self.fingerprints))
            raise InputError(f"there is no fingerprint in {precision}; there are {known}") from None


def read_exponents(path: Path, method: str = "fingerprint") -> Mapping[Precision, Exponents]:
    """Read the exponents of ``method``: quant_config "(dtype, kv)", alpha, beta, gamma, delta.

    Raises ``InputError`` and ``SpecError``.
    """
    try:
        with path.open(encoding="utf-8", newline="") as stream:
            rows = [row for row in csv.DictReader(stream) if row.get("method") == method]
    except OSError as error:
        raise InputError(f"{path}: cannot be read ({error.strerror}); check the path") from error
    found = {}
    for row in rows:
        try:
            weights, kv = row["quant_config"].strip("()").split(", ")
            values = (float(row[key]) for key in ("alpha", "beta", "gamma", "delta"))
            found[Precision(weights, kv == "True")] = Exponents(*values)
        except (KeyError, ValueError) as error:
            raise SpecError("a row cannot be read", source=path, value=str(error)) from error
    if not found:
        raise SpecError("has no such rows", source=path, key="method", value=method)
    return found
