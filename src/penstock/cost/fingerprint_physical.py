"""Our estimator: a few named physical terms, calibrated once a host and then shared by all models.

A new model needs four runs on one GPU in each precision: 1 and 2 layers, 10 and 20 tokens, batch
1. All else (TP, PP, batch, prompt length) follows from the shape of the model and from what the
host does per byte, per operation and per message. The calibration is a non-negative regression
on whole models other than the one asked about.

TensorRT-LLM's all-reduce changes its algorithm with the size of the message: one-shot kernels
for small ones, two-shot from 1 MiB (4 GPUs) or 500 kB (8 GPUs), NCCL beyond its 8 MiB workspace.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from penstock.cost.fingerprint import GIB, Configuration, Cut, Demand, Fingerprint
from penstock.cost.fingerprint_regression import fit_relative
from penstock.errors import InputError
from penstock.spec.model import ModelSpec
from penstock.spec.variants import Precision

FloatArray = NDArray[np.float64]

WEIGHTS = ("float16", "int8", "int4", "int4_gptq")
# GPTQ keeps a scale and a zero point for each group of 128 weights.
_BYTES = {"float16": 2.0, "int8": 1.0, "int4": 0.5, "int4_gptq": 0.53}
# One all-reduce a layer where attention and MLP are computed from the same input.
_PARALLEL_BLOCKS = ("falcon", "gptj", "gpt_neox")
_GROUPS = (2, 4, 8)
_ALGORITHMS = ("one-shot", "two-shot", "nccl")
_TWO_SHOT_FROM_BYTES = {4: 2**20, 8: 500_000}
_WORKSPACE_BYTES = 8 * 2**20
KV_BLOCK_TOKENS = 128
# Scales that bring all coefficients near 1; they cancel in the prediction.
_BYTES_PER_S, _FLOP_PER_S, _LAUNCH_S, _MESSAGE_S, _BYTE_S = 7e11, 1e14, 25e-6, 1e-5, 1e-8

LATENCY_TERMS = (
    "measured decode of a layer",
    "weights of a layer from memory",
    "launch of a layer",
    "embedding and head",
    "host launch within a stage",
    "hop between stages",
    "KV cache from memory",
    *(f"decode arithmetic, {name}" for name in WEIGHTS),
    *(f"prompt arithmetic, {name}" for name in WEIGHTS),
    "prompt attention",
    "prompt launches",
    *(
        f"all-reduce of {group}, {algorithm}, {part}"
        for group in _GROUPS
        for algorithm in _ALGORITHMS
        for part in ("start", "bytes")
    ),
)
MEMORY_TERMS = (
    "measured layers",
    "measured rest",
    "weights",
    "context of a further GPU",
    "communicator",
    "communicator per peer",
    "KV blocks",
    "activations over TP",
    "activations of a GPU",
)


@dataclass(frozen=True, slots=True)
class Sample:
    """A whole model that was measured: what a calibration learns from."""

    model: ModelSpec
    fingerprint: Fingerprint
    configuration: Configuration
    demand: Demand
    latency_s: float
    memory_bytes: float


@dataclass(frozen=True, slots=True)
class HostCalibration:
    """One coefficient a term: ``LATENCY_TERMS`` and ``MEMORY_TERMS``; all are 0 or more."""

    latency: tuple[float, ...]
    memory: tuple[float, ...]


def calibrate(samples: Sequence[Sample]) -> HostCalibration:
    """Fit the host on ``samples`` by relative error; a few outliers do not pull it."""
    if not samples:
        raise InputError("a calibration needs measurements of at least one model; give some")
    seconds = np.array([_latency_row(s, s.configuration, s.demand) for s in samples])
    space = np.array([_memory_row(s, s.configuration, s.demand) for s in samples])
    latency = fit_relative(seconds, np.array([s.latency_s for s in samples]))
    memory = fit_relative(space, np.array([s.memory_bytes / GIB for s in samples]))
    return HostCalibration(tuple(map(float, latency)), tuple(map(float, memory)))


@dataclass(frozen=True, slots=True)
class PhysicalEstimator:
    """A whole model from its one-GPU fingerprints and the calibration of its host."""

    model: ModelSpec
    fingerprints: Mapping[Precision, Fingerprint]
    host: HostCalibration

    def latency_s(self, configuration: Configuration, demand: Demand) -> float:
        """Seconds from the start of a batch to its last token."""
        row = _latency_row(self._of(configuration), configuration, demand)
        return float(np.dot(row, self.host.latency))

    def memory_bytes(self, configuration: Configuration, demand: Demand) -> float:
        """Bytes over all GPUs while the batch runs."""
        row = _memory_row(self._of(configuration), configuration, demand)
        return GIB * float(np.dot(row, self.host.memory))

    def _of(self, configuration: Configuration) -> _Subject:
        try:
            return _Subject(self.model, self.fingerprints[configuration.precision])
        except KeyError:
            known = ", ".join(sorted(str(one) for one in self.fingerprints))
            raise InputError(
                f"there is no fingerprint in {configuration.precision}; there are {known}"
            ) from None


@dataclass(frozen=True, slots=True)
class _Subject:
    model: ModelSpec
    fingerprint: Fingerprint


def _run(fingerprint: Fingerprint, layers: int, tokens: int) -> float:
    return fingerprint.at(Cut(1, 1, layers, tokens, 1)).latency_s


def _latency_row(subject: Sample | _Subject, where: Configuration, demand: Demand) -> FloatArray:
    """Seconds of every term before its coefficient."""
    model, cuts = subject.model, subject.fingerprint
    layers, tokens, batch = model.num_hidden_layers, demand.output_tokens, demand.batch
    tp, pp = where.tensor_parallel_size, where.pipeline_parallel_size
    step = (_run(cuts, 1, 20) - _run(cuts, 1, 10)) / 10
    layer = max(0.0, (_run(cuts, 2, 20) - _run(cuts, 2, 10)) / 10 - step)
    weights = model.layer_parameters(0)
    arithmetic = 2.0 * layers * batch * weights / tp / _FLOP_PER_S
    of_weights = np.array([name == where.precision.weights for name in WEIGHTS], dtype=np.float64)
    context = demand.prompt_tokens + tokens / 2
    kv_read = layers * batch * context * _kv_bytes(model, where.precision) / tp / _BYTES_PER_S
    attention = 4.0 * layers * batch * demand.prompt_tokens**2 * model.hidden_size
    stored = weights * _BYTES[where.precision.weights]
    decode = [
        layers * layer / tp,
        layers * stored / tp / _BYTES_PER_S,
        layers * _LAUNCH_S,
        max(0.0, step - layer),
        layers / pp * _LAUNCH_S,
        (pp - 1) * _MESSAGE_S,
        kv_read,
    ]
    return np.concatenate(
        (
            tokens * np.array(decode),
            tokens * arithmetic * of_weights,
            demand.prompt_tokens * arithmetic * of_weights,
            [attention / tp / _FLOP_PER_S, layers * _LAUNCH_S],
            _collectives(model, tp, demand),
        )
    )


def _collectives(model: ModelSpec, tp: int, demand: Demand) -> FloatArray:
    """All-reduces of the decode steps and of the prompt: (group, algorithm, start or bytes)."""
    table = np.zeros((len(_GROUPS), len(_ALGORITHMS), 2))
    if tp > 1:
        if tp not in _GROUPS:
            raise InputError(f"tensor_parallel_size {tp} was not calibrated; use 1, 2, 4 or 8")
        reduces = model.num_hidden_layers * (1 if model.architecture in _PARALLEL_BLOCKS else 2)
        for tokens, times in ((1, demand.output_tokens), (demand.prompt_tokens, 1)):
            size = 2.0 * model.hidden_size * demand.batch * tokens
            entry = table[_GROUPS.index(tp), _algorithm(tp, size)]
            entry += times * reduces * np.array([_MESSAGE_S, size * _BYTE_S])
    return table.ravel()


def _algorithm(tp: int, size_bytes: float) -> int:
    if tp == 2:
        return 0
    if size_bytes > _WORKSPACE_BYTES:
        return 2
    return 1 if size_bytes >= _TWO_SHOT_FROM_BYTES[tp] else 0


def _memory_row(subject: Sample | _Subject, where: Configuration, demand: Demand) -> FloatArray:
    """GiB of every term before its coefficient."""
    model, cuts = subject.model, subject.fingerprint
    one, two = (cuts.at(Cut(1, 1, n, 10, 1)).memory_bytes / GIB for n in (1, 2))
    tp, gpus, batch = where.tensor_parallel_size, where.gpus, demand.batch
    layers, hidden = model.num_hidden_layers, model.hidden_size * 1e-5
    stored = layers * model.layer_parameters(0) * _BYTES[where.precision.weights] / GIB
    parallel = gpus if tp > 1 else 0
    # The cuts hold the KV blocks of one sequence themselves.
    held = _blocks(demand.prompt_tokens + 10)
    tokens = batch * _blocks(demand.prompt_tokens + demand.output_tokens) - held
    return np.array(
        [
            layers * (two - one),
            one - (two - one),
            stored,
            gpus - 1,
            parallel,
            gpus * (tp - 1),
            layers * _kv_bytes(model, where.precision) * tokens / GIB,
            hidden * (batch * where.pipeline_parallel_size - 1),
            hidden * (batch * gpus - 1),
        ],
        dtype=np.float64,
    )


def _kv_bytes(model: ModelSpec, precision: Precision) -> float:
    """Bytes of a token's keys and values in one layer; the engine computes in float16."""
    values = 2 * model.num_key_value_heads * model.head_dim
    return values * (1 if precision.int8_kv else 2)


def _blocks(tokens: int) -> int:
    return -(-tokens // KV_BLOCK_TOKENS) * KV_BLOCK_TOKENS
