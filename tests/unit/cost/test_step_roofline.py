"""The step roofline: hand figures, closed forms, monotonicity, memory, and honest provenance."""

from __future__ import annotations

from dataclasses import replace
from math import isclose
from timeit import timeit

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from penstock.cost.step_arithmetic import (
    experts_touched,
    layer_groups,
    smooth_max,
    visible_pairs,
)
from penstock.cost.step_coefficients import bundled_step_coefficients
from penstock.cost.step_roofline import StepRoofline
from penstock.cost.steps import EngineShape, StepTimer
from penstock.errors import Infeasible, SpecError
from penstock.spec.catalogue import catalogue
from penstock.spec.load import load_model
from penstock.spec.model import ModelSpec

GPUS = (
    *("A100-40GB", "A100-80GB", "H100-SXM", "H200", "B200", "GB200", "B300", "L4", "L40S"),
    *("A10G", "T4", "V100-16GB", "RTX-4090", "RTX-A6000", "RTX-PRO-6000-Blackwell"),
    *("MI300X", "MI325X"),
)
MODELS = ("llama3.1-8b", "mixtral-8x7b", "deepseek-v3", "qwen2.5-0.5b", "mistral-7b")


def shape(gpu: str = "H100-SXM", **sizes: int) -> EngineShape:
    return EngineShape(catalogue().get(gpu), **sizes)  # type: ignore[arg-type]


def timer(model: str | ModelSpec = "llama3.1-8b", gpu: str = "H100-SXM", **sizes: int) -> StepTimer:
    spec = load_model(model) if isinstance(model, str) else model
    return StepRoofline(spec).step_timer(shape(gpu, **sizes))


WINDOWED = replace(load_model("llama3.1-8b"), sliding_window=300)


@pytest.mark.parametrize("gpu", GPUS)
@pytest.mark.parametrize("model", MODELS)
def test_every_model_has_times_on_every_gpu(model: str, gpu: str) -> None:
    """A decode step reads at least its dense weights at the datasheet bandwidth."""
    spec, gpus = load_model(model), shape(gpu, tensor_parallel_size=2)
    step = StepRoofline(spec).step_timer(gpus)
    read = (
        sum(group.count * sum(p.n * p.k for p in group.products) for group in layer_groups(spec, 2))
        * spec.weight_bytes_per_parameter
    )
    least_s = read / gpus.accelerator.memory_bandwidth_bytes_per_s
    assert least_s < step.decode_s(1, 100) < step.decode_s(64, 6400)
    assert step.decode_s(64, 6400) < step.step_s([(2048, 0)], 64, 6400)


@pytest.mark.parametrize("model", MODELS)
@pytest.mark.parametrize("split", [1, 2, 4, 8])
def test_layer_shapes_hold_all_parameters(model: str, split: int) -> None:
    """What GPUs hold adds up to the published layers, where nothing is replicated."""
    spec = load_model(model)
    held = 0.0
    for group in layer_groups(spec, split):
        own = sum(p.n * p.k for p in group.products)
        if group.experts is not None:
            e = group.experts
            own += e.held * e.matrices * e.hidden * e.width
        held += group.count * own
    counted = sum(spec.layer_parameters(i) for i in range(spec.num_hidden_layers))
    if split == 1:
        assert isclose(held, counted, rel_tol=1e-9)
    else:
        assert counted / split <= held * (1 + 1e-9)
        assert held < counted / split * 1.35


def test_llama_8b_on_an_h100_by_hand() -> None:
    """16 GB of weights at 88 % of 3.35 TB/s are 5.1 ms; floors and host add less than 2.5 ms."""
    seconds = timer().decode_s(1, 500)
    assert 5.1e-3 < seconds < 7.6e-3


def test_a_long_prompt_is_bound_by_compute() -> None:
    """8192 tokens through 7.5 G layer weights at 60 to 85 % of 989 TFLOP/s, and attention."""
    flops = 2 * 8192 * 6.98e9 + 4 * 4096 * 32 * 8192**2 / 2
    seconds = timer().step_s([(8192, 0)], 0, 0)
    assert flops / (0.95 * 989e12) < seconds < flops / (0.45 * 989e12)


@given(
    model=st.sampled_from([*MODELS, "windowed"]),
    seqs=st.integers(1, 300),
    mean=st.integers(0, 3000),
    steps=st.integers(1, 400),
    stages=st.sampled_from([1, 2]),
)
@settings(max_examples=60, deadline=None)
def test_spans_are_sums_of_steps(model: str, seqs: int, mean: int, steps: int, stages: int) -> None:
    """The closed form, the running times and single steps agree, sliding windows included."""
    spec = WINDOWED if model == "windowed" else load_model(model)
    step = timer(spec, pipeline_parallel_size=stages)
    context = seqs * mean
    single = np.cumsum([step.decode_s(seqs, context + j * seqs) for j in range(steps)])
    assert isclose(step.decode_span_s(seqs, context, steps), single[-1], rel_tol=1e-12)
    np.testing.assert_allclose(step.decode_span_times_s(seqs, context, steps), single, rtol=1e-12)
    assert step.step_s([], seqs, context) == step.decode_s(seqs, context)


@given(
    windowed=st.booleans(),
    seqs=st.integers(1, 200),
    mean=st.integers(0, 600),
    share=st.floats(0.001, 1.2),
    most=st.integers(1, 700),
)
@settings(max_examples=80, deadline=None)
def test_steps_within_is_the_least_span(
    windowed: bool, seqs: int, mean: int, share: float, most: int
) -> None:
    """k steps reach the limit, k - 1 do not; the most is given back when none does."""
    step = timer(WINDOWED if windowed else "llama3.1-8b")
    context = seqs * mean
    limit_s = share * step.decode_span_s(seqs, context, most)
    k = step.steps_within(seqs, context, limit_s, most)
    assert 1 <= k <= most
    assert k == most or step.decode_span_s(seqs, context, k) >= limit_s
    assert k == 1 or step.decode_span_s(seqs, context, k - 1) < limit_s


@given(
    seqs=st.integers(1, 200), mean=st.integers(1, 4000), tokens=st.integers(1, 4000),
    cached=st.integers(0, 4000),
)  # fmt: skip
@settings(max_examples=50, deadline=None)
def test_more_work_takes_longer(seqs: int, mean: int, tokens: int, cached: int) -> None:
    """Time grows with sequences, context, prompt tokens and cached tokens."""
    step, context = timer(), seqs * mean
    base = step.step_s([(tokens, cached)], seqs, context)
    assert step.step_s([(tokens, cached)], seqs + 1, context) > base
    assert step.step_s([(tokens, cached)], seqs, context + 1000) > base
    assert step.step_s([(tokens + 64, cached)], seqs, context) > base
    assert step.step_s([(tokens, cached + 500)], seqs, context) > base


def test_parts_add_up_to_the_step() -> None:
    """The breakdown names every second of a step."""
    step = StepRoofline(load_model("mixtral-8x7b")).step_timer(shape(tensor_parallel_size=2))
    for prefill, seqs, context in (([], 8, 4000), ([(700, 0), (200, 50)], 8, 4000)):
        parts = step.parts_s(prefill, seqs, context)
        assert isclose(sum(parts.values()), step.step_s(prefill, seqs, context), rel_tol=1e-12)


def test_groups_of_gpus_are_faster_but_not_in_proportion() -> None:
    """Four GPUs beat one; all-reduces and floors keep them from four times the speed."""
    one, four = timer("llama2-13b"), timer("llama2-13b", tensor_parallel_size=4)
    assert one.decode_s(16, 16000) / 4 < four.decode_s(16, 16000) < one.decode_s(16, 16000)


def test_nvlink_beats_pcie_in_groups() -> None:
    """The same chips with a slow link pay for it, most on prompts."""
    spec = load_model("llama3.1-8b")
    fast = catalogue().get("A100-80GB")
    slow = replace(fast, interconnect="pcie", interconnect_bytes_per_s=32e9)
    times = [
        StepRoofline(spec).step_timer(EngineShape(chip, 4)).step_s([(4096, 0)], 0, 0)
        for chip in (fast, slow)
    ]
    assert times[1] > 1.3 * times[0]


def test_a_batch_touches_the_expected_number_of_experts() -> None:
    """Against draws without replacement: 8 of 128 experts for each of t tokens."""
    rng = np.random.default_rng(1)
    for tokens in (1, 4, 32, 200):
        seen = [
            len(np.unique([rng.choice(128, 8, replace=False) for _ in range(tokens)]))
            for _ in range(60)
        ]
        assert isclose(float(np.mean(seen)), experts_touched(tokens, 128, 128, 8), rel_tol=0.04)


def test_expert_parallel_groups_hold_whole_experts() -> None:
    """Splitting experts or handing them out whole moves the same bytes per GPU."""
    spec = load_model("qwen3-235b-a22b")
    split = layer_groups(spec, 8)[-1].experts
    whole = layer_groups(spec, 8, expert_parallel_size=8)[-1].experts
    assert split is not None
    assert whole is not None
    assert split.held * split.width == whole.held * whole.width
    assert (whole.width, split.held) == (1536, 128)


def test_copies_of_attention_share_the_context() -> None:
    """Two attention copies read half of the context each."""
    spec = load_model("deepseek-v3")
    cost = StepRoofline(spec)
    one = cost.step_timer(shape("H200", tensor_parallel_size=8, expert_parallel_size=8))
    two = cost.step_timer(
        shape("H200", tensor_parallel_size=4, data_parallel_size=2, expert_parallel_size=8)
    )

    def growth(step: StepTimer) -> float:
        return step.decode_s(64, 1_000_000) - step.decode_s(64, 0)

    # The latent cache is not split over heads, so only copies divide reading it.
    assert growth(two) < 0.75 * growth(one)


@pytest.mark.parametrize(
    ("tokens", "cached", "window"),
    [(1, 0, None), (7, 3, None), (10, 0, 4), (5, 2, 4), (6, 9, 4), (3, 1, 4), (4, 4, 4)],
)
def test_visible_pairs_by_counting(tokens: int, cached: int, window: int | None) -> None:
    """Token i of a chunk sees the cached tokens, those before it and itself, within the window."""
    counted = sum(min(cached + i + 1, window or 10**9) for i in range(tokens))
    assert visible_pairs(tokens, cached, window) == counted


def test_smooth_max_lies_between_maximum_and_sum() -> None:
    """It is the Euclidean norm of both times."""
    assert smooth_max(3.0, 4.0) == 5.0
    assert max(1.0, 9.0) <= smooth_max(1.0, 9.0) <= 10.0


@pytest.mark.parametrize("dtype", ["fp8", "int8", "int4", "fp4"])
def test_narrow_weights_speed_up_small_batches(dtype: str) -> None:
    """Decoding one sequence is bound by weights; a T4 widens what it cannot compute with."""
    spec = load_model("llama3.1-8b")
    narrow = replace(spec, weight_dtype=dtype)
    for gpu in ("B200", "T4"):
        wide_s = timer(spec, gpu).decode_s(1, 200)
        assert timer(narrow, gpu).decode_s(1, 200) < wide_s


def test_kv_memory_by_hand() -> None:
    """70B in bf16 on four H100: 76.5 GB may be used, weights take 35.3, the rest of the engine
    about 1.3; a token keeps 2 x 2 heads x 128 x 80 layers x 2 bytes per GPU."""
    cost = StepRoofline(load_model("llama3.1-70b"))
    tokens = cost.kv_capacity_tokens(shape(tensor_parallel_size=4))
    assert isclose(tokens, (76.5e9 - 35.3e9 - 1.3e9) / (2 * 2 * 128 * 80 * 2), rel_tol=0.01)


def test_a_model_that_does_not_fit_says_by_how_much() -> None:
    """The line names the bound and the way out."""
    with pytest.raises(Infeasible, match=r"llama3.1-70b does not fit on 1 x L4: .* GiB short"):
        StepRoofline(load_model("llama3.1-70b")).kv_capacity_tokens(shape("L4"))


def test_pipelines_split_layers_and_memory() -> None:
    """Two stages take about half of a step each and hold twice the context."""
    spec = load_model("llama2-13b")
    cost = StepRoofline(spec)
    one, two = shape("A100-40GB"), shape("A100-40GB", pipeline_parallel_size=2)
    half = cost.step_timer(two).decode_s(8, 8000)
    assert isclose(2 * half, cost.step_timer(one).decode_s(8, 8000), rel_tol=0.05)
    assert cost.kv_capacity_tokens(two) > 2 * cost.kv_capacity_tokens(one)


@pytest.mark.parametrize(
    ("sizes", "key"),
    [
        ({"tensor_parallel_size": 3}, "tensor_parallel_size"),
        ({"pipeline_parallel_size": 99}, "pipeline_parallel_size"),
        ({"expert_parallel_size": 3}, "expert_parallel_size"),
    ],
)
def test_shapes_that_cannot_split_the_model_are_refused(sizes: dict[str, int], key: str) -> None:
    """One line with the key and its value."""
    with pytest.raises(SpecError, match=key):
        timer("mixtral-8x7b", **sizes)


def test_engines_are_known_by_name() -> None:
    """A slip in the name of an engine is answered with the nearest one."""
    with pytest.raises(SpecError, match="vllm"):
        StepRoofline(load_model("llama3.1-8b"), engine="vlm")


def test_without_graphs_a_small_model_waits_for_its_launches() -> None:
    """Eager launches bound the small steps only."""
    spec = load_model("qwen2.5-0.5b")
    graphs = StepRoofline(spec).step_timer(shape())
    eager = StepRoofline(spec, enforce_eager=True).step_timer(shape())
    assert eager.decode_s(1, 100) > 1.5 * graphs.decode_s(1, 100)
    assert eager.step_s([(16384, 0)], 0, 0) == graphs.step_s([(16384, 0)], 0, 0)


def test_unmeasured_gpus_are_marked_and_have_wider_bands() -> None:
    """Tables exist for the H100; the RTX 4090 borrows from its generation."""
    cost = StepRoofline(load_model("llama3.1-8b"))
    assert cost.source_of(shape("H100-SXM")).kind == "fitted"
    for gpu in ("RTX-4090", "MI300X", "H100-PCIe", "B300"):
        assert cost.source_of(shape(gpu)).kind == "extrapolated"
    known, borrowed = cost.band(shape("H100-SXM")), cost.band(shape("RTX-4090"))
    assert borrowed.low <= known.low < 1 < known.high <= borrowed.high
    narrow = replace(load_model("llama3.1-8b"), weight_dtype="int4")
    assert StepRoofline(narrow).source_of(shape("A100-80GB")).kind == "fitted"
    assert StepRoofline(narrow).source_of(shape("H100-SXM")).kind == "extrapolated"
    # 4-bit floats are widened on Hopper by the kernels that were measured for 4-bit weights.
    assert StepRoofline(load_model("gpt-oss-120b")).source_of(shape("H100-SXM")).kind == "fitted"
    far = shape("H100-SXM", tensor_parallel_size=8, data_parallel_size=2)
    assert cost.source_of(far).kind == "extrapolated"


def test_chips_are_found_by_their_longest_name() -> None:
    """An L40S is not an L4, a GB200 not a B200, and an A1000 nothing we know."""
    known = bundled_step_coefficients()
    assert known.chip(catalogue().get("L40S")) is known.chips["L40S"]
    assert known.chip(catalogue().get("GB200")) is known.chips["GB200"]
    assert known.chip(catalogue().get("H100-PCIe")) is known.chips["H100-PCIe"]
    assert known.chip(catalogue().get("A100-40GB")) is known.chips["A100"]
    assert known.chip(catalogue().get("A10G")) is known.chips["A10G"]
    assert known.chip(catalogue().get("MI300X")) is None
    assert known.chip(replace(catalogue().get("A100-40GB"), name="A1000")) is None


def test_a_decode_step_takes_microseconds_to_price() -> None:
    """The simulator asks millions of times."""
    step = timer()
    step.decode_s(32, 1000)
    assert timeit(lambda: step.decode_s(32, 50_000), number=20_000) / 20_000 < 3e-6
    assert timeit(lambda: step.decode_span_s(32, 50_000, 90), number=20_000) / 20_000 < 3e-6
