"""Which figures, on how many processes, into one table."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from functools import partial
from pathlib import Path

from penstock.experiments.adaserve.cases import FIGURES, Point, read_points
from penstock.experiments.adaserve.fig1 import SCHEDULERS, fig1_rows
from penstock.experiments.adaserve.fig1 import SECTION as FIG1
from penstock.experiments.adaserve.figures import adaserve_plots
from penstock.experiments.adaserve.ours import our_rows, our_simulations
from penstock.experiments.adaserve.run import Measured, Simulation, run_simulation
from penstock.experiments.adaserve.table import claim_rows, order_rows, point_rows, problem_row
from penstock.experiments.rows import Labels, Row, failed
from penstock.experiments.runner import Outcome, Task, run_tasks
from penstock.experiments.system import Request, System, Table, no_match
from penstock.plan.planner import ProgressCallback, silent

OURS = "ours"
SECTIONS = (FIG1, *FIGURES, OURS)

Result = Measured | list[Row]


def reproduce_adaserve(
    adaserve: Path, request: Request, progress: ProgressCallback = silent
) -> Table:
    """Run the chosen figures and put every published point beside ours.

    ``adaserve`` is the folder of the published figures. Raises ``SpecError`` where ``only``
    matches nothing.
    """
    sections = request.sections
    if request.ours:
        # --ours alone is the comparison alone.
        sections = (*(sections if request.named else ()), OURS)
    points = [
        point
        for point in read_points(adaserve)
        if point.figure in sections and request.wants(f"{point.case} {point.system}")
    ]
    runs = dict.fromkeys(point.simulation for point in points)
    if OURS in sections:
        runs |= dict.fromkeys(
            run for run in our_simulations() if request.wants(f"{OURS} {run.model} {run.trace}")
        )
    others = [
        system for system in SCHEDULERS if FIG1 in sections and request.wants(f"{FIG1} {system}")
    ]
    tasks: list[Task[Result]] = [
        Task(_label(run), run.weight, partial(run_simulation, adaserve, run)) for run in runs
    ]
    tasks += [Task(f"{FIG1} {name}", 0.5, partial(fig1_rows, adaserve, name)) for name in others]
    if not tasks:
        raise no_match(request.only)
    outcomes = run_tasks(tasks, request.processes, progress).results
    rows: list[Row] = []
    for task, outcome in zip(tasks[len(runs) :], outcomes[len(runs) :], strict=True):
        if outcome is not None and isinstance(outcome.value, list):
            rows += outcome.value
        elif outcome is not None:
            rows.append(failed(Labels(FIG1, task.label), outcome.error))
    rows += _rows(points, dict(zip(runs, outcomes, strict=False)))
    unfinished = [
        task.label for task, outcome in zip(tasks, outcomes, strict=True) if outcome is None
    ]
    return Table(tuple(rows), tuple(unfinished), tuple(adaserve_plots(rows)))


def _rows(
    points: Sequence[Point], results: Mapping[Simulation, Outcome[Result] | None]
) -> list[Row]:
    done: dict[Simulation, Measured] = {}
    errors: dict[Simulation, str] = {}
    for run, outcome in results.items():
        if outcome is not None and isinstance(outcome.value, Measured):
            done[run] = outcome.value
        elif outcome is not None:
            errors[run] = outcome.error
    good = [point for point in points if point.simulation in done]
    rows = point_rows(good, done)
    rows += [problem_row(p, errors[p.simulation]) for p in points if p.simulation in errors]
    return [*rows, *order_rows(good, done), *claim_rows(good, done), *our_rows(done)]


def _label(run: Simulation) -> str:
    trace = run.trace.removesuffix(".csv")
    extra = "" if run.urgent_scale == 1.2 else f" scale {run.urgent_scale:g}"
    return f"{run.system} {run.model} {trace}{extra} seed {run.seed}"


ADASERVE_SYSTEM = System("adaserve", SECTIONS, reproduce_adaserve, options=frozenset(("ours",)))
