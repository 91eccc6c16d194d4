"""Vidur's scenarios as bars: every summary figure beside ours."""

from __future__ import annotations

from collections.abc import Sequence

from penstock.experiments.figures import bar_plots
from penstock.experiments.rows import Row
from penstock.report.plots import Plot

METRICS = ("ttft", "tpot", "e2e", "scheduling_delay")
SPEED = "CPU time of the event loop"


def vidur_plots(rows: Sequence[Row]) -> list[Plot]:
    """One figure for every scenario and metric, and one of the speed of all scenarios."""
    groups: dict[str, dict[str, Row]] = {}
    for row in rows:
        metric, _, figure = row.metric.rpartition(" ")
        if metric in METRICS:
            groups.setdefault(f"{row.experiment} {metric}", {})[figure] = row
        elif row.metric == SPEED:
            groups.setdefault("vidur speed", {})[row.case] = row
    return [
        plot
        for name, group in groups.items()
        for plot in bar_plots(name, group, f"{name.rpartition(' ')[2]}, s")
    ]
