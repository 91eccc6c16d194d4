"""Stochastic acceptance: the decomposition of expected tokens, and what the knobs do."""

from __future__ import annotations

from dataclasses import replace

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from penstock.errors import SpecError
from penstock.policy.speculation.selection import SelectionRules, select, select_all
from penstock.policy.speculation.speculator import DraftPlan
from penstock.policy.speculation.verification import verify
from penstock.sim.speculation.acceptance import (
    LLAMA_70B_WITH_1B,
    QWEN_32B_WITH_05B,
    BetaAcceptance,
    measured_acceptance,
)
from penstock.sim.speculation.drafting import draft

N = 20_000


def generated(model: BetaAcceptance, plan: DraftPlan, nodes: int | None) -> tuple[float, float]:
    """(mean of generated tokens, mean of expected ones) over many requests."""
    rng = np.random.default_rng(3)
    drawn = draft(model, np.full(N, model.mean), plan, rng)
    if nodes is None:
        selection = select_all(drawn.trees)
    else:
        rules = SelectionRules(throughput_cutoff=0.0)
        selection = select(drawn.trees, np.full(N, 1.5), nodes * N, rules)
    verdict = verify(drawn.trees, selection.selected, drawn.choices(rng))
    return float(verdict.accepted.mean()) + 1.0, float(selection.gain.mean())


@pytest.mark.parametrize("model", [LLAMA_70B_WITH_1B, QWEN_32B_WITH_05B])
@pytest.mark.parametrize(
    ("plan", "nodes"),
    [(DraftPlan(8, 3), 6), (DraftPlan(5, 2), 3), (DraftPlan(4, 1), None), (DraftPlan(3, 3), None)],
)
def test_the_mean_of_generated_tokens_is_the_sum_of_path_probabilities(
    model: BetaAcceptance, plan: DraftPlan, nodes: int | None
) -> None:
    """Monte Carlo, within four standard errors (at most 9 tokens a step)."""
    mean, expected = generated(model, plan, nodes)
    assert mean == pytest.approx(expected, abs=4 * 3.5 / N**0.5)


@pytest.mark.parametrize(
    ("model", "length", "published"),
    [
        (LLAMA_70B_WITH_1B, 4, 3.63),
        (LLAMA_70B_WITH_1B, 6, 4.40),
        (LLAMA_70B_WITH_1B, 8, 4.94),
        (QWEN_32B_WITH_05B, 4, 2.99),
        (QWEN_32B_WITH_05B, 8, 3.59),
    ],
)
def test_chains_generate_what_the_rates_imply(
    model: BetaAcceptance, length: int, published: float
) -> None:
    """The expected prefix of a chain is a geometric sum of the pair's mean."""
    mean, _ = generated(model, DraftPlan(length, 1), None)
    exact = sum(model.mean**i for i in range(length + 1))
    assert exact == pytest.approx(published, abs=0.01)
    assert mean == pytest.approx(exact, abs=0.08)


@given(st.floats(0.05, 0.95), st.floats(0.2, 5.0), st.integers(0, 99))
@settings(max_examples=30)
def test_children_are_ordered_probabilities(mean: float, k: float, seed: int) -> None:
    """q1 >= q2 >= q3 >= 0 and together at most 1."""
    rng = np.random.default_rng(seed)
    q = BetaAcceptance(mean, k).draw(np.full(50, mean), 4, 0, rng).draft
    assert np.all(np.diff(q, axis=-1) <= 0)
    assert np.all(q >= 0)
    assert np.all(q.sum(axis=-1) <= 1 + 1e-12)


def test_requests_differ_by_class_and_by_spread() -> None:
    """Class means replace the mean; a spread scatters requests around it."""
    rng = np.random.default_rng(1)
    model = BetaAcceptance(0.7, 1.0, {"code": 0.9})
    assert model.mean_of("code", rng) == 0.9
    assert model.mean_of("chat", rng) == 0.7
    means = [replace(model, spread=40.0).mean_of("chat", rng) for _ in range(2000)]
    assert np.mean(means) == pytest.approx(0.7, abs=0.01)
    assert np.std(means) == pytest.approx((0.7 * 0.3 / 41) ** 0.5, rel=0.1)


def test_an_overconfident_draft_promises_more_than_it_keeps() -> None:
    """With sharpness below 1 fewer tokens are generated than path probabilities say."""
    model = BetaAcceptance(0.84, 1.0, sharpness=0.6)
    mean, expected = generated(model, DraftPlan(4, 1), None)
    assert mean < expected - 0.2


def test_a_measured_curve_is_met_position_by_position() -> None:
    """The share of steps that accept position i is the curve's."""
    curve = (0.8, 0.6, 0.5)
    rng = np.random.default_rng(2)
    model = measured_acceptance(curve)
    drawn = draft(model, np.full(N, model.mean), DraftPlan(3, 1), rng)
    verdict = verify(drawn.trees, select_all(drawn.trees).selected, drawn.choices(rng))
    shares = [(verdict.accepted >= i).mean() for i in (1, 2, 3)]
    assert shares == pytest.approx(curve, abs=0.015)


@pytest.mark.parametrize("curve", [(), (0.5, 0.6), (0.5, 0.0), (1.5,)])
def test_curves_that_rise_or_vanish_are_refused(curve: tuple[float, ...]) -> None:
    """A later position cannot be accepted more often than an earlier one."""
    with pytest.raises(SpecError, match="curve"):
        measured_acceptance(curve)


def test_means_outside_0_to_1_are_refused() -> None:
    """The message names the class."""
    with pytest.raises(SpecError, match="chat"):
        BetaAcceptance(0.5, 1.0, {"chat": 1.0})
    with pytest.raises(SpecError, match="positive"):
        BetaAcceptance(0.5, 0.0)
