"""Linear step costs: closed forms against sums, DistServe's coefficients against its files."""

from __future__ import annotations

import csv
from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st

from penstock.cost.linear import (
    DecodeLine,
    DistServeCost,
    LinearCoefficients,
    LinearTimer,
    distserve_capacities,
    distserve_table,
)
from penstock.cost.steps import EngineShape
from penstock.errors import Infeasible, SpecError
from penstock.spec.catalogue import catalogue
from penstock.spec.load import load_model

GPU = catalogue().get("A100-80GB")
COEFFICIENTS = LinearCoefficients(
    0.018, 1e-4, 7e-9, DecodeLine(0.02, 6e-7, 4e-5), DecodeLine(0.007, 6e-7, 1.6e-4), 95
)


@given(
    seqs=st.integers(1, 200),
    context=st.integers(0, 10**6),
    steps=st.integers(1, 3000),
    stages=st.integers(1, 4),
)
def test_spans_are_sums_of_steps(seqs: int, context: int, steps: int, stages: int) -> None:
    """The closed form of a span, and its cumulative times, equal the steps one by one."""
    timer = LinearTimer(COEFFICIENTS, stages)
    total = sum(timer.decode_s(seqs, context + j * seqs) for j in range(steps))
    assert timer.decode_span_s(seqs, context, steps) == pytest.approx(total, rel=1e-12)
    assert timer.decode_span_times_s(seqs, context, steps)[-1] == pytest.approx(total, rel=1e-12)


@given(
    seqs=st.integers(1, 200),
    context=st.integers(0, 10**6),
    seconds=st.floats(0, 100),
    most=st.integers(1, 3000),
)
def test_steps_within_is_the_least_that_reaches(
    seqs: int, context: int, seconds: float, most: int
) -> None:
    """k steps reach the time and k - 1 do not, unless the limit is hit first."""
    timer = LinearTimer(COEFFICIENTS)
    steps = timer.steps_within(seqs, context, seconds, most)
    assert 0 <= steps <= most
    if steps < most:
        assert timer.decode_span_s(seqs, context, steps) >= seconds
    if steps > 1:
        assert timer.decode_span_s(seqs, context, steps - 1) < seconds


def test_chunks_add_up_to_their_prompt() -> None:
    """Beside the fixed cost of each step, two chunks cost what the whole prompt costs."""
    timer = LinearTimer(COEFFICIENTS)
    whole = timer.step_s([(1000, 0)], 0, 0)
    parts = timer.step_s([(300, 0)], 0, 0) + timer.step_s([(700, 300)], 0, 0)
    assert parts - whole == pytest.approx(COEFFICIENTS.prefill_fixed_s, rel=1e-9)


def test_distserve_step_by_hand() -> None:
    """OPT-13B, TP 1, PP 2: half the published sums, and a ms per stage for a prefill."""
    cost = DistServeCost(load_model("opt-13b"))
    timer = cost.step_timer(EngineShape(GPU, 1, 2))
    prefill_ms = 18.10254647486372 + 0.1019122572698738 * 500 + 7.122264314252114e-06 * 500**2
    assert timer.step_s([(500, 0)], 0, 0) == pytest.approx(1e-3 * (prefill_ms / 2 + 2))
    decode_ms = 19.934702624895458 + 0.0006269356524350583 * 9000 + 0.03850697740828398 * 12
    assert timer.decode_s(12, 9000) == pytest.approx(1e-3 * decode_ms / 2)
    assert cost.kv_capacity_tokens(EngineShape(GPU, 1, 2)) == 163_008


def test_what_was_not_profiled_is_said() -> None:
    """Other models, degrees and shapes end in one line each."""
    with pytest.raises(SpecError, match="DistServe has no latency model"):
        DistServeCost(load_model("llama-3-8b"))
    cost = DistServeCost(load_model("opt-66b"))
    with pytest.raises(SpecError, match="use one of 2, 3, 4, 8"):
        cost.step_timer(EngineShape(GPU, 5))
    with pytest.raises(Infeasible, match="GPU memory"):
        cost.kv_capacity_tokens(EngineShape(GPU, 1, 1))


@pytest.mark.reference
def test_bundled_coefficients_are_the_published_ones(reference: Path) -> None:
    """All 84 rows of coefficients and 76 capacities are those of DistServe's files."""
    table = distserve_table()
    with (reference / "distserve" / "latency_model_params.csv").open() as file:
        rows = list(csv.DictReader(file))
    for row in rows:
        found = table[row["engine"]][row["model"].split("/")[1]][int(row["tp"])]
        if row["phase"] == "prefill":
            ours = (found.prefill_fixed_s, found.prefill_per_token_s, found.prefill_per_pair_s)
        else:
            line = found.decode if row["phase"] == "decode_bs_lt_95" else found.decode_large
            assert line is not None
            ours = (line.fixed_s, line.per_context_token_s, line.per_seq_s)
        theirs = [1e-3 * float(row[name]) for name in ("a_ms", "b_ms_per_token", "c")]
        assert ours == pytest.approx(theirs, rel=1e-15)
    with (reference / "distserve" / "max_num_tokens.csv").open() as file:
        limits = list(csv.DictReader(file))
    for row in limits:
        key = (int(row["tp"]), int(row["pp"]))
        model = row["model"].split("/")[1]
        assert distserve_capacities()[model][key] == int(row["max_num_tokens"])
