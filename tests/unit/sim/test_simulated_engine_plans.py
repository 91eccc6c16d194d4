"""Plans of whole engines in virtual time: laws of every run, and two ways to the same run."""

from __future__ import annotations

from dataclasses import replace

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from penstock.cost.step_roofline import StepRoofline
from penstock.cost.steps import EngineShape, stage_timers
from penstock.errors import InputError, SpecError
from penstock.measure.run import STATUS, Run
from penstock.plan.goodput.fleet import EngineChoice, Fleet, Phase
from penstock.plan.goodput.publish import Outcome, fleet_plan
from penstock.plan.plan import Plan, Stage
from penstock.plan.settings import HandoffSettings
from penstock.sim.disaggregated import RoleFleet, simulate_disaggregated
from penstock.sim.engine_plans import engine_specs, simulate_engine_plan
from penstock.sim.engines import EngineOptions
from penstock.sim.engines.fleet import EngineSpec, StageSpec
from penstock.sim.engines.stages import StageTimer, engine_timers
from penstock.sim.options import SimulationOptions
from penstock.spec.catalogue import catalogue
from penstock.spec.cluster import Link
from penstock.spec.faults import Fault, FaultSchedule
from penstock.spec.load import load_model
from penstock.spec.workload import Request, Workload

H100, L40S = catalogue().get("H100"), catalogue().get("L40S")
COST = StepRoofline(load_model("llama-3-8b"))
FINISHED, REJECTED = STATUS.index("finished"), STATUS.index("rejected")


def plan_of(*kinds: tuple[EngineChoice, int], kv_tokens: int | None = None) -> Plan:
    """A fleet as a plan; ``kv_tokens`` replaces what the memory of each engine holds."""
    plan = fleet_plan(
        Fleet(kinds), COST, Outcome(4.0, 0.9, 500.0, "test"), handoff=HandoffSettings(10e9, 1e-4)
    )
    if kv_tokens is None:
        return plan
    entries = kv_tokens * COST.model.num_hidden_layers
    engines = tuple(replace(one, kv_capacity_layer_tokens=entries) for one in plan.engines)
    return replace(plan, engines=engines)


def kind(role: Phase = "both", stages: int = 1, scheduler: str = "vllm") -> EngineChoice:
    return EngineChoice(EngineShape(H100, 1, stages), scheduler, 512, role)


def requests_of(gaps: list[tuple[float, int, int]]) -> Workload:
    """(gap to the one before, prompt, output) of each request."""
    now, requests = 0.0, []
    for i, (gap, prompt, output) in enumerate(gaps):
        now += gap
        requests.append(Request(i, now, prompt, output))
    return Workload("drawn", 0.0, trace=tuple(requests))


TRAFFIC = st.lists(
    st.tuples(st.floats(0, 0.3), st.integers(1, 1500), st.integers(1, 60)), min_size=1, max_size=25
).map(requests_of)
SHAPES = st.sampled_from(
    [
        ((kind(), 2),),
        ((kind(stages=2), 1),),
        ((kind("prefill"), 1), (kind("decode"), 2)),
        ((kind("prefill", 2), 1), (kind("decode"), 1)),
        ((kind(scheduler="sarathi"), 1),),
    ]
)
KV_TOKENS = st.sampled_from([None, 4096, 1600, 800])


def check_laws(run: Run, workload: Workload) -> None:
    """Conservation, causality, capacity."""
    table = run.requests
    assert len(table.id) == len(workload.trace) == run.counters["requests"]
    ended = (table.status == FINISHED) | (table.status == REJECTED)
    assert ended.all()
    done = table.status == FINISHED
    assert np.array_equal(table.generated_tokens[done], table.output_tokens[done])
    assert np.array_equal(np.diff(run.tokens.offsets)[done], table.output_tokens[done])
    assert (table.arrival_s <= table.admitted_s + 1e-9)[done].all()
    assert (table.admitted_s < table.first_token_s)[done].all()
    assert (table.first_token_s <= table.last_token_s)[done].all()
    times, offsets = run.tokens.times_s, run.tokens.offsets
    for row in np.flatnonzero(done):
        own = times[offsets[row] : offsets[row + 1]]
        assert (np.diff(own) >= -1e-9).all()
        assert own[0] == pytest.approx(table.first_token_s[row])
        assert own[-1] == pytest.approx(table.last_token_s[row])
    assert run.nodes is not None
    assert (run.nodes.peak_kv_fraction <= 1.0).all()
    assert (run.nodes.busy_s <= float(run.header["end_s"]) + 1e-9).all()  # type: ignore[arg-type]


@settings(max_examples=40, deadline=None)
@given(kinds=SHAPES, workload=TRAFFIC, kv_tokens=KV_TOKENS)
def test_no_request_is_lost_no_time_goes_back_and_no_memory_is_exceeded(
    kinds: tuple[tuple[EngineChoice, int], ...], workload: Workload, kv_tokens: int | None
) -> None:
    """All requests end with all their tokens in order, or are rejected for want of memory."""
    plan = plan_of(*kinds, kv_tokens=kv_tokens)
    run = simulate_engine_plan(plan, workload, COST, SimulationOptions())
    check_laws(run, workload)
    for i, request in enumerate(workload.trace):
        fits = kv_tokens is None or request.prompt_tokens + request.output_tokens <= kv_tokens + 1
        assert fits or run.requests.status[i] == REJECTED


@settings(max_examples=25, deadline=None)
@given(kinds=SHAPES, workload=TRAFFIC, kv_tokens=KV_TOKENS)
def test_skipping_steps_changes_nothing(
    kinds: tuple[tuple[EngineChoice, int], ...], workload: Workload, kv_tokens: int | None
) -> None:
    """With and without skipped steps all token times agree to a nanosecond."""
    plan = plan_of(*kinds, kv_tokens=kv_tokens)
    fast = simulate_engine_plan(plan, workload, COST, SimulationOptions())
    slow = simulate_engine_plan(plan, workload, COST, SimulationOptions(step_by_step=True))
    assert np.array_equal(fast.tokens.offsets, slow.tokens.offsets)
    np.testing.assert_allclose(fast.tokens.times_s, slow.tokens.times_s, rtol=0, atol=1e-8)


@settings(max_examples=25, deadline=None)
@given(workload=TRAFFIC, kv_tokens=KV_TOKENS, stages=st.sampled_from([1, 2]))
def test_the_simulator_of_roles_runs_colocated_engines_alike(
    workload: Workload, kv_tokens: int | None, stages: int
) -> None:
    """Two event loops, one run."""
    plan = plan_of((kind(stages=stages), 2), kv_tokens=kv_tokens)
    one = simulate_engine_plan(plan, workload, COST, SimulationOptions())
    fleet = RoleFleet(engine_specs(plan), plan.handoff)
    other = simulate_disaggregated(fleet, workload, COST, EngineOptions())
    np.testing.assert_allclose(one.tokens.times_s, other.tokens.times_s, rtol=0, atol=1e-8)
    assert np.array_equal(one.requests.status, other.requests.status)
    assert np.array_equal(one.requests.route_index, other.requests.route_index)


@settings(max_examples=25, deadline=None)
@given(
    kinds=st.sampled_from(
        [((kind(), 2),), ((kind("prefill"), 2), (kind("decode"), 2)), ((kind(stages=2), 2),)]
    ),
    workload=TRAFFIC,
    at_s=st.floats(0.01, 3.0),
    down_s=st.floats(0.01, 2.0),
    place=st.integers(0, 3),
)
def test_nobody_is_lost_when_a_node_fails_and_comes_back(
    kinds: tuple[tuple[EngineChoice, int], ...],
    workload: Workload,
    at_s: float,
    down_s: float,
    place: int,
) -> None:
    """Requests of a lost engine start over and still get each token exactly once."""
    plan = plan_of(*kinds)
    node = plan.cluster.nodes[place % len(plan.cluster.nodes)].name
    faults = (Fault(at_s, "fail", node), Fault(at_s + down_s, "recover", node))
    run = simulate_engine_plan(
        plan, workload, COST, SimulationOptions(faults=FaultSchedule(faults))
    )
    check_laws(run, workload)
    assert [event.kind for event in run.events] == ["fail", "recover"]


def test_a_fleet_that_loses_its_only_engine_waits_for_it() -> None:
    """Nothing happens while the node is down; the request starts over afterwards."""
    workload = requests_of([(0.0, 100, 400)])
    plan = plan_of((kind(), 1))
    faults = (Fault(0.5, "fail", "both-0-0"), Fault(60.0, "recover", "both-0-0"))
    run = simulate_engine_plan(
        plan, workload, COST, SimulationOptions(faults=FaultSchedule(faults))
    )
    gaps = np.diff(run.tokens.times_s)
    assert run.requests.generated_tokens[0] == 400
    assert 59.0 < gaps.max() < 60.1
    assert run.requests.preemptions[0] == 1


def test_slow_nodes_and_unknown_ones_are_refused() -> None:
    """Only nodes of the plan fail, and engines do not slow down."""
    plan, workload = plan_of((kind(), 1)), requests_of([(0.0, 10, 5)])
    for fault, words in (
        (Fault(1.0, "fail", "other"), "no such node"),
        (Fault(1.0, "slow", "both-0-0", factor=2.0), "use fail and recover"),
    ):
        with pytest.raises(SpecError, match=words):
            simulate_engine_plan(
                plan, workload, COST, SimulationOptions(faults=FaultSchedule((fault,)))
            )


def test_a_prompt_longer_than_the_pool_is_rejected_and_counted() -> None:
    """Its neighbours are served."""
    workload = requests_of([(0.0, 100, 5), (0.1, 900, 5), (0.1, 100, 5)])
    run = simulate_engine_plan(
        plan_of((kind(), 1), kv_tokens=800), workload, COST, SimulationOptions()
    )
    assert run.counters["rejected"] == 1
    assert run.requests.status.tolist() == [FINISHED, REJECTED, FINISHED]


def test_servers_of_unknown_batches_and_published_granularity_are_refused() -> None:
    """An external server has no scheduler to simulate; layers are of paths over nodes."""
    plan, workload = plan_of((kind(), 1)), requests_of([(0.0, 10, 5)])
    outside = replace(plan.engines[0], scheduler=None, url="http://127.0.0.1:1")
    with pytest.raises(SpecError, match="server of its own"):
        simulate_engine_plan(replace(plan, engines=(outside,)), workload, COST, SimulationOptions())
    with pytest.raises(InputError, match="granularity layerwise"):
        simulate_engine_plan(plan, workload, COST, SimulationOptions(granularity="layerwise"))


# -- stages that differ -----------------------------------------------------------------------


def staged(*stages: StageSpec) -> EngineSpec:
    shape = EngineShape(stages[0].accelerator, stages[0].tensor_parallel_size, len(stages))
    return EngineSpec("e", shape, stages=stages)


def test_equal_stages_inside_a_machine_take_what_the_cost_model_says() -> None:
    """No link and equal layers leave the timers as they are."""
    engine = staged(StageSpec(H100, 1, 16), StageSpec(H100, 1, 16))
    own = stage_timers(COST, EngineShape(H100, 1, 2))
    ours = engine_timers(COST, engine)
    assert [t.decode_s(8, 4000) for t in ours] == [t.decode_s(8, 4000) for t in own]


def test_a_stage_takes_time_by_its_layers_its_gpu_and_its_link() -> None:
    """24 of 32 layers take 1.5 times an equal stage; a slow link adds what it takes longer."""
    link = Link(1e9, 1e-3)
    engine = staged(StageSpec(H100, 1, 24, link), StageSpec(L40S, 1, 8))
    first, last = engine_timers(COST, engine)
    equal = stage_timers(COST, EngineShape(H100, 1, 2))[0]
    other = stage_timers(COST, EngineShape(L40S, 1, 2))[1]
    size = COST.model.activation_bytes_per_token
    extra = 1e-3 + 8 * size * (1 / 1e9 - 1 / H100.interconnect_bytes_per_s)
    assert first.decode_s(8, 4000) == pytest.approx(1.5 * equal.decode_s(8, 4000) + extra)
    assert last.decode_s(8, 4000) == pytest.approx(0.5 * other.decode_s(8, 4000))
    prompt = [(300, 0)]
    extra = 1e-3 + 300 * size * (1 / 1e9 - 1 / H100.interconnect_bytes_per_s)
    assert first.step_s(prompt, 0, 0) == pytest.approx(1.5 * equal.step_s(prompt, 0, 0) + extra)


@given(
    seqs=st.integers(1, 50),
    context=st.integers(0, 20_000),
    steps=st.integers(1, 60),
    share=st.floats(0.0, 1.2),
)
def test_spans_of_a_stage_are_sums_of_its_steps(
    seqs: int, context: int, steps: int, share: float
) -> None:
    """Span, cumulative times and their inverse agree with single steps."""
    timer = StageTimer(COST.step_timer(EngineShape(H100)), 0.7, 1e-4, 1e-6)
    each = [timer.decode_s(seqs, context + j * seqs) for j in range(steps)]
    total = sum(each)
    assert timer.decode_span_s(seqs, context, steps) == pytest.approx(total, rel=1e-9)
    times = timer.decode_span_times_s(seqs, context, steps)
    np.testing.assert_allclose(times, np.cumsum(each), rtol=1e-9)
    seconds = share * total
    reached = [k for k in range(1, steps + 1) if sum(each[:k]) >= seconds * (1 - 1e-12)]
    found = timer.steps_within(seqs, context, seconds, steps)
    assert abs(found - (reached[0] if reached else steps)) <= (0 if share > 1 else 1)


def test_stages_without_a_link_are_refused() -> None:
    """Stages of one engine need a link between their machines."""
    plan = plan_of((kind(stages=2), 1))
    a, b = (stage.node for stage in plan.engines[0].stages)
    apart = replace(plan.cluster, pair_links={(a, b): None, (b, a): None})
    with pytest.raises(SpecError, match=f"no link from {a} to {b}"):
        engine_specs(replace(plan, cluster=apart))
    stages = (Stage(a, 0, 20), Stage(b, 20, 32))
    uneven = replace(plan, engines=(replace(plan.engines[0], stages=stages),))
    spec = engine_specs(uneven)[0]
    assert [stage.num_layers for stage in spec.stages] == [20, 12]
    assert spec.num_accelerators == 2
