"""Engines with roles: nothing is lost, KV memory is counted on both sides, links are slow."""

from __future__ import annotations

from dataclasses import replace
from math import inf
from typing import Literal

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from penstock.cost.linear import DecodeLine, LinearCoefficients, LinearStepCost
from penstock.cost.steps import EngineShape
from penstock.errors import InputError, SpecError
from penstock.measure.run import Run
from penstock.plan.settings import HandoffSettings
from penstock.policy.schedulers import SchedulerSettings
from penstock.sim.disaggregated import RoleFleet, simulate_disaggregated
from penstock.sim.engines import EngineOptions, EngineSpec
from penstock.spec.catalogue import catalogue
from penstock.spec.load import load_model
from penstock.spec.workload import Request, Workload

MODEL = load_model("llama-3-8b")
KV_BYTES = MODEL.kv_bytes_per_token_per_layer * MODEL.num_hidden_layers
COST = LinearStepCost(
    MODEL, LinearCoefficients(0.01, 6e-5, 1e-8, DecodeLine(0.01, 8e-8, 4e-5)), 100_000
)
SHAPE = EngineShape(catalogue().get("A100-80GB"))


def engine(name: str, role: str, blocks: int = 1000, **options: object) -> EngineSpec:
    scheduler = SchedulerSettings(max_num_batched_tokens=512, max_num_seqs=64)
    return EngineSpec(name, SHAPE, scheduler, role, blocks, **options)  # type: ignore[arg-type]


def run(
    requests: list[Request],
    engines: list[EngineSpec],
    handoff: HandoffSettings | None = None,
    **options: object,
) -> Run:
    fleet = RoleFleet(tuple(engines), handoff or HandoffSettings())
    return simulate_disaggregated(
        fleet,
        Workload("test", 0.0, trace=tuple(requests)),
        COST,
        EngineOptions(check=True, **options),  # type: ignore[arg-type]
    )


def test_a_single_request_takes_its_steps_and_its_transfer() -> None:
    """One request: the prompt, the transfer of its KV bytes, then one step per further token."""
    handoff = HandoffSettings(bandwidth_bytes_per_s=10e9, latency_s=0.001)
    found = run([Request(0, 1.0, 300, 4)], [engine("p", "prefill"), engine("d", "decode")], handoff)
    prompt_s = 0.01 + 6e-5 * 300 + 1e-8 * 300**2
    transfer_s = 0.001 + 300 * KV_BYTES / 10e9
    decode_s = sum(0.01 + 8e-8 * context + 4e-5 for context in (300, 301, 302))
    assert found.requests.first_token_s[0] == pytest.approx(1 + prompt_s)
    assert found.requests.last_token_s[0] == pytest.approx(1 + prompt_s + transfer_s + decode_s)
    assert len(found.tokens.times_s) == 4
    assert found.links is not None
    assert found.links.bytes.tolist() == [300 * KV_BYTES]


def test_layers_hide_behind_the_prompt() -> None:
    """Layer by layer only what the prompt's step cannot hide is waited for, at least one layer."""
    plain = HandoffSettings(bandwidth_bytes_per_s=1e9)
    ahead = replace(plain, layer_by_layer=True)
    assert plain.transfer_s(32e6, 32) == pytest.approx(0.032)
    assert ahead.transfer_s(32e6, 32, 1.0) == pytest.approx(0.001)
    assert ahead.transfer_s(32e6, 32, 0.016) == pytest.approx(0.032 - 0.016 * 31 / 32)
    with pytest.raises(SpecError, match="push"):
        HandoffSettings(mode="pull", layer_by_layer=True)


def test_transfers_of_one_engine_wait_for_each_other() -> None:
    """Two prompts of one batch leave one after the other over the link of their engine."""
    handoff = HandoffSettings(bandwidth_bytes_per_s=1e9)
    engines = [engine("p", "prefill"), engine("d0", "decode"), engine("d1", "decode")]
    found = run([Request(0, 0.0, 200, 2), Request(1, 0.0, 200, 2)], engines, handoff)
    first, second = sorted(found.requests.last_token_s)
    assert second - first == pytest.approx(200 * KV_BYTES / 1e9, rel=1e-6)


def test_full_decode_engines_hold_prompts_back() -> None:
    """With little memory to decode in, prompts wait for it in the memory of their own engine."""
    requests = [Request(i, 0.01 * i, 320, 100) for i in range(12)]
    ample = run(requests, [engine("p", "prefill"), engine("d", "decode")])
    tight = run(requests, [engine("p", "prefill", 60), engine("d", "decode", 60)])
    assert tight.counters["finished"] == ample.counters["finished"] == 12
    assert tight.requests.first_token_s[-1] > ample.requests.first_token_s[-1] + 1
    assert tight.nodes is not None
    assert tight.nodes.peak_kv_fraction.max() <= 1


def test_a_request_beyond_every_memory_is_rejected() -> None:
    """Prompt or whole request larger than the KV pools: rejected and counted, never looped on."""
    engines = [engine("p", "prefill", 100), engine("d", "decode", 30)]
    found = run([Request(0, 0.0, 320, 400), Request(1, 0.0, 100, 5)], engines)
    assert found.counters["rejected"] == 1
    assert found.counters["finished"] == 1


def test_missing_roles_are_refused() -> None:
    """A fleet in which nobody decodes, or nobody computes prompts, is the user's mistake."""
    with pytest.raises(InputError, match="nobody decodes"):
        RoleFleet((engine("p", "prefill"),))
    with pytest.raises(InputError, match="prompts"):
        RoleFleet((engine("d", "decode"), engine("b", "both")))


@settings(max_examples=30, deadline=None)
@given(
    st.lists(
        st.tuples(st.floats(0, 2), st.integers(1, 700), st.integers(1, 90)), min_size=1, max_size=25
    ),
    st.integers(1, 2),
    st.integers(1, 2),
    st.sampled_from([60, 90, 1000]),
    st.sampled_from([(2e8, "push"), (5e9, "push"), (inf, "push"), (5e9, "pull")]),
)
def test_spans_equal_single_steps(
    rows: list[tuple[float, int, int]],
    prefills: int,
    decodes: int,
    blocks: int,
    link: tuple[float, Literal["push", "pull"]],
) -> None:
    """Spans of steps give the run of single steps, and every token of every request is there."""
    rows.sort()
    requests = [Request(i, at, prompt, output) for i, (at, prompt, output) in enumerate(rows)]
    engines = [engine(f"p{i}", "prefill", blocks) for i in range(prefills)]
    engines += [engine(f"d{i}", "decode", blocks) for i in range(decodes)]
    handoff = HandoffSettings(link[0], 0.002, link[1])
    fast = run(requests, engines, handoff)
    slow = run(requests, engines, handoff, step_by_step=True)
    for name in ("first_token_s", "last_token_s"):
        ours, oracle = getattr(fast.requests, name), getattr(slow.requests, name)
        np.testing.assert_allclose(ours, oracle, rtol=0, atol=1e-9)
    assert fast.counters["finished"] + fast.counters["rejected"] == len(requests)
    done = fast.requests.status == 2
    counts = np.diff(fast.tokens.offsets)[done]
    np.testing.assert_array_equal(counts, fast.requests.output_tokens[done])
