"""Profiles of an engine whose times are known, and what they predict."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from tests.unit.profile.profiling import HOST_S, known_cost, known_plan, served

from penstock import api
from penstock.cli.main import execute
from penstock.cost.step_table import LinkTimes, StepTableFile
from penstock.cost.steps import EngineShape
from penstock.errors import InputError, SpecError
from penstock.measure.metrics import summarise
from penstock.plan.plan import Plan
from penstock.plan.profiled import profiled
from penstock.profile.calibrate import CalibrateSettings, fitted_profile
from penstock.profile.document import write_profile
from penstock.profile.engine import engine_bounds, engine_profile
from penstock.profile.fit import Row, decode_point, line, prefill_points
from penstock.profile.probes import Bounds, probes
from penstock.sim.engine_plans import simulate_engine_plan
from penstock.sim.options import SimulationOptions
from penstock.spec.arrivals import PoissonArrivals
from penstock.spec.lengths import LogNormal, MarginalLengths
from penstock.spec.workload import Request, Workload

LENGTHS = MarginalLengths(LogNormal(120, 0.6, 16, 500), LogNormal(40, 0.5, 8, 120))


@pytest.fixture(scope="module")
def plan(tmp_path_factory: pytest.TempPathFactory) -> Plan:
    return known_plan(tmp_path_factory.mktemp("model"))


@pytest.fixture(scope="module")
def profile(plan: Plan) -> StepTableFile:
    bounds = engine_bounds(plan)
    seen, record = served(plan, list(probes(bounds, 2)))
    return engine_profile(plan, bounds, seen, record)


@given(
    st.integers(64, 4096), st.integers(16, 1024), st.integers(1, 128), st.integers(1000, 200_000)
)
def test_probes_fit_the_engine(longest: int, chunk: int, seqs: int, kv_tokens: int) -> None:
    """No probe asks for more tokens or sequences than the engine takes."""
    bounds = Bounds(longest, chunk, seqs, kv_tokens)
    for probe in probes(bounds, 1):
        lengths = [prompt + output for prompt, output in probe.lengths]
        assert max(lengths) <= longest
        at_once = probe.at_once or probe.seqs
        assert at_once <= seqs
        assert probe.kind not in ("decode", "mixed") or at_once * max(lengths) <= 2 * kv_tokens


def test_step_times_are_those_of_the_engine(plan: Plan, profile: StepTableFile) -> None:
    """Every point lies on the lines the engine was made of, and the host is what came on top."""
    timer = known_cost(plan.model).step_timer(EngineShape(plan.cluster.nodes[0].accelerator))
    assert {point.seqs for point in profile.decode} == {1, 2, 4, 8, 16, 32, 64}
    for point in profile.decode:
        expected = timer.decode_s(point.seqs, point.context_tokens)
        assert point.seconds == pytest.approx(expected, rel=0.01)
    for chunk in profile.prefill:
        expected = timer.step_s([(chunk.tokens, chunk.cached_tokens)], 0, 0)
        assert chunk.seconds == pytest.approx(expected, rel=1e-6)
    assert profile.host is not None
    assert profile.host.fixed == pytest.approx(HOST_S)
    assert profile.host.per_prompt_token == pytest.approx(0.0, abs=1e-12)


def test_a_profile_predicts_what_its_engine_does(
    plan: Plan, profile: StepTableFile, tmp_path: Path
) -> None:
    """Simulated with the profile and with the engine's own times, traffic differs by the host."""
    path = tmp_path / "profile.yaml"
    write_profile(profile, path)
    load = Workload("p", 30.0, lengths=LENGTHS, arrivals=PoissonArrivals(12.0), seed=2)
    own = simulate_engine_plan(plan, load, known_cost(plan.model), SimulationOptions(seed=2))
    truth = summarise(own).overall
    told = summarise(api.simulate(plan, load, profile=path)).overall
    assert told.tpot.mean == pytest.approx(truth.tpot.mean, rel=0.03)
    assert told.ttft.mean == pytest.approx(truth.ttft.mean + HOST_S, rel=0.03)
    assert told.output_throughput_tokens_per_s == pytest.approx(
        truth.output_throughput_tokens_per_s, rel=0.01
    )


def test_a_lone_request_takes_its_host_and_its_steps(plan: Plan, tmp_path: Path) -> None:
    """TTFT is the host's fixed part, its part per prompt token, and one prefill step."""
    path = tmp_path / "p.yaml"
    path.write_text(
        f"model: {plan.model.name}\naccelerator: CPU\nsource: by hand\n"
        "host: {fixed: 3 ms, per_prompt_token: 0.01 ms}\n"
        "decode:\n  - {seqs: 1, context_tokens: 0, seconds: 5 ms}\n"
        "prefill:\n  - {tokens: 100, seconds: 40 ms}\n"
    )
    load = Workload("one", 1.0, trace=(Request(0, 0.0, 100, 3),))
    run = api.simulate(plan, load, profile=path)
    assert run.requests.first_token_s[0] == pytest.approx(0.003 + 0.001 + 0.040)
    assert run.requests.last_token_s[0] == pytest.approx(0.044 + 2 * 0.005)
    provenance = run.header["cost"]["provenance"][0]  # type: ignore[index]
    assert provenance["kind"] == "measured"


def test_a_profile_reads_back_and_sets_the_hand_over(
    plan: Plan, profile: StepTableFile, tmp_path: Path
) -> None:
    """The file keeps six digits of everything; its KV transfer replaces the plan's."""
    path = tmp_path / "profile.yaml"
    kv = LinkTimes(bandwidth=3e8, latency=0.002)
    write_profile(profile.model_copy(update={"kv_transfer": kv}), path)
    other = profiled(plan, path)
    assert other.handoff.bandwidth_bytes_per_s == 3e8
    assert other.handoff.latency_s == 0.002
    again = api.cost_of(other).file  # type: ignore[union-attr]
    for ours, read in zip(profile.decode, again.decode, strict=True):
        assert read.seconds == pytest.approx(ours.seconds, rel=1e-5)
    assert again.error == profile.error


def test_a_client_alone_finds_the_same_engine(plan: Plan) -> None:
    """A fit from the client's side finds steps and host, and says that it is a fit."""
    seen, _ = served(plan, list(probes(engine_bounds(plan), 2)))
    settings = CalibrateSettings("http://x", plan.model, "CPU")
    found = fitted_profile(settings, seen)
    assert found.provenance == "fitted"
    assert found.host is not None
    # The smallest prompt of 4 tokens takes 0.2 ms more than a decode of one sequence.
    assert found.host.fixed == pytest.approx(HOST_S, abs=3e-4)
    timer = known_cost(plan.model).step_timer(EngineShape(plan.cluster.nodes[0].accelerator))
    for point in found.decode:
        assert point.seconds == pytest.approx(
            timer.decode_s(point.seqs, point.context_tokens), rel=0.01
        )
    with pytest.raises(InputError, match="--seconds"):
        fitted_profile(settings, [item for item in seen if item.probe.kind != "prefill"])


def test_a_pass_through_two_stages_is_a_step_of_half_the_batch() -> None:
    """Four sequences over two stages: two are in each, and a gap is a pass through both."""
    rows = [Row(10, 0.0, [1.0 + 0.05 * i for i in range(20)]) for _ in range(4)]
    point = decode_point(rows, stages=2)
    assert point is not None
    assert point.seqs == 2
    assert point.seconds == pytest.approx(0.05)
    assert point.context_tokens == pytest.approx(2 * (10 + 11), abs=2)
    assert decode_point([replace(row, times_s=row.times_s[:4]) for row in rows]) is None


def test_later_chunks_are_told_apart() -> None:
    """Two chunks take 30 ms and 35 ms: the whole prompt says so, and equal sizes give a median."""
    points = prefill_points([(512, 0.030), (512, 0.031), (512, 0.5), (1024, 0.066)], 512)
    assert [(p.tokens, p.cached_tokens) for p in points] == [(512, 0), (512, 512)]
    assert points[0].seconds == pytest.approx(0.031)
    assert points[1].seconds == pytest.approx(0.035)


def test_one_wild_point_does_not_turn_the_line() -> None:
    """The median of all slopes stands against a pause of the machine."""
    x = np.arange(1.0, 8.0)
    y = 2.0 + 3.0 * x
    y[3] += 1000.0
    found = line(list(zip(x.tolist(), y.tolist(), strict=True)))
    assert (found.fixed, found.slope) == pytest.approx((2.0, 3.0))


def test_a_profile_of_something_else_is_refused(plan: Plan, tmp_path: Path) -> None:
    """Another model, another shape and another accelerator are one line each."""
    text = (
        "model: %s\naccelerator: %s\nsource: by hand\ntensor_parallel_size: %d\n"
        "decode:\n  - {seqs: 1, context_tokens: 0, seconds: 5 ms}\n"
        "prefill:\n  - {tokens: 100, seconds: 40 ms}\n"
    )
    load = Workload("one", 1.0, trace=(Request(0, 0.0, 100, 3),))
    path = tmp_path / "p.yaml"
    for values, problem in (
        (("other", "CPU", 1), "was measured with other"),
        ((plan.model.name, "L40S", 1), "was measured on L40S"),
        ((plan.model.name, "CPU", 2), "tensor_parallel_size"),
    ):
        path.write_text(text % values)
        with pytest.raises(SpecError, match=problem):
            api.simulate(plan, load, profile=path)


@pytest.mark.parametrize(
    "arguments",
    [
        ["calibrate", "--url", "http://127.0.0.1:9", "--model", "llama-3-8b"],
        ["calibrate", "--model", "llama-3-8b", "--seconds", "601"],
        ["calibrate", "--model", "llama-3-8b", "--max-concurrency", "0"],
    ],
)
def test_calibrate_refuses_in_one_line(
    arguments: list[str], capsys: pytest.CaptureFixture[str]
) -> None:
    """A server that is down and flags out of range are the user's to mend: exit 2."""
    assert execute([*arguments, "--accelerator", "L40S"]) == 2
    assert len(capsys.readouterr().err.splitlines()) == 1
