"""What a run takes from its cost model beside steps: time at the front end, and its sources."""

from __future__ import annotations

from dataclasses import replace

import numpy as np
from tests.unit.sim.engines.engine_runs import COEFFICIENTS, COST, shape, workload

from penstock.cost.linear import LinearStepCost
from penstock.cost.load import step_cost_from_dict
from penstock.cost.step_roofline import StepRoofline
from penstock.policy.schedulers import SchedulerSettings
from penstock.sim.engines import EngineFleet, EngineSpec, simulate_engines
from penstock.spec.catalogue import catalogue
from penstock.spec.lengths import fixed_lengths
from penstock.spec.workload import ClosedLoop, Request, Workload

VLLM = SchedulerSettings(max_num_seqs=8, max_num_batched_tokens=256)


class Hosted(LinearStepCost):
    """Requests spend 0.1 s and 1 ms a prompt token on their way to the scheduler."""

    def request_s(self, prompt_tokens: int) -> float:
        return 0.1 + 1e-3 * prompt_tokens


def test_requests_reach_the_scheduler_after_the_front_end() -> None:
    """What a request takes outside of steps delays its first token; order and rows stay."""
    requests = [Request(0, 0.0, 400, 5), Request(1, 0.01, 10, 5), Request(2, 3.0, 10, 5)]
    fleet = EngineFleet((EngineSpec("e", shape(), VLLM),))
    hosted = Hosted(COST.model, COEFFICIENTS, 100_000)
    late = [replace(r, arrival_s=at) for r, at in zip(requests, (0.5, 0.5, 3.11), strict=True)]
    found = simulate_engines(fleet, workload(requests), hosted)
    wanted = simulate_engines(fleet, workload(late), COST)
    np.testing.assert_array_equal(found.requests.arrival_s, [0.0, 0.01, 3.0])
    for column in ("admitted_s", "first_token_s", "last_token_s"):
        times = getattr(wanted.requests, column)
        np.testing.assert_allclose(getattr(found.requests, column), times, rtol=1e-12)


def test_closed_loops_wait_for_the_front_end_too() -> None:
    """One client: every request is sent when the one before has ended, and delayed once."""
    arrivals = ClosedLoop(1, interval_s=1e-6)
    loop = Workload("loop", 20.0, lengths=fixed_lengths(100, 10), arrivals=arrivals)
    fleet = EngineFleet((EngineSpec("e", shape(), VLLM),))
    plain, hosted = (
        simulate_engines(fleet, loop, cost).requests
        for cost in (COST, Hosted(COST.model, COEFFICIENTS, 100_000))
    )
    ttft_s = hosted.first_token_s - hosted.arrival_s
    done = hosted.status == 0
    alone_s = plain.first_token_s[0] - plain.arrival_s[0]
    np.testing.assert_allclose(ttft_s[done], 0.2 + alone_s, rtol=1e-9)
    np.testing.assert_allclose(hosted.arrival_s[1:], hosted.last_token_s[:-1] + 1e-6, atol=1e-9)


def test_a_run_says_what_priced_it() -> None:
    """The header holds the cost document, the sources in use, and the band of the roofline."""
    shapes = [replace(shape(), accelerator=catalogue().get(n)) for n in ("A100-80GB", "MI300X")]
    fleet = EngineFleet(tuple(EngineSpec(f"e{i}", s, VLLM) for i, s in enumerate(shapes)))
    cost = StepRoofline(COST.model)
    header = simulate_engines(fleet, workload([Request(0, 0.0, 10, 5)]), cost).header
    entry = header["cost"]
    assert isinstance(entry, dict)
    assert step_cost_from_dict(entry["document"], COST.model).to_dict() == cost.to_dict()
    assert [source["kind"] for source in entry["provenance"]] == ["fitted", "extrapolated"]
    beyond = cost.band(shapes[1])
    assert header["band"] == {
        "low": beyond.low, "high": beyond.high, "extrapolated": ["MI300X"]
    }  # fmt: skip
    plain = simulate_engines(
        EngineFleet(fleet.engines[:1]), workload([Request(0, 0.0, 10, 5)]), COST
    ).header
    assert "band" not in plain
    assert plain["cost"]["provenance"][0]["kind"] == "assumed"  # type: ignore[index]
