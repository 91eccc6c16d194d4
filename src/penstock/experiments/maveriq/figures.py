"""MaverIQ's figures: estimator errors, gains, and the serving runs over the rate."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace

from penstock.experiments.figures import bar_plots, curve_plot
from penstock.experiments.rows import Row
from penstock.report.plots import Plot

_METRICS = ("median latency", "requests per minute", "completed", "attainment at 5x of sent")


def maveriq_plots(rows: Sequence[Row]) -> list[Plot]:
    """Errors and gains as bars, serving as curves over the rate scale."""
    return [
        *_error_plots(rows),
        *_gain_plots(rows),
        *serving_plots(rows),
        *end_to_end_plots(rows),
    ]


def _error_plots(rows: Sequence[Row]) -> list[Plot]:
    groups: dict[str, dict[str, Row]] = {}
    for row in rows:
        if row.experiment == "estimator" and row.metric.endswith("error median"):
            kind, _, case = row.case.partition(", ")
            if kind == "ours":
                half, _, case = case.partition(", ")
                name = f"estimator {half} {row.metric.split()[0]}"
                groups.setdefault(name, {})[case] = row
    return [p for name, group in groups.items() for p in bar_plots(name, group, "median error, %")]


def _gain_plots(rows: Sequence[Row]) -> list[Plot]:
    groups: dict[str, dict[str, Row]] = {}
    for row in rows:
        if row.experiment in {"fig10", "fig11"}:
            groups.setdefault(f"{row.experiment} {row.metric}", {})[row.case] = row
    return [p for name, group in groups.items() for p in bar_plots(name, group, "%")]


def serving_plots(rows: Sequence[Row]) -> list[Plot]:
    """One figure a model set, trace and metric; a line a system over the rate scale."""
    groups: dict[str, dict[str, list[tuple[float, Row]]]] = {}
    for row in rows:
        if row.experiment != "serving" or row.metric not in _METRICS:
            continue
        system, models, trace, scale, *rest = row.case.split(" ")
        intent = rest[0] if rest and rest[0] != "run" else ""
        if "run" in rest and rest[-1] != "5x":
            continue
        label = f"{system} {intent}".strip()
        unit = f", {row.unit}" if row.unit else ""
        name = f"serving {models} {trace} {row.metric}{unit}"
        groups.setdefault(name, {}).setdefault(label, []).append((float(scale), row))
    plots = []
    for name, points in groups.items():
        for line in points.values():
            line.sort(key=lambda one: one[0])
        plots.append(
            curve_plot(name.partition(",")[0], points, "rate scale", name.split(" ", 3)[3])
        )
    return plots


def end_to_end_plots(rows: Sequence[Row]) -> list[Plot]:
    """Attainment of all systems over the rate scale; a figure a set, trace, forms and factor."""
    groups: dict[str, dict[str, list[tuple[float, Row]]]] = {}
    for row in rows:
        what, _, system = row.metric.partition(" of ")
        if row.experiment != "endtoend" or what != "attainment" or "batch 1" in system:
            continue
        models, trace, scale, forms, factor = row.case.split(" ")
        name = f"end to end {models} {trace} {forms} {factor}"
        # The figure beside ours is that of another line already.
        alone = replace(row, published=None)
        groups.setdefault(name, {}).setdefault(system, []).append((float(scale), alone))
    return [
        curve_plot(name, points, "rate scale", "within limits, % of sent")
        for name, points in groups.items()
    ]
