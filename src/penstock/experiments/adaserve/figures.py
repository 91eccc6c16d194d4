"""AdaServe's figures: attainment, goodput and tokens a step over load, mix and limits."""

from __future__ import annotations

from collections.abc import Sequence

from penstock.experiments.adaserve.systems import ADASERVE, BASELINES
from penstock.experiments.figures import bar_plots, curve_plot
from penstock.experiments.rows import Row
from penstock.report.plots import Plot

CURVES = ("fig8", "fig9", "fig10", "fig11", "fig12")
BARS = ("fig1", "fig14", "fig15")
AXES = {
    "nominal_rps": "nominal requests/s",
    "urgent_pct": "urgent requests, %",
    "slo_scale": "limit of the urgent class, times the baseline",
}


def adaserve_plots(rows: Sequence[Row]) -> list[Plot]:
    """One figure for every published figure, model and metric."""
    curves: dict[tuple[str, str, str, str], dict[str, list[tuple[float, Row]]]] = {}
    bars: dict[str, dict[str, Row]] = {}
    units: dict[str, str] = {}
    for row in rows:
        model, *at = row.case.split()
        system = next((s for s in (*BASELINES, ADASERVE) if row.metric.startswith(f"{s} ")), "")
        if row.experiment in CURVES and system:
            metric = row.metric.removeprefix(f"{system} ")
            key = (row.experiment, model, at[0], f"{metric}, {row.unit}")
            curves.setdefault(key, {}).setdefault(system, []).append((float(at[1]), row))
        elif row.experiment in BARS:
            name = f"{row.experiment} {model}"
            member = row.metric.removesuffix(" attainment")
            if row.experiment == "fig1":
                member = f"{member} {at[-1]}"
            bars.setdefault(name, {})[member] = row
            units[name] = row.unit
    plots = []
    for (figure, model, axis, metric), found in curves.items():
        word = metric.partition(",")[0]
        name = f"{figure} {model} {word}"
        ordered = {system: sorted(each, key=_x) for system, each in found.items()}
        plots.append(curve_plot(name, ordered, AXES.get(axis, axis), metric))
    for name, group in bars.items():
        plots += bar_plots(name, group, units[name])
    return plots


def _x(point: tuple[float, Row]) -> float:
    return point[0]
