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
from dataclasses import dataclass, field, replace
from pathlib import Path

import numpy as np

from penstock.cost.fit import pattern_search
from penstock.cost.step_coefficients import EngineHost, Shared, StepCoefficients
from penstock.cost.step_fit import Fit, read_rows
from penstock.cost.step_fit_recipes import Launch, Recipe, recipe
from penstock.cost.step_roofline import StepRoofline
from penstock.cost.steps import EngineShape
from penstock.errors import Infeasible
from penstock.spec.catalogue import catalogue
from penstock.spec.model import Dtype, ModelSpec

SYSTEMS: Mapping[str, str] = {
    "h100_sxm": "H100-SXM",
    "h200_sxm": "H200",
    "b200_sxm": "B200",
    "b300_sxm": "B300",
    "gb200": "GB200",
}
WEIGHTS: Mapping[str, Dtype] = {"fp8": "fp8", "fp8_block": "fp8", "nvfp4": "fp4", "int4_wo": "int4"}
# The benchmark client draws lengths evenly from [0.8 x, x] (InferenceX's random_range_ratio).
MEAN_LENGTH = 0.9
ROWS_PER_GROUP = 16
# Up to here most of a TTFT is the request itself.
LIGHT_CONCURRENCY = 32
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
    recipe: Recipe = field(default_factory=Recipe)

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
        weights = WEIGHTS[row["moe_quant_mode" if base.moe is not None else "gemm_quant_mode"]]
        launch = Launch(
            family=family,
            system=row["system"],
            engine=row["backend"],
            weights=weights,
            tensor_parallel_size=shape.tensor_parallel_size,
            concurrency=int(float(row["concurrency"] or row["batch_size"])),
            input_tokens=int(row["isl"]),
            output_tokens=int(row["osl"]),
        )
        settings = recipe(launch)
        share = settings.gpu_memory_utilization
        found.append(
            Deployment(
                group=row["group"],
                family=family,
                engine=launch.engine,
                model=replace(base, weight_dtype=weights, kv_dtype=settings.kv_dtype),
                shape=replace(shape, gpu_memory_utilization=share),
                concurrency=launch.concurrency,
                input_tokens=launch.input_tokens,
                output_tokens=launch.output_tokens,
                recipe=settings,
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
    budget = point.recipe.budget_tokens
    chunks = [budget] * (prompt // budget)
    if prompt % budget:
        chunks.append(prompt % budget)
    extra_s = 0.0
    for index, chunk in enumerate(chunks):
        with_prompt = timer.step_s([(chunk, index * budget)], seqs - 1, context)
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
    together = max(1, min(seqs, point.recipe.budget_tokens // prompt))
    wave_s = timer.step_s([(prompt, 0)] * together, 0, 0) * (seqs / together + 1) / 2
    steady_s = one_s + (0.5 + point.recipe.held_steps) * timer.decode_s(seqs, context)
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
    return _fit_requests(points, found)


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


def ttft_reason(point: Deployment) -> str | None:
    """Why the TTFT of a point says nothing about request handling; None for the others."""
    experts = point.shape.expert_parallel_size
    if point.concurrency > LIGHT_CONCURRENCY:
        return "queueing outweighs request handling"
    if point.group == "deepseek-v3-arch|b300_sxm|sglang":
        return "prompts take up to ten times as long as on B200"
    if point.group == "deepseek-v3-arch|b200_sxm|sglang" and point.model.weight_dtype == "fp4":
        return "kernels were compiled while serving" if experts == 1 else None
    return fit_reason(point)


def _fit_requests(points: Sequence[Deployment], base: StepCoefficients) -> StepCoefficients:
    """Request time per engine, and one time per prompt token: all tokenise alike."""
    light = [p for p in points if ttft_reason(p) is None]
    engines = [e for e in ENGINES if any(p.engine == e for p in light)]

    def put(logs: Sequence[float]) -> StepCoefficients:
        token_s, *requests_s = (math.exp(x) for x in logs)
        hosts = {name: replace(host, prompt_token_s=token_s) for name, host in base.engines.items()}
        for engine, request_s in zip(engines, requests_s, strict=True):
            hosts[engine] = replace(hosts[engine], request_s=request_s)
        return replace(base, engines=hosts)

    def loss(logs: Sequence[float]) -> float:
        if not math.log(1e-7) <= logs[0] <= math.log(5e-5):
            return math.inf
        return _mean_log(light, put(logs), light_ttft_s, _ttft_s)

    start = [math.log(START.prompt_token_s), *[math.log(START.request_s)] * len(engines)]
    return put(pattern_search(loss, start, smallest=0.05))


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
