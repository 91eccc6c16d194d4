"""Operator tables in Vidur's schema: measured or forecast milliseconds of each operator.

Rules of Vidur's execution-time predictor (microsoft/vidur 7d47513, MLSys 2024): a step's tokens
count rounded up to 8; decode attention is looked up at (sequences, mean context rounded up to
64); prefill attention at (sum of contexts, each rounded up to 64; root of the sum of squared
chunks); attention over more than one sequence costs 10 % more for grouped-query models.
"""

from __future__ import annotations

import csv
import gzip
import hashlib
from bisect import bisect_left
from collections.abc import Sequence
from math import ceil
from pathlib import Path

import numpy as np
from numpy.typing import NDArray

from penstock.cost.base import Provenance
from penstock.cost.steps import EngineShape, PrefillChunk, StepTimer
from penstock.errors import Infeasible, SpecError
from penstock.spec.model import ModelSpec

TOKEN_STEP = 8
CONTEXT_STEP = 64
ALL_REDUCE_LAUNCH_MS = 0.02
BATCHING_OVERHEAD = 0.1
MEMORY_MARGIN = 0.1
GIB = 1 << 30

_ALL_REDUCE, _SEND_RECV = "all_reduce_ms", "send_recv_ms"
_FILES = ("token_ops", "attn_decode_ms", "attn_prefill_ms")


class OperatorTableCost:
    """``StepCostModel`` from the three files ``<directory>/<tag>.{token_ops,attn_*_ms}.csv.gz``.

    The tables hold one GPU type and one tensor-parallel degree. Beyond them, figures grow in
    proportion to what was asked for (the last row is the base); such steps are extrapolated.
    ``max_tokens`` is Vidur's longest request, by which it sizes the KV memory.
    """

    def __init__(
        self,
        model: ModelSpec,
        directory: Path | str,
        tag: str,
        tensor_parallel_size: int = 1,
        *,
        max_tokens: int = 4096,
    ) -> None:
        self._model = model
        self._directory = Path(directory)
        self._tag = tag
        self._degree = tensor_parallel_size
        self._max_tokens = max_tokens
        paths = {name: self._path(name) for name in _FILES}
        grouped = model.num_key_value_heads < model.num_attention_heads
        self._overhead = 1.0 + BATCHING_OVERHEAD if grouped else 1.0
        self._token_ms, self._send_ms = _read_token_ops(paths["token_ops"], tensor_parallel_size)
        self._decode_ms = _read_decode(paths["attn_decode_ms"])
        self._prefill_ms = _read_prefill(paths["attn_prefill_ms"])
        digest = hashlib.sha256()
        for path in paths.values():
            digest.update(path.read_bytes())
        self.digest = digest.hexdigest()[:16]

    @property
    def model(self) -> ModelSpec:
        return self._model

    @property
    def provenance(self) -> tuple[Provenance, ...]:
        seqs = len(self._decode_ms) - 1
        context = (len(self._decode_ms[1]) - 1) * CONTEXT_STEP
        tokens = (len(self._token_ms) - 1) * TOKEN_STEP
        return (
            Provenance(
                "measured",
                f"operator tables {self._tag} ({self.digest})",
                domain=f"TP {self._degree}; steps of at most {tokens} tokens, {seqs} sequences, "
                f"{context} tokens of context",
                notes=("no host overhead, embedding, LM head or sampling",),
            ),
        )

    def step_timer(self, shape: EngineShape) -> StepTimer:
        """The timer of a stage that hands over to a next one."""
        return self.stage_timers(shape)[0]

    def stage_timers(self, shape: EngineShape) -> tuple[StepTimer, ...]:
        """All stages alike, but the last hands nothing over."""
        stages = shape.pipeline_parallel_size
        if shape.tensor_parallel_size != self._degree:
            raise SpecError(
                "the operator tables hold another degree",
                source=self._directory / self._tag,
                key="tensor_parallel_size",
                value=shape.tensor_parallel_size,
                fix=f"use {self._degree}, or other tables",
            )
        layers = self._model.num_hidden_layers
        if layers % stages:
            raise SpecError(
                f"the {layers} layers of {self._model.name} do not divide into equal stages",
                key="pipeline_parallel_size",
                value=stages,
                fix="use a divisor",
            )
        if stages > 1 and self._send_ms is None:
            raise SpecError(
                f"no column {_SEND_RECV}: the tables say nothing about pipelines",
                source=self._path("token_ops"),
                key="pipeline_parallel_size",
                value=stages,
                fix="use 1",
            )
        timers = []
        for stage in range(stages):
            send = self._send_ms if stage + 1 < stages else None
            timers.append(
                OperatorTimer(
                    self._token_ms,
                    self._decode_ms,
                    self._prefill_ms,
                    layers=layers // stages,
                    overhead=self._overhead,
                    send_ms=send,
                )
            )
        return tuple(timers)

    def kv_capacity_tokens(self, shape: EngineShape) -> int:
        """Vidur's rule: whole requests of ``max_tokens``; weights without embeddings."""
        m, tp = self._model, shape.tensor_parallel_size
        heads = -(-m.num_attention_heads // tp)
        kv_heads = -(-m.num_key_value_heads // tp)
        h, d = m.hidden_size, m.head_dim
        matrices = 3 if m.gated_mlp else 2
        layer = h * d * (2 * heads + 2 * kv_heads) + matrices * h * m.intermediate_size // tp
        weights = 2 * layer * m.num_hidden_layers // shape.pipeline_parallel_size
        # Vidur counts a GPU of 80 GB as 80 GiB.
        gibibytes = round(shape.accelerator.memory_bytes / 1e9)
        available = gibibytes * GIB * (1 - MEMORY_MARGIN) - weights
        per_request = 2 * 2 * d * kv_heads * self._max_tokens * m.num_hidden_layers
        slots = int(available // per_request)
        if slots < 1:
            raise Infeasible(
                f"{m.name} leaves no KV memory for a request of {self._max_tokens} tokens on "
                f"{shape.accelerator.name} with TP {tp} and PP {shape.pipeline_parallel_size}",
                binding="GPU memory",
                fix="more GPUs per engine, or a smaller max_tokens",
            )
        return slots * shape.pipeline_parallel_size * self._max_tokens

    def to_dict(self) -> dict[str, object]:
        return {
            "kind": "operator-tables",
            "directory": str(self._directory),
            "tag": self._tag,
            "tensor_parallel_size": self._degree,
            "max_tokens": self._max_tokens,
            "digest": self.digest,
        }

    def _path(self, name: str) -> Path:
        for suffix in (".csv.gz", ".csv"):
            path = self._directory / f"{self._tag}.{name}{suffix}"
            if path.is_file():
                return path
        raise SpecError(
            "no such operator table",
            source=self._directory / f"{self._tag}.{name}.csv.gz",
            fix="check the folder and the tag",
        )


class OperatorTimer:
    """``StepTimer`` of one stage of ``layers`` layers."""

    def __init__(
        self,
        token_ms: Sequence[float],
        decode_ms: Sequence[Sequence[float]],
        prefill_ms: Sequence[tuple[Sequence[int], Sequence[float]]],
        *,
        layers: int,
        overhead: float,
        send_ms: Sequence[float] | None,
    ) -> None:
        scale = layers * 1e-3
        self._scale = scale
        self._overhead = overhead
        # Seconds of everything but attention, hand-over included, by tokens / 8.
        self._tokens_s = [ms * scale for ms in token_ms]
        if send_ms is not None:
            self._tokens_s = [s + 1e-3 * ms for s, ms in zip(self._tokens_s, send_ms, strict=True)]
        self._decode_s = [
            [ms * scale * (overhead if seqs > 1 else 1.0) for ms in row]
            for seqs, row in enumerate(decode_ms)
        ]
        self._prefill_ms = prefill_ms

    def _operators_s(self, tokens: int) -> float:
        index = (tokens + TOKEN_STEP - 1) // TOKEN_STEP
        table = self._tokens_s
        last = len(table) - 1
        return table[index] if index <= last else table[last] * index / last

    def _attention_s(self, seqs: int, bucket: int) -> float:
        """Decode attention of ``seqs`` sequences at mean context ``64 * bucket``."""
        table = self._decode_s
        scale = 1.0
        if seqs >= len(table):
            scale = seqs / (len(table) - 1)
            seqs = len(table) - 1
        row = table[seqs]
        last = len(row) - 1
        if bucket > last:
            scale *= bucket / last
            bucket = last
        return scale * row[bucket]

    def _decode_attention_s(self, seqs: int, context_tokens: int) -> float:
        # Vidur's context includes the token that is fed.
        mean = context_tokens // seqs + 1
        return self._attention_s(seqs, (mean + CONTEXT_STEP - 1) // CONTEXT_STEP)

    def decode_s(self, seqs: int, context_tokens: int) -> float:
        return self._operators_s(seqs) + self._decode_attention_s(seqs, context_tokens)

    def decode_span_s(self, seqs: int, context_tokens: int, steps: int) -> float:
        operators = self._operators_s(seqs)
        mean = context_tokens // seqs + 1
        bucket = (mean + CONTEXT_STEP - 1) // CONTEXT_STEP
        here = bucket * CONTEXT_STEP - mean + 1
        if steps <= here:
            return steps * (operators + self._attention_s(seqs, bucket))
        attention = here * self._attention_s(seqs, bucket)
        left = steps - here
        while left > 0:
            bucket += 1
            attention += min(left, CONTEXT_STEP) * self._attention_s(seqs, bucket)
            left -= CONTEXT_STEP
        return steps * operators + attention

    def decode_span_times_s(
        self, seqs: int, context_tokens: int, steps: int
    ) -> NDArray[np.float64]:
        operators = self._operators_s(seqs)
        mean = context_tokens // seqs + 1
        buckets = (mean + np.arange(steps) + CONTEXT_STEP - 1) // CONTEXT_STEP
        first, last = int(buckets[0]), int(buckets[-1])
        seconds = np.array([self._attention_s(seqs, b) for b in range(first, last + 1)])
        times: NDArray[np.float64] = np.cumsum(operators + seconds[buckets - first])
        return times

    def steps_within(self, seqs: int, context_tokens: int, seconds: float, most: int) -> int:
        if seconds <= 0:
            return 0
        operators = self._operators_s(seqs)
        mean = context_tokens // seqs + 1
        bucket = (mean + CONTEXT_STEP - 1) // CONTEXT_STEP
        here = bucket * CONTEXT_STEP - mean + 1
        done = 0
        while done < most:
            step = operators + self._attention_s(seqs, bucket)
            if here * step >= seconds:
                return min(done + ceil(seconds / step), most)
            seconds -= here * step
            done += here
            here = CONTEXT_STEP
            bucket += 1
        return most

    def step_s(self, prefill: Sequence[PrefillChunk], seqs: int, context_tokens: int) -> float:
        if len(prefill) == 1:
            tokens, cached = prefill[0]
            attention = self._prefill_attention_ms(cached + (-cached) % CONTEXT_STEP, tokens)
        elif prefill:
            tokens = context = squares = 0
            for chunk, cached in prefill:
                tokens += chunk
                context += cached + (-cached) % CONTEXT_STEP
                squares += chunk * chunk
            attention = self._overhead * self._prefill_attention_ms(context, round(squares**0.5))
        else:
            return self.decode_s(seqs, context_tokens)
        total = self._operators_s(tokens + seqs) + self._scale * attention
        return total + self._decode_attention_s(seqs, context_tokens) if seqs else total

    def _prefill_attention_ms(self, context_tokens: int, chunk: int) -> float:
        table = self._prefill_ms
        row = context_tokens // CONTEXT_STEP
        scale = 1.0
        if row >= len(table):
            last = (len(table) - 1) * CONTEXT_STEP
            scale = (context_tokens + chunk) / (last + chunk)
            row = len(table) - 1
        ends, ms = table[row]
        longest = ends[-1]
        if chunk > longest:
            # Pairs of tokens grow with the square of the chunk.
            scale *= (chunk / longest) ** 2
            chunk = longest
        return scale * ms[bisect_left(ends, chunk)]


def _rows(path: Path) -> tuple[list[str], list[list[str]]]:
    opener = gzip.open if path.suffix == ".gz" else open
    try:
        with opener(path, "rt", encoding="utf-8", newline="") as file:
            rows = list(csv.reader(file))
    except (OSError, UnicodeDecodeError, EOFError) as error:
        raise SpecError(f"cannot be read: {error}", source=path) from error
    if len(rows) < 2:
        raise SpecError("the table is empty", source=path)
    return rows[0], rows[1:]


def _numbers(path: Path, header: list[str], row: list[str]) -> dict[str, float]:
    try:
        return {name: float(cell) for name, cell in zip(header, row, strict=True) if cell}
    except ValueError as error:
        raise SpecError(f"not a row of numbers: {error}", source=path, value=row[0]) from error


def _read_token_ops(path: Path, degree: int) -> tuple[list[float], list[float] | None]:
    """(ms of all token operators of a layer, ms of a hand-over or None), by tokens / 8."""
    header, rows = _rows(path)
    if header[0] != "num_tokens" or (degree > 1 and _ALL_REDUCE not in header):
        raise SpecError(
            "needs the columns num_tokens" + (f" and {_ALL_REDUCE}" if degree > 1 else ""),
            source=path,
            value=",".join(header)[:120],
        )
    apart = ("num_tokens", _ALL_REDUCE, _SEND_RECV)
    total, send = [0.0], [0.0]
    for place, row in enumerate(rows, start=1):
        values = _numbers(path, header, row)
        if values["num_tokens"] != place * TOKEN_STEP:
            raise SpecError(
                f"num_tokens must go up in steps of {TOKEN_STEP}", source=path, value=row[0]
            )
        ms = sum(value for name, value in values.items() if name not in apart)
        if degree > 1:
            ms += 2 * (values[_ALL_REDUCE] + ALL_REDUCE_LAUNCH_MS)
        total.append(ms)
        send.append(values.get(_SEND_RECV, 0.0))
    return total, send if _SEND_RECV in header else None


def _read_decode(path: Path) -> list[list[float]]:
    """ms of decode attention, by sequences and mean context / 64."""
    header, rows = _rows(path)
    expected = [f"kv{i * CONTEXT_STEP}" for i in range(len(header) - 1)]
    if header[1:] != expected:
        raise SpecError(
            f"needs the columns batch_size, kv0, kv{CONTEXT_STEP}, ...",
            source=path,
            value=",".join(header)[:120],
        )
    table = [[0.0] * len(expected)]
    for place, row in enumerate(rows, start=1):
        values = _numbers(path, header, row)
        if values[header[0]] != place or len(values) != len(header):
            raise SpecError("needs batch_size 1, 2, 3, ... in full", source=path, value=row[0])
        table.append([values[name] for name in expected])
    return table


def _read_prefill(path: Path) -> list[tuple[list[int], list[float]]]:
    """(last chunk of each run, its ms) of prefill attention, by context / 64."""
    header, rows = _rows(path)
    if header != ["kv_cache_size", "chunk_from", "chunk_to", "attn_prefill_ms"]:
        raise SpecError(
            "needs the columns kv_cache_size, chunk_from, chunk_to, attn_prefill_ms",
            source=path,
            value=",".join(header)[:120],
        )
    table: list[tuple[list[int], list[float]]] = []
    for row in rows:
        values = _numbers(path, header, row)
        place = int(values["kv_cache_size"]) // CONTEXT_STEP
        if place == len(table):
            table.append(([], []))
        if place != len(table) - 1:
            raise SpecError(
                f"kv_cache_size must go up in steps of {CONTEXT_STEP}", source=path, value=row[0]
            )
        table[place][0].append(int(values["chunk_to"]))
        table[place][1].append(values["attn_prefill_ms"])
    return table
