"""The table-free model: fit error, invariants, capacities."""

from __future__ import annotations

import math
import re
from dataclasses import replace
from pathlib import Path
from statistics import median

import pytest
from cost_fleet import LLAMA2_70B, LLAMA_30B, accelerator, node
from hypothesis import given
from hypothesis import strategies as st

from penstock.cost.coefficients import bundled_coefficients
from penstock.cost.roofline import RooflineCost
from penstock.cost.tables import LayerTableCost
from penstock.errors import InputError, SpecError
from penstock.spec.catalogue import catalogue
from penstock.spec.hardware import Node
from penstock.spec.model import ModelSpec
from penstock.spec.models import presets

MACHINES = ("A100", "V100", "L4", "L4x2", "T4", "T4x2", "T4x4")
SIZES = (100, 500, 1000, 2000, 4000)
SEQS = (2, 10, 20, 60, 100, 200, 400)
CONTEXT = 756  # decode context the tables were taken at, as fitted


def test_hand_computed_time() -> None:
    """One decode step on one A100 is launch + |compute, weights| + KV, from the stated shares."""
    found = bundled_coefficients()
    chip, shared = found.chips["A100"], found.shared
    bandwidth = 1555e9 * chip.memory
    compute = 16 * 2 * 855_638_016 / (312e12 * chip.decode_compute)
    weights = 2 * 855_638_016 / bandwidth
    expected = (
        shared.launch_s
        + math.sqrt(compute**2 + weights**2)
        + 16_000 * 4096 / bandwidth
        + 16 * shared.hidden_passes * 16384 / bandwidth
    )
    timer = RooflineCost(LLAMA2_70B).layer_timer(node("A100"))
    assert timer(0, 16, 16_000) == pytest.approx(expected, rel=1e-12)


@pytest.mark.reference
@pytest.mark.parametrize("machine", MACHINES)
@pytest.mark.parametrize("model", [LLAMA2_70B, LLAMA_30B], ids=["70B", "30B"])
def test_close_to_the_measured_tables(reference: Path, model: ModelSpec, machine: str) -> None:
    """Median error against the tables stays under 16 % in both phases on every machine."""
    measured = LayerTableCost(model, reference / "helix" / "profiles").planning_timer(node(machine))
    modelled = RooflineCost(model).layer_timer(node(machine))
    prefill = [abs(modelled(x, 0, 0) / measured(x, 0, 0) - 1) for x in SIZES]
    decode = [abs(modelled(0, x, x * CONTEXT) / measured(0, x, 0) - 1) for x in SEQS]
    assert median(prefill) < 0.16
    assert median(decode) < 0.16


@pytest.mark.reference
@pytest.mark.parametrize("model", [LLAMA2_70B, LLAMA_30B], ids=["70B", "30B"])
def test_kv_capacity_close_to_the_measured(reference: Path, model: ModelSpec) -> None:
    """At the profiled utilisation the median KV capacity is within 10 % of the table."""
    tables = LayerTableCost(model, reference / "helix" / "profiles")
    cost = RooflineCost(model, gpu_memory_utilization=0.8)
    errors = [
        abs(cost.kv_capacity_layer_tokens(n, k) / tables.kv_capacity_layer_tokens(n, k) - 1)
        for n in map(node, MACHINES)
        for k in range(1, tables.max_layers(n) + 1)
    ]
    assert median(errors) < 0.10


def test_stated_error_and_source_reach_the_provenance() -> None:
    """Users see the fit error; chips outside the fit are marked extrapolated."""
    cost = RooflineCost(LLAMA2_70B)
    fitted, other = cost.provenance
    assert re.search(r"decode: median [\d.]+%, p90 [\d.]+%", fitted.error)
    assert any("vLLM 0.4" in note for note in fitted.notes)
    assert cost.source_of(node("L4x2")) == fitted
    assert cost.source_of(node("H100")) == other
    assert other.kind == "extrapolated"


@given(
    machine=st.sampled_from((*MACHINES, "H100")),
    tokens=st.integers(0, 8000),
    seqs=st.integers(0, 512),
    context=st.integers(0, 500_000),
)
def test_times_grow_with_the_batch_and_phases_add(
    machine: str, tokens: int, seqs: int, context: int
) -> None:
    """More tokens, sequences or context never cost less; a mixed step is the sum of both."""
    timer = RooflineCost(LLAMA2_70B).layer_timer(node(machine))
    here = timer(tokens, seqs, context)
    assert here >= 0
    assert timer(tokens + 1, seqs, context) >= here
    assert timer(tokens, seqs + 1, context) >= here
    assert timer(tokens, seqs, context + 1) >= here
    assert here == pytest.approx(timer(tokens, 0, 0) + timer(0, seqs, context))


def test_every_preset_runs_on_every_accelerator() -> None:
    """All bundled models on all bundled accelerators give finite times and consistent limits."""
    for chip in catalogue().accelerators.values():
        machine = Node(
            chip.name, chip, 1, chip.name, "", 1e9, 1e9, 1e9, memory_bytes=chip.memory_bytes
        )
        for preset in presets().values():
            cost = RooflineCost(preset.spec)
            timer = cost.layer_timer(machine)
            assert 0 < timer(0, 1, 1000) < 1
            assert 0 < timer(1000, 0, 0) < 10
            layers = cost.max_layers(machine)
            assert 0 <= layers <= cost.hard_max_layers(machine) <= preset.spec.num_hidden_layers
            limits = cost.batch_limits(machine, layers)
            assert limits.max_prefill_tokens >= preset.spec.max_position_embeddings
            if layers:
                assert cost.kv_capacity_layer_tokens(machine, layers) >= 1000 * layers


def test_tensor_parallel_group_is_faster_but_not_free() -> None:
    """Two GPUs beat one and stay short of twice as fast; NVLink groups gain more than PCIe ones."""

    def gain(name: str) -> float:
        cost = RooflineCost(LLAMA2_70B)
        one = cost.layer_timer(node(name))(2000, 0, 0)
        return one / cost.layer_timer(node(f"{name}x2"))(2000, 0, 0)

    assert 1 < gain("L4") < gain("V100") < 2
    bare = replace(accelerator("L4"), interconnect_bytes_per_s=0.0)
    with pytest.raises(SpecError, match="share no interconnect"):
        RooflineCost(LLAMA2_70B).layer_timer(replace(node("L4x2"), accelerator=bare))


def test_kv_capacity_by_hand() -> None:
    """KV memory is usable memory less activations, weights and their part of the embeddings."""
    share = bundled_coefficients().shared.usable_memory
    usable = 40e9 * share * 0.9 - 2048 * (2 * 28672 + 4 * 8192) * 2
    weights = 10 * (2 * 855_638_016 + 2 * 32000 * 8192 * 2 / 80)
    cost = RooflineCost(LLAMA2_70B)
    assert cost.kv_capacity_layer_tokens(node("A100"), 10) == int((usable - weights) / 4096)
    assert cost.kv_capacity_layer_tokens(node("A100"), 0) == 0
    assert cost.kv_capacity_layer_tokens(node("T4"), 40) == 0


def test_whole_model_where_it_fits() -> None:
    """A 7B model goes whole on one L4, although its weights pass half of the memory."""
    small = ModelSpec("llama2-7b", 32, 4096, 32, 32, 128, 11008, 32000, 4096, dtype="fp16")
    assert RooflineCost(small).max_layers(node("A100")) == 32
    assert RooflineCost(LLAMA2_70B).max_layers(node("A100")) == 11
    gqa = replace(small, num_key_value_heads=8)
    assert RooflineCost(gqa).max_layers(node("L4")) == 32


@pytest.mark.parametrize("share", [0.0, 1.5, float("nan")])
def test_utilisation_outside_its_range(share: float) -> None:
    """gpu_memory_utilization is a share."""
    with pytest.raises(InputError, match="gpu_memory_utilization"):
        RooflineCost(LLAMA2_70B, gpu_memory_utilization=share)


def test_sliding_window_bounds_the_context() -> None:
    """With a window of 1000, context beyond it is not read."""
    windowed = RooflineCost(replace(LLAMA2_70B, sliding_window=1000)).layer_timer(node("A100"))
    plain = RooflineCost(LLAMA2_70B).layer_timer(node("A100"))
    assert windowed(0, 4, 20_000) == plain(0, 4, 4000) < plain(0, 4, 20_000)


@pytest.mark.reference
def test_outside_the_fit(reference: Path) -> None:
    """LLaMA-2 70B on two A100-80GB or H100 decodes within 20 % of Splitwise's measured times."""
    # Medians of static/splitwise_perf_model.csv.gz at prompt 512, batch 16 (ms per token).
    chip = replace(accelerator("A100"), name="A100-80GB", memory_bandwidth_bytes_per_s=2039e9)
    cost = RooflineCost(LLAMA2_70B)
    for accelerator_, token_s in ((chip, 0.0655), (accelerator("H100"), 0.0420)):
        timer = cost.layer_timer(replace(node("A100x2"), accelerator=accelerator_))
        assert 80 * timer(0, 16, 16 * 576) == pytest.approx(token_s, rel=0.2)
