"""DistServe's own simulator, run on the same requests, is the oracle."""

from __future__ import annotations

import csv
from collections import deque
from pathlib import Path

import numpy as np
import pytest

from penstock.cost.linear import distserve_table
from penstock.errors import Infeasible, SpecError
from penstock.experiments.distserve.compat import Shape, poisson_trace, run_compat, sampled

PERCENTS = (50, 90, 99)


def rows(path: Path) -> list[dict[str, str]]:
    with path.open(newline="") as stream:
        return list(csv.DictReader(stream))


def lengths(reference: Path) -> list[tuple[int, int]]:
    table = rows(reference / "distserve" / "synthetic_sharegpt_like_lengths.csv")
    return [(int(row["prompt_tokens"]), int(row["output_tokens"])) for row in table]


@pytest.mark.reference
def test_all_published_runs_agree(reference: Path) -> None:
    """Percentiles agree within 0.1 % and attainments within 0.1 points on all 24 runs."""
    pool = lengths(reference)
    table = rows(reference / "distserve" / "simulator_runs.csv")
    assert len(table) == 24
    for row in table:
        shape = Shape(
            int(row["prefill_tp"]),
            int(row["prefill_pp"]),
            int(row["decode_tp"] or 0),
            int(row["decode_pp"] or 0),
        )
        requests = poisson_trace(sampled(pool, int(row["num_requests"])), float(row["rate_rps"]))
        backend = "vllm" if row["backend"] == "vllm" else "distserve"
        outcome = run_compat(row["model"], backend, shape, requests)
        for name, values in (("ttft", outcome.ttft_s), ("tpot", outcome.tpot_s)):
            for percent in PERCENTS:
                ours = 1e3 * float(np.percentile(values, percent))
                assert ours == pytest.approx(float(row[f"{name}_p{percent}_ms"]), rel=1e-3)
        limits = (1e-3 * float(row["ttft_slo_ms"]), 1e-3 * float(row["tpot_slo_ms"]))
        for name, share in zip(("ttft", "tpot", "joint"), outcome.attainment(*limits), strict=True):
            assert 100 * share == pytest.approx(float(row[f"{name}_attainment_pct"]), abs=0.1)
        assert outcome.run.header["end_s"] == pytest.approx(float(row["simulated_s"]), abs=0.06)


@pytest.mark.reference
def test_pools_of_several_instances_agree(reference: Path) -> None:
    """Requests go to the instance with the shortest queue, as in the published pools."""
    requests = poisson_trace(sampled(lengths(reference), 2000), 10.0)
    for row in rows(reference / "distserve" / "sds" / "static_pool_simulation.csv"):
        shape = Shape(1, 1, 1, 1, int(row["prefill_engines"]), int(row["decode_engines"]))
        outcome = run_compat("opt-13b", "distserve", shape, requests)
        for percent in PERCENTS:
            ttft = 1e3 * float(np.percentile(outcome.ttft_s, percent))
            tpot = 1e3 * float(np.percentile(outcome.tpot_s, percent))
            assert ttft == pytest.approx(float(row[f"ttft_p{percent}_ms"]), abs=0.51)
            assert tpot == pytest.approx(float(row[f"tpot_p{percent}_ms"]), abs=0.051)
        joint = 100 * outcome.attainment(0.25, 0.1)[2]
        assert joint == pytest.approx(float(row["joint_attainment_pct"]), abs=0.06)


def step_by_step_decodes(
    joined: list[tuple[float, int, int]],
) -> dict[int, float]:
    """End of each (time, prompt, steps) on OPT-13B TP1, one token and one request at a time."""
    lines = distserve_table()["distserve"]["opt-13b"][1]
    queue: deque[int] = deque()
    context, steps, ends = {}, {}, {}
    now, coming = 0.0, 0
    while coming < len(joined) or queue:
        if not queue:
            now = max(now, joined[coming][0])
        while coming < len(joined) and joined[coming][0] <= now:
            queue.append(coming)
            context[coming], steps[coming] = joined[coming][1:]
            coming += 1
        batch, tokens = [], 0
        while queue and tokens + len(batch) + context[queue[0]] + 1 <= 50_000:
            batch.append(queue.popleft())
            tokens += context[batch[-1]]
        line = lines.decode if len(batch) < 95 else lines.decode_large
        assert line is not None
        now += line.fixed_s + line.per_context_token_s * (tokens + len(batch))
        now += line.per_seq_s * len(batch) + 2e-3 + 1e-7 * tokens
        while coming < len(joined) and joined[coming][0] <= now:
            queue.append(coming)
            context[coming], steps[coming] = joined[coming][1:]
            coming += 1
        for one in batch:
            context[one] += 1
            steps[one] -= 1
            if steps[one]:
                queue.append(one)
            else:
                ends[one] = now
    return ends


def test_decodes_take_turns_at_the_limit() -> None:
    """Over the limit of 50,000 tokens every end equals that of a loop over single requests."""
    lengths = [(200 + 37 * (i % 50), 30 + 11 * (i % 17)) for i in range(200)]
    outcome = run_compat("opt-13b", "distserve", Shape(4, 1, 1, 1), poisson_trace(lengths, 40.0))
    table = outcome.run.requests
    order = sorted(range(200), key=lambda i: (table.first_token_s[i], i))
    joined = [(float(table.first_token_s[i]), *lengths[i]) for i in order]
    ends = step_by_step_decodes(joined)
    for place, i in enumerate(order):
        assert table.last_token_s[i] == pytest.approx(ends[place], abs=1e-9)


def test_a_prompt_beyond_memory_is_rejected() -> None:
    """What could never run is counted as rejected instead of waiting for ever."""
    requests = poisson_trace([(100, 5), (400_000, 5), (100, 5)], 1.0)
    outcome = run_compat("opt-13b", "vllm", Shape(1), requests)
    assert outcome.run.counters["rejected"] == 1
    assert outcome.run.counters["finished"] == 2


def test_shapes_without_figures_are_refused() -> None:
    """A degree that was never profiled and a memory that is not in the table are named."""
    requests = poisson_trace([(100, 5), (100, 5)], 1.0)
    with pytest.raises((SpecError, Infeasible), match=r"TP 7|degree"):
        run_compat("opt-13b", "distserve", Shape(7, 1, 1, 1), requests)
