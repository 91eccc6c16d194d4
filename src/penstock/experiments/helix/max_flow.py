"""The max flow of every stored placement against ``expected/max_flow.csv``."""

from __future__ import annotations

from functools import partial
from pathlib import Path
from typing import Any

from penstock.experiments.helix.cases import matches
from penstock.experiments.helix.fleet import published_plan
from penstock.experiments.helix.flows import PublishedFlow, read_published_flows
from penstock.experiments.rows import Labels, Row, Tolerance, judged
from penstock.experiments.runner import Task

SECTION = "max-flow"
TOLERANCE = Tolerance(absolute=0.01, unit="tokens/s")


def max_flow_tasks(helix: Path, only: str) -> list[Task[Any]]:
    """One task a placement."""
    tasks = []
    for flow in read_published_flows(helix):
        labels = _labels(flow)
        if matches(only, labels):
            name = f"{labels.experiment} {labels.case}"
            tasks.append(Task(name, 0.02, partial(max_flow_row, helix, flow)))
    return tasks


def _labels(flow: PublishedFlow) -> Labels:
    return Labels(f"{SECTION} {flow.experiment}", f"{flow.model} {flow.placement}")


def max_flow_row(helix: Path, flow: PublishedFlow) -> list[Row]:
    """Compute the max flow of one stored placement."""
    plan = published_plan(helix, flow)
    note = "over-full nodes: T(k) extrapolated as published" if flow.over_full else ""
    ours = plan.max_flow_tokens_per_s
    subject = _labels(flow).of("max flow", "tokens/s")
    return [judged(subject, flow.value, ours, TOLERANCE, note=note)]
