"""Limits on the time per token steer speculation, and hot draws keep their distribution."""

from __future__ import annotations

from math import inf
from typing import Any

import msgspec
import numpy as np
import pytest
from worker_factory import GREEDY, real

from penstock.plan.settings import SpeculationMethod, SpeculationSettings
from penstock.policy.speculation.latency import LatencyTable, StepLatency
from penstock.policy.speculation.speculator import DecodeView
from penstock.serve.wire import Begin, Decoding, Free
from penstock.serve.worker import speculative_executor
from penstock.serve.worker.executor import Job, Outcome, Work
from penstock.serve.worker.speculative_executor import SpeculativeExecutor

STEP_S = 0.02
PROMPT = (7, 3, 9, 4)


@pytest.fixture(autouse=True)
def steady_clock(monkeypatch: pytest.MonkeyPatch) -> None:
    """Latencies of a loaded machine: every further token costs."""
    latency = StepLatency(0.002, LatencyTable((1.0, 16.0, 128.0), (STEP_S, 0.024, 0.2)))
    monkeypatch.setattr(speculative_executor, "measure", lambda _target, _draft: latency)


def load(checkpoint: tuple[str, Any], method: SpeculationMethod) -> SpeculativeExecutor:
    # A budget of nodes for half of sixteen requests: adaserve has to choose whose.
    settings = SpeculationSettings(
        method, checkpoint[0], max_num_seqs=16, max_depth=4, verify_budget=24
    )
    return SpeculativeExecutor.load(
        real(checkpoint, "w", 0, 4, speculation=settings, num_pages=2000)
    )


def decoding(seqs: list[int], **columns: Any) -> Decoding:
    n = len(seqs)
    usual: dict[str, Any] = {
        "decode_s": (1.0,) * n,
        "tokens": (10,) * n,
        "tpot": (inf,) * n,
        "relative": (False,) * n,
        "kind": (0,) * n,
        "most": (40,) * n,
        "prefill_tokens": 0,
        "occupancy": 0.1,
    }
    return Decoding(seqs=tuple(seqs), **{**usual, **columns})


def begin(executor: SpeculativeExecutor, seqs: list[int], sampling: Any = GREEDY) -> dict[int, Any]:
    """Read the prompt of each sequence; their tokens so far."""
    for seq in seqs:
        executor.apply(Begin(seq, msgspec.structs.replace(sampling, seed=seq)))
    jobs = [Job(seq, 0, PROMPT, 0, 4, True) for seq in seqs]
    drawn = executor.run(Work(jobs)).drawn
    return {one.seq: [*PROMPT, *one.tokens] for one in drawn}


def step(executor: SpeculativeExecutor, tokens: dict[int, Any], view: Decoding) -> Outcome:
    jobs = [Job(s, len(tokens[s]) - 1, (tokens[s][-1],), 0, 4, True) for s in view.seqs]
    outcome = executor.run(Work(jobs, decoding=view))
    for one in outcome.drawn:
        tokens[one.seq].extend(one.tokens)
    return outcome


@pytest.mark.parametrize("method", ["adaserve", "penstock"])
def test_an_urgent_class_gets_more_tokens_a_step(
    checkpoint: tuple[str, Any], method: SpeculationMethod
) -> None:
    """Sixteen requests share a step: those with 1.2x of the baseline outrun those with 10x."""
    executor = load(checkpoint, method)
    seqs = list(range(16))
    tokens = begin(executor, seqs)
    urgent = [seq % 2 == 0 for seq in seqs]
    made = dict.fromkeys(seqs, 1)
    steps = 12
    for number in range(steps):
        view = decoding(
            seqs,
            decode_s=((number + 1) * 0.05,) * 16,
            tokens=tuple(made.values()),
            tpot=tuple(1.2 if one else 10.0 for one in urgent),
            relative=(True,) * 16,
            kind=tuple(int(one) for one in urgent),
            occupancy=0.5,
        )
        for one in step(executor, tokens, view).drawn:
            made[one.seq] += len(one.tokens)
    fast = np.mean([made[seq] for seq in seqs if urgent[seq]])
    slow = np.mean([made[seq] for seq in seqs if not urgent[seq]])
    assert fast > 1.2 * slow


def test_multiples_are_of_a_step_as_it_was_measured(
    checkpoint: tuple[str, Any], monkeypatch: pytest.MonkeyPatch
) -> None:
    """1.5x of 20 ms is 30 ms; limits in seconds and best effort pass as they are."""
    executor = load(checkpoint, "penstock")
    tokens = begin(executor, [0, 1, 2])
    seen: list[DecodeView] = []
    plan = executor._speculator.plan

    def spy(view: DecodeView) -> Any:
        seen.append(view)
        return plan(view)

    monkeypatch.setattr(executor._speculator, "plan", spy)
    view = decoding([0, 1, 2], tpot=(1.5, 0.07, inf), relative=(True, False, False))
    step(executor, tokens, view)
    assert seen[0].tpot_s.tolist() == pytest.approx([1.5 * STEP_S, 0.07, inf])


def test_what_was_verified_is_told(checkpoint: tuple[str, Any]) -> None:
    """A draft that is the target itself: all of its chains of four are accepted."""
    executor = load(checkpoint, "chain")
    tokens = begin(executor, [0, 1, 2])
    outcome = step(executor, tokens, decoding([0, 1, 2]))
    assert outcome.verified is not None
    assert msgspec.structs.astuple(outcome.verified) == (3, 12, 12)
    assert begin(executor, [4])
    last = step(executor, tokens, decoding([0, 1, 2], most=(1, 1, 3)))
    assert last.verified is not None
    assert msgspec.structs.astuple(last.verified) == (1, 2, 2)


def truth(model: Any, prefix: tuple[int, ...], temperature: float, top_k: int) -> dict[int, float]:
    """The distribution of the next token by transformers."""
    torch = pytest.importorskip("torch")
    with torch.inference_mode():
        logits = model(torch.tensor([prefix])).logits[0, -1].double().numpy()
    best = np.argsort(-logits)[:top_k]
    weights = np.exp((logits[best] - logits[best[0]]) / temperature)
    return dict(zip(best.tolist(), (weights / weights.sum()).tolist(), strict=True))


def chi_square(counts: dict[int, int], expected: dict[int, float], draws: int) -> tuple[float, int]:
    """Statistic and degrees of freedom; values expected fewer than 5 times are pooled."""
    assert set(counts) <= set(expected)
    cells: list[tuple[float, float]] = []
    rare_seen = rare_expected = 0.0
    for token, share in expected.items():
        if share * draws < 5:
            rare_seen += counts.get(token, 0)
            rare_expected += share * draws
        else:
            cells.append((counts.get(token, 0), share * draws))
    if rare_expected >= 5:
        cells.append((rare_seen, rare_expected))
    return sum((seen - mean) ** 2 / mean for seen, mean in cells), len(cells) - 1


@pytest.mark.parametrize("method", ["chain", "adaserve", "penstock"])
def test_hot_tokens_of_a_speculative_step_follow_the_model(
    checkpoint: tuple[str, Any], method: SpeculationMethod, monkeypatch: pytest.MonkeyPatch
) -> None:
    """First and second token after the prompt's own, 480 seeds, against transformers."""
    # Drafts so cheap that every speculator keeps drafting, however few are accepted.
    free = StepLatency(1e-6, LatencyTable((1.0, 128.0), (STEP_S, 1.001 * STEP_S)))
    monkeypatch.setattr(speculative_executor, "measure", lambda _target, _draft: free)
    temperature, top_k = 0.6, 4
    hot = msgspec.structs.replace(GREEDY, temperature=temperature, top_k=top_k)
    executor = load(checkpoint, method)
    found: list[list[int]] = []
    accepted = 0
    for start in range(0, 480, 8):
        seqs = list(range(start, start + 8))
        tokens = begin(executor, seqs, hot)
        left = seqs
        while left:
            outcome = step(executor, tokens, decoding(left, most=(3,) * len(left)))
            assert outcome.verified is not None
            accepted += outcome.verified.accepted_tokens
            left = [seq for seq in left if len(tokens[seq]) < len(PROMPT) + 3]
        found += [tokens[seq][len(PROMPT) :] for seq in seqs]
        for seq in seqs:
            executor.apply(Free(seq))
    assert accepted > 40
    paths: dict[tuple[int, ...], float] = {PROMPT: 1.0}
    for position in range(3):
        further: dict[tuple[int, ...], float] = {}
        for prefix, share in paths.items():
            for token, chance in truth(checkpoint[1], prefix, temperature, top_k).items():
                further[(*prefix, token)] = share * chance
        paths = further
        expected: dict[int, float] = {}
        for path, share in paths.items():
            expected[path[-1]] = expected.get(path[-1], 0.0) + share
        counts = {t: sum(row[position] == t for row in found) for t in expected}
        assert sum(counts.values()) == len(found)
        value, freedom = chi_square(counts, expected, len(found))
        # The 99.9 % point of chi-square, after Wilson and Hilferty.
        tail = 2 / (9 * freedom)
        assert value < freedom * (1 - tail + 3.09 * tail**0.5) ** 3
