"""No placement beats a bound, and the published optima are proved."""

from __future__ import annotations

from itertools import product
from pathlib import Path

import plan_published as published
import pytest
from hypothesis import given, settings
from plan_random import problems

from penstock.plan.bounds import (
    best_bound,
    configuration_bound,
    helix_bound,
    proves,
    serial_chain_bound,
    work_bound,
)
from penstock.plan.fleet import Fleet
from penstock.plan.flow import max_flow
from penstock.plan.placement import Placement, PlacementProblem
from penstock.plan.prune import prune


def _optimum(problem: PlacementProblem) -> float:
    """The best max flow of all placements, one by one."""
    choices = []
    for most in problem.node_max_layers.tolist():
        spans = [(s, s + k) for k in range(1, most + 1) for s in range(problem.num_layers - k + 1)]
        choices.append(spans)
    return max(max_flow(problem, Placement(tuple(c))).value for c in product(*choices))


@settings(max_examples=25, deadline=None)
@given(problems(nodes=3, layers=4))
def test_no_placement_beats_a_bound(problem: PlacementProblem) -> None:
    """Brute force over all placements stays below every bound, and a proof names the optimum."""
    fleet = Fleet.of(problem)
    if fleet.num_nodes == 0:
        return
    optimum = _optimum(problem)
    slack = 1e-6 * max(1.0, optimum)
    assert optimum <= helix_bound(fleet).value + slack
    assert optimum <= work_bound(fleet).value + slack
    assert optimum <= configuration_bound(fleet, 0.5 * optimum).value + slack
    for value in (0.5 * optimum, optimum):
        assert optimum <= best_bound(fleet, value).value + slack
    if optimum > 0:
        chain = serial_chain_bound(fleet, 0.9 * optimum)
        assert chain is None


CASES = [
    ("single", "llama70b", 2045.6410, None),
    ("distributed", "llama70b", 1754.3819, None),
    ("distributed", "llama70b", 1754.3819, 12),
    ("single", "llama30b", 1517.7374, None),
    ("quality", "llama30b", 286.5874, None),
    ("single/l4", "llama30b", 252.6498, None),
    ("single/t4", "llama30b", 397.6851, None),
    ("single/a100", "llama30b", 1044.5333, None),
]


@pytest.mark.reference
@pytest.mark.parametrize(("name", "model", "optimum", "keep"), CASES)
def test_published_instances_are_proved(
    reference: Path, name: str, model: str, optimum: float, keep: int | None
) -> None:
    """The known optima are proved, and slightly less is not called optimal."""
    problem = published.problem(reference, name, model)
    fleet = Fleet.of(problem if keep is None else prune(problem, keep=keep))
    above = optimum * (1 + 1e-6)
    assert proves(best_bound(fleet, above), above)
    assert not proves(best_bound(fleet, 0.999 * optimum), 0.999 * optimum)


@pytest.mark.reference
def test_the_42_node_bound_is_the_known_one(reference: Path) -> None:
    """6054.94 is proved with grid-rounded covers; exact covers prove a little less."""
    fleet = Fleet.of(published.problem(reference, "het42", "llama70b"))
    bound = best_bound(fleet, 5977.733)
    assert 5977.733 < bound.value <= 6054.95
    assert helix_bound(fleet).value == pytest.approx(7104.26, abs=0.01)
    assert work_bound(fleet).value == pytest.approx(6528.90, abs=0.01)
