"""``penstock reproduce accelerate``: the serial baseline of MaverIQ's evaluation."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import replace
from functools import partial
from pathlib import Path

from penstock.experiments.accelerate.replay import memory_rows, service_rows, serving_rows
from penstock.experiments.figures import bar_plots
from penstock.experiments.maveriq.figures import serving_plots
from penstock.experiments.rows import Row
from penstock.experiments.runner import Task
from penstock.experiments.system import Request, System, Table, table_of
from penstock.plan.planner import ProgressCallback, silent

_PARTS: Mapping[str, Callable[[Path], list[Row]]] = {
    "serving": serving_rows,
    "service": service_rows,
    "memory": memory_rows,
}
SECTIONS = tuple(_PARTS)


def reproduce_accelerate(
    maveriq: Path, request: Request, progress: ProgressCallback = silent
) -> Table:
    """Run the chosen parts; the data are in MaverIQ's folder."""
    tasks = [
        Task(f"accelerate {name}", 1.0, partial(_PARTS[name], maveriq)) for name in request.sections
    ]
    table = table_of(tasks, request, progress)
    service = {row.case: row for row in table.rows if row.experiment == "service"}
    plots = [
        *serving_plots(table.rows),
        *bar_plots("accelerate seconds a request", service, "seconds"),
    ]
    return replace(table, plots=tuple(plots))


ACCELERATE_SYSTEM = System("accelerate", SECTIONS, reproduce_accelerate, folder="maveriq")
