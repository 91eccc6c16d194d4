"""Over a pipeline nobody preempts for ever: every sequence gets its tokens."""

from __future__ import annotations

from random import Random

import pytest
from hypothesis import example, given, settings
from hypothesis import strategies as st

from penstock.policy.schedulers import (
    Batch,
    BlockManager,
    Scheduler,
    SchedulerSettings,
    Sequence,
    make_scheduler,
)

MOST_IDLE_BATCHES = 400
"""Batches in a row that may end without a token. A prompt here has at most 20 chunks, and while
the first in order works through its own, each other one loses at most one chunk a round."""


def tight_scheduler(rng: Random, name: str, stages: int) -> Scheduler:
    """Little memory, small budgets, few places."""
    seqs = rng.randint(1, 8)
    chosen = SchedulerSettings(
        name=name,
        max_num_seqs=seqs,
        max_num_batched_tokens=rng.choice([8, 12, 40]),
        block_size=4,
        enable_chunked_prefill=rng.random() < 0.8,
        enable_prefix_caching=rng.random() < 0.3,
        prefix_piece_tokens=8,
        long_prefill_token_threshold=rng.choice([0, 8]),
    )
    pieces = 8 if chosen.enable_prefix_caching else 4
    blocks = BlockManager(rng.randint(8, 40), 4, watermark=0.0, piece_tokens=pieces)
    return make_scheduler(chosen, blocks, stages)


def sequences(rng: Random) -> list[Sequence]:
    return [
        Sequence(
            row,
            float(rng.randint(0, 5)),
            rng.randint(1, 80),
            rng.randint(1, 30),
            hashes=tuple(100 * rng.randint(0, 1) + i for i in range(rng.randint(0, 8))),
            client=rng.choice("ab"),
            priority=rng.randint(0, 2),
            deadline_s=rng.choice([1.0, 2.0, 9.0]),
        )
        for row in range(rng.randint(2, 12))
    ]


def run_to_the_end(policy: Scheduler, stages: int, waiting: list[Sequence], rng: Random) -> int:
    """Keep up to ``stages`` batches in flight, landing in order; returns the tokens made."""
    flight: list[Batch] = []
    tokens = idle = 0
    while waiting or flight or policy.outstanding:
        while waiting and (rng.random() < 0.4 or not policy.outstanding):
            policy.add(waiting.pop())
        batch = policy.next_batch() if len(flight) < stages else None
        if batch is not None:
            flight.append(batch)
            continue
        assert flight, "nothing runs and nothing can be formed"
        landed = flight.pop(0)
        completed, _ = policy.commit(landed)
        gained = landed.seqs + len(completed)
        tokens += gained
        idle = 0 if gained else idle + 1
        assert idle <= MOST_IDLE_BATCHES, f"{idle} batches in a row made no token"
    policy.check()
    return tokens


@pytest.mark.parametrize("name", ["vllm", "priority", "vtc"])
@pytest.mark.parametrize("stages", [1, 2, 3, 4])
@settings(max_examples=80, deadline=None)
@given(seed=st.integers(0, 2**32))
@example(seed=13)  # without a fixed order these prompts preempt each other for ever
def test_every_sequence_gets_its_tokens(name: str, stages: int, seed: int) -> None:
    """With memory for little more than one sequence, batches in flight do not take turns in
    preempting each other: each sequence ends with exactly the tokens it asked for."""
    rng = Random(seed)
    policy = tight_scheduler(rng, name, stages)
    asked = [seq for seq in sequences(rng) if policy.fits(seq)]
    wanted = sum(seq.total_tokens - seq.prompt_tokens for seq in asked)
    assert run_to_the_end(policy, stages, asked, rng) == wanted
