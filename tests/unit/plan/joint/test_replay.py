"""The replay of the joint search: by hand, against its plain form, and against the simulator."""

from __future__ import annotations

from math import inf
from random import Random

import numpy as np
import pytest
from hypothesis import assume, given, settings
from hypothesis import strategies as st
from published.pool_toys import ToyCost, cluster, machine, question, served, toy_model

from penstock.measure.metrics import summarise
from penstock.plan.joint.evaluate import Evaluator
from penstock.plan.joint.kernel import replay
from penstock.plan.joint.layout import Candidate, Group
from penstock.plan.joint.problem import joint_problem
from penstock.plan.joint.publish import publish
from penstock.plan.pool_plan import Sharing
from penstock.plan.pool_question import PoolQuestion
from penstock.sim.pools import PoolOptions, simulate_pool

ONE, TWO, PIPE = (
    Group(((0, 0),), 1),
    Group(((0, 0),), 2),
    Group(((0, 0), (0, 1)), 1),
)


def evaluator(asked: PoolQuestion, *, compiled: bool = True) -> Evaluator:
    problem = joint_problem(asked)
    for node in asked.cluster.nodes:
        problem.book.accelerators[node.accelerator.name] = node.accelerator
    return Evaluator(problem) if compiled else Evaluator(problem, replay=replay)


def held(groups: tuple[Group, ...], *models: tuple[int, ...]) -> Candidate:
    count = 1 + max(m for one in models for m in one)
    return Candidate(groups, models, (0,) * count)


def test_a_request_alone_takes_its_prompt_and_its_steps() -> None:
    """10 steps of prompt and 4 of decode, with two GPUs in half the time."""
    model = toy_model("a")
    asked = question(cluster(machine("m", 2)), [served(model)], [(0.0, "a")])
    step_s = ToyCost(model).whole_step_s(1)
    wide = evaluator(asked)(held((TWO,), (0,))).seconds[0]
    assert evaluator(asked)(held((ONE,), (0,))).seconds[0] == pytest.approx(14 * step_s)
    assert wide == pytest.approx(7 * step_s)


def test_the_lane_is_one_models_until_its_more_urgent_request_has_ended() -> None:
    """Earliest deadline first: b comes during a's prompt, with the later deadline."""
    models = [served(toy_model("a")), served(toy_model("b"))]
    step_s = ToyCost(models[0].model).whole_step_s(1)
    asked = question(cluster(machine("m", 1)), models, [(0.0, "a"), (step_s, "b")])
    seconds = evaluator(asked)(held((ONE,), (0, 1))).seconds
    assert seconds[0] == pytest.approx(14 * step_s)
    assert seconds[1] == pytest.approx(27 * step_s)


def test_models_in_turn_share_the_lane_step_by_step() -> None:
    """Round robin: both prompts (20 steps), then four rounds of two steps end both at once."""
    models = [served(toy_model("a")), served(toy_model("b"))]
    asked = question(cluster(machine("m", 1)), models, [(0.0, "a"), (0.0, "b")])
    fair = PoolQuestion(
        asked.cluster, asked.models, asked.workload, ToyCost, Sharing("round-robin"), 1.0
    )
    step_s = ToyCost(models[0].model).whole_step_s(1)
    seconds = evaluator(fair)(held((ONE,), (0, 1))).seconds
    assert seconds.tolist() == pytest.approx([28 * step_s, 28 * step_s])


def test_a_model_that_is_loading_keeps_its_requests_waiting() -> None:
    """Loaded after half a second, it serves what came before from then on."""
    model = toy_model("a")
    asked = question(cluster(machine("m", 1)), [served(model)], [(0.0, "a")])
    loading = evaluator(asked)
    loading.load_s = lambda model, form, group: 0.5
    expected = 0.5 + 14 * ToyCost(model).whole_step_s(1)
    assert loading(held((ONE,), (0,))).seconds[0] == pytest.approx(expected)


def test_a_request_that_will_be_late_is_refused_where_the_pool_says_so() -> None:
    """Two at once, and time for one: admission by deadline serves that one in time."""
    model = toy_model("a")
    limit_s = 16 * ToyCost(model).whole_step_s(1)
    sent = [(0.0, "a"), (0.001, "a")]
    asked = question(cluster(machine("m", 1)), [served(model)], sent, limit_s)
    refusing = PoolQuestion(
        asked.cluster, asked.models, asked.workload, ToyCost, Sharing(admission="deadline"), 1.0
    )
    assert evaluator(refusing)(held((ONE,), (0,))).good.tolist() == [1]


@st.composite
def cases(draw: st.DrawFn) -> tuple[PoolQuestion, Candidate]:
    """Up to three models on two GPUs, in any of the three cuts, under any rule."""
    count = draw(st.integers(1, 3))
    models = [served(toy_model(f"m{i}", layers=draw(st.integers(1, 4)))) for i in range(count)]
    random = Random(draw(st.integers(0, 10_000)))
    sent = sorted(
        (random.uniform(0, 2.0), f"m{random.randrange(count)}")
        for _ in range(draw(st.integers(1, 60)))
    )
    limit_s = draw(st.sampled_from([0.02, 0.1, 0.5, 10.0]))
    asked = question(cluster(machine("m", 2)), models, sent, limit_s)
    sharing = Sharing(
        draw(st.sampled_from(["earliest-deadline", "round-robin", "first-come"])),
        draw(st.sampled_from(["queue", "deadline"])),
    )
    every = tuple(range(count))
    groups, filled = draw(
        st.sampled_from(
            [
                ((TWO,), (every,)),
                ((PIPE,), (every,)),
                ((ONE, Group(((0, 1),), 1)), (every, every[:1])),
            ]
        )
    )
    forms = (0,) * count
    assume(all(map(evaluator(asked).fits, groups, filled, [forms] * len(groups))))
    chosen = PoolQuestion(asked.cluster, asked.models, asked.workload, ToyCost, sharing, 1.0)
    return chosen, Candidate(groups, filled, forms)


@settings(max_examples=40, deadline=None)
@given(cases())
def test_the_compiled_form_equals_the_plain_one(case: tuple[PoolQuestion, Candidate]) -> None:
    """Number for number, under every rule of turns and admission."""
    asked, candidate = case
    fast, plain = evaluator(asked)(candidate), evaluator(asked, compiled=False)(candidate)
    assert fast.good.tolist() == plain.good.tolist()
    assert np.allclose(fast.seconds, plain.seconds, rtol=1e-9)
    assert np.allclose(fast.busy, plain.busy, rtol=1e-9)


@settings(max_examples=40, deadline=None)
@given(cases())
def test_requests_are_not_lost_and_none_is_faster_than_alone(
    case: tuple[PoolQuestion, Candidate],
) -> None:
    """Under queueing all end, and the group is busy no longer than the time there is."""
    asked, candidate = case
    if asked.sharing.admission == "deadline":
        return
    own = evaluator(asked)
    outcome = own(candidate)
    alone = own.alone_s(candidate, range(len(asked.models)))
    sent = own.problem.sampled
    assert (outcome.seconds >= sent * alone * (1 - 1e-9)).all()
    assert (outcome.slow < 2.0 * sent + 1e-9).all() or max(outcome.slow) <= 2.0 * sent.sum()
    assert (outcome.busy > 0).any()


@pytest.mark.parametrize("groups", [(ONE, Group(((0, 1),), 1)), (TWO,), (PIPE,)])
@pytest.mark.parametrize("rate", [5.0, 15.0])
def test_the_replay_is_near_the_token_level_simulator(
    groups: tuple[Group, ...], rate: float
) -> None:
    """Mean latency within 15 % and attainment within 4 points, shared or not, calm or busy."""
    models = [served(toy_model("a")), served(toy_model("b", layers=2))]
    random = Random(1)
    now, sent = 0.0, []
    while now < 60.0:
        sent.append((now, random.choice("ab")))
        now += random.expovariate(rate)
    asked = question(cluster(machine("m", 2)), models, sent, limit_s=0.15)
    filled = ((0,), (1,)) if len(groups) == 2 else ((0, 1),)
    own = evaluator(asked)
    candidate = Candidate(groups, filled, (0, 0))
    outcome = own(candidate)
    pool = publish(own, candidate, 1.0, unplaced={})
    costs = {entry.name: ToyCost(entry.plan.model) for entry in pool.deployments}
    overall = summarise(
        simulate_pool(pool, asked.workload, costs, PoolOptions()), classes=asked.workload.classes
    ).overall
    assert overall.slo_attainment == pytest.approx(outcome.attainment(len(sent)), abs=0.04)
    assert overall.e2e.mean == pytest.approx(outcome.seconds.sum() / len(sent), rel=0.15)


def test_groups_that_share_no_model_are_replayed_once() -> None:
    """Changing one group leaves the record of the others as it is."""
    models = [served(toy_model("a")), served(toy_model("b", layers=2))]
    sent = [(0.1 * i, "ab"[i % 2]) for i in range(20)]
    own = evaluator(question(cluster(machine("m", 2)), models, sent))
    groups = (ONE, Group(((0, 1),), 1))
    own(Candidate(groups, ((0,), (1,)), (0, 0)))
    before = own.replays
    own(Candidate(groups, ((0,), ()), (0, 0)))
    assert own.replays == before
    assert own(Candidate(groups, ((), (1,)), (0, 0))).slow[0] == 20
    assert inf not in own(Candidate(groups, ((1,), (0,)), (0, 0))).seconds
