"""Rows of the benchmarks beyond the paper: plans, runs, and what they are compared with."""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass, replace
from typing import Literal

from penstock.experiments.helix.cases import TOTAL, Case, Figure, Simulation, Traffic, matches
from penstock.experiments.helix.measured import Measured, figures
from penstock.experiments.rows import Labels, Row, at_least, at_most, failed, information
from penstock.experiments.runner import Outcome
from penstock.plan.plan import Plan, RouterName

OURS = "penstock"
GOALS = {"single24": 300.0, "distributed24": 170.0, "het42": 700.0}
"""Decode tokens/s we hold our planner to; the published figures are 252.1, 98.0 and 645.6."""

PLANNING_GOAL_S = 180.0
THROUGHPUT = "decode throughput"
LATENCIES = (
    "prompt latency p50",
    "prompt latency p95",
    "decode latency p50",
    "decode latency p95",
)
Kind = Literal["goal", "beside", "shown"]
"""Compared with our goal, with Helix's online figures, or only shown."""


@dataclass(frozen=True)
class Arena:
    """One published fleet with what Helix did on it."""

    cluster: str
    offline: Case
    online: Case
    swarm_online: Case

    def stored(self, method: str) -> Simulation:
        """The published placement of ``method`` on this fleet, routed as it is in the paper."""
        helix = self.offline.parts[TOTAL]
        folder, _, _ = helix.placement.rpartition("/")
        name = "ilp" if method == "helix" else method
        router: RouterName = "swarm" if method == "swarm" else "maxflow"
        return replace(helix, placement=f"{folder}/{name}", router=router)

    def figure(self, case: Case, metric: str) -> Figure | None:
        found = [f for f in case.figures if f.scope == TOTAL and f.metric == metric]
        return found[0] if found else None


@dataclass(frozen=True)
class Made:
    """A method's plan on a fleet, or why there is none."""

    method: str
    plan: Plan | None
    seconds: float = 0.0
    error: str = ""


@dataclass(frozen=True)
class Bout:
    """One run of one plan."""

    arena: Arena
    kind: Kind
    labels: Labels
    traffic: Traffic
    plan: Plan


def planning_rows(arena: Arena, planned: Iterable[Made], only: str) -> list[Row]:
    """Max flow and planning time of every planner."""
    rows = []
    for entry in planned:
        labels = Labels(f"ours {arena.cluster}", f"{entry.method} plan")
        if not matches(only, labels):
            continue
        if entry.plan is None:
            rows.append(failed(labels, entry.error))
            continue
        flow = entry.plan.max_flow_tokens_per_s
        seconds = labels.of("planning time", "s")
        rows.append(information(labels.of("max flow", "tokens/s"), None, flow))
        if entry.method == OURS:
            rows.append(at_most(seconds, None, entry.seconds, PLANNING_GOAL_S))
        else:
            rows.append(information(seconds, None, entry.seconds))
    return rows


def bout_rows(bout: Bout, outcome: Outcome[Measured]) -> list[Row]:
    """Rows of one finished run."""
    if outcome.value is None:
        return [failed(bout.labels, outcome.error)]
    result = outcome.value
    if bout.kind == "goal":
        rows = [_goal_row(bout, result)]
    elif bout.kind == "beside":
        rows = _rows_beside_helix(bout, result)
    else:
        ours = figures(result)
        throughput = bout.labels.of(THROUGHPUT, "tokens/s")
        rows = [information(throughput, None, ours[THROUGHPUT])]
        rows += [information(bout.labels.of(name, "s"), None, ours[name]) for name in LATENCIES]
    return rows + _count_rows(bout.labels, result)


def _goal_row(bout: Bout, result: Measured) -> Row:
    published = bout.arena.figure(bout.arena.offline, THROUGHPUT)
    return at_least(
        bout.labels.of(THROUGHPUT, "tokens/s"),
        None if published is None else published.value,
        result.decode_tokens_per_s,
        GOALS[bout.arena.cluster],
        note="published: Helix in the same benchmark",
    )


def _rows_beside_helix(bout: Bout, result: Measured) -> list[Row]:
    """Every online figure published for Helix beside ours at the same load."""
    ours = figures(result)
    rows = []
    for figure in bout.arena.online.figures:
        subject = bout.labels.of(figure.metric, figure.unit)
        compare = at_least if figure.metric == THROUGHPUT else at_most
        note = "published: Helix at the same load"
        value = ours.get(figure.metric)
        rows.append(compare(subject, figure.value, value, figure.value, note=note))
    return rows


def _count_rows(labels: Labels, result: Measured) -> list[Row]:
    counted = (
        ("requests issued", "requests", float(result.issued)),
        ("requests finished", "requests", float(result.finished)),
        ("requests turned away", "requests", float(result.rejected)),
        ("preemptions", "requests", float(result.preemptions)),
        ("mean served prompt", "tokens", result.served_prompt_tokens),
    )
    return [information(labels.of(metric, unit), None, value) for metric, unit, value in counted]
