"""Our estimator for the machine that was measured: nothing in it comes from other hosts.

Times of a layer and of all else come from cuts of the checkpoint alone and over two ranks, the
hand-over between stages from a pipeline of two workers. More ranks than were measured: the work
of a layer is shared, and what two ranks add beyond that grows with the ranks less one, as the
messages of a ring do (2 (n - 1) for an all-reduce over n ranks).

Memory: weights and KV values follow from the shape of the model; what a process holds beside
them is measured.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, replace
from typing import Literal

import numpy as np

from penstock.cost.fingerprint import Configuration, Demand, Estimator
from penstock.cost.fingerprint_file import FingerprintFile, cuts_of
from penstock.cost.fingerprint_maveriq import Exponents, MaverIQEstimator
from penstock.cost.fingerprint_regression import non_negative
from penstock.cost.fingerprint_times import (
    LayerTimes,
    decode_step_s,
    fit_times,
    longest,
    mean_context,
    visible_pairs,
)
from penstock.errors import InputError

Method = Literal["penstock", "maveriq"]
PUBLISHED_EXPONENTS = Exponents(0.049, 0.686, 0.188, 0.569)
"""MaverIQ's for FP16, fitted by its authors on whole models on RTX A6000."""
_ITEM_BYTES = {"float32": 4, "bfloat16": 2, "float16": 2}
_PAGE = 16


def estimator_from(
    document: FingerprintFile, method: Method = "penstock", prompt_tokens: int | None = None
) -> Estimator:
    """An estimator of the whole model from its measured cuts.

    ``prompt_tokens`` is for MaverIQ's, which knows one prompt length: its cuts are those measured
    at the nearest one (the median where none is given). Raises ``InputError`` where cuts that the
    method needs are missing.
    """
    if method == "penstock":
        return LocalEstimator(document)
    sizes = sorted({run.prompt_tokens for run in document.runs if run.batch == 2})
    if not sizes:
        raise InputError(f"the fingerprint of {document.model} has no batch of 2; profile it")
    wanted = sizes[len(sizes) // 2] if prompt_tokens is None else prompt_tokens
    nearest = min(sizes, key=lambda size: (abs(size - wanted), size))
    cuts = cuts_of(document, nearest)
    return MaverIQEstimator(document.shape.layers, cuts, dict.fromkeys(cuts, PUBLISHED_EXPONENTS))


@dataclass(frozen=True, slots=True)
class HandOver:
    """Seconds from one stage to the next: ``fixed_s`` and ``token_s`` for each token."""

    fixed_s: float
    token_s: float

    def at(self, tokens: int) -> float:
        return self.fixed_s + self.token_s * tokens


@dataclass(frozen=True, slots=True)
class Overhead:
    """Bytes beside weights and KV values, over the tokens of a step (rising pairs).

    ``rank`` and ``stage``: what a further rank, or stage, adds.
    """

    tokens: tuple[int, ...]
    first: tuple[float, ...]
    rank: float
    stage: float

    def at(self, tokens: int, configuration: Configuration) -> float:
        tp, pp = configuration.tensor_parallel_size, configuration.pipeline_parallel_size
        own = float(np.interp(tokens, self.tokens, self.first))
        return own + pp * (tp - 1) * self.rank + (pp - 1) * self.stage


class LocalEstimator:
    """``Estimator`` of the model of ``document`` on the machine that measured it."""

    def __init__(self, document: FingerprintFile) -> None:
        self._document = document
        self._times: dict[tuple[str, int], LayerTimes] = {}
        self._hand_over: dict[str, HandOver] = {}
        self._overhead: dict[str, Overhead] = {}

    def latency_s(self, configuration: Configuration, demand: Demand) -> float:
        """Seconds from the start of a batch, its prompts in one step, to its last token."""
        dtype, pp = configuration.precision.weights, configuration.pipeline_parallel_size
        layers, batch, prompt = self._document.shape.layers, demand.batch, demand.prompt_tokens
        self._check(configuration)
        times = self.times(dtype, configuration.tensor_parallel_size)
        pairs = batch * visible_pairs(prompt)
        steps = demand.output_tokens - 1
        total = times.prompt_s(batch, batch * prompt, pairs, layers)
        # The first decode step attends to the prompt and to the token it is fed.
        total += times.decode_line(batch, layers).span_s(batch * (prompt + 1), steps)
        if pp > 1:
            hop = self.hand_over(dtype)
            total += (pp - 1) * (hop.at(batch * prompt) + steps * hop.at(batch))
        return total

    def memory_bytes(self, configuration: Configuration, demand: Demand) -> float:
        """Resident bytes over all processes, with KV memory for just this batch."""
        self._check(configuration)
        dtype, shape = configuration.precision.weights, self._document.shape
        pages = -(-(demand.prompt_tokens + demand.output_tokens) // _PAGE)
        held = shape.layers * _layer_bytes(self._document, dtype, demand.batch * pages * _PAGE)
        over = self._overhead_of(dtype)
        return held + over.at(demand.batch * demand.prompt_tokens, configuration)

    def times(self, dtype: str, tensor_parallel_size: int) -> LayerTimes:
        """Times of a layer on so many ranks; beyond two, extrapolated."""
        key = (dtype, tensor_parallel_size)
        if key not in self._times:
            if tensor_parallel_size <= 2:
                self._times[key] = fit_times(self._document, *key)
            else:
                one, two = self.times(dtype, 1), self.times(dtype, 2)
                self._times[key] = more_ranks(one, two, tensor_parallel_size)
        return self._times[key]

    def hand_over(self, dtype: str) -> HandOver:
        """Raises ``InputError`` where no pipeline was measured."""
        if dtype not in self._hand_over:
            self._hand_over[dtype] = _fit_hand_over(self._document, dtype, self.times(dtype, 1))
        return self._hand_over[dtype]

    def _overhead_of(self, dtype: str) -> Overhead:
        if dtype not in self._overhead:
            self._overhead[dtype] = _fit_overhead(self._document, dtype)
        return self._overhead[dtype]

    def _check(self, configuration: Configuration) -> None:
        precision = configuration.precision
        if precision.weights not in self._document.dtypes or precision.int8_kv:
            raise InputError(
                f"the fingerprint of {self._document.model} has no run in {precision}; "
                f"it has {', '.join(self._document.dtypes)}; profile it"
            )


def more_ranks(one: LayerTimes, two: LayerTimes, ranks: int) -> LayerTimes:
    """Times over ``ranks`` from those of one and of two, all terms alike."""

    def shared(a: float, b: float) -> float:
        return a / ranks + (ranks - 1) * max(0.0, b - a / 2)

    def kept(a: float, b: float) -> float:
        return a + (ranks - 1) * max(0.0, b - a)

    def each(
        how: Callable[[float, float], float], a: Sequence[float], b: Sequence[float]
    ) -> tuple[float, ...]:
        return tuple(how(x, y) for x, y in zip(a, b, strict=True))

    fixed, seq, token = each(kept, one.prompt_rest_s, two.prompt_rest_s)
    layer = each(shared, one.prompt_layer_s, two.prompt_layer_s)
    return replace(
        one,
        rest_s=each(kept, one.rest_s, two.rest_s),
        layer_s=each(shared, one.layer_s, two.layer_s),
        context_s=shared(one.context_s, two.context_s),
        prompt_rest_s=(fixed, seq, token),
        prompt_layer_s=(layer[0], layer[1], layer[2]),
    )


def _fit_hand_over(document: FingerprintFile, dtype: str, alone: LayerTimes) -> HandOver:
    """What pipelines of two took beyond the same cut on one worker."""
    runs = [run for run in longest(document) if (run.dtype, run.tp, run.pp) == (dtype, 1, 2)]
    if not runs:
        raise InputError(
            f"the fingerprint of {document.model} has no pipeline in {dtype}; profile it"
        )
    single = {
        (run.layers, run.prompt_tokens, run.batch): run
        for run in longest(document)
        if (run.dtype, run.tp, run.pp) == (dtype, 1, 1)
    }
    points: list[tuple[float, float, float]] = []
    for run in runs:
        tokens = run.batch * run.prompt_tokens
        other = single.get((run.layers, run.prompt_tokens, run.batch))
        if other is not None:
            prompt_s, step_s = other.prefill, decode_step_s(other)
        else:
            pairs = run.batch * visible_pairs(run.prompt_tokens)
            prompt_s = alone.prompt_s(run.batch, tokens, pairs, run.layers)
            step_s = alone.decode_line(run.batch, run.layers).at(mean_context(run))
        points.append((tokens, run.prefill - prompt_s, run.prefill))
        points.append((run.batch, decode_step_s(run) - step_s, decode_step_s(run)))
    totals = np.array([total for _, _, total in points])
    rows = np.array([[1.0, tokens] for tokens, _, _ in points])
    more = np.array([seconds for _, seconds, _ in points])
    # Relative to what was measured: a small difference of large totals is mostly noise.
    fixed, token = non_negative(rows / totals[:, None], more / totals)
    return HandOver(float(fixed), float(token))


def _fit_overhead(document: FingerprintFile, dtype: str) -> Overhead:
    runs = [run for run in document.runs if run.dtype == dtype]
    found: dict[tuple[int, int], dict[int, float]] = {}
    for tp, pp in dict.fromkeys((run.tp, run.pp) for run in runs):
        sizes: dict[int, list[float]] = {}
        for run in runs:
            if (run.tp, run.pp) == (tp, pp):
                held = run.layers * _layer_bytes(document, dtype, run.kv_tokens)
                sizes.setdefault(run.batch * run.prompt_tokens, []).append(run.memory - held)
        found[tp, pp] = {tokens: float(np.median(own)) for tokens, own in sizes.items()}
    if (1, 1) not in found:
        raise InputError(f"the fingerprint of {document.model} has no run of one worker")
    alone = found[1, 1]
    tokens = tuple(sorted(alone))
    first = tuple(np.maximum.accumulate([alone[size] for size in tokens]).tolist())
    return Overhead(
        tokens, first, rank=_more(alone, found.get((2, 1))), stage=_more(alone, found.get((1, 2)))
    )


def _more(alone: Mapping[int, float], other: Mapping[int, float] | None) -> float:
    """Median bytes that ``other`` holds beyond ``alone``; as much again where it was not run."""
    if other is None:
        return float(np.median(list(alone.values())))
    return max(0.0, float(np.median([own - alone[size] for size, own in other.items()])))


def _layer_bytes(document: FingerprintFile, dtype: str, kv_tokens: int) -> float:
    """Weights of a layer and KV values of ``kv_tokens`` tokens in it."""
    shape = document.shape
    return _ITEM_BYTES[dtype] * (shape.layer_parameters + kv_tokens * shape.kv_values)
