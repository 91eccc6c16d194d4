"""Figures of AlpaServe: attainment by policy, the corrected comparison, sweeps, speed."""

from __future__ import annotations

from collections.abc import Sequence

from penstock.experiments.figures import bar_plots
from penstock.experiments.rows import Row
from penstock.report.plots import Curve, Plot

CPU = "CPU time of the search"
X_LABELS = {
    "rate_rps": "requests/s",
    "cv": "coefficient of variation of the gaps",
    "slo_factor": "deadline, times the latency on one GPU",
    "gpus": "GPUs",
}


def alpaserve_plots(rows: Sequence[Row]) -> list[Plot]:
    """Bars of published beside ours, and lines of every sweep."""
    bars: dict[tuple[str, str], dict[str, Row]] = {}
    for row in rows:
        if row.experiment == "policies" and row.metric == "attainment":
            scenario, _, policy = row.case.partition(" ")
            bars.setdefault((f"alpaserve {scenario}", "attainment"), {})[policy] = row
        elif row.experiment == "corrected" and row.unit == "" and row.metric != "requests":
            bars.setdefault((f"alpaserve {row.metric}", "attainment"), {})[row.case] = row
        elif row.experiment == "speed" and row.metric == CPU:
            bars.setdefault(("alpaserve search", "CPU seconds"), {})[row.case] = row
    plots = [plot for (name, unit), group in bars.items() for plot in bar_plots(name, group, unit)]
    return plots + _sweeps(rows)


def _sweeps(rows: Sequence[Row]) -> list[Plot]:
    lines: dict[str, dict[str, list[tuple[float, float]]]] = {}
    for row in rows:
        if row.experiment.startswith("sweep ") and row.ours is not None:
            axis = row.experiment.removeprefix("sweep ")
            policy = row.metric.removesuffix(" attainment")
            point = (float(row.case), row.ours)
            lines.setdefault(axis, {}).setdefault(policy, []).append(point)
    return [
        Plot(
            f"alpaserve sweep {axis}",
            f"AlpaServe, 48 models: attainment over {axis}",
            X_LABELS.get(axis, axis),
            "attainment",
            tuple(
                Curve(policy, tuple(points), style)
                for style, (policy, points) in enumerate(policies.items())
            ),
        )
        for axis, policies in lines.items()
    ]
