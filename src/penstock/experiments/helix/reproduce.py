"""All of it: which experiments, on how many processes, into one table."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import replace
from functools import partial
from pathlib import Path
from typing import get_args

from penstock.errors import SpecError
from penstock.experiments.helix.benchmark import benchmark_helix
from penstock.experiments.helix.cases import Case, Simulation, read_cases
from penstock.experiments.helix.figures import helix_plots
from penstock.experiments.helix.flows import Edges, read_edge_flows
from penstock.experiments.helix.max_flow import SECTION as MAX_FLOW
from penstock.experiments.helix.max_flow import max_flow_tasks
from penstock.experiments.helix.measured import Measured
from penstock.experiments.helix.run import run_simulation
from penstock.experiments.helix.search import search_tasks
from penstock.experiments.helix.table import Problems, case_rows, congestion_rows
from penstock.experiments.rows import Labels, Row, failed
from penstock.experiments.runner import Outcome, Task, run_tasks
from penstock.experiments.system import Request, System, Table, no_match
from penstock.plan.planner import ProgressCallback, silent
from penstock.sim.options import Granularity

SECTIONS = ("6.3", "6.4", "6.5", "6.6", "6.7", "6.8", "6.9", MAX_FLOW)

Result = Measured | list[Row]

NODE_SECONDS_PER_CPU_SECOND = 4000.0
"""Simulated seconds times nodes that a CPU second covers, to start the longest runs first."""


def check_granularity(name: str) -> Granularity:
    """Raises ``SpecError`` for a name that is none."""
    for known in get_args(Granularity):
        if name == known:
            return known  # type: ignore[no-any-return]
    raise SpecError("unknown value", key="--granularity", value=name, fix="use layerwise, nodewise")


def reproduce_helix(helix: Path, request: Request, progress: ProgressCallback = silent) -> Table:
    """The published table unless only ``ours`` or ``fair`` was asked for, then those two."""
    extra = request.ours or request.fair
    table = published_table(helix, request, progress) if request.named or not extra else Table(())
    if extra and not table.unfinished:
        more = benchmark_helix(helix, request, progress, ours=request.ours, fair=request.fair)
        table = Table((*table.rows, *more.rows), more.unfinished)
    return replace(table, plots=tuple(helix_plots(table.rows)))


def published_table(helix: Path, request: Request, progress: ProgressCallback = silent) -> Table:
    """Run the chosen experiments and put every published figure beside ours."""
    cases = [
        _at(case, request.granularity)
        for case in read_cases(helix)
        if case.section in request.sections and case.matches(request.only)
    ]
    edges = read_edge_flows(helix)
    runs = _distinct([part for case in cases for part in case.parts.values()])
    simulations: list[Task[Result]] = [
        Task(
            _label(run, cases),
            _weight(run),
            partial(run_simulation, helix, run, _flows(run, edges)),
        )
        for run in runs
    ]
    others: list[Task[Result]] = []
    if MAX_FLOW in request.sections:
        others += max_flow_tasks(helix, request.only)
    others += search_tasks(helix, request.sections, request.only)
    tasks = [*simulations, *others]
    if not tasks:
        raise no_match(request.only)
    outcomes = run_tasks(tasks, request.processes, progress)
    done = dict(zip(runs, outcomes.results, strict=False))
    rows = [row for case in cases for row in _case(helix, case, done)]
    for task, outcome in zip(others, outcomes.results[len(runs) :], strict=True):
        rows += _rows_of(task.label, outcome)
    unfinished = [
        task.label for task, outcome in zip(tasks, outcomes.results, strict=True) if outcome is None
    ]
    rows.sort(key=lambda row: SECTIONS.index(row.experiment.split()[0]))
    return Table(tuple(rows), tuple(unfinished))


def _at(case: Case, granularity: Granularity) -> Case:
    parts = {name: replace(part, granularity=granularity) for name, part in case.parts.items()}
    return replace(case, parts=parts)


def _distinct(runs: Sequence[Simulation]) -> list[Simulation]:
    return list(dict.fromkeys(runs))


def _label(run: Simulation, cases: Sequence[Case]) -> str:
    for case in cases:
        for scope, part in case.parts.items():
            if part == run:
                labels = case.labels
                return f"{labels.experiment} {labels.case} {scope}".removesuffix(" total")
    return run.placement


def _weight(run: Simulation) -> float:
    """Rough CPU seconds: iterations grow with the fleet and with the time."""
    nodes = 42 if "het42" in run.placement or run.placement.endswith("_42") else 24
    if "separate" in run.placement or run.prefix:
        nodes //= 4
    return nodes * (run.traffic.warmup_s + run.traffic.window_s) / NODE_SECONDS_PER_CPU_SECOND


def _flows(run: Simulation, edges: Mapping[str, Edges]) -> Edges | None:
    return edges.get(run.key) if run.router == "maxflow" else None


def _case(
    helix: Path,
    case: Case,
    done: dict[Simulation, Outcome[Result] | None],
) -> list[Row]:
    parts: dict[str, Measured] = {}
    lines: dict[str, str] = {}
    for scope, run in case.parts.items():
        outcome = done[run]
        if outcome is None:
            return []
        if isinstance(outcome.value, Measured):
            parts[scope] = outcome.value
        else:
            lines[scope] = outcome.error
    problems = Problems(lines)
    rows = case_rows(case, parts, problems)
    if case.section == "6.7" and case.kind == "simulation":
        rows += congestion_rows(helix, case, parts.get("total"), problems.note("total"))
    return rows


def _rows_of(label: str, outcome: Outcome[Result] | None) -> list[Row]:
    if outcome is None:
        return []
    if isinstance(outcome.value, list):
        return outcome.value
    section, _, case = label.partition(" ")
    return [failed(Labels(section, case), outcome.error)]


HELIX_SYSTEM = System(
    "helix", SECTIONS, reproduce_helix, options=frozenset(("ours", "fair", "granularity"))
)
