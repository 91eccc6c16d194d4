"""The engine in virtual time: hand figures, conservation, determinism, result fields."""

from __future__ import annotations

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from penstock.cost.base import Provenance
from penstock.cost.steps import EngineShape
from penstock.errors import InputError
from penstock.measure.metrics import summarise
from penstock.measure.run import STATUS
from penstock.plan.settings import SchedulerSettings
from penstock.policy.speculation.batching import SlotRules
from penstock.policy.speculation.controller import ControllerSettings, PricedSpeculator
from penstock.policy.speculation.latency import LatencyTable, StepLatency
from penstock.policy.speculation.shape import AdaptiveShape
from penstock.policy.speculation.slo import TpotLimit
from penstock.policy.speculation.speculator import (
    AdaServeSettings,
    AdaServeSpeculator,
    ChainSpeculator,
    Speculator,
)
from penstock.sim.engines.fleet import EngineFleet, EngineSpec
from penstock.sim.engines.simulate import simulate_engines
from penstock.sim.speculation.acceptance import BetaAcceptance
from penstock.sim.speculation.engine import (
    SpeculationRun,
    SpeculativeEngine,
    simulate_speculation,
)
from penstock.sim.speculation.result import speculation_result
from penstock.sim.speculation.table_cost import TableCost
from penstock.spec.catalogue import accelerator
from penstock.spec.load import load_model
from penstock.spec.workload import SLO, Request, SLOClass, Workload

TABLE = LatencyTable((0.0, 100.0), (0.010, 0.110))
LATENCY = StepLatency(0.005, TABLE)
LIMITS = {"code": TpotLimit(multiple=1.2), "chat": TpotLimit(limit_s=0.05)}


def engine(**rules: object) -> SpeculativeEngine:
    values = {"slots": 4, "prefill_tokens": 50, **rules}
    return SpeculativeEngine(LATENCY, BetaAcceptance(0.8, 1.0), SlotRules(**values))  # type: ignore[arg-type]


def serve(
    requests: list[Request], speculator: Speculator, seed: int = 0, **rules: object
) -> SpeculationRun:
    return simulate_speculation(engine(**rules), requests, LIMITS, 0.03, speculator, seed=seed)


def adaserve() -> AdaServeSpeculator:
    shape = AdaptiveShape(32, 12, 2, 4, 3)
    return AdaServeSpeculator(AdaServeSettings(shape, 32, 0.02, TABLE))


def controller() -> PricedSpeculator:
    return PricedSpeculator(ControllerSettings(LATENCY, max_depth=4, draft_tokens=12))


SPECULATORS = {
    "plain": lambda: ChainSpeculator(0),
    "chain": lambda: ChainSpeculator(3),
    "adaserve": adaserve,
    "controller": controller,
}


def test_one_request_without_speculation_takes_its_steps_one_after_the_other() -> None:
    """Prompt of 40 tokens: 10 + 40 ms; then 4 decode steps of 10 + 1 ms."""
    result = serve([Request(7, 2.0, 40, 5, "code")], ChainSpeculator(0))
    table = result.run.requests
    assert table.first_token_s[0] == pytest.approx(2.05)
    assert table.last_token_s[0] == pytest.approx(2.05 + 4 * 0.011)
    times = result.run.tokens.times_s
    assert times == pytest.approx([2.05 + 0.011 * i for i in range(5)])
    assert result.attained.tolist() == [True]


def test_prompts_run_in_chunks_beside_decodes_or_alone_before_them() -> None:
    """The second prompt shares the first one's decode step, or makes it wait."""
    requests = [Request(0, 0.0, 40, 3, "code"), Request(1, 0.045, 40, 3, "chat")]
    mixed = serve(requests, ChainSpeculator(0)).run.requests
    assert mixed.first_token_s == pytest.approx([0.05, 0.05 + 0.051])
    assert mixed.last_token_s[0] == pytest.approx(0.05 + 0.051 + 0.012)
    alone = serve(requests, ChainSpeculator(0), chunked=False).run.requests
    assert alone.first_token_s == pytest.approx([0.05, 0.10])
    assert alone.last_token_s == pytest.approx([0.10 + 2 * 0.012] * 2)


@st.composite
def traffic(draw: st.DrawFn) -> list[Request]:
    gaps = draw(st.lists(st.floats(0, 0.3), min_size=1, max_size=12))
    requests, now = [], 0.0
    for i, gap in enumerate(gaps):
        now += gap
        prompt, output = draw(st.integers(1, 120)), draw(st.integers(1, 40))
        requests.append(
            Request(i, now, prompt, output, draw(st.sampled_from(["code", "chat", ""])))
        )
    return requests


@given(traffic(), st.sampled_from(sorted(SPECULATORS)), st.booleans(), st.integers(0, 9))
@settings(max_examples=40, deadline=None)
def test_every_request_gets_all_its_tokens_in_order(
    requests: list[Request], name: str, chunked: bool, seed: int
) -> None:
    """Tokens are conserved, times ascend, and the steps add up to the tokens."""
    result = serve(requests, SPECULATORS[name](), seed, chunked=chunked)
    table, tokens = result.run.requests, result.run.tokens
    assert np.all(table.status == STATUS.index("finished"))
    assert np.array_equal(table.generated_tokens, table.output_tokens)
    assert np.array_equal(np.diff(tokens.offsets), table.output_tokens)
    for i in range(len(requests)):
        times = tokens.times_s[tokens.offsets[i] : tokens.offsets[i + 1]]
        assert np.all(np.diff(times) >= 0)
        assert times[0] == table.first_token_s[i] > table.arrival_s[i]
        assert times[-1] == table.last_token_s[i]
    steps = result.steps
    assert sum(steps.generated) + len(requests) == int(table.output_tokens.sum())
    assert sum(steps.prefill_tokens) == sum(r.prompt_tokens for r in requests)
    assert max(steps.requests) <= 4


@pytest.mark.parametrize("name", sorted(SPECULATORS))
def test_equal_seeds_give_equal_runs(name: str) -> None:
    """Same inputs and seed, same times; another seed draws other acceptances."""
    requests = [Request(i, 0.1 * i, 30, 30, "code") for i in range(12)]
    first, again = (serve(requests, SPECULATORS[name](), 4).run.tokens.times_s for _ in range(2))
    assert first.tobytes() == again.tobytes()
    other = serve(requests, SPECULATORS[name](), 5).run.tokens.times_s
    assert (first.tobytes() == other.tobytes()) == (name == "plain")


def test_a_request_longer_than_the_model_allows_is_rejected_and_counted() -> None:
    """The others are served."""
    requests = [Request(0, 0.0, 2000, 100, "code"), Request(1, 0.0, 10, 2, "code")]
    result = serve(requests, ChainSpeculator(2))
    assert result.run.counters["rejected"] == 1
    assert result.finished.tolist() == [False, True]
    assert result.attained.tolist() == [False, True]


def test_no_requests_give_an_empty_run() -> None:
    """Nothing is divided by nothing."""
    result = serve([], ChainSpeculator(2))
    fields = speculation_result(result)
    assert fields.total_requests == (0, 0)
    assert fields.goodput == 0.0


def test_plain_decoding_equals_the_engine_simulator_on_the_same_table() -> None:
    """Two drivers, one table: a prompt-first scheduler gives the same times in both."""
    requests = [Request(i, 0.13173 * i, 20 + i, 10 + i % 7, "code") for i in range(20)]
    ours = serve(requests, ChainSpeculator(0), slots=64, prefill_tokens=4096, chunked=False)
    settings = SchedulerSettings("vllm-v0", max_num_seqs=64, max_num_batched_tokens=4096)
    cost = TableCost(
        load_model("meta-llama/Llama-3.1-70B"), LATENCY, 65536, Provenance("measured", "test")
    )
    spec = EngineSpec("engine", EngineShape(accelerator("A100")), settings)
    workload = Workload("test", 5.0, trace=tuple(requests))
    theirs = simulate_engines(EngineFleet((spec,)), workload, cost).requests
    assert ours.run.requests.first_token_s == pytest.approx(theirs.first_token_s, abs=1e-9)
    assert ours.run.requests.last_token_s == pytest.approx(theirs.last_token_s, abs=1e-9)


def test_result_fields_are_the_artifacts() -> None:
    """Counts, means and attainment agree with the run; the text has one line a field."""
    requests = [Request(i, 0.2 * i, 30, 20, "code" if i % 2 else "chat") for i in range(10)]
    result = serve(requests, adaserve())
    fields = speculation_result(result)
    assert fields.total_requests == (10, 10)
    assert fields.total_tokens == 200
    assert fields.slo_attainment == pytest.approx(result.attained.mean())
    steps = sum(fields.requests_per_step)
    assert fields.mean_generated_tokens_per_step == pytest.approx(190 / steps)
    assert sum(fields.generated_tokens_per_step) == 190
    assert fields.slo_classes == ("chat", "code")
    lines = fields.to_text().splitlines()
    assert lines[1] == "total_requests( 10 10 )"
    assert all(line.endswith(" )") for line in lines)


def test_requests_out_of_order_are_refused() -> None:
    """One line says what to do."""
    requests = [Request(0, 1.0, 10, 2, "code"), Request(1, 0.5, 10, 2, "code")]
    with pytest.raises(InputError, match="sort them"):
        serve(requests, ChainSpeculator(0))


def test_the_run_is_in_the_one_schema() -> None:
    """The shared metrics read it: attainment by the stricter TPOT, ITL gaps of 0 in a step."""
    requests = [Request(i, 0.1 * i, 30, 20, "code" if i % 2 else "chat") for i in range(10)]
    result = serve(requests, adaserve())
    classes = [SLOClass(name, SLO(tpot_s=limit.seconds(0.03))) for name, limit in LIMITS.items()]
    summary = summarise(result.run, classes)
    strict = result.decode_s / (result.run.requests.generated_tokens - 1)
    assert summary.overall.finished == 10
    assert summary.overall.slo_attainment == pytest.approx(np.mean(strict <= result.tpot_limit_s))
    assert summary.overall.itl.minimum == 0.0
    assert summary.overall.tpot.p50 == pytest.approx(np.median(strict))
