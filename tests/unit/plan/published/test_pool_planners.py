"""AlpaServe, MaverIQ and Accelerate as planners of pools."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace
from itertools import product

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from published.pool_toys import (
    FULL,
    GPU_BYTES,
    HALF,
    ToyCost,
    cluster,
    machine,
    question,
    served,
    toy_model,
)

from penstock.cost.steps import EngineShape
from penstock.errors import Infeasible, PenstockError, SpecError
from penstock.plan.planner import silent
from penstock.plan.pool.model import Group, PoolPlacement, Shape
from penstock.plan.pool.policies import STATIC_POLICIES
from penstock.plan.pool.simulate import simulate_pool
from penstock.plan.pool_checker import check_pool
from penstock.plan.pool_plan import PoolPlan
from penstock.plan.pool_question import PoolPlanner, PoolQuestion
from penstock.plan.published.accelerate import AcceleratePlanner
from penstock.plan.published.alpaserve import AlpaServePlanner, pool_problem
from penstock.plan.published.asked import Asked
from penstock.plan.published.by_name import PUBLISHED, published_planner
from penstock.plan.published.equal_gpus import equal_machines
from penstock.plan.published.maveriq import MaverIQPlanner, deployments
from penstock.spec.intent import INTENTS
from penstock.spec.served import in_precision

PLANNERS: list[PoolPlanner] = [
    AlpaServePlanner(),
    AlpaServePlanner("sr-greedy"),
    MaverIQPlanner(),
    MaverIQPlanner("llf"),
    MaverIQPlanner("packing"),
    AcceleratePlanner(),
]


def half(pools: Sequence[PoolPlan]) -> list[float]:
    return [0.5] * len(pools)


def ask(planner: PoolPlanner, asked: PoolQuestion) -> PoolPlan:
    return planner.plan(asked, half, silent)


def asked_of(one: PoolQuestion) -> Asked:
    return Asked(one, equal_machines(one.cluster, "test"))


@st.composite
def questions(draw: st.DrawFn) -> PoolQuestion:
    """One machine and up to four models, from some that fill a GPU to some that need several."""
    models = [
        served(
            toy_model(f"m{i}", draw(st.integers(8, 12)), 8 * draw(st.integers(4, 18))),
            draw(st.sampled_from(INTENTS)),
            halved=draw(st.booleans()),
        )
        for i in range(draw(st.integers(1, 4)))
    ]
    names = [one.name for one in models]
    gaps = draw(st.lists(st.sampled_from([0.0, 0.02, 0.3]), min_size=1, max_size=30))
    times = [sum(gaps[: i + 1]) for i in range(len(gaps))]
    requests = [(at, draw(st.sampled_from(names))) for at in times]
    fleet = cluster(machine("a", draw(st.sampled_from([1, 2, 4, 8]))))
    return question(fleet, models, requests, draw(st.sampled_from([0.1, 1.0, 10.0])))


@pytest.mark.parametrize("planner", PLANNERS, ids=str)
@given(asked=questions())
@settings(max_examples=25, deadline=None)
def test_every_plan_holds(planner: PoolPlanner, asked: PoolQuestion) -> None:
    """Weights and KV memory fit, seats are equal or apart, and every model is placed or named."""
    try:
        found = ask(planner, asked)
    except Infeasible:
        return
    assert check_pool(found) == []
    named = [one.name for one in found.deployments] + [one.model for one in found.unplaced]
    assert sorted(named) == sorted(one.name for one in asked.models)
    assert ask(planner, asked) == found


@given(asked=questions())
@settings(max_examples=25, deadline=None)
def test_alpaserve_states_what_its_simulator_gives(asked: PoolQuestion) -> None:
    """The groups of the plan, read back from its nodes, replay to the value that it states."""
    try:
        found = ask(AlpaServePlanner(), asked)
    except Infeasible:
        return
    names = [one.name for one in asked.models]
    groups = []
    for nodes, engines in sorted(
        found.groups.items(), key=lambda one: min(found.gpus_of(one[0][0]))
    ):
        shape = Shape(found.nodes.node(nodes[0]).count, len(nodes))
        groups.append(Group(shape, tuple(names.index(model) for model, _ in engines)))
    problem = pool_problem(asked_of(asked))
    assert simulate_pool(problem, PoolPlacement(tuple(groups))).attainment == found.value
    assert found.sharing.admission == "deadline"
    assert {e.scheduler.max_num_seqs for d in found.deployments for e in d.plan.engines
            if e.scheduler} <= {1, 2, 4, 8}  # fmt: skip


def test_a_stage_is_busy_for_prompt_and_output() -> None:
    """Ten steps of prompt and four of decodes, halved by two GPUs, parted over two stages."""
    model = toy_model("m")
    one = question(cluster(machine("a", 4)), [served(model)], [(0.0, "m")])
    profile = pool_problem(asked_of(one)).models[0].profile
    whole_s = 14 * ToyCost(model).whole_step_s(1)
    assert profile.timings[Shape(1, 1)].latency_s == pytest.approx((whole_s,))
    assert profile.timings[Shape(2, 2)].latency_s == pytest.approx((whole_s / 4,) * 2)
    weights = ToyCost(model).weight_bytes_per_accelerator(
        EngineShape(one.cluster.nodes[0].accelerator, 1, 1)
    )
    token = model.kv_bytes_per_token_per_layer * model.num_hidden_layers
    assert profile.timings[Shape(1, 1)].most_weight_bytes == weights + 16 * token


def test_alpaserve_spreads_groups_over_machines() -> None:
    """A model that needs all eight GPUs stands on both machines, tensor groups within each."""
    big = served(toy_model("big", layers=16, width=144))
    asked = question(cluster(machine("a", 4), machine("b", 4)), [big], [(0.0, "big")])
    found = ask(AlpaServePlanner(), asked)
    assert check_pool(found) == []
    machines = {
        machine
        for engine in found.deployments[0].plan.engines
        for stage in engine.stages
        for machine, _ in found.gpus_of(stage.node)
    }
    assert machines == {"a", "b"}
    assert len(found.deployments[0].plan.engines) == 1


def test_each_policy_can_be_named() -> None:
    """Every policy gives a plan that holds on a pool that is roomy enough for all of them."""
    models = [served(toy_model(f"m{i}", layers=8)) for i in range(3)]
    requests = [(0.05 * i, f"m{i % 3}") for i in range(30)]
    asked = question(cluster(machine("a", 8)), models, requests)
    for policy in STATIC_POLICIES:
        found = ask(AlpaServePlanner(policy), asked)
        assert check_pool(found) == [], policy
        assert policy in found.reasons[0]


@pytest.mark.parametrize("intent", INTENTS)
def test_maveriq_takes_the_best_of_all_configurations(intent: str) -> None:
    """On an empty machine, its choice is the least of every shape and form, counted by hand."""
    model = toy_model("m", layers=8)
    one = served(model, intent, halved=True)  # type: ignore[arg-type]
    asked = asked_of(question(cluster(machine("a", 4)), [one], [(0.0, "m")]))
    (found,) = deployments(asked)
    assert found.choice is not None
    every = []
    for form, tensor, pipeline in product((FULL, HALF), (1, 2, 4), (1, 2, 3, 4)):
        if tensor * pipeline > 4:
            continue
        cost = ToyCost(in_precision(model, form))
        shape = asked.shape(tensor, pipeline)
        seconds = 14 * cost.whole_step_s(tensor)
        layers = -(-8 // pipeline)
        kv = 16 * model.kv_bytes_per_token_per_layer * layers / tensor
        gpus = tensor * pipeline
        held = (cost.weight_bytes_per_accelerator(shape) + kv) * gpus
        every.append(
            {
                "min_latency": seconds,
                "min_cost": seconds * held,
                "min_memory": held,
                "min_gpu_cost": seconds * gpus,
            }[intent]
        )
    assert found.choice.cost == pytest.approx(min(every))


def test_maveriq_widens_what_overlaps_in_part() -> None:
    """Two models on all GPUs and one on two of them become one group, and the plan says so."""
    wide = [served(toy_model(f"wide{i}", layers=8)) for i in range(2)]
    narrow = served(toy_model("narrow", layers=8), "min_gpu_cost")
    narrow = replace(narrow, model=replace(narrow.model, num_attention_heads=1))
    models = [wide[0], narrow, wide[1]]
    asked = question(cluster(machine("a", 4)), models, [(0.0, one.name) for one in models])
    found = ask(MaverIQPlanner(), asked)
    assert len(found.groups) == 1
    assert any("widened" in reason for reason in found.reasons)
    assert check_pool(found) == []


def test_accelerate_gives_every_gpu_a_layer() -> None:
    """Eight layers on three GPUs: 3, 3 and 2, for each model on the same nodes."""
    models = [served(toy_model(f"m{i}", layers=8)) for i in range(2)]
    asked = question(cluster(machine("a", 3)), models, [(0.0, "m0")])
    found = ask(AcceleratePlanner(), asked)
    for one in found.deployments:
        (engine,) = one.plan.engines
        assert [stage.num_layers for stage in engine.stages] == [3, 3, 2]
    assert len(found.groups) == 1


@pytest.mark.parametrize(
    ("planner", "nodes", "words"),
    [
        (AlpaServePlanner(), [machine("a", 2), machine("b", 2, kind="Other")], "equal machines"),
        (MaverIQPlanner(), [machine("a", 2), machine("b", 2)], "one machine"),
        (AcceleratePlanner(), [machine("a", 2), machine("b", 2)], "one machine"),
        (AlpaServePlanner("mp-serch"), [machine("a", 2)], "mp-search"),
        (MaverIQPlanner("lff"), [machine("a", 2)], "llf"),  # type: ignore[arg-type]
    ],
)
def test_what_they_cannot_handle_is_said_in_a_line(
    planner: PoolPlanner, nodes: list[object], words: str
) -> None:
    """Unequal or several machines, and misspelt policies."""
    fleet = cluster(*nodes)  # type: ignore[arg-type]
    asked = question(fleet, [served(toy_model("m"))], [(0.0, "m")])
    with pytest.raises(SpecError, match=words):
        ask(planner, asked)


@pytest.mark.parametrize("planner", PLANNERS, ids=str)
def test_a_budget_of_moves_is_refused(planner: PoolPlanner) -> None:
    """None of them keeps what stands; to plan anew all the same would load more than is allowed."""
    asked = question(cluster(machine("a", 2)), [served(toy_model("m"))], [(0.0, "m")])
    with pytest.raises(SpecError, match="budget"):
        ask(planner, replace(asked, move_budget_bytes=1e6))


@pytest.mark.parametrize(
    ("name", "planner"),
    [
        ("alpaserve", AlpaServePlanner()),
        ("alpaserve-mp-rr", AlpaServePlanner("mp-rr")),
        ("maveriq", MaverIQPlanner()),
        ("maveriq-packing", MaverIQPlanner("packing")),
        ("accelerate", AcceleratePlanner()),
    ],
)
def test_planners_are_found_by_name(name: str, planner: PoolPlanner) -> None:
    """The system's name, with a policy or strategy behind it."""
    assert published_planner(name) == planner


def test_a_misspelt_planner_is_not_found() -> None:
    """So that who asks can name all planners, its own among them."""
    assert published_planner("alpaserv") is None
    assert "maveriq-llf" in PUBLISHED


@pytest.mark.parametrize("planner", PLANNERS, ids=str)
def test_a_model_larger_than_the_machine_is_infeasible(planner: PoolPlanner) -> None:
    """Four times the memory of all GPUs."""
    big = toy_model("big", layers=32, width=256)
    assert big.slice_weight_bytes(0, 32) > 4 * GPU_BYTES
    asked = question(cluster(machine("a", 2)), [served(big)], [(0.0, "big")])
    with pytest.raises(PenstockError, match=r"big|fits"):
        ask(planner, asked)
