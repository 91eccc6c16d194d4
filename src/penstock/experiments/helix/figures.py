"""Helix's figures: decode throughput as bars, latency percentiles as lines."""

from __future__ import annotations

from collections.abc import Sequence

from penstock.experiments.figures import bar_plots, curve_plot
from penstock.experiments.rows import Row
from penstock.report.plots import Plot

RATE = "decode throughput"
PHASES = ("prompt latency", "decode latency")
PERCENTS = (5.0, 25.0, 50.0, 75.0, 95.0)


def helix_plots(rows: Sequence[Row]) -> list[Plot]:
    """A figure for every experiment and model that has published figures."""
    return [*_throughputs(rows), *_latencies(rows)]


def _throughputs(rows: Sequence[Row]) -> list[Plot]:
    groups: dict[str, dict[str, Row]] = {}
    for row in rows:
        if row.metric == RATE and row.published is not None:
            name = f"{row.experiment} {_family(row)}".strip()
            groups.setdefault(name, {})[_member(row)] = row
    return [
        plot
        for name, group in groups.items()
        for plot in bar_plots(name, group, f"{RATE}, {next(iter(group.values())).unit}")
    ]


def _latencies(rows: Sequence[Row]) -> list[Plot]:
    groups: dict[str, dict[str, list[Row]]] = {}
    for row in rows:
        phase, _, percentile = row.metric.rpartition(" ")
        if phase in PHASES and percentile != "mean" and None not in (row.published, row.ours):
            name = f"{row.experiment} {_family(row)} {phase}"
            groups.setdefault(name, {}).setdefault(_member(row), []).append(row)
    plots = []
    for name, members in groups.items():
        whole = {
            member: list(zip(PERCENTS, found, strict=True))
            for member, found in members.items()
            if len(found) == len(PERCENTS)
        }
        if whole:
            ticks = tuple((percent, f"p{percent:g}") for percent in PERCENTS)
            plots.append(curve_plot(name, whole, "percentile", "seconds", ticks))
    return plots


def _family(row: Row) -> str:
    """What the cases of one figure share: the model, and whether real hardware is beside us."""
    words = row.case.split()
    return " ".join([words[0], *(word for word in words if word == "(prototype)")])


def _member(row: Row) -> str:
    return " ".join(word for word in row.case.split()[1:] if word != "(prototype)") or row.case
