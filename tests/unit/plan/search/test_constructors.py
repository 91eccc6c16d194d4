"""Constructions reach the known optima without search, in a moment."""

from __future__ import annotations

from pathlib import Path

import plan_published as published
import pytest
from plan_fleets import problem_of

from penstock.plan.bounds import work_bound
from penstock.plan.fleet import Fleet
from penstock.plan.flow import max_flow
from penstock.plan.placement import PlacementProblem
from penstock.plan.search.constructors import BlockPlanner, Intervals, fill, serial_chain


def _evaluate(problem: PlacementProblem, fleet: Fleet, intervals: Intervals) -> float:
    return max_flow(problem, fleet.placement(intervals, problem.num_nodes)).value


def test_a_serial_chain_on_equal_nodes_splits_evenly() -> None:
    """Four equal nodes and 40 layers: ten layers each."""
    problem = problem_of([("A100", 4)], "llama2-13b")
    fleet = Fleet.of(problem)
    built = serial_chain(fleet, lambda i: _evaluate(problem, fleet, i))
    lengths = [e - s for s, e in (i for i in built.intervals if i is not None)]
    assert sum(lengths) == 40
    assert built.value > 0


def test_filled_placements_give_every_node_an_interval() -> None:
    """Nodes without layers get one where little else is."""
    problem = problem_of([("A100", 4)], "llama2-13b")
    fleet = Fleet.of(problem)
    start, end = fill(fleet, [(0, 20), (20, 40), None, None])
    assert ((end - start) >= 1).all()
    assert (end <= 40).all()


@pytest.mark.reference
@pytest.mark.parametrize(
    ("name", "model", "optimum"),
    [
        ("single", "llama30b", 1517.7374),
        ("distributed", "llama70b", 1754.3819),
        ("het42", "llama70b", 5977.7333),
    ],
)
def test_the_block_program_reaches_the_best_known_values(
    reference: Path, name: str, model: str, optimum: float
) -> None:
    """Two proved optima, one of them across regions, and the best value known on 42 nodes."""
    problem = published.problem(reference, name, model)
    fleet = Fleet.of(problem)
    planner = BlockPlanner.of(fleet)
    assert planner is not None
    built = planner.largest(lambda i: _evaluate(problem, fleet, i), work_bound(fleet).value)
    assert built is not None
    assert built.value == pytest.approx(optimum, abs=1e-3)


@pytest.mark.reference
def test_shallow_placements_carry_their_demand_in_fewer_hops(reference: Path) -> None:
    """At two thirds of the largest flow, half the hops of the serial chain."""
    problem = published.problem(reference, "single", "llama70b")
    fleet = Fleet.of(problem)
    planner = BlockPlanner.of(fleet)
    assert planner is not None
    for intervals in planner.shallow(1364.0, fleet.capacity, seed=1):
        flow = max_flow(problem, fleet.placement(intervals, 24))
        assert flow.value >= 1364.0 * (1 - 1e-9)
        assert flow.node_flow.sum() / flow.value < 14
