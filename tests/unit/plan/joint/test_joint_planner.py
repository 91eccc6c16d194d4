"""The joint planner: brute force on tiny pools, its laws, its intents, and plans in place."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import replace
from itertools import product
from random import Random

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from published.pool_toys import ToyCost, cluster, machine, question, served, toy_model

from penstock.errors import Infeasible, SpecError
from penstock.plan.joint.evaluate import Evaluator
from penstock.plan.joint.layout import Candidate, Group
from penstock.plan.joint.planner import JointPlanner
from penstock.plan.joint.problem import joint_problem
from penstock.plan.joint.publish import candidate_of
from penstock.plan.moves import moves
from penstock.plan.planner import silent
from penstock.plan.pool_checker import check_pool
from penstock.plan.pool_document import format_pool
from penstock.plan.pool_plan import PoolPlan
from penstock.plan.pool_question import PoolQuestion
from penstock.spec.intent import Intent, Wish

PLANNER = JointPlanner(proposals=120)


def as_replayed(plans: Sequence[PoolPlan]) -> list[float]:
    return [plan.value for plan in plans]


def planned(asked: PoolQuestion, planner: JointPlanner = PLANNER) -> PoolPlan:
    found = planner.plan(asked, as_replayed, silent)
    assert check_pool(found) == []
    return found


def traffic(
    rates: dict[str, float], seconds: float = 20.0, seed: int = 0
) -> list[tuple[float, str]]:
    """Poisson arrivals of each model."""
    random = Random(seed)
    sent = []
    for name, rate in rates.items():
        now = random.expovariate(rate)
        while now < seconds:
            sent.append((now, name))
            now += random.expovariate(rate)
    return sorted(sent)


def every_candidate(groups: Sequence[Group], models: int, forms: int) -> Iterator[Candidate]:
    """All ways to hold any models on any of ``groups``, in any forms."""
    sets = [tuple(m for m in range(models) if bits >> m & 1) for bits in range(1 << models)]
    for held in product(sets, repeat=len(groups)):
        for chosen in product(range(forms), repeat=models):
            yield Candidate(tuple(groups), held, chosen)


@pytest.mark.parametrize("limit_s", [0.06, 0.1, 0.3])
@pytest.mark.parametrize("seed", [0, 1])
def test_no_placement_of_a_tiny_pool_serves_more(limit_s: float, seed: int) -> None:
    """Two GPUs, two models in two forms: every cut, every filling."""
    models = [served(toy_model("a"), halved=True), served(toy_model("b", layers=3))]
    sent = traffic({"a": 12.0, "b": 8.0}, seed=seed)
    asked = question(cluster(machine("m", 2)), models, sent, limit_s)
    own = Evaluator(joint_problem(asked))
    own.problem.book.accelerators["Toy"] = asked.cluster.nodes[0].accelerator
    single, other = Group(((0, 0),), 1), Group(((0, 1),), 1)
    cuts = [[single, other], [Group(((0, 0),), 2)], [Group(((0, 0), (0, 1)), 1)]]
    best = 0.0
    for groups in cuts:
        for candidate in every_candidate(groups, 2, 2):
            if candidate.forms[1] or len(candidate.placed) < 2:
                continue
            pairs = zip(candidate.groups, candidate.held, strict=True)
            if all(own.fits(group, held, candidate.forms) for group, held in pairs if held):
                best = max(best, own(candidate).attainment(len(sent)))
    assert planned(asked).value == pytest.approx(best, abs=0.005)


@st.composite
def questions(draw: st.DrawFn) -> PoolQuestion:
    """Two machines, perhaps of unequal types and sizes, and up to four models."""
    fleet = cluster(
        machine("m", draw(st.integers(1, 4))),
        machine("n", draw(st.integers(1, 2)), draw(st.sampled_from([600_000, 1_000_000])), "Other"),
    )
    count = draw(st.integers(1, 4))
    models = [
        served(
            toy_model(f"m{i}", layers=draw(st.integers(1, 8))),
            draw(st.sampled_from(["min_latency", "min_cost", "min_memory", "min_gpu_cost"])),
            halved=draw(st.booleans()),
        )
        for i in range(count)
    ]
    rates = {f"m{i}": draw(st.sampled_from([0.5, 2.0, 8.0])) for i in range(count)}
    sent = traffic(rates, seconds=10.0, seed=draw(st.integers(0, 99)))
    return question(fleet, models, sent, draw(st.sampled_from([0.05, 0.2, 2.0])))


@settings(max_examples=15, deadline=None)
@given(questions())
def test_plans_hold_and_are_the_same_every_time(asked: PoolQuestion) -> None:
    """Memory, nodes and layers as the checker wants them; same question, same bytes."""
    quick = JointPlanner(proposals=30)
    first = planned(asked, quick)
    assert format_pool(first) == format_pool(planned(asked, quick))
    named = {entry.name for entry in first.deployments} | {one.model for one in first.unplaced}
    assert named == {model.name for model in asked.models}


@settings(max_examples=12, deadline=None)
@given(questions(), st.sampled_from([0, 300_000, 700_000]))
def test_a_plan_in_place_is_changed_within_the_budget(asked: PoolQuestion, budget: int) -> None:
    """No more is loaded than allowed, and the new plan serves no less than the old one."""
    quick = JointPlanner(proposals=30)
    before = planned(asked, quick)
    moved = question(
        asked.cluster,
        list(asked.models),
        [(at, asked.models[0].name) for at, _ in traffic({"x": 10.0}, 5.0)],
        0.1,
    )
    again = replace(moved, current=before, move_budget_bytes=float(budget))
    after = planned(again, quick)
    assert moves(before, after).load_bytes <= budget
    problem = joint_problem(again)
    problem.book.accelerators.update(
        {node.accelerator.name: node.accelerator for node in again.cluster.nodes}
    )
    candidate, seats = candidate_of(problem, before)
    own = Evaluator(problem)
    n = problem.traffic.num_requests
    assert len(seats) == sum(len(entry.plan.engines) for entry in before.deployments)
    assert after.value >= own(candidate).attainment(n) - 0.005 - 1e-9


def test_without_a_budget_everything_stays() -> None:
    """A budget of 0 keeps seats, and requests of a model without one find nothing."""
    models = [served(toy_model("a")), served(toy_model("b", layers=9))]
    fleet = cluster(machine("m", 1))
    before = planned(question(fleet, models[:1], traffic({"a": 2.0})))
    asked = question(fleet, models, traffic({"a": 2.0, "b": 2.0}))
    after = planned(replace(asked, current=before, move_budget_bytes=0.0))
    assert not moves(before, after).loaded
    assert [one.model for one in after.unplaced] == ["b"]
    assert "may not be loaded" in after.unplaced[0].reason


def test_every_model_with_requests_is_placed_before_any_replica() -> None:
    """Three models that fill a GPU each, on three GPUs: however unequal their traffic."""
    models = [served(toy_model(name, layers=10)) for name in "abc"]
    sent = traffic({"a": 30.0, "b": 0.2, "c": 0.2})
    found = planned(question(cluster(machine("m", 3)), models, sent, 0.2))
    assert {entry.name for entry in found.deployments} == {"a", "b", "c"}


def test_a_higher_priority_is_placed_where_not_all_fit() -> None:
    models = [served(toy_model(name, layers=10)) for name in "ab"]
    models[1] = replace(models[1], priority=1)
    found = planned(question(cluster(machine("m", 1)), models, traffic({"a": 9.0, "b": 1.0})))
    assert [entry.name for entry in found.deployments] == ["b"]
    assert found.unplaced[0].model == "a"


def test_a_model_that_fits_nowhere_has_no_answer() -> None:
    models = [served(toy_model("huge", layers=60))]
    with pytest.raises(Infeasible, match="huge"):
        planned(question(cluster(machine("m", 2)), models, [(0.0, "huge")]))


def test_wider_groups_where_the_limit_asks_for_them() -> None:
    """A request alone takes 14 steps; a limit of ten needs two GPUs to a stage."""
    model = toy_model("a")
    limit_s = 10 * ToyCost(model).whole_step_s(1)
    found = planned(question(cluster(machine("m", 2)), [served(model)], [(0.0, "a")], limit_s))
    assert found.value == 1.0
    (stage,) = found.deployments[0].plan.engines[0].stages
    assert found.nodes.node(stage.node).count == 2


def test_a_wish_for_latency_rules_out_slow_groups() -> None:
    """Without limits of its requests a model still goes where it is as quick as wished."""
    model = toy_model("a")
    step_s = ToyCost(model).whole_step_s(1)
    wished = replace(served(model), wish=Wish("min_latency", latency_slo_s=8 * step_s))
    found = planned(question(cluster(machine("m", 2)), [wished], [(0.0, "a")], 99.0))
    (stage,) = found.deployments[0].plan.engines[0].stages
    assert found.nodes.node(stage.node).count == 2
    never = replace(wished, wish=Wish("min_latency", latency_slo_s=step_s))
    missed = planned(question(cluster(machine("m", 2)), [never], [(0.0, "a")], 99.0))
    assert "latency_slo" in missed.unplaced[0].reason
    nearest = replace(never, wish=replace(never.wish, or_nearest=True))
    assert planned(question(cluster(machine("m", 2)), [nearest], [(0.0, "a")], 99.0)).deployments


def test_the_accuracy_floor_keeps_the_wide_form() -> None:
    """Halved weights would serve more, and are not accurate enough."""
    loose = served(toy_model("a"), halved=True)
    strict = replace(loose, wish=Wish("min_latency", accuracy_floor=0.95))
    sent = traffic({"a": 30.0})
    fleet = cluster(machine("m", 1))
    assert str(planned(question(fleet, [loose], sent, 0.1)).deployments[0].precision) == "int8"
    kept = planned(question(fleet, [strict], sent, 0.1)).deployments[0]
    assert (str(kept.precision), kept.accuracy) == ("float16", 1.0)
    none = replace(loose, wish=Wish("min_latency", accuracy_floor=1.0, precisions=frozenset()))
    with pytest.raises(SpecError, match="leaves no stored form"):
        planned(question(fleet, [none], sent, 0.1))


@pytest.mark.parametrize("intent", ["min_memory", "min_cost", "min_gpu_cost"])
def test_thrifty_intents_take_less_and_lose_little(intent: Intent) -> None:
    """One replica in the lighter form serves calm traffic as well as any other plan."""
    models = [served(toy_model("a"), intent, halved=True), served(toy_model("b"))]
    sent = traffic({"a": 1.0, "b": 1.0})
    found = planned(question(cluster(machine("m", 4)), models, sent, 0.5))
    assert found.value >= 0.995
    entry = found.deployment("a")
    assert str(entry.precision) == "int8"
    assert len(entry.plan.engines) == 1


def test_no_more_gpus_than_the_traffic_needs() -> None:
    """Among plans that serve everything the one with fewest GPUs is taken."""
    models = [served(toy_model("a")), served(toy_model("b"))]
    sent = [(1.0 * i, "ab"[i % 2]) for i in range(20)]
    found = planned(question(cluster(machine("m", 4)), models, sent, 1.0))
    assert found.value == 1.0
    assert len(found.groups) == 1


def test_a_model_without_requests_is_placed_where_there_is_room() -> None:
    models = [served(toy_model("a")), served(toy_model("b"))]
    found = planned(question(cluster(machine("m", 1)), models, traffic({"a": 1.0})))
    assert {entry.name for entry in found.deployments} == {"a", "b"}


def test_a_request_for_a_model_that_is_not_served_is_refused() -> None:
    with pytest.raises(SpecError, match="does not serve"):
        planned(question(cluster(machine("m", 1)), [served(toy_model("a"))], [(0.0, "z")]))


def test_the_budget_is_counted_in_candidates() -> None:
    """More proposals never give a worse plan by the replay itself."""
    models = [served(toy_model(f"m{i}", layers=3)) for i in range(5)]
    sent = traffic({f"m{i}": 12.0 / (i + 1) for i in range(5)})
    asked = question(cluster(machine("m", 4)), models, sent, 0.06)
    few, many = (planned(asked, JointPlanner(proposals=n)).value for n in (0, 200))
    assert many >= few


def test_ctrl_c_gives_the_best_plan_so_far() -> None:
    """An interrupt during the changes ends the search, not the answer."""
    models = [served(toy_model(f"m{i}", layers=3)) for i in range(4)]
    sent = traffic({f"m{i}": 9.0 for i in range(4)})
    asked = question(cluster(machine("m", 4)), models, sent, 0.05)

    def stop(news: object) -> None:
        if "changing" in str(news):
            raise KeyboardInterrupt

    found = PLANNER.plan(asked, as_replayed, stop)
    assert check_pool(found) == []
    assert len(found.deployments) == 4
