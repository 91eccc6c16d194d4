"""``penstock reproduce maveriq``."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import replace
from functools import partial
from pathlib import Path

from penstock.experiments.maveriq.deployments import deployment_rows
from penstock.experiments.maveriq.endtoend import LIMITS, case_rows
from penstock.experiments.maveriq.estimators import our_rows, published_rows
from penstock.experiments.maveriq.figures import maveriq_plots
from penstock.experiments.maveriq.gains import gain_rows
from penstock.experiments.maveriq.pool_questions import CASES
from penstock.experiments.maveriq.profiles import profile_rows
from penstock.experiments.maveriq.serving import FACTORS, serving_rows
from penstock.experiments.maveriq.step_errors import step_rows
from penstock.experiments.maveriq.traces import trace_rows
from penstock.experiments.rows import Row
from penstock.experiments.runner import Task
from penstock.experiments.system import Request, System, Table, table_of
from penstock.plan.planner import ProgressCallback, silent

_PARTS: Mapping[str, tuple[float, Callable[[Path], list[Row]]]] = {
    "profiles": (1.0, profile_rows),
    "estimator": (2.0, published_rows),
    "ours": (20.0, our_rows),
    "deployments": (2.0, deployment_rows),
    "traces": (1.0, trace_rows),
    "serving": (5.0, serving_rows),
    "gains": (5.0, gain_rows),
    "steps": (2.0, step_rows),
}
END_TO_END = "endtoend"
SECTIONS = (*_PARTS, END_TO_END)


def reproduce_maveriq(
    maveriq: Path, request: Request, progress: ProgressCallback = silent
) -> Table:
    """Run the chosen parts with the data under ``maveriq``."""
    tasks = [
        Task(f"maveriq {name}", _PARTS[name][0], partial(_PARTS[name][1], maveriq))
        for name in request.sections
        if name in _PARTS
    ]
    if END_TO_END in request.sections:
        tasks += _end_to_end(maveriq, request)
    table = table_of(tasks, request, progress)
    return replace(table, plots=tuple(maveriq_plots(table.rows)))


def _end_to_end(maveriq: Path, request: Request) -> list[Task[list[Row]]]:
    """A task for each serving run and set of stored forms that the user's words allow."""
    factors = " ".join(f"{factor:g}x" for factor in FACTORS)
    return [
        Task(f"maveriq {case} {limit.name}", 10.0, partial(case_rows, maveriq, case, limit))
        for case in CASES
        for limit in LIMITS
        if request.wants(f"{END_TO_END} {case} {limit.name} {factors}")
    ]


MAVERIQ_SYSTEM = System("maveriq", SECTIONS, reproduce_maveriq)
