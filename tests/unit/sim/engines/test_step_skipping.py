"""Spans of steps and single steps are the same run."""

from __future__ import annotations

from random import Random

import numpy as np
import pytest
from hypothesis import example, given, settings
from hypothesis import strategies as st
from tests.unit.sim.engines.engine_runs import run_engine

from penstock.policy.schedulers import SCHEDULERS, SchedulerSettings
from penstock.spec.workload import SLO, Request, SLOClass

CLASSES = (SLOClass("slow", SLO(ttft_s=5.0), priority=1), SLOClass("quick", SLO(ttft_s=0.5)))


def requests(rng: Random) -> list[Request]:
    """Bursts and lulls of prompts and outputs of very different lengths, some sharing prefixes."""
    gap = rng.choice([0.0, 0.004, 0.05, 0.7])
    arrival, result = 0.0, []
    for number in range(rng.randint(1, 25)):
        arrival += gap * rng.choice([0.0, rng.random(), 2 * rng.random()])
        prompt, family = rng.randint(1, 150), rng.randint(0, 2)
        hashes = tuple(100 * family + i for i in range(prompt // 16))
        output = rng.choice([1, rng.randint(1, 70)])
        name = rng.choice(["slow", "quick"])
        result.append(Request(number, arrival, prompt, output, name, prefix_hashes=hashes))
    return result


def tight_settings(rng: Random, name: str) -> SchedulerSettings:
    """Settings under which places, budget and blocks are all scarce."""
    return SchedulerSettings(
        name=name,
        max_num_seqs=rng.randint(1, 12),
        max_num_batched_tokens=rng.choice([16, 40, 256]),
        block_size=rng.choice([4, 16]),
        enable_chunked_prefill=rng.random() < 0.7,
        enable_prefix_caching=rng.random() < 0.5 and name in ("vllm", "priority", "vtc"),
        watermark=rng.choice([None, 0.0, 0.1]),
        long_prefill_token_threshold=rng.choice([0, 24]),
        max_model_len=256,
        prefix_piece_tokens=16,
        mlfq_quantum=4,
    )


@pytest.mark.parametrize("stages", [1, 2])
@pytest.mark.parametrize("name", SCHEDULERS)
@settings(max_examples=12, deadline=None)
@given(seed=st.integers(0, 2**32))
@example(seed=1825)  # memory so scarce that batches in flight preempt each other
def test_a_span_is_its_steps(name: str, stages: int, seed: int) -> None:
    """Under every scheduler, skipping steps changes no time by a nanosecond and no decision."""
    rng = Random(seed)
    arrivals = requests(rng)
    chosen = tight_settings(rng, name)
    blocks, replicas = rng.randint(14, 120), rng.randint(1, 2)
    spans, steps = (
        run_engine(
            arrivals,
            chosen,
            num_blocks=blocks,
            stages=stages,
            replicas=replicas,
            router="least-outstanding",
            classes=CLASSES,
            step_by_step=single,
        )
        for single in (False, True)
    )
    for column in ("admitted_s", "first_token_s", "last_token_s"):
        np.testing.assert_allclose(
            getattr(spans.requests, column), getattr(steps.requests, column), rtol=0, atol=1e-9
        )
    for column in ("generated_tokens", "status", "preemptions", "route_index"):
        np.testing.assert_array_equal(
            getattr(spans.requests, column), getattr(steps.requests, column)
        )
    np.testing.assert_array_equal(spans.tokens.offsets, steps.tokens.offsets)
    np.testing.assert_allclose(spans.tokens.times_s, steps.tokens.times_s, rtol=0, atol=1e-9)
    assert spans.nodes is not None
    assert steps.nodes is not None
    np.testing.assert_array_equal(spans.nodes.batches, steps.nodes.batches)
    np.testing.assert_allclose(spans.nodes.busy_s, steps.nodes.busy_s, rtol=1e-9)
    assert spans.nodes.peak_kv_fraction == pytest.approx(steps.nodes.peak_kv_fraction)
    _check_tokens(spans)


def _check_tokens(run) -> None:  # type: ignore[no-untyped-def]
    """Each finished request has its tokens, in order, from its first to its last."""
    table, offsets, times = run.requests, run.tokens.offsets, run.tokens.times_s
    gaps = np.delete(
        np.diff(times), offsets[1:-1][(offsets[1:-1] > 0) & (offsets[1:-1] < len(times))] - 1
    )
    blocks = list(run.tokens.gap_blocks(run.requests.class_index))
    pooled = np.concatenate([np.repeat(block.seconds, block.count) for block in blocks])
    np.testing.assert_allclose(np.sort(pooled), np.sort(gaps), rtol=0, atol=1e-9)
    finished = table.status == 0
    assert np.isin(table.status, (0, 3)).all(), "requests finish or are rejected"
    assert (table.generated_tokens[finished] == table.output_tokens[finished]).all()
    quirk = table.preemptions > 0 if "vidur" in str(run.header["schedulers"]) else ~finished
    counted = np.diff(offsets)
    assert (counted[finished & ~quirk] == table.output_tokens[finished & ~quirk]).all()
    for i in np.flatnonzero(finished):
        mine = times[offsets[i] : offsets[i + 1]]
        assert mine[0] == table.first_token_s[i]
        assert mine[-1] == pytest.approx(table.last_token_s[i], abs=1e-9)
        assert (np.diff(mine) > 0).all()
        assert table.admitted_s[i] >= table.arrival_s[i]
