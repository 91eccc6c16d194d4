"""The result fields that AdaServe's artifact writes (specification, section 12)."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, fields

import numpy as np

from penstock.sim.speculation.engine import SpeculationRun

Column = tuple[float, ...]


@dataclass(frozen=True)
class SpeculationResult:
    """Names and units as in the artifact; columns are over finished requests or over steps.

    ``generated_tokens_per_step`` is per decode step; its mean is generated tokens over
    request-steps, the target's own token included. ``average_tpot_per_slo_ms`` follows
    ``slo_classes``. ``slo_attainment`` is over completed requests, ``goodput`` in tokens/s.
    """

    total_time_ms: float
    total_requests: tuple[int, int]
    total_tokens: int
    throughput_requests_per_sec: float
    throughput_tokens_per_sec: float
    latency_per_request_ms: Column
    average_latency_per_request_ms: float
    ttft_per_request_ms: Column
    tpot_per_request_ms: Column
    slo_classes: tuple[str, ...]
    average_tpot_per_slo_ms: Column
    requests_per_step: tuple[int, ...]
    ssm_step_times_ms: Column
    ssm_steps: tuple[int, ...]
    llm_step_times_ms: Column
    generated_tokens_per_step: tuple[int, ...]
    mean_generated_tokens_per_step: float
    slo_attainment: float
    goodput: float

    def to_text(self) -> str:
        """One ``name( values )`` line a field, as the artifact prints them."""
        return "".join(f"{f.name}( {_text(getattr(self, f.name))} )\n" for f in fields(self))


def speculation_result(result: SpeculationRun) -> SpeculationResult:
    """Compute the fields of one run; times in milliseconds."""
    run, steps = result.run, result.steps
    table = run.requests
    done = result.finished
    tokens = table.generated_tokens
    total_s = run.window_s[1] - run.window_s[0]
    latency = 1000.0 * (table.last_token_s - table.arrival_s)[done]
    tpot = 1000.0 * result.decode_s / np.maximum(1, tokens)
    decode = [i for i, requests in enumerate(steps.requests) if requests]
    count = int(np.count_nonzero(done))
    good = result.attained
    return SpeculationResult(
        total_time_ms=1000.0 * total_s,
        total_requests=(count, len(table.id)),
        total_tokens=int(tokens[done].sum()),
        throughput_requests_per_sec=count / total_s if total_s else 0.0,
        throughput_tokens_per_sec=float(tokens[done].sum()) / total_s if total_s else 0.0,
        latency_per_request_ms=_column(latency),
        average_latency_per_request_ms=_mean(latency),
        ttft_per_request_ms=_column(1000.0 * (table.first_token_s - table.arrival_s)[done]),
        tpot_per_request_ms=_column(tpot[done]),
        slo_classes=run.class_names,
        average_tpot_per_slo_ms=tuple(
            _mean(tpot[done & (table.class_index == i)]) for i in range(len(run.class_names))
        ),
        requests_per_step=tuple(steps.requests[i] for i in decode),
        ssm_step_times_ms=tuple(1000.0 * steps.draft_s[i] for i in decode),
        ssm_steps=tuple(steps.depth[i] for i in decode),
        llm_step_times_ms=tuple(1000.0 * seconds for seconds in steps.target_s),
        generated_tokens_per_step=tuple(steps.generated[i] for i in decode),
        mean_generated_tokens_per_step=steps.mean_generated_tokens,
        slo_attainment=_mean(good[done].astype(np.float64)),
        goodput=float(tokens[good].sum()) / total_s if total_s else 0.0,
    )


def _column(values: np.ndarray[tuple[int], np.dtype[np.float64]]) -> Column:
    return tuple(values.tolist())


def _mean(values: np.ndarray[tuple[int], np.dtype[np.float64]]) -> float:
    return float(values.mean()) if len(values) else float("nan")


def _text(value: object) -> str:
    if isinstance(value, float):
        return f"{value:.6g}"
    if isinstance(value, Sequence) and not isinstance(value, str):
        return " ".join(_text(part) for part in value)
    return str(value)
