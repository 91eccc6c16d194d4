"""The compatibility presets against Vidur's rules written down plainly."""

from __future__ import annotations

from random import Random

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from tests.unit.sim.engines.engine_runs import COST, run_engine, shape
from tests.unit.sim.engines.vidur_by_the_rules import Job, Replica, simulate

from penstock.policy.schedulers import SchedulerSettings
from penstock.spec.workload import Request


def traffic(rng: Random) -> list[Request]:
    gap = rng.choice([0.0, 0.003, 0.05, 0.5])
    arrival, result = 0.0, []
    for number in range(rng.randint(1, 30)):
        arrival += gap * (0.001 + 2 * rng.random())
        result.append(Request(number, arrival, rng.randint(1, 120), rng.randint(1, 60)))
    return result


@pytest.mark.parametrize("name", ["vidur-sarathi", "vidur-vllm"])
@pytest.mark.parametrize("stages", [1, 2, 3])
@settings(max_examples=25, deadline=None)
@given(seed=st.integers(0, 2**32))
def test_pipelines_replicas_and_restarts(name: str, stages: int, seed: int) -> None:
    """Batches, restarts and times are those of the plain rules, whatever is scarce."""
    rng = Random(seed)
    requests = traffic(rng)
    cap = rng.randint(stages, 16)
    tokens = rng.choice([24, 130, 512] if "sarathi" in name else [250, 512])
    num_blocks = rng.randint(13, 60)
    replicas = rng.randint(1, 3)
    router = rng.choice(["least-waiting", "round-robin"])
    chosen = SchedulerSettings(
        name=name, max_num_seqs=cap, max_num_batched_tokens=tokens, watermark=0.05
    )
    run = run_engine(
        requests, chosen, num_blocks=num_blocks, stages=stages, replicas=replicas, router=router
    )
    assert run.counters["rejected"] == 0
    timer = COST.step_timer(shape(stages))
    machines = [
        Replica(
            name,
            cap,
            tokens,
            num_blocks,
            16,
            int(0.05 * num_blocks),
            stages,
            [timer.step_s] * stages,
        )
        for _ in range(replicas)
    ]
    jobs = [Job(r.id, r.arrival_s, r.prompt_tokens, r.output_tokens) for r in requests]
    if name == "vidur-vllm" and any(job.total > tokens for job in jobs):
        # Vidur itself never admits again what has outgrown its token limit.
        return
    simulate(jobs, machines, router)
    assert run.counters["batches"] == sum(machine.batches for machine in machines)
    assert run.counters["preemptions"] == sum(job.restarts for job in jobs)
    first = np.array([job.first for job in jobs], float)
    last = np.array([job.last for job in jobs], float)
    np.testing.assert_allclose(run.requests.first_token_s, first, rtol=0, atol=1e-9)
    np.testing.assert_allclose(run.requests.last_token_s, last, rtol=0, atol=1e-9)
