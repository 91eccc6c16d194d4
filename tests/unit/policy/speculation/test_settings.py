"""Limits, required gains, adaptive shapes, latency tables and slots: hand figures."""

from __future__ import annotations

from math import inf

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from penstock.errors import SpecError
from penstock.policy.speculation.batching import SlotBatcher, SlotRules
from penstock.policy.speculation.latency import LatencyTable, StepLatency
from penstock.policy.speculation.shape import AdaptiveShape
from penstock.policy.speculation.slo import (
    TpotLimit,
    limit_of_ratio,
    limit_of_slo,
    required_gain,
    tpot_limit,
)
from penstock.spec.workload import SLO

TABLE = LatencyTable((0.0, 128.0, 256.0, 512.0), (0.02, 0.055, 0.085, 0.125))


@pytest.mark.parametrize(
    ("text", "seconds"),
    [("1.2x", 0.036), ("50 ms", 0.05), ("best effort", inf), ("0.15 s", 0.15)],
)
def test_limits_are_absolute_relative_or_absent(text: str, seconds: float) -> None:
    """A relative limit follows the model's baseline."""
    assert tpot_limit(text).seconds(0.03) == pytest.approx(seconds)


def test_published_ratios_and_workload_classes_become_limits() -> None:
    """Positive is relative, negative milliseconds, huge is best effort."""
    assert limit_of_ratio(1.2) == TpotLimit(multiple=1.2)
    assert limit_of_ratio(1.2).relative
    assert limit_of_ratio(-50).limit_s == pytest.approx(0.05)
    assert limit_of_ratio(1000.0).best_effort
    assert limit_of_slo(SLO(tpot_s=0.1)).limit_s == 0.1
    assert limit_of_slo(SLO()).best_effort


@pytest.mark.parametrize("text", ["fastx", "-1x", "0x", "-5 ms", "quick"])
def test_limits_that_are_none_are_refused_in_one_line(text: str) -> None:
    """The message names what was given."""
    with pytest.raises(SpecError) as caught:
        tpot_limit(text)
    assert "\n" not in str(caught.value)


def test_a_limit_cannot_be_both_absolute_and_relative() -> None:
    """One of the two must go."""
    with pytest.raises(SpecError, match="one of them"):
        TpotLimit(0.05, 1.2)


def test_the_required_gain_is_a_deficit_counter() -> None:
    """(l + t) / TPOT - o, with either margin; nothing is required of best effort."""
    l_s, o, limit = np.array([1.0, 1.0]), np.array([20.0, 20.0]), np.array([0.05, inf])
    assert required_gain(l_s, o, limit, 0.1).tolist() == pytest.approx([2.0, -inf])
    whole = required_gain(l_s, o, limit, 0.1, margin=1.05)
    step = required_gain(l_s, o, limit, 0.1, margin=1.05, margin_on_step_only=True)
    assert whole[0] == pytest.approx(3.1)
    assert step[0] == pytest.approx(2.1)


def test_depth_and_width_follow_the_published_formulas() -> None:
    """Llama: depth 8 until 56 requests, width 3 up to 32, 2 up to 48, then 1."""
    shape = AdaptiveShape(512, 96, 4, 8, 3)
    assert [shape.depth(n) for n in (1, 56, 57, 102, 200)] == [8, 8, 7, 4, 4]
    assert [shape.width(n) for n in (1, 32, 33, 48, 49, 500)] == [3, 3, 2, 2, 1, 1]
    assert AdaptiveShape(256, 80, 3, 5, 3, depth_offset=32).depth(12) == 4


def test_shapes_that_contradict_themselves_are_refused() -> None:
    """Depths must be ordered, budgets positive."""
    with pytest.raises(SpecError, match="min_depth"):
        AdaptiveShape(512, 96, 8, 4, 3)
    with pytest.raises(SpecError, match="at least 1"):
        AdaptiveShape(0, 96, 4, 8, 3)


@given(st.floats(0, 2000))
def test_tables_interpolate_and_extend_their_last_slope(tokens: float) -> None:
    """Between the points as numpy does, past them along the last segment."""
    inside = float(np.interp(min(tokens, 512.0), TABLE.tokens, TABLE.seconds))
    expected = inside + max(0.0, tokens - 512.0) * 0.04 / 256
    assert TABLE.at(tokens) == pytest.approx(expected)
    assert TABLE.tokens_within(TABLE.at(tokens)) == pytest.approx(tokens, abs=1e-6)


def test_a_step_is_its_draft_passes_its_verification_and_the_host() -> None:
    """Seconds add up; nothing fits into less than an empty step."""
    latency = StepLatency(0.005, TABLE, 0.001)
    assert latency.draft_s(4) + latency.target_s(128) == pytest.approx(0.076)
    assert TABLE.tokens_within(0.01) == 0.0


@pytest.mark.parametrize(
    ("tokens", "seconds"),
    [
        ((0.0,), (1.0,)),
        ((0.0, 0.0), (1.0, 2.0)),
        ((0.0, 1.0), (2.0, 1.0)),
        ((0.0, 1.0), (-1.0, 1.0)),
    ],
)
def test_tables_that_are_none_are_refused(
    tokens: tuple[float, ...], seconds: tuple[float, ...]
) -> None:
    """At least two points, ascending tokens, no falling or negative seconds."""
    with pytest.raises(SpecError):
        LatencyTable(tokens, seconds)


def test_chunked_prompts_share_steps_with_decodes() -> None:
    """The rest of the batch's tokens goes to the prompts that wait longest."""
    batcher = SlotBatcher(SlotRules(slots=2, prefill_tokens=100, batch_tokens=100))
    for row, tokens in enumerate((60, 90, 10)):
        batcher.add(row, tokens)
    assert batcher.admit() == [0, 1]
    batch = batcher.next_batch()
    assert batch is not None
    assert batch.prefill == ((0, 60), (1, 40))
    assert not batch.decode
    assert batcher.commit(batch) == [0]
    batch = batcher.next_batch()
    assert batch is not None
    assert (batch.prefill, batch.decode) == (((1, 50),), True)
    assert batcher.commit(batch) == [1]
    assert (batcher.waiting, batcher.occupancy) == (1, 1.0)
    batcher.finish(1)
    assert batcher.admit() == [2]


def test_whole_prompts_go_first_and_alone() -> None:
    """Without chunks decodes wait, and a prompt longer than a step's tokens still runs."""
    batcher = SlotBatcher(SlotRules(slots=9, prefill_tokens=100, chunked=False))
    for row, tokens in enumerate((150, 60, 50)):
        batcher.add(row, tokens)
    batcher.admit()
    seen = []
    while (batch := batcher.next_batch()) is not None and not batch.decode:
        seen.append(batch.prefill)
        batcher.commit(batch)
    assert seen == [((0, 150),), ((1, 60),), ((2, 50),)]
    assert batch is not None
    assert batch.decode
