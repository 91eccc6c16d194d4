"""Speculation as a step cost: yields by hand, spans by sums, memory by both models."""

from __future__ import annotations

import pytest
from hypothesis import given
from hypothesis import strategies as st

from penstock.cost.step_roofline import StepRoofline
from penstock.cost.steps import EngineShape
from penstock.errors import Infeasible, SpecError
from penstock.plan.goodput.costs import FleetCosts, check_acceptance, constant_acceptance
from penstock.plan.goodput.speculative_cost import SpeculativeCost, SpeculativeTimer
from penstock.plan.settings import SpeculationSettings
from penstock.spec.catalogue import catalogue
from penstock.spec.load import load_model

TARGET, DRAFT = (StepRoofline(load_model(name)) for name in ("llama-3.1-70b", "llama-3.2-1b"))
SHAPE = EngineShape(catalogue().get("H100"), 4)
CURVE = constant_acceptance(0.7)


def timer(method: str, length: int = 4) -> SpeculativeTimer:
    settings = SpeculationSettings(method, "draft", num_speculative_tokens=length)  # type: ignore[arg-type]
    return SpeculativeCost(TARGET, DRAFT, settings, CURVE).step_timer(SHAPE)


def test_a_chain_costs_its_step_over_what_it_yields() -> None:
    """n draft passes and one step over n + 1 tokens each, for 1 + a + ... + a^n tokens."""
    seqs, context = 8, 8 * 700
    step = TARGET.step_timer(SHAPE).decode_s(seqs * 4, context)
    step += 3 * DRAFT.step_timer(SHAPE).decode_s(seqs, context)
    yields = 1 + 0.7 + 0.49 + 0.343
    assert timer("chain", 3).decode_s(seqs, context) == pytest.approx(step / yields)


@given(st.integers(1, 120), st.integers(1, 4000), st.integers(1, 60))
def test_spans_are_sums_of_steps(seqs: int, each: int, steps: int) -> None:
    """The closed form of a span equals its steps one by one."""
    found = timer("penstock")
    total = sum(found.decode_s(seqs, seqs * (each + k)) for k in range(steps))
    assert found.decode_span_s(seqs, seqs * each, steps) == pytest.approx(total, rel=1e-9)


def test_by_load_never_loses_and_drafts_less_when_busy() -> None:
    """At the context it chooses for, no chain and no plain decoding is cheaper; depth falls."""
    found, plain = timer("penstock"), TARGET.step_timer(SHAPE)
    depths = []
    for seqs in (1, 4, 16, 64, 256):
        context = seqs * 1024
        others = [timer("chain", n).decode_s(seqs, context) for n in range(1, 9)]
        assert found.decode_s(seqs, context) == pytest.approx(
            min(plain.decode_s(seqs, context), *others)
        )
        depths.append(found.depth(seqs))
    assert depths == sorted(depths, reverse=True)
    assert depths[0] > depths[-1]


def test_prompts_beside_decodes_cost_more_than_alone() -> None:
    """A mixed step pays for both models' prompts and for the share of its decodes."""
    found, prompts = timer("chain"), [(512, 0)]
    alone = found.step_s(prompts, 0, 0)
    both = TARGET.step_timer(SHAPE).step_s(prompts, 0, 0)
    both += DRAFT.step_timer(SHAPE).step_s(prompts, 0, 0)
    assert alone == pytest.approx(both)
    assert found.step_s(prompts, 16, 16_000) > alone
    assert found.step_s([], 16, 16_000) == found.decode_s(16, 16_000)


def test_the_draft_takes_memory() -> None:
    """KV memory shrinks by the draft's weights and entries, and there may be none."""
    settings = SpeculationSettings("chain", "draft")
    alone = TARGET.kv_capacity_tokens(SHAPE)
    beside = SpeculativeCost(TARGET, DRAFT, settings, CURVE).kv_capacity_tokens(SHAPE)
    # 2.47 GB of weights over 4 GPUs, and 32 kB of entries beside 320 kB of the target.
    entry, draft = 2 * 8 * 128 * 2 * 80 / 4, 2 * 8 * 64 * 2 * 16 / 4
    assert beside == pytest.approx((alone * entry - 2.47e9 / 4) / (entry + draft), rel=0.01)
    tight = SpeculativeCost(TARGET, TARGET, settings, CURVE)
    with pytest.raises(Infeasible, match="does not fit beside"):
        tight.kv_capacity_tokens(EngineShape(catalogue().get("H100"), 2))


def test_what_cannot_be_modelled_is_refused() -> None:
    """Pipelines, curves that rise, and speculation without a draft."""
    settings = SpeculationSettings("chain", "draft")
    with pytest.raises(SpecError, match="pipeline"):
        SpeculativeCost(TARGET, DRAFT, settings, CURVE).step_timer(
            EngineShape(catalogue().get("H100"), 4, 2)
        )
    with pytest.raises(SpecError, match="fall"):
        check_acceptance((0.5, 0.6))
    with pytest.raises(SpecError, match="between 0 and 1"):
        constant_acceptance(1.0)
    with pytest.raises(SpecError, match="draft model"):
        FleetCosts(TARGET).of(None, settings)


def test_what_the_host_takes_outside_of_steps_is_the_targets() -> None:
    """A request with speculation waits as long for its scheduler as one without."""
    cost = SpeculativeCost(TARGET, DRAFT, SpeculationSettings("chain", "draft"), CURVE)
    assert TARGET.request_s(900) > 0
    assert cost.request_s(900) == TARGET.request_s(900)
