"""The annealing kernel: equal to its plain form, and its energy means what it says."""

from __future__ import annotations

from random import Random

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from plan_random import problems

from penstock.plan.fleet import Fleet
from penstock.plan.flow import max_flow
from penstock.plan.placement import PlacementProblem
from penstock.plan.search import kernel
from penstock.plan.search.engine import UNIT, Job, instance, random_start, run


def _fleet(problem: PlacementProblem) -> Fleet | None:
    fleet = Fleet.of(problem)
    return fleet if fleet.num_nodes == problem.num_nodes else None


@settings(max_examples=10, deadline=None)
@given(problems(nodes=4), st.integers(0, 2**20), st.sampled_from([0, 3]))
def test_compiled_equals_plain(problem: PlacementProblem, seed: int, hop: int) -> None:
    """Compiled and plain runs of one seed end in the same state, bit for bit."""
    fleet = _fleet(problem)
    if fleet is None:
        return
    inst = instance(fleet)
    start, end = random_start(fleet, Random(seed))
    results = []
    for function in (kernel.anneal, kernel.compiled()):
        s, e = start.copy(), end.copy()
        best = np.zeros((4, fleet.num_nodes), dtype=np.int64)
        work = kernel.work_space(fleet.num_nodes, fleet.num_layers, UNIT)
        outcome = function(
            inst,
            kernel.Prices(UNIT, hop, 2 * UNIT),
            kernel.Schedule(150, 0.5, 0.02, seed),
            10.0,
            s,
            e,
            work,
            best,
        )
        results.append((tuple(outcome), s.tolist(), e.tolist(), best.tolist()))
    assert results[0] == results[1]


@settings(max_examples=60, deadline=None)
@given(problems(nodes=5), st.integers(0, 2**20))
def test_energy_is_zero_exactly_when_the_demand_fits(problem: PlacementProblem, seed: int) -> None:
    """Without prices, the energy of a placement is 0 if and only if its max flow is the demand."""
    fleet = _fleet(problem)
    if fleet is None:
        return
    start, end = random_start(fleet, Random(seed))
    intervals = list(zip(start.tolist(), end.tolist(), strict=True))
    flow = max_flow(problem, fleet.placement(intervals, problem.num_nodes)).value
    work = kernel.work_space(fleet.num_nodes, fleet.num_layers, UNIT)
    inst, prices = instance(fleet), kernel.Prices(UNIT, 0, 2 * UNIT)
    assert kernel.true_flow(inst, prices, start, end, work) == pytest.approx(flow, abs=1e-6)
    for demand in (max(1e-3, 0.9 * flow), flow + 1.0):
        kernel.build(inst, prices, start, end, demand, True, work)
        price = kernel.push(inst, work, demand, UNIT, 1e18)
        assert kernel.least_price(inst, prices, start, end, demand, work) <= price + 1e-6
        assert (price <= 1e-6) == (demand <= flow * (1 + 1e-9))


@settings(max_examples=40, deadline=None)
@given(problems(nodes=5), st.integers(0, 2**20))
def test_moves_respect_the_nodes(problem: PlacementProblem, seed: int) -> None:
    """Every accepted proposal keeps intervals inside the model and within the nodes' limits."""
    fleet = _fleet(problem)
    if fleet is None:
        return
    inst = instance(fleet)
    work = kernel.work_space(fleet.num_nodes, fleet.num_layers, UNIT)
    work.random[0] = seed + 1
    start, end = random_start(fleet, Random(seed))
    for _ in range(60):
        s, e = start.copy(), end.copy()
        if kernel.propose(inst, s, e, work):
            assert (s >= 0).all()
            assert (e <= fleet.num_layers).all()
            assert ((e - s >= 1) & (e - s <= fleet.max_layers)).all()
            start, end = s, e


@settings(max_examples=10, deadline=None)
@given(problems(nodes=5), st.integers(0, 2**20))
def test_a_run_reports_what_its_placements_carry(problem: PlacementProblem, seed: int) -> None:
    """The widest placement of a run has the max flow the run states."""
    fleet = _fleet(problem)
    if fleet is None:
        return
    start, end = random_start(fleet, Random(seed))
    found = run(Job(instance(fleet), 12.0, start, end, proposals=2000, seed=seed))
    placement = fleet.placement(found.widest, problem.num_nodes)
    assert max_flow(problem, placement).value == pytest.approx(found.max_flow, abs=1e-6)
