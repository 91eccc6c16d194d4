"""The bundled step coefficients follow from the measured tables, and predict what they should."""

from __future__ import annotations

import csv
import gzip
from dataclasses import asdict
from math import isclose
from pathlib import Path

import numpy as np
import pytest

from penstock.cost.step_coefficients import BUNDLED, bundled_step_coefficients
from penstock.cost.step_fit import (
    GENERATIONS,
    fit_attention,
    fit_links,
    fit_products,
    gemm_rows,
)
from penstock.cost.step_fit_document import median_architecture, published_models
from penstock.cost.step_fit_engine import (
    deployment_shape,
    fit_reason,
    read_deployments,
    steady_tpot_s,
    thinned,
    tpot_ratios,
)
from penstock.cost.step_roofline import StepRoofline
from penstock.cost.steps import EngineShape
from penstock.spec.catalogue import catalogue
from penstock.spec.load import load_model

ROW = {
    "tp_size": "4",
    "moe_tp_size": "1",
    "moe_ep_size": "4",
    "attention_dp_size": "1",
    "system": "h100_sxm",
}


def close(bundled: object, fitted: object) -> bool:
    """Equal to the digits the file keeps."""
    if isinstance(bundled, dict) and isinstance(fitted, dict):
        return all(close(bundled[key], fitted[key]) for key in bundled)
    return isclose(float(str(bundled)), float(str(fitted)), rel_tol=2e-3)


@pytest.mark.reference
def test_operator_figures_follow_from_the_tables(reference: Path) -> None:
    """Refitting Ampere's products and attention and the links gives the bundled figures."""
    folder, known = reference / "measured" / "ops", bundled_step_coefficients()
    arch = known.architectures["ampere"]
    shares, memory, _, _ = fit_products("ampere", gemm_rows(folder, GENERATIONS["ampere"]))
    assert close(arch.memory, memory)
    assert close(asdict(arch.products["bf16"]), asdict(shares["bf16"]))
    attention, _ = fit_attention("ampere", folder, GENERATIONS["ampere"])
    assert close(asdict(arch.attention), asdict(attention))
    links, _ = fit_links(folder)
    assert close(asdict(known.links["nvlink"]), asdict(links["nvlink"]))


@pytest.mark.reference
def test_end_to_end_tpot_is_met(reference: Path) -> None:
    """Mean TPOT of the published deployments: median error under 11 %, by family under 16 %."""
    table = reference / "measured" / "e2e_train" / "aiconfigurator_e2e_train.csv.gz"
    points = [p for p in thinned(read_deployments(table, published_models())) if not fit_reason(p)]
    by_group = tpot_ratios(points, bundled_step_coefficients())
    everything = np.concatenate([fit.ratios for fit in by_group.values()])
    assert np.median(np.abs(1 / everything - 1)) < 0.11
    families: dict[str, list[float]] = {}
    for group, fit in by_group.items():
        families.setdefault(group.split("|")[0], []).extend(np.abs(1 / fit.ratios - 1))
    assert all(np.median(errors) < 0.16 for errors in families.values())


@pytest.mark.reference
def test_static_batches_of_another_lab_are_met(reference: Path) -> None:
    """Splitwise's Llama-2-70B on eight H100, which no figure was fitted to."""
    path = reference / "measured" / "static" / "splitwise_perf_model.csv.gz"
    with gzip.open(path, "rt", encoding="utf-8") as file:
        rows = [
            row
            for row in csv.DictReader(file)
            if row["model"] == "llama2-70b"
            and row["hardware"] == "h100-80gb"
            and row["tensor_parallel"] == "8"
        ]
    step = StepRoofline(load_model("llama2-70b")).step_timer(
        EngineShape(catalogue().get("H100-SXM"), 8)
    )
    prefill, decode = [], []
    for row in rows:
        prompt, seqs, output = (int(row[c]) for c in ("prompt_size", "batch_size", "token_size"))
        prefill.append(1e3 * step.step_s([(prompt, 0)] * seqs, 0, 0) / float(row["prompt_time"]))
        context = seqs * (prompt + output // 2)
        decode.append(1e3 * step.decode_s(seqs, context) / float(row["token_time"]))
    # An engine of 2023 without today's kernels and graphs: slower than what we price, never
    # much faster.
    assert 0.4 < np.median(prefill) < 1.2
    assert 0.3 < np.median(decode) < 1.1


@pytest.mark.parametrize(
    ("changes", "sizes"),
    [
        ({}, (4, 4, 1)),
        ({"tp_size": "16", "moe_tp_size": "4"}, (4, 4, 1)),
        ({"moe_ep_size": "16", "attention_dp_size": "4"}, (4, 4, 1)),
        ({"tp_size": "2", "moe_tp_size": "4", "moe_ep_size": "1", "attention_dp_size": ""},
         (2, 1, 2)),
    ],
)  # fmt: skip
def test_parallel_sizes_of_the_table_are_untangled(
    changes: dict[str, str], sizes: tuple[int, int, int]
) -> None:
    """Products of sizes stored as one size are taken apart again."""
    shape = deployment_shape({**ROW, **changes})
    assert shape is not None
    found = (shape.tensor_parallel_size, shape.expert_parallel_size, shape.data_parallel_size)
    assert found == sizes


def test_sizes_that_contradict_each_other_are_left_out() -> None:
    """Sixty-four-way tensor parallelism on a chip of eight is not a deployment."""
    assert (
        deployment_shape({**ROW, "tp_size": "36", "moe_tp_size": "36", "moe_ep_size": "1"}) is None
    )
    assert deployment_shape({**ROW, "tp_size": ""}) is None
    assert deployment_shape({**ROW, "system": "unknown"}) is None


@pytest.mark.reference
def test_steady_tpot_agrees_with_single_steps(reference: Path) -> None:
    """At concurrency 1 nothing interferes: TPOT is one decode step at the middle of the output."""
    table = reference / "measured" / "e2e_train" / "aiconfigurator_e2e_train.csv.gz"
    known = bundled_step_coefficients()
    point = next(
        p for p in read_deployments(table, published_models()) if p.group.startswith("llama")
    )
    alone = type(point)(
        **{name: getattr(point, name) for name in point.__slots__} | {"concurrency": 1}
    )
    step = StepRoofline(alone.model, engine=alone.engine, coefficients=known).step_timer(
        alone.shape
    )
    context = int(alone.mean_input_tokens + alone.mean_output_tokens / 2)
    found = steady_tpot_s(alone, known)
    assert found is not None
    assert isclose(found, step.decode_s(1, context))


def test_other_generations_get_the_median_figures() -> None:
    """An unknown chip is never better than the best generation, nor worse than the worst."""
    known = bundled_step_coefficients()
    archs = list(known.architectures.values())
    assert median_architecture(archs).memory == pytest.approx(known.other.memory, rel=1e-3)
    assert min(a.memory for a in archs) <= known.other.memory <= max(a.memory for a in archs)


def test_the_bundled_file_states_its_errors() -> None:
    """Every family of figures has its rows, median and p90 beside it."""
    text = BUNDLED.read_text(encoding="utf-8")
    known = bundled_step_coefficients()
    for label in ("products hopper bf16", "experts blackwell", "all-reduce pcie", "held out, all"):
        assert label in text
    assert "median" in known.error
    assert known.notes
    assert known.bands["extrapolated"].low <= known.bands["measured"].low
