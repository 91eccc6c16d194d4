"""DistServe's published figures beside ours, as one table.

``simulator``: 24 runs of its simulator. ``tables``: KV memory and the placements it chose.
``search``: its placement search. ``1``, ``8`` to ``12``: the figures.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from dataclasses import replace
from functools import partial
from pathlib import Path

from penstock.experiments.distserve.ablation import (
    RATES,
    SIZES,
    ablation_rows,
    search_time_rows,
)
from penstock.experiments.distserve.curves import figure_rows
from penstock.experiments.distserve.figures import distserve_plots
from penstock.experiments.distserve.search import search_rows
from penstock.experiments.distserve.simulator import simulator_rows
from penstock.experiments.distserve.stages import breakdown_rows, interference_rows
from penstock.experiments.distserve.tables import capacity_rows, placement_rows
from penstock.experiments.reference import read_table
from penstock.experiments.rows import Row
from penstock.experiments.runner import Task
from penstock.experiments.system import Request, System, Table, table_of
from penstock.plan.planner import ProgressCallback, silent

SECTIONS = ("simulator", "tables", "search", "1", "8", "9", "10", "11", "12")
RowTask = Task[list[Row]]


def reproduce_distserve(
    distserve: Path, request: Request, progress: ProgressCallback = silent
) -> Table:
    """Run the chosen experiments. Raises ``SpecError``/``InputError`` for incomplete data."""
    tasks = [
        task for task in _tasks(distserve, request.sections) if _may_match(task.label, request)
    ]
    table = table_of(tasks, request, progress)
    return replace(table, plots=tuple(distserve_plots(table.rows)))


def _may_match(label: str, request: Request) -> bool:
    """Whether a task can have rows that ``only`` wants: a word may name another panel."""
    panels = [word for word in request.only.lower().split() if word in _PANELS]
    return all(word in label.lower() for word in panels) or not label.startswith("figure")


_PANELS = ("opt-13b", "opt-66b", "opt-175b", "sharegpt", "humaneval", "longbench")


def _tasks(distserve: Path, sections: tuple[str, ...]) -> Iterator[RowTask]:
    for section in sections:
        if section in ("8", "9"):
            yield from _panels(distserve, section)
        else:
            yield from _SECTION_TASKS[section](distserve)


def _simulator(distserve: Path) -> Iterator[RowTask]:
    table = read_table(distserve / "simulator_runs.csv", "backend", "model", "rate_rps")
    for i in range(len(table)):
        yield _task(f"simulator {i}", 0.2, simulator_rows, distserve, i)


def _tables(distserve: Path) -> Iterator[RowTask]:
    yield _task("table KV memory", 0.2, capacity_rows, distserve)
    for model in ("opt-13b", "opt-66b"):
        yield _task(f"table 3 {model}", 5.0, placement_rows, distserve, model)


def _search(distserve: Path) -> Iterator[RowTask]:
    yield _task("search", 3.0, search_rows, distserve)


def _figure1(_: Path) -> Iterator[RowTask]:
    yield _task("figure 1 opt-13b", 1.0, interference_rows)


def _figure10(distserve: Path) -> Iterator[RowTask]:
    for model in ("opt-13b", "opt-66b", "opt-175b"):
        yield _task(f"figure 10 {model} sharegpt", 3.0, breakdown_rows, distserve, model)


def _figure11(distserve: Path) -> Iterator[RowTask]:
    for rate in RATES:
        yield _task(f"figure 11 opt-66b {rate:g}", 10.0, ablation_rows, distserve, rate)


def _figure12(distserve: Path) -> Iterator[RowTask]:
    for affinity in ("low", "high"):
        for nodes, gpus in SIZES:
            label = f"figure 12 opt-13b {affinity} {nodes * gpus}"
            size = (affinity, nodes, gpus)
            yield _task(label, float(nodes * gpus), search_time_rows, distserve, *size)


_SECTION_TASKS: dict[str, Callable[[Path], Iterator[RowTask]]] = {
    "simulator": _simulator,
    "tables": _tables,
    "search": _search,
    "1": _figure1,
    "10": _figure10,
    "11": _figure11,
    "12": _figure12,
}


def _panels(distserve: Path, figure: str) -> Iterator[RowTask]:
    columns = ("figure", "experiment", "axis")
    table = read_table(distserve / "improvements_printed.csv", *columns)
    rows = (row for row in table if row["figure"] == figure)
    panels = dict.fromkeys((row["experiment"], row["axis"]) for row in rows)
    for experiment, axis in panels:
        label = f"figure {figure} {experiment} {axis}"
        yield _task(label, 4.0, figure_rows, distserve, figure, experiment, axis)


def _task(label: str, weight: float, call: Callable[..., list[Row]], *arguments: object) -> RowTask:
    return Task(label, weight, partial(call, *arguments))


DISTSERVE_SYSTEM = System("distserve", SECTIONS, reproduce_distserve)
