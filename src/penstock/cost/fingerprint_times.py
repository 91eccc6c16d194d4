"""Times of a layer, and of all that is not layers, from cuts of a checkpoint.

A step of n layers takes ``rest + n * layer`` seconds, so runs of one and two layers tell both.
Decode: a rest and a layer for every batch size that was measured, neither less than that of a
smaller one, and one figure for reading a token of context. Prompts: both have a fixed part and
one for each token; the rest has one for each sequence, a layer one for each pair of tokens that
attend to each other.
All coefficients are 0 or more and fitted by relative error over all cuts at once.
"""

from __future__ import annotations

from bisect import bisect_left
from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from penstock.cost.fingerprint_file import CutChunk, CutRun, FingerprintFile
from penstock.cost.fingerprint_regression import fit_relative
from penstock.cost.step_line import StepLine
from penstock.errors import InputError

FloatArray = NDArray[np.float64]
Triple = tuple[float, float, float]


@dataclass(frozen=True, slots=True)
class LayerTimes:
    """Seconds on one tensor-parallel group.

    ``rest_s`` and ``layer_s`` of a decode step have one entry for each of ``batches``;
    ``context_s`` is for a layer and a token of context. ``prompt_rest_s``: fixed, a sequence, a
    token. ``prompt_layer_s``: fixed, a token, a visible pair.
    """

    batches: tuple[int, ...]
    rest_s: tuple[float, ...]
    layer_s: tuple[float, ...]
    context_s: float
    prompt_rest_s: Triple
    prompt_layer_s: Triple

    def decode_line(self, seqs: int, layers: int) -> StepLine:
        """A decode step of ``seqs`` sequences; lines go on beyond the batches measured."""
        total = [r + layers * own for r, own in zip(self.rest_s, self.layer_s, strict=True)]
        fixed_s = max(1e-9, _between(self.batches, total, seqs))
        return StepLine(seqs, fixed_s, layers * self.context_s)

    def prompt_s(self, seqs: int, tokens: int, pairs: float, layers: int) -> float:
        """A step of ``seqs`` prompts with ``tokens`` tokens in all and ``pairs`` visible pairs."""
        rest, layer = self.prompt_rest_s, self.prompt_layer_s
        return (
            rest[0]
            + rest[1] * seqs
            + rest[2] * tokens
            + layers * (layer[0] + layer[1] * tokens + layer[2] * pairs)
        )


def visible_pairs(tokens: int, cached_tokens: int = 0) -> float:
    """Pairs of tokens in a chunk's attention: each sees itself and all before it."""
    return tokens * (tokens + 1) / 2 + tokens * cached_tokens


def fit_times(document: FingerprintFile, dtype: str, tensor_parallel_size: int) -> LayerTimes:
    """Fit the cuts without pipelines. Raises ``InputError`` where they are too few."""
    runs = [
        r for r in longest(document) if (r.dtype, r.tp, r.pp) == (dtype, tensor_parallel_size, 1)
    ]
    chunks = [
        c for c in document.chunks if (c.dtype, c.tp, c.pp) == (dtype, tensor_parallel_size, 1)
    ]
    if len({run.layers for run in runs}) < 2:
        raise InputError(
            f"the fingerprint of {document.model} has no cuts of two depths in {dtype} at "
            f"TP{tensor_parallel_size}; it has {', '.join(document.dtypes)}; profile it"
        )
    batches, rest, layer, context_s = _decode(runs)
    prompt_rest, prompt_layer = _prompts(runs, chunks)
    return LayerTimes(batches, rest, layer, context_s, prompt_rest, prompt_layer)


def longest(document: FingerprintFile) -> list[CutRun]:
    """The runs with most output tokens of each kind: only these tell a decode step best."""
    found: dict[object, CutRun] = {}
    for run in document.runs:
        key = (run.dtype, run.tp, run.pp, run.layers, run.prompt_tokens, run.batch)
        if key not in found or run.output_tokens > found[key].output_tokens:
            found[key] = run
    return [run for run in found.values() if run.output_tokens > 1]


def decode_step_s(run: CutRun) -> float:
    """The mean decode step of a run."""
    return (run.latency - run.prefill) / (run.output_tokens - 1)


def mean_context(run: CutRun) -> float:
    """Tokens each sequence attends to in the mean decode step, over all sequences."""
    return run.batch * (run.prompt_tokens + run.output_tokens / 2)


def _decode(
    runs: Sequence[CutRun],
) -> tuple[tuple[int, ...], tuple[float, ...], tuple[float, ...], float]:
    batches = tuple(sorted({run.batch for run in runs}))
    count = len(batches)
    rows = np.zeros((len(runs), 2 * count + 1))
    for i, run in enumerate(runs):
        # A column for what each further size adds, which is 0 or more.
        upto = batches.index(run.batch) + 1
        rows[i, :upto] = 1.0
        rows[i, count : count + upto] = run.layers
        rows[i, -1] = run.layers * mean_context(run)
    found = _fit(rows, [decode_step_s(run) for run in runs])
    rest, layer = np.cumsum(found[:count]), np.cumsum(found[count:-1])
    return batches, tuple(map(float, rest)), tuple(map(float, layer)), float(found[-1])


def _prompts(runs: Sequence[CutRun], chunks: Sequence[CutChunk]) -> tuple[Triple, Triple]:
    rows, seconds = [], []
    for run in runs:
        tokens = run.batch * run.prompt_tokens
        pairs = run.batch * visible_pairs(run.prompt_tokens)
        rows.append([1.0, run.batch, tokens, run.layers, run.layers * tokens, run.layers * pairs])
        seconds.append(run.prefill)
    for chunk in chunks:
        n, pairs = chunk.layers, visible_pairs(chunk.tokens, chunk.cached_tokens)
        rows.append([1.0, 1.0, chunk.tokens, n, n * chunk.tokens, n * pairs])
        seconds.append(chunk.seconds)
    a, b, c, d, e, f = map(float, _fit(np.array(rows, dtype=np.float64), seconds))
    return (a, b, c), (d, e, f)


def _fit(rows: FloatArray, seconds: Sequence[float]) -> FloatArray:
    values = np.maximum(np.array(seconds), 1e-9)
    scale = float(np.median(values))
    return scale * fit_relative(rows, values / scale)


def _between(sizes: Sequence[int], values: Sequence[float], wanted: int) -> float:
    if len(sizes) == 1 or wanted <= sizes[0]:
        return values[0]
    right = min(bisect_left(sizes, wanted), len(sizes) - 1)
    left = right - 1
    share = (wanted - sizes[left]) / (sizes[right] - sizes[left])
    return values[left] + share * (values[right] - values[left])
