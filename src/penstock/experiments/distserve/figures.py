"""DistServe's figures: attainment curves, stages of the latency, searches."""

from __future__ import annotations

from collections.abc import Sequence

from penstock.experiments.figures import bar_plots, curve_plot
from penstock.experiments.rows import Row
from penstock.report.plots import Plot

Found = dict[str, list[tuple[float, Row]]]


def distserve_plots(rows: Sequence[Row]) -> list[Plot]:
    """One figure for every panel of Figures 8 to 12, and the printed factors as bars."""
    curves: dict[str, Found] = {}
    axes: dict[str, tuple[str, str]] = {}
    factors: dict[str, Row] = {}
    bars: dict[str, dict[str, Row]] = {}
    for row in rows:
        panel = _point(row)
        if panel is not None:
            name, label, x, axis = panel
            curves.setdefault(name, {}).setdefault(label, []).append((x, row))
            axes[name] = axis
        elif row.metric == "simulated":
            factors[f"{row.experiment} {row.case}"] = row
        elif row.experiment == "figure 1" and row.unit == "req/s":
            bars.setdefault("figure 1 goodput, req/s", {})[row.metric] = row
    plots = [
        curve_plot(name, {k: sorted(v, key=_x) for k, v in found.items()}, *axes[name])
        for name, found in curves.items()
    ]
    if factors:
        plots += bar_plots("DistServe over vLLM, simulated", factors, "x")
    for name, group in bars.items():
        plots += bar_plots(name.partition(",")[0], group, name.partition(", ")[2])
    return plots


def _x(point: tuple[float, Row]) -> float:
    return point[0]


def _point(row: Row) -> tuple[str, str, float, tuple[str, str]] | None:
    """(figure, curve, x, labels of the axes) of a row that is a point of a curve."""
    words = row.case.split()
    if row.experiment in ("figure 8", "figure 9") and " attainment at " in row.metric:
        system, _, at = row.metric.partition(" attainment at ")
        axis = "req/s per GPU" if words[-1] == "per_gpu_rate" else "SLO scale"
        over = "rate" if words[-1] == "per_gpu_rate" else axis
        name = f"{row.experiment} {' '.join(words[:-1])} over {over}"
        return name, system, float(at), (axis, "attainment, %")
    if row.experiment == "figure 10" and row.metric.startswith("share of "):
        stage = row.metric.removeprefix("share of ")
        name = f"figure 10 {' '.join(words[:2])}"
        return name, stage, float(words[2]), ("req/s per GPU", "share of the latency, %")
    if row.experiment == "figure 11" and row.metric.endswith(" attainment"):
        by_scale = "SLO scale" in row.case
        x = float(words[-1] if by_scale else words[1])
        axis = "SLO scale" if by_scale else "req/s per GPU"
        name = f"figure 11 over {'SLO scale' if by_scale else 'rate'}"
        return name, row.metric.removesuffix(" attainment"), x, (axis, "attainment, %")
    if row.experiment == "figure 12" and row.metric == "CPU time":
        label = f"{words[1]} affinity"
        return "figure 12 search time", label, float(words[3]), ("GPUs", "CPU seconds")
    return None
