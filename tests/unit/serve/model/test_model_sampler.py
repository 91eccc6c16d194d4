"""Sampling: distributions by counting, penalties and filters against NumPy, seeds by position."""

from __future__ import annotations

from collections import Counter
from dataclasses import replace
from typing import Any

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from transformers import (
    MinPLogitsWarper,
    RepetitionPenaltyLogitsProcessor,
    TopKLogitsWarper,
    TopPLogitsWarper,
)

from penstock.serve.model import Draw, sample, tree_choices
from penstock.serve.model.sampler import tree_draws, uniform
from penstock.serve.protocol import SamplingParams


def logits_of(rows: int, vocab: int = 40, seed: int = 0) -> torch.Tensor:
    return 2 * torch.randn(rows, vocab, generator=torch.Generator().manual_seed(seed))


def draws_of(count: int, seed: int = 1, **fields: Any) -> list[Draw]:
    params = SamplingParams(**fields)
    return [Draw(params, seed=seed, position=i) for i in range(count)]


def frequencies(logits: torch.Tensor, draws: list[Draw]) -> np.ndarray:
    tokens = sample(logits.expand(len(draws), -1), draws).tokens
    counts = Counter(tokens)
    return np.array([counts[i] / len(draws) for i in range(logits.shape[-1])])


def test_greedy_takes_the_most_likely_token() -> None:
    """Rows are independent."""
    logits = logits_of(9)
    drawn = sample(logits, [Draw(SamplingParams(temperature=0.0))] * 9)
    assert drawn.tokens == logits.numpy().argmax(axis=1).tolist()
    assert drawn.logprobs == [None] * 9


@pytest.mark.parametrize(
    "fields",
    [
        {"temperature": 1.0},
        {"temperature": 0.6},
        {"temperature": 1.7, "top_k": 5},
        {"temperature": 1.0, "top_p": 0.7},
        {"temperature": 1.2, "min_p": 0.1},
        {"temperature": 1.3, "top_k": 12, "top_p": 0.8},
    ],
)
def test_draws_follow_the_filtered_distribution(fields: dict[str, Any]) -> None:
    """20,000 positions of one seed, against the filters of transformers."""
    logits = logits_of(1)
    want = logits / fields["temperature"]
    ids = torch.zeros(1, 1, dtype=torch.int64)
    if "min_p" in fields:
        want = MinPLogitsWarper(fields["min_p"])(ids, want)
    if "top_k" in fields:
        want = TopKLogitsWarper(fields["top_k"])(ids, want)
    if "top_p" in fields:
        want = TopPLogitsWarper(fields["top_p"])(ids, want)
    probability = want.softmax(dim=-1)[0].numpy()
    found = frequencies(logits, draws_of(20_000, **fields))
    assert not found[probability == 0].any(), "a token that is filtered out was drawn"
    assert np.abs(found - probability).max() < 0.015


@settings(max_examples=40, deadline=None)
@given(st.integers(0, 2**64 - 1), st.integers(0, 10**6), st.integers(0, 11))
def test_a_draw_depends_on_seed_and_position_alone(seed: int, position: int, row: int) -> None:
    """The same row in another batch, with other filters around it, gives the same token."""
    logits = logits_of(12)
    alone = Draw(SamplingParams(temperature=1.5, top_p=0.95), seed=seed, position=position)
    (want,) = sample(logits[row : row + 1], [alone]).tokens
    others = draws_of(12, temperature=0.8, top_k=3, logprobs=2)
    others[row] = alone
    assert sample(logits, others).tokens[row] == want


def test_seeds_and_positions_give_independent_numbers() -> None:
    """No two of 20,000 agree, their mean is one half, and neighbours do not correlate."""
    numbers = np.array([[uniform(seed, at) for at in range(200)] for seed in range(100)])
    assert len(np.unique(numbers)) == numbers.size
    assert abs(numbers.mean() - 0.5) < 0.01
    assert abs(np.corrcoef(numbers[:, :-1].ravel(), numbers[:, 1:].ravel())[0, 1]) < 0.02
    assert abs(np.corrcoef(numbers[:-1].ravel(), numbers[1:].ravel())[0, 1]) < 0.02


def test_large_vocabularies_are_filtered_exactly() -> None:
    """Whether a part or the whole vocabulary must be sorted, the same tokens stay."""
    logits = torch.stack((logits_of(1, 5000)[0], 0.1 * logits_of(1, 5000)[0]))
    for top_p in (0.3, 0.999):
        draws = [Draw(SamplingParams(top_p=top_p), seed=3, position=i) for i in range(300)]
        for row in logits:
            probability = np.sort(row.double().softmax(-1).numpy())[::-1]
            kept = int(np.searchsorted(np.cumsum(probability), top_p)) + 1
            best = set(row.argsort(descending=True)[: kept + 1].tolist())
            tokens = sample(row.expand(300, -1), draws).tokens
            assert set(tokens) <= best


def test_penalties_change_logits_as_defined() -> None:
    """Repetition as in transformers over prompt and output; the others over output only."""
    logits = logits_of(1, 12)
    prompt, output = [0, 1, 1, 2], [2, 3, 3, 3]
    want = RepetitionPenaltyLogitsProcessor(1.7)(torch.tensor([prompt + output]), logits.clone())
    for token in range(12):
        count = output.count(token)
        want[0, token] -= 0.9 * count + (1.1 if count else 0.0)
    params = SamplingParams(
        temperature=1.0, repetition_penalty=1.7, frequency_penalty=0.9, presence_penalty=1.1
    )
    draws = [Draw(params, seed, 4, prompt, output) for seed in range(8000)]
    found = frequencies(logits, draws)
    assert np.abs(found - want.softmax(-1)[0].numpy()).max() < 0.02


def test_stop_tokens_are_banned_below_min_tokens() -> None:
    """From ``min_tokens`` on they may come."""
    logits = torch.zeros(1, 6)
    logits[0, 2] = 9.0
    logits[0, 4] = 8.0
    for temperature in (0.0, 0.1):
        params = SamplingParams(temperature=temperature, min_tokens=3)
        draws = [Draw(params, position=at, stop_ids=(2,)) for at in range(5)]
        assert sample(logits.expand(5, -1), draws).tokens[:3] == [4, 4, 4]
    assert sample(logits, [replace(draws[3], params=replace(params, temperature=0.0))]).tokens == [
        2
    ]


def test_log_probabilities_are_those_of_the_raw_logits() -> None:
    """Temperature and penalties do not change them; rows may ask for different numbers."""
    logits = logits_of(3)
    logs = logits.double().log_softmax(-1)
    draws = [
        Draw(SamplingParams(temperature=0.0, logprobs=2)),
        Draw(SamplingParams(temperature=2.0, logprobs=0, frequency_penalty=1.0), 5, 1, (), (1,)),
        Draw(SamplingParams(temperature=2.0)),
    ]
    drawn = sample(logits, draws)
    first, second, third = drawn.logprobs
    assert third is None
    assert first is not None
    assert second is not None
    assert (second.token, second.top) == (drawn.tokens[1], ())
    assert second.logprob == pytest.approx(float(logs[1, drawn.tokens[1]]), abs=1e-5)
    order = logs[0].argsort(descending=True)[:2].tolist()
    assert [token for token, _ in first.top] == order
    assert [value for _, value in first.top] == pytest.approx(logs[0, order].tolist(), abs=1e-5)


def test_rows_of_a_tree_continue_position_and_output() -> None:
    """Each row draws as if its path had been generated one by one."""
    params = SamplingParams(presence_penalty=1.0)
    root = Draw(params, seed=5, position=3, prompt=(9,), output=(1, 2, 3))
    draws = tree_draws(root, [3, 4, 5, 6], [-1, 0, 1, 0])
    assert [(d.position, d.output) for d in draws] == [
        (3, (1, 2, 3)),
        (4, (1, 2, 3, 4)),
        (5, (1, 2, 3, 4, 5)),
        (4, (1, 2, 3, 6)),
    ]


def test_greedy_choices_of_a_tree_are_its_best_tokens() -> None:
    """Temperature 0 needs no random number."""
    logits = logits_of(3)
    root = Draw(SamplingParams(temperature=0.0))
    assert tree_choices(logits, root, [1, 2, 3], [-1, 0, 1]) == logits.argmax(-1).tolist()


@pytest.mark.parametrize("number", [0.0, 1.0 - 2.0**-53])
def test_extreme_numbers_draw_tokens_that_can_be_drawn(
    monkeypatch: pytest.MonkeyPatch, number: float
) -> None:
    """Banned tokens at both ends of the vocabulary stay banned."""
    monkeypatch.setattr("penstock.serve.model.sampler.uniform", lambda *_: number)
    logits = torch.zeros(1, 7)
    logits[0, [0, 6]] = -torch.inf
    for fields in ({}, {"top_p": 0.9}, {"top_k": 3}):
        params = SamplingParams(temperature=1.0, **fields)
        assert 1 <= sample(logits, [Draw(params)]).tokens[0] <= 5
