"""What one GPU of an engine computes per layer, and the seconds of each operator.

Shapes first (``layer_groups``): matrix products ``[tokens, k] x [k, n]`` after the split over the
tensor-parallel group, routed experts after the split over the expert-parallel group, attention by
heads. Then one formula per operator, all of the form

    seconds = kernel + |FLOPs / compute, bytes / memory| + passes over activations

with |x, y| the Euclidean norm, a smooth maximum. Every formula takes floats or NumPy arrays: the
fit evaluates whole tables with the very functions that later price a step.
"""

from __future__ import annotations

from dataclasses import dataclass
from math import ceil
from typing import TypeVar

import numpy as np
from numpy.typing import NDArray

from penstock.spec.model import ModelSpec

N = TypeVar("N", float, NDArray[np.float64])

# Widths of 4-bit formats with their scales: NVFP4 has one fp8 scale per 16 values, GPTQ and AWQ
# one fp16 scale (and zero point) per 128.
WEIGHT_BYTES = {"fp32": 4.0, "fp16": 2.0, "bf16": 2.0, "fp8": 1.0, "int8": 1.0}
FOUR_BIT_BYTES = {"fp4": 0.5625, "int4": 0.53}
ACTIVATION_BYTES = 2.0


@dataclass(frozen=True, slots=True)
class Product:
    """A matrix product on one GPU: ``n`` outputs from ``k`` inputs for every token."""

    n: float
    k: float
    weight_dtype: str


@dataclass(frozen=True, slots=True)
class Experts:
    """Routed experts on one GPU: ``held`` of ``total``, each ``width`` wide.

    ``per_token`` experts of ``total`` see a token; ``matrices`` are 3 when gated.
    """

    hidden: float
    width: float
    held: float
    total: float
    per_token: float
    matrices: int
    weight_dtype: str


@dataclass(frozen=True, slots=True)
class Attention:
    """Attention on one GPU.

    flops_per_pair       of a prompt, per (query token, visible token)
    flops_per_context    of a decoding sequence, per token it attends to
    kv_bytes             per token of context
    io_bytes             queries, keys, values and outputs of one prompt token
    query_heads          per GPU
    window_tokens        most tokens a query sees; None without limit
    latent               multi-head latent attention
    """

    flops_per_pair: float
    flops_per_context: float
    kv_bytes: float
    io_bytes: float
    query_heads: float
    window_tokens: int | None
    latent: bool


@dataclass(frozen=True, slots=True)
class LayerGroup:
    """``count`` equal layers. ``products`` hold attention, dense MLP, shared experts, router.

    ``activation_values`` of the dense MLP a token writes and reads between its products.
    """

    count: int
    products: tuple[Product, ...]
    experts: Experts | None
    attention: Attention
    activation_values: float


@dataclass(frozen=True, slots=True)
class ProductRates:
    """A GPU running matrix products in one weight format."""

    kernel_s: float
    s_per_flop: float
    s_per_byte: float
    weight_bytes: float
    input_bytes: float
    quantise_s_per_value: float


@dataclass(frozen=True, slots=True)
class ExpertRates:
    """A GPU running routed experts. ``padding`` is the rows a touched expert wastes."""

    kernel_s: float
    s_per_flop: float
    s_per_byte: float
    weight_bytes: float
    route_s_per_token: float
    padding: float


def root(x: N) -> N:
    """Square root, by operators alone: floats and arrays alike."""
    return x**0.5  # type: ignore[no-any-return]


def smooth_max(x: N, y: N) -> N:
    """Euclidean norm: near the larger of both, above it where they are alike."""
    return root(x * x + y * y)


def product_s(rows: N, n: N, k: N, rates: ProductRates) -> N:
    """Seconds of ``[rows, k] x [k, n]``."""
    flops = 2.0 * rows * n * k
    moved = n * k * rates.weight_bytes + rows * (k * rates.input_bytes + n * ACTIVATION_BYTES)
    busy = smooth_max(flops * rates.s_per_flop, moved * rates.s_per_byte)
    return rates.kernel_s + busy + rows * k * rates.quantise_s_per_value


def experts_touched(tokens: N, held: N, total: N, per_token: N) -> N:
    """Expected number of ``held`` experts that ``tokens`` evenly routed tokens touch."""
    missed: N = (1.0 - per_token / total) ** tokens
    return held * (1.0 - missed)


def experts_s(
    tokens: N,
    r: ExpertRates,
    *,
    hidden: N,
    width: N,
    held: N,
    total: N,
    per_token: N,
    matrices: int,
) -> N:
    """Seconds of the routed experts of one layer; ``tokens`` enter it over the whole group."""
    touched = experts_touched(tokens, held, total, per_token)
    routed = tokens * per_token * held / total
    weights = matrices * hidden * width
    flops = 2.0 * weights * (routed + touched * r.padding)
    moved = touched * weights * r.weight_bytes
    busy = smooth_max(flops * r.s_per_flop, moved * r.s_per_byte)
    return r.kernel_s + busy + tokens * r.route_s_per_token


def visible_pairs(tokens: int, cached: int, window: int | None) -> float:
    """(query, key) pairs of a causal chunk of ``tokens`` after ``cached`` tokens."""
    if window is None or cached + tokens <= window:
        return tokens * cached + 0.5 * tokens * (tokens + 1)
    if cached >= window:
        return float(tokens) * window
    free = window - cached
    return free * cached + 0.5 * free * (free + 1) + float(tokens - free) * window


def all_reduce_s(size_bytes: N, members: N, latency_s: float, growth: float, s_per_byte: N) -> N:
    """Ring all-reduce: latency grows as (members / 2)^growth, bytes go 2 (n - 1) / n times."""
    ring = 2.0 * (members - 1.0) / members * size_bytes
    more: N = (members / 2.0) ** growth
    return latency_s * more + ring * s_per_byte


def weight_bytes(dtype: str) -> float:
    """Bytes of one weight, scales included."""
    return FOUR_BIT_BYTES.get(dtype) or WEIGHT_BYTES[dtype]


def layer_groups(
    model: ModelSpec,
    tensor_parallel_size: int,
    *,
    expert_parallel_size: int = 1,
    data_parallel_size: int = 1,
) -> tuple[LayerGroup, ...]:
    """The layers of ``model`` as one GPU sees them: dense ones and those with experts.

    4-bit checkpoints of expert models keep everything but the experts in the activation dtype
    (DeepSeek-R1-NVFP4, Kimi-K2, gpt-oss do); dense models quantise every layer matrix.
    """
    attention, projections = _attention(model, tensor_parallel_size)
    sparse = _sparse_layers(model)
    groups = []
    if sparse < model.num_hidden_layers:
        width = model.intermediate_size
        mlp = _mlp(model, width / tensor_parallel_size, _dense_dtype(model))
        count = model.num_hidden_layers - sparse
        values = (3 if model.gated_mlp else 2) * width / tensor_parallel_size
        groups.append(LayerGroup(count, (*projections, *mlp), None, attention, values))
    if sparse and model.moe is not None:
        moe = model.moe
        gpus = tensor_parallel_size * data_parallel_size
        experts = Experts(
            hidden=model.hidden_size,
            width=moe.intermediate_size * expert_parallel_size / gpus,
            held=moe.num_experts / expert_parallel_size,
            total=moe.num_experts,
            per_token=moe.num_experts_per_token,
            matrices=3 if model.gated_mlp else 2,
            weight_dtype=model.weight_dtype or model.dtype,
        )
        beside = [Product(moe.num_experts, model.hidden_size, model.dtype)]
        if moe.num_shared_experts:
            width = moe.num_shared_experts * moe.intermediate_size
            beside += _mlp(model, width / tensor_parallel_size, _dense_dtype(model))
        groups.append(LayerGroup(sparse, (*projections, *beside), experts, attention, 0.0))
    return tuple(groups)


def _sparse_layers(model: ModelSpec) -> int:
    if model.moe is None:
        return 0
    return sum(model.moe.holds(i) for i in range(model.num_hidden_layers))


def _dense_dtype(model: ModelSpec) -> str:
    wanted = model.weight_dtype or model.dtype
    return model.dtype if model.moe is not None and wanted in FOUR_BIT_BYTES else wanted


def _mlp(model: ModelSpec, width: float, dtype: str) -> list[Product]:
    up = (2 if model.gated_mlp else 1) * width
    return [Product(up, model.hidden_size, dtype), Product(model.hidden_size, width, dtype)]


def _attention(model: ModelSpec, split: int) -> tuple[Attention, list[Product]]:
    hidden, dtype = model.hidden_size, _dense_dtype(model)
    heads = model.num_attention_heads / split
    kv_width = weight_bytes(model.kv_dtype or model.dtype)
    if model.mla is not None:
        m = model.mla
        qk = m.qk_nope_head_dim + m.qk_rope_head_dim
        cached = m.kv_lora_rank + m.qk_rope_head_dim
        # Query and latent projections down are replicated; everything by heads is split.
        down = cached + (m.q_lora_rank or 0)
        products = [
            Product(down, hidden, dtype),
            Product(heads * qk, m.q_lora_rank or hidden, dtype),
            Product(heads * (m.qk_nope_head_dim + m.v_head_dim), m.kv_lora_rank, dtype),
            Product(hidden, heads * m.v_head_dim, dtype),
        ]
        attention = Attention(
            flops_per_pair=2.0 * heads * (qk + m.v_head_dim),
            flops_per_context=2.0 * heads * (cached + m.kv_lora_rank),
            kv_bytes=cached * kv_width,
            io_bytes=2.0 * heads * (qk + m.v_head_dim) * ACTIVATION_BYTES,
            query_heads=heads,
            window_tokens=model.sliding_window,
            latent=True,
        )
        return attention, products
    kv_heads = float(ceil(model.num_key_value_heads / split))
    head = model.head_dim
    products = [
        Product((heads + 2 * kv_heads) * head, hidden, dtype),
        Product(hidden, heads * head, dtype),
    ]
    attention = Attention(
        flops_per_pair=4.0 * heads * head,
        flops_per_context=4.0 * heads * head,
        kv_bytes=2.0 * kv_heads * head * kv_width,
        io_bytes=2.0 * (heads + kv_heads) * head * ACTIVATION_BYTES,
        query_heads=heads,
        window_tokens=model.sliding_window,
        latent=False,
    )
    return attention, products
