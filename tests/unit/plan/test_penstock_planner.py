"""Our planner: known optima with proofs, determinism, what the evaluator decides, interrupts."""

from __future__ import annotations

import os
import subprocess
import sys
from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path

import numpy as np
import plan_published as published
import pytest
from plan_fleets import problem_of

from penstock.errors import Infeasible
from penstock.plan.checker import check_plan
from penstock.plan.document import format_plan
from penstock.plan.penstock_planner import PenstockPlanner
from penstock.plan.plan import Plan
from penstock.plan.planner import PlannerOptions, Progress, Score
from penstock.plan.search import engine
from penstock.plan.search import serving as serving_module

MAXFLOW = PlannerOptions(objective="maxflow")
SMALL = (("A100", 2), ("L4", 3), ("T4", 3))


@pytest.fixture
def brief(monkeypatch: pytest.MonkeyPatch) -> None:
    """A search too short to be good, long enough to be a search."""
    monkeypatch.setattr(engine, "proposals_per_run", lambda nodes: 2000)
    monkeypatch.setattr("penstock.plan.search.ladder.proposals_per_run", lambda nodes: 2000)


@pytest.mark.reference
@pytest.mark.parametrize(
    ("name", "model", "optimum"),
    [
        ("single", "llama70b", 2045.641),
        ("distributed", "llama70b", 1754.3819),
        ("single", "llama30b", 1517.7374),
        ("quality", "llama30b", 286.5874),
        ("single/l4", "llama30b", 252.6498),
    ],
)
def test_known_optima_are_found_and_proved(
    reference: Path, name: str, model: str, optimum: float
) -> None:
    """The value, the proof, and a checker that shares no code agree."""
    plan = PenstockPlanner().plan(published.problem(reference, name, model), MAXFLOW)
    assert plan.value == pytest.approx(optimum, abs=1e-3)
    assert plan.proved_optimal
    assert plan.bound == pytest.approx(plan.value)
    assert check_plan(plan) == []
    used = {engine.name for engine in plan.engines} | {entry.node for entry in plan.unused}
    assert used == {node.name for node in plan.cluster.nodes}
    assert all(entry.reason for entry in plan.unused)


@pytest.mark.usefixtures("brief")
def test_processes_change_nothing() -> None:
    """One process or two, the plan is the same document."""
    problem = problem_of(SMALL, "llama2-13b", regions=2)
    one = PenstockPlanner().plan(problem, replace(MAXFLOW, seed=3))
    two = PenstockPlanner().plan(problem, replace(MAXFLOW, seed=3, processes=2))
    assert format_plan(one) == format_plan(two)


def test_plans_do_not_depend_on_the_hash_seed() -> None:
    """Two interpreters with different string hashes print the same plan."""
    code = (
        "from plan_fleets import problem_of\n"
        "from penstock.plan.document import format_plan\n"
        "from penstock.plan.penstock_planner import PenstockPlanner\n"
        "from penstock.plan.planner import PlannerOptions\n"
        "from penstock.plan.search import engine, ladder\n"
        "engine.proposals_per_run = ladder.proposals_per_run = lambda n: 2000\n"
        "problem = problem_of([('A100', 2), ('L4', 3)], 'llama2-13b', regions=2)\n"
        "print(format_plan(PenstockPlanner().plan(problem, PlannerOptions())))\n"
    )
    texts = []
    for seed in ("1", "2"):
        environment = {
            **os.environ,
            "PYTHONHASHSEED": seed,
            "PYTHONPATH": str(Path(__file__).parent),
        }
        done = subprocess.run(
            [sys.executable, "-c", code], env=environment, capture_output=True, check=True
        )
        texts.append(done.stdout)
    assert texts[0] == texts[1]
    assert texts[0]


@pytest.mark.usefixtures("brief")
def test_the_evaluator_decides() -> None:
    """The plan returned is the one the evaluator scored highest, with that score as its value."""
    scores: dict[tuple[tuple[str, int, int], ...], float] = {}

    def evaluate(plans: Sequence[Plan], fidelity: float = 1.0) -> list[Score]:
        found = []
        for plan in plans:
            key = tuple((e.name, e.start_layer, e.end_layer) for e in plan.engines)
            # Deliberately unlike any sensible score: the fewest engines win.
            scores[key] = 100.0 - len(plan.engines) - 0.001 * len(plan.legs)
            found.append(Score(scores[key]))
        return found

    problem = problem_of(SMALL, "llama2-13b")
    options = PlannerOptions(objective="throughput", evaluate=evaluate)
    plan = PenstockPlanner().plan(problem, options)
    key = tuple((e.name, e.start_layer, e.end_layer) for e in plan.engines)
    assert plan.value == scores[key]
    assert plan.value == max(scores.values())
    assert plan.objective == "throughput"
    assert plan.max_flow_bound_tokens_per_s is not None
    assert check_plan(plan) == []
    assert any("simulated" in line for line in plan.reasons)


@pytest.mark.usefixtures("brief")
def test_without_an_evaluator_the_estimate_decides() -> None:
    """A plan comes out, with an estimate in decode tokens/s as its value."""
    plan = PenstockPlanner().plan(problem_of(SMALL, "llama2-13b"), PlannerOptions())
    assert plan.value > 0
    assert check_plan(plan) == []


@pytest.mark.usefixtures("brief")
def test_interrupt_keeps_the_best_so_far(monkeypatch: pytest.MonkeyPatch) -> None:
    """Ctrl-C in the middle of the search returns the best plan of the part before."""
    calls = 0

    def progress(news: Progress) -> None:
        nonlocal calls
        calls += 1
        if calls == 3:
            raise KeyboardInterrupt

    monkeypatch.setattr(serving_module, "QUICK", 0.1)
    problem = problem_of(SMALL, "llama2-13b")
    plan = PenstockPlanner().plan(problem, PlannerOptions(progress=progress))
    assert plan.value > 0
    assert check_plan(plan) == []


def test_a_time_limit_of_nothing_still_plans() -> None:
    """The constructions come before any search."""
    problem = problem_of(SMALL, "llama2-13b")
    plan = PenstockPlanner().plan(problem, replace(MAXFLOW, time_limit_s=0.0))
    assert plan.value > 0
    assert plan.bound is not None
    assert plan.bound >= plan.value * (1 - 1e-9)


def test_nodes_that_no_links_join_are_infeasible() -> None:
    """The reason names how many layers the largest linked group holds."""
    whole = problem_of(SMALL, "llama2-13b")
    nothing = np.zeros_like(whole.link_tokens_per_s)
    latency = np.full_like(nothing, np.inf)
    problem = replace(
        whole,
        link_tokens_per_s=nothing,
        link_latency_s=latency,
        max_layers=np.minimum(whole.max_layers, 20),
    )
    with pytest.raises(Infeasible, match="no group of linked nodes"):
        PenstockPlanner().plan(problem, replace(MAXFLOW, time_limit_s=1.0))
