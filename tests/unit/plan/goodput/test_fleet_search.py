"""The fleet search: what wins, what binds, whatever runs at once, and when it is stopped."""

from __future__ import annotations

from collections.abc import Callable
from concurrent.futures import Future, ThreadPoolExecutor
from dataclasses import replace
from itertools import product
from time import sleep

import pytest

from penstock.cost.linear import DecodeLine, LinearCoefficients, LinearStepCost
from penstock.errors import Infeasible, SpecError
from penstock.plan.goodput.costs import FleetCosts
from penstock.plan.goodput.fleet import Job, Probe
from penstock.plan.goodput.front import cost_front
from penstock.plan.goodput.question import Offer, Question, Sweep
from penstock.plan.goodput.search import search_fleets
from penstock.report.sweep_page import sweep_page
from penstock.spec.catalogue import catalogue
from penstock.spec.load import load_model
from penstock.spec.workload import SLO

MODEL = load_model("llama-3-8b")
COST = LinearStepCost(
    MODEL, LinearCoefficients(0.01, 6e-5, 1e-8, DecodeLine(0.01, 8e-8, 2e-4)), 60_000
)
DEAR, CHEAP = catalogue().get("H100"), catalogue().get("L40S")
DEAR_PRICE, CHEAP_PRICE = DEAR.price_per_hour or 0.0, CHEAP.price_per_hour or 0.0


def question(**changes: object) -> Question:
    asked = Question(
        FleetCosts(COST),
        SLO(ttft_s=0.5, tpot_s=0.05),
        10.0,
        400,
        100,
        (Offer(DEAR), Offer(CHEAP)),
        tensor_parallel_sizes=(1,),
        pipeline_parallel_sizes=(1,),
    )
    return replace(asked, **changes)  # type: ignore[arg-type]


class Table:
    """Probes from a rule instead of a simulator; ``delay_s`` lets later ones overtake."""

    def __init__(self, rule: Callable[[Job], Probe], width: int = 1, delay_s: float = 0.0) -> None:
        self._rule = rule
        self._pool = ThreadPoolExecutor(width) if width > 1 else None
        self._delay_s = delay_s
        self.width = width
        self.jobs: list[Job] = []

    def submit(self, job: Job) -> Future[Probe]:
        self.jobs.append(job)
        if self._pool is not None:
            return self._pool.submit(self._slowly, job, len(self.jobs))
        future: Future[Probe] = Future()
        future.set_result(self._rule(job))
        return future

    def _slowly(self, job: Job, number: int) -> Probe:
        sleep(self._delay_s * (number * 7 % 5))
        return self._rule(job)

    def keep(self, job: Job, probe: Probe) -> None:
        return


def passing(good: bool) -> Probe:
    return Probe(
        1.0 if good else 0.0, 1.0, float(good), 0.1, 0.02, 100.0, tpot_p50_s=0.01, requests=100
    )


def together(rates: dict[str, float]) -> Callable[[Job], Probe]:
    """Engines for both phases pass up to a rate per engine; the phases apart never do."""

    def rule(job: Job) -> Probe:
        engines = job.fleet.engines
        limit = sum(rates[choice.gpu] * n for choice, n in engines)
        apart = job.phase != "both" or any(choice.role != "both" for choice, _ in engines)
        return passing(not apart and job.rate_per_s <= limit)

    return rule


def test_the_cheapest_mixture_wins() -> None:
    """With known capacities the answer equals that of trying all pairs of counts."""
    rates = {DEAR.name: 4.0, CHEAP.name: 0.9}
    found = search_fleets(question(), Table(together(rates)))
    assert found.best is not None
    least = min(
        DEAR_PRICE * dear + CHEAP_PRICE * cheap
        for dear, cheap in product(range(5), range(15))
        if 4.0 * dear + 0.9 * cheap >= 10.0
    )
    assert found.best.fleet.price_per_hour == pytest.approx(least)
    assert found.best in cost_front(found)


def test_the_highest_rate_of_some_gpus_is_found() -> None:
    """Goodput equals the best over all splits of the GPUs, phases apart included."""
    rates = {"both": 1.0, "prefill": 6.0, "decode": 2.0}

    def rule(job: Job) -> Probe:
        if job.phase != "both":
            return passing(job.rate_per_s <= rates[job.phase])
        sums = {"both": 0.0, "prefill": 0.0, "decode": 0.0}
        for choice, count in job.fleet.engines:
            sums[choice.role] += rates[choice.role] * count
        return passing(job.rate_per_s <= sums["both"] + min(sums["prefill"], sums["decode"]))

    asked = question(goal="goodput", rate_per_s=0.0, offers=(Offer(DEAR, 8),))
    found = search_fleets(asked, Table(rule))
    best = max(min(6.0 * n, 2.0 * (8 - n)) for n in range(1, 8))
    assert best > 8.0
    assert found.best is not None
    assert best * 0.95 <= found.best.rate_per_s <= best
    assert found.best.fleet.num_gpus == 8


@pytest.mark.parametrize("goal", ["cheapest", "goodput"])
def test_the_answer_does_not_depend_on_how_many_run_at_once(goal: str) -> None:
    """Probes that end out of order leave every figure of the search as it was."""
    offers = (Offer(DEAR, 6), Offer(CHEAP, 12))
    asked = question(goal=goal, offers=offers)
    rule = together({DEAR.name: 3.3, CHEAP.name: 0.9})

    def search(width: int) -> Sweep:
        return search_fleets(asked, Table(rule, width, 0.0002))

    one, many = search(1), search(5)
    assert one.capacities == many.capacities
    assert one.tried == many.tried
    assert one.best == many.best
    assert sweep_page(one) == sweep_page(many)


def test_counts_on_offer_are_kept() -> None:
    """No fleet that is tried has more GPUs of a type than there are."""
    offers = (Offer(DEAR, 2), Offer(CHEAP, 7))
    rule = together({DEAR.name: 4.0, CHEAP.name: 0.9})
    found = search_fleets(question(offers=offers), Table(rule))
    for one in found.tried:
        gpus = one.fleet.gpus_by_type()
        assert gpus.get(DEAR.name, 0) <= 2
        assert gpus.get(CHEAP.name, 0) <= 7
    assert found.best is not None
    assert set(found.best.fleet.gpus_by_type()) == {DEAR.name, CHEAP.name}


def test_nothing_feasible_says_what_binds_and_what_helps() -> None:
    """A limit under a single step names itself and its least value; too few GPUs name a fleet."""
    rule = Table(together({DEAR.name: 4.0, CHEAP.name: 0.9}))
    with pytest.raises(Infeasible, match=r"binding: TTFT.*well over \d+ ms"):
        search_fleets(question(slo=SLO(ttft_s=0.001)), rule)
    with pytest.raises(Infeasible, match=rf"offer about {DEAR.name}:3"):
        search_fleets(question(offers=(Offer(DEAR, 1),)), rule)
    with pytest.raises(Infeasible, match="no engine shape"):
        search_fleets(question(offers=(Offer(DEAR, 1),), tensor_parallel_sizes=(2,)), rule)


def test_contradictions_are_refused() -> None:
    """A question without limits, counts or prices that it needs is not asked."""
    with pytest.raises(SpecError, match="no limit"):
        question(slo=SLO())
    with pytest.raises(SpecError, match="rate"):
        question(rate_per_s=-1.0)
    with pytest.raises(SpecError, match="has no count"):
        question(goal="goodput")
    with pytest.raises(SpecError, match="offered twice"):
        question(offers=(Offer(DEAR), Offer(DEAR, 3)))
    with pytest.raises(SpecError, match="has no price"):
        question(offers=(Offer(replace(DEAR, price_per_hour=None)),))


@pytest.mark.parametrize("calls", [12, 60])
def test_stopping_keeps_what_was_found(calls: int) -> None:
    """Ctrl-C ends the search with what was measured so far, the winner included."""
    rule = together({DEAR.name: 4.0, CHEAP.name: 0.9})
    made = 0

    def interrupted(job: Job) -> Probe:
        nonlocal made
        made += 1
        if made > calls:
            raise KeyboardInterrupt
        return rule(job)

    found = search_fleets(question(), Table(interrupted))
    assert found.interrupted
    assert found.capacities
    page = sweep_page(found)
    assert "stopped" in page
    assert (found.best is not None) == any(one.passed for one in found.tried)


def test_a_group_of_gpus_stays_inside_its_node() -> None:
    """Tensor parallelism is never wider than a node on offer."""
    offers = (Offer(DEAR, 16, gpus_per_node=2),)
    asked = question(offers=offers, tensor_parallel_sizes=(1, 2, 4))
    table = Table(together({DEAR.name: 4.0}))
    search_fleets(asked, table)
    widths = {c.shape.tensor_parallel_size for job in table.jobs for c, _ in job.fleet.engines}
    assert widths == {1, 2}
