"""Fit the step roofline: ``python -m penstock.cost.step_fit --reference DIR [--write]``.

``DIR`` holds ``measured/ops`` (operator tables of six GPUs), ``measured/e2e_train`` (end-to-end
means) and ``vidur/compute`` (products on three more GPUs). Every operator is fitted alone, per GPU
generation, on the mean absolute log ratio of modelled to measured time, by a deterministic pattern
search; engine figures come from ``step_fit_engine``. Prints the error of every table and, with
``--write``, renews ``step_coefficients.yaml``.
"""

from __future__ import annotations

import csv
import gzip
import math
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any, cast

import numpy as np
from numpy.typing import NDArray

from penstock.cost.fit import pattern_search
from penstock.cost.step_arithmetic import (
    ACTIVATION_BYTES,
    ExpertRates,
    all_reduce_s,
    experts_s,
    product_s,
    weight_bytes,
)
from penstock.cost.step_coefficients import (
    Architecture,
    AttentionShare,
    ExpertShare,
    LinkShare,
    ProductShare,
)
from penstock.cost.step_rates import peak_flops_per_s, product_rates
from penstock.spec.catalogue import catalogue
from penstock.spec.hardware import Accelerator

Array = NDArray[np.float64]
Rows = Sequence[Mapping[str, str]]

GPUS: Mapping[str, str] = {
    "a100_sxm": "A100-80GB",
    "h100_sxm": "H100-SXM",
    "h200_sxm": "H200",
    "l40s": "L40S",
    "b200_sxm": "B200",
    "gb200": "GB200",
}
GENERATIONS: Mapping[str, tuple[str, ...]] = {
    "ampere": ("a100_sxm",),
    "ada": ("l40s",),
    "hopper": ("h100_sxm", "h200_sxm"),
    "blackwell": ("b200_sxm", "gb200"),
}
PROMPT_MESSAGE_BYTES = 1 << 24
NVLINK = ("a100_sxm", "h100_sxm", "h200_sxm", "b200_sxm")
# Formats of the tables by ours. TensorRT-LLM's fp8 and vLLM's block fp8 carry host time (see the
# tables' README) and are left out.
FORMATS: Mapping[tuple[str, str], str] = {
    ("vllm", "bfloat16"): "bf16",
    ("trtllm", "bfloat16"): "bf16",
    ("vllm", "fp8"): "fp8",
    ("trtllm", "fp8_block"): "fp8",
    ("vllm", "nvfp4"): "fp4",
    ("trtllm", "int8_wo"): "int8",
    ("trtllm", "int4_wo"): "int4",
}
# Public fp8 expert models are block-quantised; the per-tensor kernels of the tables run at half the
# speed of bf16 on Hopper and are left out. Experts in mxfp4 are widened to bf16 there.
EXPERT_FORMATS: Mapping[str, str] = {
    "bfloat16": "bf16",
    "fp8_block": "fp8",
    "nvfp4": "fp4",
    "w4a16_mxfp4": "int4",
}


@dataclass(frozen=True, slots=True)
class Fit:
    """One fitted family of figures: ratios measured / modelled of every row."""

    label: str
    ratios: Array

    @property
    def median(self) -> float:
        return float(np.median(np.abs(1 / self.ratios - 1)))

    @property
    def p90(self) -> float:
        return float(np.quantile(np.abs(1 / self.ratios - 1), 0.9))


def read_rows(path: Path) -> list[dict[str, str]]:
    with gzip.open(path, "rt", encoding="utf-8", newline="") as file:
        return list(csv.DictReader(file))


def table(folder: Path, operator: str, gpu: str, engine: str = "vllm") -> list[dict[str, str]]:
    """Rows of ``<operator>_<gpu>_<engine>-<version>.csv.gz``, the version whatever it is."""
    found = sorted(folder.glob(f"{operator}_{gpu}_{engine}-*.csv.gz"))
    return read_rows(found[0]) if found else []


def column(rows: Rows, name: str) -> Array:
    return np.array([float(row[name]) for row in rows])


def accelerators(rows: Rows) -> list[Accelerator]:
    return [catalogue().get(GPUS[row["gpu"]]) for row in rows]


def solve(
    label: str,
    model: Callable[[Sequence[float]], Array],
    measured_s: Array,
    *,
    start: Sequence[float],
    upper: Sequence[float],
    weights: Array | None = None,
) -> tuple[list[float], Fit]:
    """Coefficients (below ``upper``) that minimise the mean absolute log ratio."""
    log_measured, top = np.log(measured_s), [math.log(x) for x in upper]

    def loss(logs: Sequence[float]) -> float:
        if any(x > limit for x, limit in zip(logs, top, strict=True)):
            return math.inf
        left = np.abs(np.log(model([math.exp(x) for x in logs])) - log_measured)
        return float(np.average(left, weights=weights))

    logs = pattern_search(loss, [math.log(x) for x in start], smallest=0.01)
    found = [math.exp(x) for x in logs]
    return found, Fit(label, measured_s / model(found))


def gemm_rows(folder: Path, gpus: Iterable[str]) -> list[dict[str, str]]:
    """Products in CUDA graphs (or unstated), with our format as ``format``."""
    rows = []
    for gpu in gpus:
        for engine in ("vllm", "trtllm"):
            for row in table(folder, "gemm", gpu, engine):
                dtype = FORMATS.get((engine, row["dtype"]))
                if dtype is not None and row["launch"] != "eager":
                    rows.append({**row, "gpu": gpu, "format": dtype})
    return rows


def fit_products(label: str, rows: Rows) -> tuple[dict[str, ProductShare], float, float, list[Fit]]:
    """(shares by format, memory share, quantising share, errors) of one generation.

    Memory is shared by all formats: the bf16 rows set it, then each format adds a compute share
    and a kernel floor, and the formats with quantised activations one bandwidth share.
    """
    formats = [
        d for d in ("bf16", "fp8", "fp4", "int8", "int4") if any(r["format"] == d for r in rows)
    ]
    shares: dict[str, ProductShare] = {}
    memory = quantise = 0.5
    fits = []
    for dtype in formats:
        own = [row for row in rows if row["format"] == dtype]
        fitted = {"bf16": "memory", "fp8": "quantise"}.get(dtype)
        seconds = _product_seconds(own, dtype, fitted, memory=memory, quantise=quantise)
        start = [5e-6, 0.6, 0.5] if fitted else [5e-6, 0.6]
        measured_s = column(own, "time_ms") / 1e3
        name = f"products {label} {dtype}"
        upper = [1e-4, 1.0, 1.0][: len(start)]
        found, fit = solve(name, seconds, measured_s, start=start, upper=upper)
        if fitted == "memory":
            memory = found[2]
        elif fitted == "quantise":
            quantise = found[2]
        shares[dtype] = ProductShare(compute=found[1], kernel_s=found[0])
        fits.append(fit)
    return shares, memory, quantise, fits


def _product_seconds(
    rows: Rows, dtype: str, fitted: str | None, *, memory: float, quantise: float
) -> Callable[[Sequence[float]], Array]:
    """Seconds of ``rows`` by (kernel, compute, and the share called ``fitted``)."""
    m, n, k = (column(rows, c) for c in "mnk")
    chips = accelerators(rows)
    peak = np.array([peak_flops_per_s(a, dtype) for a in chips])
    bandwidth = np.array([a.memory_bandwidth_bytes_per_s for a in chips])

    def seconds(x: Sequence[float]) -> Array:
        rates = product_rates(
            dtype,
            kernel_s=x[0],
            compute=x[1],
            memory=x[2] if fitted == "memory" else memory,
            quantise=x[2] if fitted == "quantise" else quantise,
            peak=peak,
            bandwidth=bandwidth,
            narrow=dtype in ("fp8", "fp4"),
        )
        return product_s(m, n, k, rates)

    return seconds


def attention_rows(folder: Path, operator: str, gpus: Iterable[str]) -> list[dict[str, str]]:
    return [{**row, "gpu": gpu} for gpu in gpus for row in table(folder, operator, gpu)]


def fit_attention(
    label: str, folder: Path, gpus: Sequence[str]
) -> tuple[AttentionShare, list[Fit]]:
    """Attention by heads: prompts set compute, decoding sets memory and the cost of a head."""
    rows = attention_rows(folder, "attn_prefill", gpus)
    heads, kv, dim, window, batch, length = (
        column(rows, c)
        for c in ("q_heads", "kv_heads", "head_dim", "window", "batch_size", "seq_len")
    )
    seen = np.where(window > 0, np.minimum(window, length), length)
    pairs = batch * (seen * (seen + 1) / 2 + (length - seen) * seen)
    chips = accelerators(rows)
    peak = np.array([peak_flops_per_s(a, "bf16") for a in chips])
    bandwidth = np.array([a.memory_bandwidth_bytes_per_s for a in chips])
    flops_s = 4 * heads * dim * pairs / peak
    moved_s = batch * length * 2 * (heads + kv) * dim * ACTIVATION_BYTES / bandwidth
    prefill, prefill_fit = solve(
        f"prefill attention {label}",
        lambda x: x[0] + flops_s / x[1] + moved_s / x[2],
        column(rows, "time_ms") / 1e3,
        start=[1e-5, 0.6, 0.5],
        upper=[1e-4, 1.0, 1.5],
    )
    rows = attention_rows(folder, "attn_decode", gpus)
    heads, kv, dim, window, batch, length = (
        column(rows, c)
        for c in ("q_heads", "kv_heads", "head_dim", "window", "batch_size", "kv_len")
    )
    width = np.array([1.0 if row["kv_dtype"].startswith("fp8") else 2.0 for row in rows])
    seen = np.where(window > 0, np.minimum(window, length), length)
    bandwidth = np.array([a.memory_bandwidth_bytes_per_s for a in accelerators(rows)])
    read_s = batch * seen * 2 * kv * dim * width / bandwidth
    decode, decode_fit = solve(
        f"decode attention {label}",
        lambda x: x[0] + read_s / x[1] + batch * heads * x[2],
        column(rows, "time_ms") / 1e3,
        start=[1e-5, 0.8, 3e-9],
        upper=[1e-4, 1.0, 1e-6],
        # What a full batch costs matters: rows count by the root of the bytes they read.
        weights=np.sqrt(read_s / read_s.max()) + 0.05,
    )
    share = AttentionShare(
        prefill_compute=prefill[1],
        prefill_memory=prefill[2],
        decode_compute=prefill[1],
        decode_memory=decode[1],
        kernel_s=decode[0],
        head_s=decode[2],
    )
    return share, [prefill_fit, decode_fit]


# DeepSeek-V3's attention block, the shape of the latent tables.
LATENT = {"hidden": 7168, "q_lora": 1536, "kv_lora": 512, "rope": 64, "nope": 128, "v": 128}


def latent_products(heads: Array) -> list[tuple[Array, Array]]:
    """(n, k) of the projections around latent attention on one GPU."""
    s, one = LATENT, np.ones_like(heads)
    return [
        ((s["q_lora"] + s["kv_lora"] + s["rope"]) * one, s["hidden"] * one),
        (heads * (s["nope"] + s["rope"]), s["q_lora"] * one),
        (heads * (s["nope"] + s["v"]), s["kv_lora"] * one),
        (s["hidden"] * one, heads * s["v"]),
    ]


@dataclass(frozen=True)
class LatentTable:
    """Rows of one phase of latent attention, with the fitted products already taken off."""

    heads: Array
    batch: Array
    length: Array
    prefix: Array
    kv_width: Array
    peak: Array
    bandwidth: Array
    projections_s: Array
    measured_s: Array


def latent_table(folder: Path, phase: str, gpus: Sequence[str], arch: Architecture) -> LatentTable:
    """bf16 blocks of ``gpus``; ``phase`` is ``prefill`` or ``decode``."""
    rows = [
        row
        for row in attention_rows(folder, f"mla_{phase}", gpus)
        if row["scope"] == "module"
        and row["gemm_type"] == "bfloat16"
        and row["mla_dtype"] == "bfloat16"
    ]
    heads, batch = column(rows, "q_heads"), column(rows, "batch_size")
    length = column(rows, "seq_len" if phase == "prefill" else "kv_len")
    chips = accelerators(rows)
    peak = np.array([peak_flops_per_s(a, "bf16") for a in chips])
    bandwidth = np.array([a.memory_bandwidth_bytes_per_s for a in chips])
    share = arch.products["bf16"]
    rates = product_rates(
        "bf16",
        kernel_s=share.kernel_s,
        compute=share.compute,
        memory=arch.memory,
        quantise=arch.quantise,
        peak=peak,
        bandwidth=bandwidth,
        narrow=False,
    )
    tokens = batch * length if phase == "prefill" else batch
    products = [product_s(tokens, n, k, rates) for n, k in latent_products(heads)]
    return LatentTable(
        heads=heads,
        batch=batch,
        length=length,
        prefix=column(rows, "prefix_len") if phase == "prefill" else 0.0 * batch,
        kv_width=np.array([1.0 if r["kv_dtype"].startswith("fp8") else 2.0 for r in rows]),
        peak=peak,
        bandwidth=bandwidth,
        projections_s=np.sum(products, axis=0),
        measured_s=column(rows, "time_ms") / 1e3,
    )


def fit_latent(
    label: str, folder: Path, gpus: Sequence[str], arch: Architecture
) -> tuple[AttentionShare, list[Fit]]:
    """Latent attention: the tables time the whole block, so the fitted products are taken off."""
    t = latent_table(folder, "prefill", gpus, arch)
    per_head = LATENT["nope"] + LATENT["rope"] + LATENT["v"]
    pairs = t.batch * t.length * (t.prefix + (t.length + 1) / 2)
    flops_s = 2 * t.heads * per_head * pairs / t.peak
    moved_s = t.batch * t.length * 2 * t.heads * per_head * ACTIVATION_BYTES / t.bandwidth
    fixed_s = t.projections_s
    prefill, prefill_fit = solve(
        f"latent prefill {label}",
        lambda x: fixed_s + x[0] + flops_s / x[1] + moved_s / x[2],
        t.measured_s,
        start=[5e-5, 0.5, 0.3],
        upper=[3e-4, 1.0, 1.5],
    )
    d = latent_table(folder, "decode", gpus, arch)
    cached = LATENT["kv_lora"] + LATENT["rope"]
    context = d.batch * d.length
    read_s = context * cached * d.kv_width / d.bandwidth
    compute_s = 2 * d.heads * (cached + LATENT["kv_lora"]) * context / d.peak
    decode, decode_fit = solve(
        f"latent decode {label}",
        lambda x: (
            d.projections_s
            + x[0]
            + np.maximum(read_s / x[1], compute_s / x[2])
            + d.batch * d.heads * x[3]
        ),
        d.measured_s,
        start=[5e-5, 0.7, 0.5, 3e-9],
        upper=[3e-4, 1.0, 1.0, 1e-6],
    )
    share = AttentionShare(
        prefill_compute=prefill[1],
        prefill_memory=prefill[2],
        decode_compute=decode[2],
        decode_memory=decode[1],
        kernel_s=decode[0],
        head_s=decode[3],
    )
    return share, [prefill_fit, decode_fit]


def fit_experts(label: str, folder: Path, gpus: Sequence[str]) -> tuple[ExpertShare, list[Fit]]:
    """Routed experts; skewed routing (power law 1.2), the nearest to real traffic."""
    rows = [
        {**row, "gpu": gpu, "format": EXPERT_FORMATS[row["dtype"]]}
        for gpu in gpus
        for row in table(folder, "moe", gpu)
        if row["dtype"] in EXPERT_FORMATS and row["routing"] != "balanced"
    ]
    formats = [d for d in ("bf16", "fp8", "fp4", "int4") if any(r["format"] == d for r in rows)]
    tokens, hidden, inter, top, total, tp, ep = (
        column(rows, c)
        for c in ("num_tokens", "hidden", "inter", "topk", "num_experts", "tp", "ep")
    )
    chips = accelerators(rows)
    peak = np.array([peak_flops_per_s(a, r["format"]) for a, r in zip(chips, rows, strict=True)])
    bandwidth = np.array([a.memory_bandwidth_bytes_per_s for a in chips])
    widths = np.array([weight_bytes(row["format"]) for row in rows])
    index = np.array([formats.index(row["format"]) for row in rows])

    count = len(formats)

    def seconds(x: Sequence[float]) -> Array:
        kernel_s, route_s, padding = x[:3]
        compute, memory = np.array(x[3 : 3 + count])[index], np.array(x[3 + count :])[index]
        rates = ExpertRates(
            kernel_s=kernel_s,
            s_per_flop=cast(Any, 1.0 / (peak * compute)),
            s_per_byte=cast(Any, 1.0 / (bandwidth * memory)),
            weight_bytes=cast(Any, widths),
            route_s_per_token=route_s,
            padding=padding,
        )
        return experts_s(
            tokens,
            rates,
            hidden=hidden,
            width=inter / tp,
            held=total / ep,
            total=total,
            per_token=top,
            matrices=3,
        )

    start = [3e-5, 3e-8, 16.0, *[0.4] * count, *[0.8] * count]
    upper = [3e-4, 1e-6, 128.0, *[1.0] * 2 * count]
    measured_s = column(rows, "time_ms") / 1e3
    x, fit = solve(f"experts {label}", seconds, measured_s, start=start, upper=upper)
    share = ExpertShare(
        compute=dict(zip(formats, x[3 : 3 + count], strict=True)),
        memory=dict(zip(formats, x[3 + count :], strict=True)),
        kernel_s=x[0],
        route_s=x[1],
        padding=x[2],
    )
    return share, [fit]


def fit_links(folder: Path) -> tuple[dict[str, LinkShare], list[Fit]]:
    """All-reduce of vLLM inside CUDA graphs: NVLink (A100, H100, H200, B200) and PCIe (L40S).

    GB200's own all-reduce is 2.6 times slower than NCCL's in the tables and left out.
    """
    nvlink, nvlink_fit = _fit_link("nvlink", folder, NVLINK)
    pcie, pcie_fit = _fit_link("pcie", folder, ("l40s",))
    return {"nvlink": nvlink, "pcie": pcie}, [nvlink_fit, pcie_fit]


def _fit_link(label: str, folder: Path, gpus: Sequence[str]) -> tuple[LinkShare, Fit]:
    rows = [
        {**row, "gpu": gpu}
        for gpu in gpus
        for row in read_rows(folder / f"comm_{gpu}.csv.gz")
        if row["collective"] == "all_reduce" and row["launch"] == "graph"
    ]
    members, size = column(rows, "world_size"), column(rows, "bytes")
    speed = np.array([a.interconnect_bytes_per_s for a in accelerators(rows)])
    x, fit = solve(
        f"all-reduce {label}",
        lambda x: all_reduce_s(size, members, x[0], x[2], 1 / (speed * x[1])),
        column(rows, "time_ms") / 1e3,
        start=[5e-6, 0.6, 0.3],
        upper=[1e-4, 1.0, 1.5],
        # Few sizes of the tables are those of prompts.
        weights=np.where(size >= PROMPT_MESSAGE_BYTES, 2.0, 1.0),
    )
    return LinkShare(bandwidth=x[1], latency_s=x[0], growth=x[2]), fit


def fit_architecture(
    label: str, folder: Path, gpus: Sequence[str]
) -> tuple[Architecture, list[Fit]]:
    """All operators of one generation."""
    products, memory, quantise, fits = fit_products(label, gemm_rows(folder, gpus))
    attention, more = fit_attention(label, folder, gpus)
    fits += more
    experts, more = fit_experts(label, folder, gpus)
    fits += more
    arch = Architecture(products, memory, quantise, attention, attention, experts)
    if any(r["scope"] == "module" for g in gpus for r in table(folder, "mla_decode", g)):
        latent, more = fit_latent(label, folder, gpus, arch)
        arch = replace(arch, latent=latent)
        fits += more
    return arch, fits


if __name__ == "__main__":
    from penstock.cost.step_fit_document import main

    main()
