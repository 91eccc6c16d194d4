"""The published program: its size, its coefficients, its optimum on small cases, its stops."""

from __future__ import annotations

import itertools
import os
import signal
import threading
from dataclasses import replace
from pathlib import Path
from typing import Any

import highspy
import numpy as np
import pytest
from plan_fleets import problem_of
from plan_published import placements, problem

from penstock.errors import Infeasible, InputError
from penstock.plan.flow import max_flow
from penstock.plan.helix_milp import HelixMilpPlanner, StopRules, heuristic_start
from penstock.plan.milp_model import MilpModel, followers
from penstock.plan.placement import Placement, PlacementProblem
from penstock.plan.planner import PlannerOptions, Progress
from penstock.plan.prune import prune
from penstock.plan.solver import (
    GurobiSolver,
    HighsSolver,
    SearchState,
    Solution,
    SolverOptions,
)

MAXFLOW = PlannerOptions(objective="maxflow", time_limit_s=5.0)
SIZES = [
    ("single", "llama70b", None, (1848, 1376, 13960, 776)),
    ("distributed", "llama70b", 12, (1122, 876, 8326, 526)),
    ("het42", "llama70b", 12, (2772, 2144, 25025, 1268)),
    ("het42", "llama70b", None, (5502, 4004, 49546, 2198)),
    ("quality", "llama30b", None, (350, 316, 3002, 206)),
]


@pytest.mark.reference
@pytest.mark.parametrize(("where", "model", "keep", "size"), SIZES)
def test_the_program_has_the_published_size(
    reference: Path, where: str, model: str, keep: int | None, size: tuple[int, ...]
) -> None:
    """Rows, columns, nonzeros and integer variables equal the solver logs."""
    task = problem(reference, where, model)
    program = MilpModel.of(task if keep is None else prune(task, keep)).program
    nonzeros, whole = len(program.values), int(program.integer.sum())
    assert (program.num_rows, program.num_columns, nonzeros, whole) == size


@pytest.mark.reference
def test_the_program_has_the_published_coefficients(reference: Path) -> None:
    """Row by row the same coefficients and bounds as the stored LP file, whatever the order."""
    stored = highspy.Highs()
    stored.setOptionValue("output_flag", False)
    stored.readModel(str(placements(reference) / "ablation_quality" / "ilp_model.lp"))
    lp = stored.getLp()
    rows: list[list[float]] = [[] for _ in range(lp.num_row_)]
    starts, indices, values = (
        list(lp.a_matrix_.start_), list(lp.a_matrix_.index_), list(lp.a_matrix_.value_),
    )  # fmt: skip
    if lp.a_matrix_.format_ == highspy.MatrixFormat.kColwise:
        for c in range(lp.num_col_):
            for at in range(starts[c], starts[c + 1]):
                rows[indices[at]].append(values[at])
    else:
        rows = [values[a:b] for a, b in itertools.pairwise(starts)]
    theirs = sorted(
        (round(float(upper), 6), tuple(float(f"{v:.9g}") for v in sorted(row)))
        for upper, row in zip(lp.row_upper_, rows, strict=True)
    )
    ours = MilpModel.of(problem(reference, "quality", "llama30b")).program
    mine = sorted(
        (
            round(float(ours.row_upper[r]), 6),
            tuple(
                float(f"{v:.9g}") for v in sorted(ours.values[ours.starts[r] : ours.starts[r + 1]])
            ),
        )
        for r in range(ours.num_rows)
    )
    assert mine == theirs


def test_partial_inference_adds_two_switches_and_one_row_per_leg() -> None:
    """Columns n + sum K + 2E + 2E_cc, rows 4n + sources + sinks + 3E_cc + E."""
    task = problem_of([("A100", 2), ("L4", 2)], "llama2-13b", partial=True)
    program = MilpModel.of(task).program
    n, inner, ends = 4, 12, 4
    edges = inner + 2 * ends
    held = int(task.node_max_layers.sum())
    assert program.num_columns == n + held + 2 * edges + 2 * inner
    assert program.num_rows == 4 * n + 2 * ends + 3 * inner + edges


def _feasible(model: MilpModel, x: np.ndarray) -> bool:
    p = model.program
    sums = np.add.reduceat(p.values * x[p.columns], p.starts[:-1])
    inside = (x >= p.column_lower - 1e-6).all() and (x <= p.column_upper + 1e-6).all()
    return bool(
        inside and (sums >= p.row_lower - 1e-6).all() and (sums <= p.row_upper + 1e-6).all()
    )


@pytest.mark.parametrize("partial", [False, True])
def test_the_completed_start_satisfies_every_row(partial: bool) -> None:
    """A heuristic placement with its flow is a solution, worth that flow."""
    task = problem_of([("A100", 3), ("L4", 5)], "llama2-70b", partial=partial)
    start, name = heuristic_start(task)
    assert start is not None
    assert name in ("petals", "swarm")
    flow = max_flow(task, start, legs=followers(task, start))
    model = MilpModel.of(task)
    x = model.vector(start, flow)
    assert _feasible(model, x)
    assert float(model.program.objective @ x) == pytest.approx(flow.value)
    assert model.placement(x) == start


def _tiny(partial: bool) -> PlacementProblem:
    """Two types, four layers, at most three on a node: small enough to try every placement."""
    task = problem_of([("A100", 2), ("L4", 2)], "llama2-13b", partial=partial)
    most = np.array([3, 2])
    table = np.zeros((2, 4))
    table[0, 1:] = 90.0, 50.0, 30.0
    table[1, 1:3] = 40.0, 25.0
    model = replace(task.model, num_hidden_layers=4)
    return replace(task, model=model, max_layers=most, throughput=table)


@pytest.mark.parametrize("partial", [False, True])
def test_small_programs_are_solved_to_the_brute_force_optimum(partial: bool) -> None:
    """On four nodes the program finds what trying every placement finds, and proves it."""
    task = _tiny(partial)
    choices = [
        [(s, s + k) for k in range(1, most + 1) for s in range(0, 4 - k + 1)]
        for most in task.node_max_layers.tolist()
    ]
    best = max(
        max_flow(task, Placement(intervals)).value for intervals in itertools.product(*choices)
    )
    for warm in (True, False):
        plan = HelixMilpPlanner(warm_start=warm).plan(task, replace(MAXFLOW, time_limit_s=60.0))
        assert plan.value == pytest.approx(best, rel=1e-6)
        assert plan.proved_optimal
        assert plan.bound == pytest.approx(best, rel=1e-5)


@pytest.mark.parametrize("partial", [False, True])
def test_redundant_rows_do_not_change_the_optimum(partial: bool) -> None:
    """Rows that force compatible switches on only add to the program."""
    task = _tiny(partial)
    lean, full = MilpModel.of(task).program, MilpModel.of(task, redundant=True).program
    assert full.num_rows > lean.num_rows
    assert full.num_columns == lean.num_columns
    options = SolverOptions(time_limit_s=60.0)
    values = [HighsSolver().solve(program, options).value for program in (lean, full)]
    assert values[0] == pytest.approx(values[1], rel=1e-6)


def test_improving_solutions_are_streamed() -> None:
    """Progress starts with the heuristic and only ever rises."""
    news: list[Progress] = []
    plan = HelixMilpPlanner().plan(_tiny(False), replace(MAXFLOW, progress=news.append))
    values = [entry.value for entry in news]
    assert values == sorted(values)
    assert values[-1] == plan.value
    assert news[0].message.startswith("helix-milp start")


class _Scripted:
    """A solver that plays back a script of callbacks."""

    name = "scripted"

    def __init__(self, leak: np.ndarray | None = None, interrupted: bool = False) -> None:
        self.leak, self.interrupted = leak, interrupted

    def solve(self, program: Any, options: SolverOptions) -> Solution:
        if self.leak is not None and options.on_incumbent is not None:
            options.on_incumbent(self.leak, SearchState(1e9, 1e12, 1.0))
        return Solution("stopped", None, -np.inf, 1e12, self.interrupted)


def test_an_incumbent_whose_switches_leak_is_valued_by_its_real_flow() -> None:
    """Flow the solver claims without aligned layers counts for nothing."""
    task = _tiny(False)
    model = MilpModel.of(task)
    x = np.zeros(model.program.num_columns)
    for i in model.nodes:
        x[model.hold[i][0]] = 1.0
    news: list[Progress] = []
    with pytest.raises(Infeasible, match="found no placement that carries flow within 5 s"):
        HelixMilpPlanner(solver=_Scripted(leak=x), warm_start=False).plan(
            task, replace(MAXFLOW, progress=news.append)
        )
    assert not news


def test_an_interrupted_search_keeps_the_start() -> None:
    """Ctrl-C before any improvement returns the heuristic placement and says so."""
    plan = HelixMilpPlanner(solver=_Scripted(interrupted=True)).plan(_tiny(False), MAXFLOW)
    assert plan.value > 0
    assert any("interrupted" in reason for reason in plan.reasons)


@pytest.mark.reference
def test_ctrl_c_ends_a_running_solve(reference: Path) -> None:
    """A real SIGINT stops HiGHS within a moment and the best plan so far comes back."""
    timer = threading.Timer(1.5, os.kill, (os.getpid(), signal.SIGINT))
    timer.start()
    plan = HelixMilpPlanner().plan(
        problem(reference, "single", "llama70b"), replace(MAXFLOW, time_limit_s=60.0)
    )
    timer.join()
    assert plan.value == pytest.approx(757.853, abs=1e-2)
    assert any("interrupted" in reason for reason in plan.reasons)


@pytest.mark.reference
def test_no_incumbent_in_time_is_infeasible_with_the_fix(reference: Path) -> None:
    """Pruning voids the heuristics' legs; one second is not enough, and the line says what is."""
    with pytest.raises(Infeasible, match=r"within 1 s .*time limit.*--planner penstock"):
        HelixMilpPlanner(keep_links=12).plan(
            problem(reference, "distributed", "llama70b"), replace(MAXFLOW, time_limit_s=1.0)
        )


@pytest.mark.parametrize(
    ("value", "since_s", "stops"),
    [(99.6, 0.0, True), (96.0, 50.0, False), (96.0, 100.0, True), (90.0, 1000.0, False)],
)
def test_stop_rules_are_the_published_ones(value: float, since_s: float, stops: bool) -> None:
    """0.995 of the bound stops at once, 0.95 after 100 s without news, less never."""
    state = SearchState(value, 1e6, 2000.0)
    assert StopRules().met(state, 2000.0 - since_s, 100.0) is stops


def test_highs_reports_bound_and_status() -> None:
    """The adapter maximises, and says optimal with the value as bound."""
    program = MilpModel.of(_tiny(False)).program
    solution = HighsSolver().solve(program, SolverOptions(time_limit_s=60.0))
    assert solution.status == "optimal"
    assert solution.bound == pytest.approx(solution.value, rel=1e-6)


def test_gurobi_plugs_in_where_it_is_installed() -> None:
    """The second solver finds the same optimum; without it the line says how to get it."""
    try:
        import gurobipy  # noqa: F401, PLC0415
    except ImportError:
        with pytest.raises(InputError, match="gurobipy is not installed"):
            HelixMilpPlanner(solver=GurobiSolver()).plan(_tiny(False), MAXFLOW)
        return
    ours = HelixMilpPlanner().plan(_tiny(False), MAXFLOW)
    theirs = HelixMilpPlanner(solver=GurobiSolver()).plan(_tiny(False), MAXFLOW)
    assert theirs.value == pytest.approx(ours.value)
