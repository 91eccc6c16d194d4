"""Admission by deadline: what an engine has to do, and when one more request would end."""

from __future__ import annotations

from math import inf
from pathlib import Path

import pytest
from tests.unit.sim.pools.pool_runs import Holds, cluster, cost, pool, run_pool

from penstock.cost.steps import EngineShape, stage_timers
from penstock.experiments.alpaserve.data import read_placements, read_scenarios
from penstock.measure.run import STATUS
from penstock.plan.pool.kernel import OVERHEAD_S
from penstock.plan.pool.model import PoolPlacement
from penstock.plan.pool.simulate import simulate_pool
from penstock.plan.pool.tables import tables_of
from penstock.plan.pool_plan import Sharing
from penstock.plan.settings import SchedulerSettings
from penstock.policy.backlog import Backlog, Load
from penstock.policy.deadline import DeadlineAdmission, Estimate, Neighbour, Pace, within
from penstock.policy.schedulers import Sequence
from penstock.policy.schedulers.sequence import Batch, Cohort
from penstock.policy.sharing import Turn
from penstock.spec.catalogue import catalogue
from penstock.spec.workload import SLO, Request, SLOClass

SHAPE = EngineShape(catalogue().get("A100-80GB"))
TIMERS = stage_timers(cost(0.01), SHAPE)
TIMER = TIMERS[0]
STAGES_S = (0.010, 0.030, 0.020)
SERIAL = Pace(TIMERS, max_num_seqs=1, max_num_batched_tokens=1000)
BATCHED = Pace(TIMERS, max_num_seqs=8, max_num_batched_tokens=1000)


def request(row: int, prompt: int, output: int, deadline_s: float = inf) -> Sequence:
    return Sequence(row, 0.0, prompt, output, deadline_s=deadline_s)


def taken(*requests: Sequence) -> Backlog:
    backlog = Backlog()
    for seq in requests:
        backlog.add(seq)
    return backlog


def work(*requests: Sequence) -> Load:
    return taken(*requests).load()


def test_one_after_the_other() -> None:
    """By hand: two requests of 20 + 4 x 10 ms are ahead, then 20 ms, then 2 x 10 ms."""
    ahead = work(request(0, 100, 5), request(1, 100, 5))
    rule = DeadlineAdmission("first-come")
    expected = rule.estimate(request(2, 100, 3), SERIAL, ahead, free_s=0.005)
    assert expected.first_s == pytest.approx(0.005 + 2 * 0.060 + 0.020)
    assert expected.last_s == pytest.approx(expected.first_s + 0.020)


def test_a_pipeline_takes_a_batch_each_time_its_slowest_stage_is_free() -> None:
    """By hand: stages of 10, 30 and 20 ms. Two prompts wait; the second enters 30 ms after the
    first, and the new one after both of these steps; its own pass takes 60 ms."""
    stages = tuple(stage_timers(cost(s - 0.001, token_s=1e-5), SHAPE)[0] for s in STAGES_S)
    pipeline = Pace(stages, max_num_seqs=8, max_num_batched_tokens=100)
    ahead = work(request(0, 100, 1), request(1, 100, 1))
    rule = DeadlineAdmission("first-come")
    expected = rule.estimate(request(2, 100, 1), pipeline, ahead, free_s=0.005)
    assert expected == (pytest.approx(0.005 + 2 * 0.030 + 0.060),) * 2
    other = Neighbour(pipeline, ahead, Turn(arrival_s=-1.0))
    expected = rule.estimate(request(2, 100, 1), pipeline, ahead, [other])
    assert expected.last_s == pytest.approx(4 * 0.030 + 0.060)


def test_one_place_leaves_a_pipeline_serial() -> None:
    """By hand: one request at a time, 60 ms each; the one under way still has 50 of them."""
    stages = tuple(stage_timers(cost(s - 0.001, token_s=1e-5), SHAPE)[0] for s in (0.02,) * 3)
    pipeline = Pace(stages, max_num_seqs=1, max_num_batched_tokens=100)
    ahead = taken(request(0, 100, 1), request(1, 100, 1))
    first = Sequence(0, 0.0, 100, 1)
    load = ahead.load([Batch(Cohort(0, 16), [(first, 100)], [first])])
    assert load[:4] == (2, 1, 100, 0)
    rule = DeadlineAdmission("first-come")
    expected = rule.estimate(request(2, 100, 1), pipeline, load, free_s=0.010)
    assert expected.last_s == pytest.approx(0.050 + 0.060 + 0.060)


def test_a_neighbour_of_one_stream_leaves_gaps() -> None:
    """By hand: another engine makes one token at a time in a pipeline of two stages of 10 ms.
    It goes first, but only once before the new request enters with its prompt (20 + 20 ms)."""
    pipeline = Pace((TIMER, TIMER), max_num_seqs=8, max_num_batched_tokens=1000)
    other = Neighbour(pipeline, Load(1, 0, 0, 50, 100.0), Turn(arrival_s=-1.0))
    rule = DeadlineAdmission("first-come")
    expected = rule.estimate(request(2, 100, 1), pipeline, work(), [other])
    assert expected.last_s == pytest.approx(0.010 + 2 * 0.020)
    # Two of them fill both stages until all their tokens are made.
    expected = rule.estimate(request(2, 100, 1), pipeline, work(), [other, other])
    assert expected.last_s == pytest.approx(2 * 50 * 0.010 + 2 * 0.020)


@pytest.mark.reference
def test_alpaserve_rejects_the_same_requests(reference: Path) -> None:
    """The published s_small8 scenario, eight models on one pipeline of four stages, batch 1:
    deadline admission keeps the limits of as many requests as AlpaServe's own rule (0.746)."""
    runs = reference / "alpaserve" / "runs"
    problem = read_scenarios(runs)["s_small8"].problem
    placement = read_placements(runs)["s_small8|mp-search"]
    assert isinstance(placement, PoolPlacement)
    stage_s = float(tables_of(problem.models, [placement.groups[0].shape]).latency[0, 0, 0])
    names = [f"model-{m}" for m in range(len(problem.models))]
    nodes = ("m0", "m1", "m2", "m3")
    plan = pool(
        cluster(4),
        [Holds(name, nodes) for name in names],
        settings=SchedulerSettings(max_num_seqs=4, max_num_batched_tokens=100),
        sharing=Sharing("first-come", "deadline"),
    )
    traffic = problem.traffic
    requests = [
        Request(i, float(at_s), 100, 1, "all", names[m])
        for i, (at_s, m) in enumerate(zip(traffic.arrival_s, traffic.model, strict=True))
    ]
    # The figures of a linear cost are those of the whole model; the last ones are per token.
    whole = cost(4 * stage_s - 0.004, token_s=4e-5)
    limit_s = 0.5 - OVERHEAD_S
    run = run_pool(
        plan,
        requests,
        classes=(SLOClass("all", SLO(e2e_s=limit_s)),),
        costs=dict.fromkeys(names, whole),
    )
    table = run.requests
    good = table.last_token_s - table.arrival_s <= limit_s + 1e-9
    assert good.sum() == run.counters["finished"]
    assert good.mean() == pytest.approx(simulate_pool(problem, placement).attainment, abs=0.002)
    assert good.mean() == pytest.approx(0.746, abs=0.002)


def test_a_free_place_is_taken_at_once() -> None:
    """By hand: only the prompt ahead (20 ms) is waited for, not its decodes."""
    ahead = work(request(0, 100, 50))
    expected = DeadlineAdmission("first-come").estimate(request(2, 100, 3), BATCHED, ahead)
    assert expected.first_s == pytest.approx(0.020 + 0.020)
    assert expected.last_s == pytest.approx(0.040 + 0.020)


@pytest.mark.parametrize(
    ("rule", "first_s", "last_s"),
    [
        ("first-come", 0.060 + 0.020, 0.060 + 0.040),
        ("round-robin", 0.010 + 0.020, 3 * 0.010 + 0.040),
        ("earliest-deadline", 0.020, 0.040),
    ],
)
def test_turns_of_others(rule: str, first_s: float, last_s: float) -> None:
    """By hand: a neighbour with 60 ms to do goes first, in turn, or after the more urgent."""
    other = Neighbour(SERIAL, work(request(0, 100, 5)), Turn(deadline_s=9.0, arrival_s=-1.0))
    found = DeadlineAdmission(rule).estimate(  # type: ignore[arg-type]
        request(2, 100, 3, deadline_s=5.0), SERIAL, work(), [other]
    )
    assert found == (pytest.approx(first_s), pytest.approx(last_s))


@pytest.mark.parametrize("priority", [-1, 1])
def test_priorities_decide_before_the_rule(priority: int) -> None:
    """A neighbour of higher priority is waited for to its end, one of a lower not at all."""
    turn = Turn(deadline_s=9.0, priority=priority, arrival_s=-1.0)
    other = Neighbour(SERIAL, work(request(0, 100, 5)), turn)
    found = DeadlineAdmission("first-come").estimate(request(2, 100, 3), SERIAL, work(), [other])
    assert found.first_s == pytest.approx(0.080 if priority > 0 else 0.020)


def test_a_backlog_is_empty_when_all_has_been_done() -> None:
    """Chunks, cached tokens and a preemption are booked."""
    a, b = request(0, 100, 3), request(1, 50, 2)
    backlog = taken(a, b)
    assert (backlog.prompt_tokens, backlog.decode_tokens) == (150, 3)
    backlog.computed([(a, 60)], 0)
    backlog.computed([(a, 40), (b, 30)], 0)
    backlog.first(a)
    backlog.first(b)  # 20 tokens were cached
    assert (backlog.prompts, backlog.prompt_tokens) == (0, 0)
    backlog.computed([], 1)
    a.prompt_tokens = 102  # a has two tokens and loses its place
    backlog.preempted(a)
    assert (backlog.prompts, backlog.prompt_tokens, backlog.decode_tokens) == (1, 102, 1)
    backlog.computed([(a, 102)], 1)
    backlog.first(a)
    backlog.end(a)
    backlog.end(b)
    assert (backlog.requests, backlog.prompt_tokens, backlog.decode_tokens) == (0, 0, 0)


def test_limits_count_from_the_arrival() -> None:
    """All limits of a class must hold; no limit, no refusal."""
    expected = Estimate(1.0, 3.0)
    assert within(SLO(), expected, 5)
    assert within(SLO(ttft_s=1.0, e2e_s=3.0, tpot_s=0.5), expected, 5)
    assert not within(SLO(ttft_s=1.0), expected, 5, waited_s=0.1)
    assert not within(SLO(e2e_s=2.9), expected, 5)
    assert not within(SLO(tpot_s=0.4), expected, 5)


def test_what_is_refused_would_have_been_late() -> None:
    """By hand, one request at a time, 40 ms each, all sent at once, limit 130 ms: three are
    served in time, the others refused on arrival. Without admission all are served."""
    settings = SchedulerSettings(max_num_seqs=1)
    requests = [Request(i, 0.0, 100, 3, "all", "a") for i in range(6)]
    classes = (SLOClass("all", SLO(e2e_s=0.130)),)
    fates = {}
    for admission in ("deadline", "queue"):
        plan = pool(
            cluster(1),
            [Holds("a", ("m0",))],
            settings=settings,
            sharing=Sharing(admission=admission),  # type: ignore[arg-type]
        )
        run = run_pool(plan, requests, classes=classes)
        fates[admission] = [STATUS[code] for code in run.requests.status]
        if admission == "deadline":
            assert run.requests.last_token_s[:3] == pytest.approx([0.040, 0.080, 0.120])
    assert fates["deadline"] == ["finished"] * 3 + ["dropped"] * 3
    assert fates["queue"] == ["finished"] * 6


def test_another_replica_takes_what_the_first_cannot() -> None:
    """Turns in a round would give the third request to the busy engine; the other is in time."""
    plan = pool(
        cluster(2),
        [Holds("a", ("m0",)), Holds("a", ("m1",))],
        settings=SchedulerSettings(max_num_seqs=1),
        router="round-robin",
        sharing=Sharing(admission="deadline"),
    )
    classes = (SLOClass("all", SLO(e2e_s=0.3)), SLOClass("long", SLO()))
    requests = [
        Request(0, 0.0, 100, 100, "long", "a"),
        Request(1, 0.0, 100, 3, "all", "a"),
        Request(2, 0.0, 100, 3, "all", "a"),
    ]
    run = run_pool(plan, requests, classes=classes)
    assert run.counters["finished"] == 3
    assert run.requests.route_index.tolist() == [0, 1, 1]
