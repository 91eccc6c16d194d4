"""Sections 6.8 and 6.9, the search itself: our planner's time to the published objectives.

The published times are of a commercial solver on 20 threads (``expected/milp_runs.csv``). Ours
solves the same problem: same nodes and links (pruned where theirs was), no partial inference.
"""

from __future__ import annotations

import time
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import Any

from penstock.experiments.helix.cases import matches
from penstock.experiments.helix.fleet import table_cost
from penstock.experiments.reference import Record, number, read_table
from penstock.experiments.rows import Labels, Row, Tolerance, at_least, at_most, information, judged
from penstock.experiments.runner import Task
from penstock.plan.plan import Plan
from penstock.plan.planner import PlannerOptions, Progress
from penstock.plan.problem import placement_problem
from penstock.plan.prune import prune
from penstock.plan.registry import planner
from penstock.spec.helix_ini import read_cluster

OPTIMUM = Tolerance(absolute=0.01, unit="tokens/s")
WALL = "wall seconds of one process; published: 20 threads of a commercial solver"
CPU_S_PER_NODE = 2.0


@dataclass(frozen=True, slots=True)
class Search:
    """One published solver run and the problem it solved."""

    section: str
    experiment: str
    run: str
    case: str
    cluster_file: str
    model: str
    keep_links: int | None

    @property
    def labels(self) -> Labels:
        return Labels(f"{self.section} {self.experiment}", self.case)


_DISTRIBUTED = "clusters/distributed/3cluster24.ini"
_HET42 = "clusters/high_heterogeneity/cluster42.ini"
_QUALITY = "clusters/quality/cluster10.ini"
NODES = {_DISTRIBUTED: 24, _HET42: 42, _QUALITY: 10}
SEARCHES = (
    Search("6.8", "initial values", "distributed24_70b", "distributed24 llama2-70b with initial "
           "values", _DISTRIBUTED, "llama70b", 12),
    Search("6.8", "initial values", "ablation_raw_24", "distributed24 llama2-70b without",
           _DISTRIBUTED, "llama70b", 12),
    Search("6.8", "initial values", "het42_70b", "het42 llama2-70b with initial values",
           _HET42, "llama70b", 12),
    Search("6.8", "initial values", "ablation_raw_42", "het42 llama2-70b without",
           _HET42, "llama70b", 12),
    Search("6.9", "quality", "quality10_30b", "quality10 llama-30b", _QUALITY, "llama30b", None),
)  # fmt: skip


@dataclass(frozen=True)
class Found:
    """A plan, and when its search reached the published objective and its own end."""

    plan: Plan
    reached_s: float | None
    total_s: float


def search_tasks(helix: Path, sections: Sequence[str], only: str) -> list[Task[Any]]:
    """One task a problem: runs that differ only in initial values share our search."""
    chosen = [s for s in SEARCHES if s.section in sections and matches(only, s.labels)]
    groups: dict[tuple[str, str, int | None], list[Search]] = {}
    for search in chosen:
        problem = (search.cluster_file, search.model, search.keep_links)
        groups.setdefault(problem, []).append(search)
    return [
        Task(
            f"{group[0].section} {group[0].experiment} {group[0].case}",
            CPU_S_PER_NODE * NODES[group[0].cluster_file],
            partial(search_rows, helix, tuple(group)),
        )
        for group in groups.values()
    ]


def search_rows(helix: Path, searches: tuple[Search, ...]) -> list[Row]:
    """Solve one problem and put it beside every published run of it."""
    records, path = _published(helix)
    goal = number(records[searches[0].run], "best_objective_tokens_per_s", path)
    return found_rows(helix, searches, _solve(helix, searches[0], goal))


def found_rows(helix: Path, searches: tuple[Search, ...], found: Found) -> list[Row]:
    """Times, values and bounds of the published runs beside ``found``."""
    records, path = _published(helix)
    return [row for search in searches for row in _rows(search, records[search.run], path, found)]


def _published(helix: Path) -> tuple[Mapping[str, Record], Path]:
    path = helix / "expected" / "milp_runs.csv"
    rows = read_table(path, "run", "best_objective_tokens_per_s", "seconds_to_final_incumbent")
    return {row["run"]: row for row in rows}, path


def _solve(helix: Path, search: Search, goal: float) -> Found:
    cost = table_cost(helix, search.model)
    problem = placement_problem(read_cluster(helix / search.cluster_file), cost)
    if search.keep_links is not None:
        problem = prune(problem, keep=search.keep_links)
    method = planner("penstock")
    started = time.perf_counter()
    reached: list[float] = []

    def note(news: Progress) -> None:
        if news.value is not None and news.value >= goal - OPTIMUM.absolute and not reached:
            reached.append(time.perf_counter() - started)

    plan = method.plan(problem, PlannerOptions(objective="maxflow", progress=note))
    total_s = time.perf_counter() - started
    if not reached and plan.max_flow_tokens_per_s >= goal - OPTIMUM.absolute:
        reached.append(total_s)
    return Found(plan, reached[0] if reached else None, total_s)


def _rows(search: Search, record: Record, path: Path, found: Found) -> list[Row]:
    labels, plan = search.labels, found.plan
    goal = number(record, "best_objective_tokens_per_s", path)
    reached_s = number(record, "seconds_to_final_incumbent", path)
    ours = plan.max_flow_tokens_per_s
    reached = labels.of(f"time to {goal:.2f} tokens/s", "s")
    bound = information(
        labels.of("upper bound", "tokens/s"),
        number(record, "best_bound", path),
        plan.max_flow_bound_tokens_per_s,
    )
    time_row = at_most(reached, reached_s, found.reached_s, reached_s, note=WALL)
    if search.section == "6.8":
        best = at_least(labels.of("best max flow", "tokens/s"), goal, ours, goal)
        return [time_row, best, bound]
    proof_s = number(record, "solver_seconds", path)
    proved_s = found.total_s if plan.proved_optimal else None
    note = "proved optimal" if plan.proved_optimal else "not proved"
    return [
        judged(labels.of("optimum", "tokens/s"), goal, ours, OPTIMUM, note=note),
        time_row,
        at_most(labels.of("time to the proof", "s"), proof_s, proved_s, proof_s, note=WALL),
        bound,
    ]
