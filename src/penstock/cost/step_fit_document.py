"""Put the fits together: chips without full tables, bands, errors, and the file itself."""

from __future__ import annotations

import argparse
from collections.abc import Mapping, Sequence
from dataclasses import asdict, fields, replace
from pathlib import Path
from statistics import median
from typing import Any, cast

import numpy as np
import yaml

from penstock.cost.coefficients import bundled_coefficients
from penstock.cost.step_arithmetic import product_s
from penstock.cost.step_coefficients import (
    BUNDLED,
    Architecture,
    Band,
    Chip,
    ExpertShare,
    Memory,
    ProductShare,
    StepCoefficients,
)
from penstock.cost.step_fit import (
    GENERATIONS,
    Array,
    Fit,
    accelerators,
    column,
    fit_architecture,
    fit_links,
    gemm_rows,
    read_rows,
    solve,
)
from penstock.cost.step_fit_engine import (
    ENGINES,
    LIGHT_CONCURRENCY,
    START,
    START_SHARED,
    fit_engines,
    light_ttft_s,
    read_deployments,
    tpot_ratios,
    ttft_reason,
)
from penstock.cost.step_rates import is_narrow, peak_flops_per_s, product_rates
from penstock.spec.catalogue import catalogue
from penstock.spec.load import load_model
from penstock.spec.model import LatentAttention, MixtureOfExperts, ModelSpec

# Workstation Blackwell (GDDR7, no tensor memory) is nearer to Ada than to the data-centre chips.
GENERATION_OF: Mapping[str, Sequence[str]] = {
    "ampere": ("A10", "A10G", "RTX-3090"),
    "ada": ("L40", "RTX-4090", "RTX-6000-Ada", "RTX-PRO-6000", "RTX-5090"),
    "hopper": ("H100-PCIe", "H100-NVL", "H20"),
    "blackwell": ("B300", "GB300"),
}
MEASURED: Mapping[str, str] = {
    "A100": "ampere",
    "H100": "hopper",
    "H200": "hopper",
    "L40S": "ada",
    "B200": "blackwell",
    "GB200": "blackwell",
}
# Products of these come from Vidur's profiles.
VIDUR: Mapping[str, str] = {"a30": "A30", "a40": "A40", "a6000": "RTX-A6000"}
# These come from the layer tables behind the layer roofline, relative to their generation.
LAYERS: Mapping[str, str] = {"L4": "ada", "T4": "ampere", "V100": "ampere"}
# Printed and visible memory of boards whose ECC takes its share of the GDDR memory.
GDDR_USABLE = 0.99
GDDR = (
    "L4",
    "L40",
    "L40S",
    "A10",
    "A10G",
    "A40",
    "T4",
    "RTX-6000-Ada",
    "RTX-PRO-6000",
    "RTX-A6000",
)
HBM_USABLE = 1.062
RESERVED_BYTES = 0.9e9
_NOTES = (
    "kernels follow the GPU generation; a chip without tables takes those of its generation",
    "sequence_s, prefill_s, latent_floor and the engines' figures are fitted to mean TPOT and "
    "TTFT of closed-loop runs; passes, usable memory and reserved bytes are assumed",
    "public fp8 experts are block-quantised; per-tensor fp8 experts are slower on Hopper",
    "nothing across nodes is measured: groups beyond 8 GPUs are extrapolated",
    "not modelled: sparse attention indexers, speculative decoding, expert imbalance over ranks "
    "beyond the skew of the tables",
)


def published_models() -> dict[str, ModelSpec]:
    """Families of the end-to-end rows; those without a preset as their config.json states."""
    return {
        "deepseek-v3-arch": load_model("deepseek-v3"),
        "kimi-k2.5": load_model("kimi-k2"),
        "llama-3.1-70b": load_model("llama3.1-70b"),
        "qwen3-235b-a22b-fp8": load_model("qwen3-235b-a22b"),
        "minimax-m2.5": ModelSpec(
            "minimax-m2.5", 62, 3072, 48, 8, 128, 1536, 200064, 196608,
            moe=MixtureOfExperts(256, 8, 1536),
        ),
        "glm-5": ModelSpec(
            "glm-5", 78, 6144, 64, 64, 256, 12288, 154880, 202752,
            # Sparse attention reads the 2048 best tokens of a context.
            sliding_window=2048,
            moe=MixtureOfExperts(256, 8, 2048, num_shared_experts=1, first_dense_layers=3),
            mla=LatentAttention(512, 2048, 64, 192, 256),
        ),
    }  # fmt: skip


def median_architecture(known: Sequence[Architecture]) -> Architecture:
    """Every figure the median of the generations that have it."""

    def middle(parts: Sequence[Any]) -> Any:
        values = {f.name: median(getattr(p, f.name) for p in parts) for f in fields(parts[0])}
        return type(parts[0])(**values)

    formats = dict.fromkeys(name for arch in known for name in arch.products)
    kinds = dict.fromkeys(name for arch in known for name in arch.experts.compute)
    experts = [arch.experts for arch in known]
    return Architecture(
        products={
            name: middle([a.products[name] for a in known if name in a.products])
            for name in formats
        },
        memory=median(a.memory for a in known),
        quantise=median(a.quantise for a in known),
        attention=middle([a.attention for a in known]),
        latent=middle([a.latent for a in known]),
        experts=ExpertShare(
            {n: median(e.compute[n] for e in experts if n in e.compute) for n in kinds},
            {n: median(e.memory[n] for e in experts if n in e.memory) for n in kinds},
            *(median(getattr(e, f.name) for e in experts) for f in fields(ExpertShare)[2:]),
        ),
    )


def fit_vidur(folder: Path, arch: Architecture) -> tuple[dict[str, Chip], list[Fit]]:
    """Compute and memory factors of Ampere chips from the fused MLP products of Vidur."""
    chips, fits = {}, []
    for device, name in VIDUR.items():
        rows = [row for row in read_rows(folder / f"mlp_{device}.csv.gz") if row["mlp_up_proj_ms"]]
        split = column(rows, "tp")
        m, k = column(rows, "num_tokens"), column(rows, "n_embd")
        n = 2 * column(rows, "ffn") / split
        chip = catalogue().get(name)
        share = arch.products["bf16"]

        def seconds(
            x: Sequence[float],
            peak: float = peak_flops_per_s(chip, "bf16"),
            bandwidth: float = chip.memory_bandwidth_bytes_per_s,
            shape: tuple[Array, Array, Array] = (m, n, k),
            share: ProductShare = share,
        ) -> Array:
            rates = product_rates(
                "bf16",
                kernel_s=share.kernel_s,
                compute=share.compute,
                memory=arch.memory,
                quantise=arch.quantise,
                peak=peak * x[0],
                bandwidth=bandwidth * x[1],
                narrow=False,
            )
            return product_s(*shape, rates)

        measured_s = column(rows, "mlp_up_proj_ms") / 1e3
        x, fit = solve(f"products {name}", seconds, measured_s, start=[1.0, 1.0], upper=[1.3, 1.3])
        chips[name] = Chip("ampere", "layers", x[0], x[1])
        fits.append(fit)
    return chips, fits


def known_chips(
    folder: Path, archs: Mapping[str, Architecture]
) -> tuple[dict[str, Chip], list[Fit]]:
    """Every chip we know something about."""
    chips = {name: Chip(arch, "measured") for name, arch in MEASURED.items()}
    for arch, names in GENERATION_OF.items():
        chips |= {name: Chip(arch, "generation") for name in names}
    layers = bundled_coefficients().chips
    for name, arch in LAYERS.items():
        base = archs[arch]
        compute = layers[name].prefill_compute / base.products["bf16"].compute
        chips[name] = Chip(arch, "layers", compute, layers[name].memory / base.memory)
    own, fits = fit_vidur(folder, archs["ampere"])
    chips |= own
    for name in GDDR:
        chips[name] = replace(chips[name], usable_memory=GDDR_USABLE)
    return chips, fits


def foreign_ratios(folder: Path, archs: Mapping[str, Architecture]) -> Array:
    """Measured / modelled bf16 and fp8 products of each generation with the others' median.

    What to expect of a chip whose generation has no tables.
    """
    ratios = []
    for name, gpus in GENERATIONS.items():
        arch = median_architecture([a for other, a in archs.items() if other != name])
        rows = [r for r in gemm_rows(folder, gpus) if r["format"] in ("bf16", "fp8")]
        chips = accelerators(rows)
        for dtype in ("bf16", "fp8"):
            chosen = [i for i, row in enumerate(rows) if row["format"] == dtype]
            if not chosen:
                continue
            own = [rows[i] for i in chosen]
            share = arch.products[dtype]
            rates = product_rates(
                dtype,
                kernel_s=share.kernel_s,
                compute=share.compute,
                memory=arch.memory,
                quantise=arch.quantise,
                peak=np.array([peak_flops_per_s(chips[i], dtype) for i in chosen]),
                bandwidth=np.array([chips[i].memory_bandwidth_bytes_per_s for i in chosen]),
                narrow=is_narrow(chips[chosen[0]], dtype),
            )
            m, n, k = (column(own, c) for c in "mnk")
            seconds = product_s(m, n, k, rates)
            ratios.append(column(own, "time_ms") / 1e3 / seconds)
    return np.concatenate(ratios)


def fit_all(reference: Path) -> tuple[StepCoefficients, list[Fit]]:
    """Operators, links, chips, engines and bands, and the error of each."""
    ops = reference / "measured" / "ops"
    archs: dict[str, Architecture] = {}
    fits: list[Fit] = []
    for name, gpus in GENERATIONS.items():
        archs[name], more = fit_architecture(name, ops, gpus)
        fits += more
    # Ampere's tables time latent kernels alone, launched eagerly: the other generations stand in.
    rest = median_architecture([a for name, a in archs.items() if name != "ampere"])
    archs["ampere"] = replace(archs["ampere"], latent=rest.latent)
    links, more = fit_links(ops)
    fits += more
    links["infinity-fabric"] = links["nvlink"]
    chips, more = known_chips(reference / "vidur" / "compute", archs)
    fits += more
    eager_s = bundled_coefficients().shared.launch_s
    base = StepCoefficients(
        architectures=archs,
        other=median_architecture(list(archs.values())),
        chips=chips,
        links=links,
        engines=dict.fromkeys(ENGINES, START),
        shared=replace(START_SHARED, eager_layer_s=eager_s),
        memory=Memory(HBM_USABLE, RESERVED_BYTES),
        bands={},
        source="",
        error="",
        domain="",
        notes=_NOTES,
    )
    table = reference / "measured" / "e2e_train" / "aiconfigurator_e2e_train.csv.gz"
    points = read_deployments(table, published_models())
    found = fit_engines(points, base)
    fits += [
        Fit(f"TTFT at concurrency {LIGHT_CONCURRENCY} or less, {engine}", np.array(ratios))
        for engine in ENGINES
        if (
            ratios := [
                p.ttft_s / predicted
                for p in points
                if p.engine == engine
                and ttft_reason(p) is None
                and (predicted := light_ttft_s(p, found)) is not None
            ]
        )
    ]
    held_out: list[Fit] = []
    for group in dict.fromkeys(p.group for p in points):
        own = [p for p in points if p.group == group]
        without = fit_engines([p for p in points if p.group != group], base)
        held_out += [
            Fit(f"TPOT held out {g}", f.ratios) for g, f in tpot_ratios(own, without).items()
        ]
    fits += held_out
    tpot = np.concatenate([f.ratios for f in held_out])
    foreign = foreign_ratios(ops, archs)
    bands = {"measured": band(tpot), "extrapolated": wider(band(tpot), band(foreign))}
    overall = Fit("TPOT held out, all", tpot)
    fits.append(overall)
    return (
        replace(
            found,
            bands=bands,
            source="operator tables and end-to-end means of ai-dynamo/aiconfigurator (Apache-2.0; "
            "mostly SemiAnalysis InferenceX runs), products of Vidur (MIT) and layer tables of "
            "Helix (Apache-2.0)",
            error=f"mean TPOT with the group left out of the engine fit: median "
            f"{overall.median:.1%}, p90 {overall.p90:.1%}",
            domain="operators on A100, H100, H200, L40S, B200, GB200 in groups of up to 8 over "
            "one node; vLLM, SGLang and TensorRT-LLM with CUDA graphs",
        ),
        fits,
    )


def band(ratios: Array) -> Band:
    return Band(float(np.quantile(ratios, 0.1)), float(np.quantile(ratios, 0.9)))


def wider(a: Band, b: Band) -> Band:
    return Band(min(a.low, b.low), max(a.high, b.high))


def rounded(value: Any) -> Any:
    """Four digits: more than any fit is worth."""
    if isinstance(value, float):
        return float(f"{value:.4g}")
    if isinstance(value, dict):
        return {key: rounded(entry) for key, entry in value.items() if entry is not None}
    return value


def document(found: StepCoefficients, fits: Sequence[Fit]) -> str:
    """The text of ``step_coefficients.yaml``."""
    body = {
        "architectures": {k: asdict(v) for k, v in found.architectures.items()},
        "other_architectures": asdict(found.other),
        "chips": {k: asdict(v) for k, v in found.chips.items()},
        "links": {k: asdict(v) for k, v in found.links.items()},
        "engines": {k: asdict(v) for k, v in found.engines.items()},
        "shared": asdict(found.shared),
        "memory": asdict(found.memory),
        "bands": {k: asdict(v) for k, v in found.bands.items()},
        "source": found.source,
        "error": found.error,
        "domain": found.domain,
        "notes": list(found.notes),
        "relative_error": {
            f.label: {"rows": len(f.ratios), "median": round(f.median, 3), "p90": round(f.p90, 3)}
            for f in fits
        },
    }
    header = (
        "# Written by `python -m penstock.cost.step_fit --reference DIR --write`. What the names\n"
        "# mean: cost/step_coefficients.py. `relative_error` is over the rows fitted to, except\n"
        "# `held out`, where the group had no part in the engine fit.\n"
    )
    return header + yaml.safe_dump(rounded(body), sort_keys=False, width=96)


def main(arguments: Sequence[str] | None = None) -> None:
    """Fit, print the errors and, if asked, renew the bundled file."""
    parser = argparse.ArgumentParser(description="Fit the step roofline to measured tables.")
    parser.add_argument("--reference", type=Path, required=True, help="folder of measured tables")
    parser.add_argument("--write", action="store_true", help="renew step_coefficients.yaml")
    options = parser.parse_args(arguments)
    found, fits = fit_all(cast(Path, options.reference))
    for fit in fits:
        errors = f"median {fit.median:6.1%}  p90 {fit.p90:6.1%}"
        print(f"{fit.label:55s} {len(fit.ratios):6d} rows  {errors}")
    if options.write:
        BUNDLED.write_text(document(found, fits), encoding="utf-8")
