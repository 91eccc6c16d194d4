"""Fit what engines add to their kernels, on published end-to-end means of closed-loop load.

Rows: mean TTFT and TPOT of a deployment at fixed concurrency (SemiAnalysis InferenceX runs as
re-keyed by aiconfigurator). A deployment in steady state needs no simulation for its mean TPOT:
every request sees its own decode steps, and the prefill of each request that started meanwhile:

    TPOT = decode(n) + (C - 1) / (output - 1) * (mixed(n) - decode(n)),   n = min(C, KV room)

The figures found are few, per engine, and shared by all models and GPUs.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path

import numpy as np

from penstock.cost.fit import pattern_search
from penstock.cost.step_coefficients import EngineHost, Shared, StepCoefficients
from penstock.cost.step_fit import Fit, read_rows
from penstock.cost.step_roofline import StepRoofline
from penstock.cost.steps import EngineShape
from penstock.errors import Infeasible
from penstock.spec.catalogue import catalogue
from penstock.spec.model import ModelSpec

SYSTEMS: Mapping[str, str] = {
    "h100_sxm": "H100-SXM",
    "h200_sxm": "H200",
    "b200_sxm": "B200",
    "b300_sxm": "B300",
    "gb200": "GB200",
}
WEIGHTS: Mapping[str, str] = {"fp8": "fp8", "fp8_block": "fp8", "nvfp4": "fp4", "int4_wo": "int4"}
# The benchmark client draws lengths evenly from [0.8 x, x] (InferenceX's random_range_ratio).
MEAN_LENGTH = 0.9
BUDGET_TOKENS = 8192
ROWS_PER_GROUP = 16
ENGINES = ("vllm", "sglang", "trtllm")
START = EngineHost(
    kernel_share=0.8,
    layer_s=1.2e-5,
    step_s=6e-4,
    request_s=3e-2,
    prompt_token_s=3e-6,
)
START_SHARED = Shared(
    sequence_s=8e-6,
    prefill_s=5e-3,
    # Norms, rotary embedding and residuals after fusion: half of the unfused 24 passes of Vidur's
    # A100 and H100 profiles.
    passes=12.0,
    expert_layer_s=1e-5,
    latent_floor=0.5,
    eager_layer_s=1.6e-4,
)
# What is fitted, and the range it must stay in.
FITTED_SHARED: Mapping[str, tuple[float, float]] = {
    "latent_floor": (0.1, 1.0),
    "expert_layer_s": (1e-6, 1e-4),
    "sequence_s": (1e-6, 5e-5),
    "prefill_s": (1e-3, 3e-2),
}
FITTED_HOST: Mapping[str, tuple[float, float]] = {
    "kernel_share": (0.3, 1.2),
    "layer_s": (1e-6, 2e-4),
    "step_s": (1e-4, 5e-3),
}


@dataclass(frozen=True, slots=True)
class Deployment:
    """One measured point: medians over repeated runs of the same configuration."""

    group: str
    family: str
    engine: str
    model: ModelSpec
    shape: EngineShape
    concurrency: int
    input_tokens: int
    output_tokens: int
    ttft_s: float
    tpot_s: float

    @property
    def mean_input_tokens(self) -> int:
        return round(MEAN_LENGTH * self.input_tokens)

    @property
    def mean_output_tokens(self) -> int:
        return round(MEAN_LENGTH * self.output_tokens)


def read_deployments(path: Path, models: Mapping[str, ModelSpec]) -> list[Deployment]:
    """Points of one pool (not disaggregated) whose parallel sizes make sense."""
    points: dict[str, list[dict[str, str]]] = {}
    for row in read_rows(path):
        points.setdefault(row["point"], []).append(row)
    found = []
    for rows in points.values():
        row = rows[0]
        family = row["group"].split("|")[0]
        shape = deployment_shape(row)
        if row["mode"] != "agg" or shape is None or family not in models:
            continue
        base = models[family]
        key = "moe_quant_mode" if base.moe is not None else "gemm_quant_mode"
        found.append(
            Deployment(
                group=row["group"],
                family=family,
                engine=row["backend"],
                model=replace(base, weight_dtype=WEIGHTS[row[key]]),  # type: ignore[arg-type]
                shape=shape,
                concurrency=int(float(row["concurrency"] or row["batch_size"])),
                input_tokens=int(row["isl"]),
                output_tokens=int(row["osl"]),
                ttft_s=float(np.median([float(r["mean_ttft_ms"]) for r in rows])) / 1e3,
                tpot_s=float(np.median([float(r["mean_tpot_ms"]) for r in rows])) / 1e3,
            )
        )
    return found


def deployment_shape(row: Mapping[str, str]) -> EngineShape | None:
    """Parallel sizes of a row; None where the table's keys contradict each other.

    Two slips of the source are undone: tensor x expert size stored as tensor size, and expert
    size multiplied by an attention-copies flag although the same GPUs hold both.
    """
    if not row["tp_size"] or row["system"] not in SYSTEMS:
        return None
    sizes = [float(row[key] or 0) for key in ("tp_size", "moe_tp_size", "moe_ep_size")]
    tensor, expert_tensor, experts = (int(size) for size in sizes)
    copies = int(float(row["attention_dp_size"] or 0))
    if expert_tensor > 1 and experts > 1 and tensor == expert_tensor * experts:
        tensor, copies = expert_tensor, 1
    elif copies > 1 and experts == tensor * copies:
        experts, copies = tensor, 1
    elif copies == 0:
        copies = max(1, expert_tensor * experts // tensor)
    if tensor not in (1, 2, 4, 8) or (tensor * copies) % experts:
        return None
    accelerator = catalogue().get(SYSTEMS[row["system"]])
    return EngineShape(
        accelerator,
        tensor_parallel_size=tensor,
        expert_parallel_size=experts,
        data_parallel_size=copies,
    )


def steady_tpot_s(point: Deployment, coefficients: StepCoefficients) -> float | None:
    """Mean TPOT in steady state; None where the model does not fit."""
    cost = StepRoofline(point.model, engine=point.engine, coefficients=coefficients)
    prompt, output = point.mean_input_tokens, point.mean_output_tokens
    length = prompt + output / 2
    try:
        room = cost.kv_capacity_tokens(point.shape) / length
    except Infeasible:
        return None
    seqs = int(min(point.concurrency, room))
    if seqs < 1:
        return None
    timer = cost.step_timer(point.shape)
    context = int(seqs * length)
    decode_s = timer.decode_s(seqs, context)
    chunks = [BUDGET_TOKENS] * (prompt // BUDGET_TOKENS)
    if prompt % BUDGET_TOKENS:
        chunks.append(prompt % BUDGET_TOKENS)
    extra_s = 0.0
    for index, chunk in enumerate(chunks):
        with_prompt = timer.step_s([(chunk, index * BUDGET_TOKENS)], seqs - 1, context)
        extra_s += with_prompt - decode_s
    return decode_s + (seqs - 1) / max(1, output - 1) * extra_s


def light_ttft_s(point: Deployment, coefficients: StepCoefficients) -> float | None:
    """Mean TTFT under light load: request handling, half a decode step, its own prefill."""
    cost = StepRoofline(point.model, engine=point.engine, coefficients=coefficients)
    host = coefficients.engines[point.engine]
    try:
        cost.kv_capacity_tokens(point.shape)
    except Infeasible:
        return None
    prompt, seqs = point.mean_input_tokens, point.concurrency
    timer = cost.step_timer(point.shape)
    context = int(seqs * (prompt + point.mean_output_tokens / 2))
    one_s = timer.step_s([(prompt, 0)], max(0, seqs - 1), context)
    # One request in ten belongs to the first wave, which arrives at once.
    together = max(1, min(seqs, BUDGET_TOKENS // prompt))
    wave_s = timer.step_s([(prompt, 0)] * together, 0, 0) * (seqs / together + 1) / 2
    steady_s = one_s + timer.decode_s(seqs, context) / 2
    return host.request_s + host.prompt_token_s * prompt + 0.9 * steady_s + 0.1 * wave_s


def fit_engines(points: Sequence[Deployment], base: StepCoefficients) -> StepCoefficients:
    """Engine figures by TPOT, then TTFT figures by the lightly loaded points.

    At most ``ROWS_PER_GROUP`` points of a group, evenly spread over concurrency, take part.
    """
    chosen = [p for p in thinned(points) if fit_reason(p) is None]
    engines = [e for e in ENGINES if any(p.engine == e for p in chosen)]

    def put(logs: Sequence[float]) -> StepCoefficients:
        values = [math.exp(x) for x in logs]
        shared = replace(base.shared, **dict(zip(FITTED_SHARED, values, strict=False)))
        hosts = dict(base.engines)
        for index, engine in enumerate(engines):
            first = len(FITTED_SHARED) + len(FITTED_HOST) * index
            own = dict(zip(FITTED_HOST, values[first : first + len(FITTED_HOST)], strict=True))
            hosts[engine] = replace(hosts[engine], **own)
        return replace(base, engines=hosts, shared=shared)

    ranges = [*FITTED_SHARED.values(), *(r for _ in engines for r in FITTED_HOST.values())]

    def loss(logs: Sequence[float]) -> float:
        for x, (low, high) in zip(logs, ranges, strict=True):
            if not math.log(low) <= x <= math.log(high):
                return math.inf
        return _mean_log(chosen, put(logs), steady_tpot_s, _tpot_s)

    start = [getattr(START_SHARED, name) for name in FITTED_SHARED]
    start += [getattr(START, name) for _ in engines for name in FITTED_HOST]
    found = put(pattern_search(loss, [math.log(x) for x in start], smallest=0.04))
    return _fit_requests([p for p in points if p.concurrency <= 8 and not fit_reason(p)], found)


def thinned(points: Sequence[Deployment]) -> list[Deployment]:
    """Every group's share of the fit, in a fixed order."""
    groups: dict[str, list[Deployment]] = {}
    for point in points:
        groups.setdefault(point.group, []).append(point)
    chosen = []
    for own in groups.values():
        own.sort(key=lambda p: (p.concurrency, p.input_tokens, p.output_tokens, p.tpot_s))
        step = max(1, math.ceil(len(own) / ROWS_PER_GROUP))
        chosen += own[::step]
    return chosen


def fit_reason(point: Deployment) -> str | None:
    """Why a point is scored but not fitted to; None for the others."""
    if point.family.startswith("glm-5"):
        return "sparse attention with an indexer, which the model does not have"
    if point.group == "qwen3-235b-a22b-fp8|h200_sxm|vllm":
        return "TPOT does not depend on the batch: the run waited for its host"
    return None


def _fit_requests(points: Sequence[Deployment], base: StepCoefficients) -> StepCoefficients:
    """Per engine: request time, and request time per prompt token."""
    hosts = dict(base.engines)
    for engine in ENGINES:
        own = [p for p in points if p.engine == engine]
        if not own:
            continue

        def put(logs: Sequence[float], engine: str = engine) -> StepCoefficients:
            request_s, token_s = (math.exp(x) for x in logs)
            host = replace(base.engines[engine], request_s=request_s, prompt_token_s=token_s)
            return replace(base, engines={**base.engines, engine: host})

        def loss(
            logs: Sequence[float],
            put: Callable[[Sequence[float]], StepCoefficients] = put,
            own: Sequence[Deployment] = own,
        ) -> float:
            return _mean_log(own, put(logs), light_ttft_s, _ttft_s)

        start = [math.log(START.request_s), math.log(START.prompt_token_s)]
        hosts[engine] = put(pattern_search(loss, start, smallest=0.05)).engines[engine]
    return replace(base, engines=hosts)


def tpot_ratios(points: Sequence[Deployment], coefficients: StepCoefficients) -> dict[str, Fit]:
    """Measured / predicted TPOT by group, where the model fits."""
    by_group: dict[str, list[float]] = {}
    for point in points:
        predicted = steady_tpot_s(point, coefficients)
        if predicted is not None:
            by_group.setdefault(point.group, []).append(point.tpot_s / predicted)
    return {group: Fit(group, np.array(ratios)) for group, ratios in sorted(by_group.items())}


def _ttft_s(point: Deployment) -> float:
    return point.ttft_s


def _tpot_s(point: Deployment) -> float:
    return point.tpot_s


def _mean_log(
    points: Sequence[Deployment],
    coefficients: StepCoefficients,
    predict: Callable[[Deployment, StepCoefficients], float | None],
    measured: Callable[[Deployment], float],
) -> float:
    total, counted = 0.0, 0
    for point in points:
        predicted = predict(point, coefficients)
        if predicted is None:
            continue
        total += abs(math.log(predicted / measured(point)))
        counted += 1
    return total / counted if counted else 0.0
