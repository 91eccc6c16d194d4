"""Figures 8 and 9: attainment over rate and over SLO scale, and the factors printed with them."""

from __future__ import annotations

from collections.abc import Sequence
from math import isfinite
from pathlib import Path

from penstock.cost.linear import DistServeEngine
from penstock.errors import SpecError
from penstock.experiments.distserve.compat import poisson_trace, run_with, sampled
from penstock.experiments.distserve.crossing import Point, improvement
from penstock.experiments.distserve.data import (
    APPLICATIONS,
    ENGINES,
    FIGURE_REQUESTS,
    NO_TIMES,
    NOT_REAL,
    Application,
    read_lengths,
)
from penstock.experiments.reference import number, optional, read_table
from penstock.experiments.rows import (
    Labels,
    Row,
    Subject,
    Tolerance,
    at_least,
    information,
    judged,
)

Curves = dict[str, list[Point]]
AXES = {"request_rate": "per_gpu_rate", "slo_scale": "slo_scale"}
BASELINES = {"vllm": "vLLM", "deepspeed-mii": "DeepSpeed-MII"}
APART = 5.0
"""Points of attainment that two published values must differ by to say who is better."""


def figure_rows(distserve: Path, figure: str, experiment: str, axis: str) -> list[Row]:
    """One panel of Figure 8 or 9: its printed factors, its points, its order of systems.

    The factors come once from the published curves and once from simulation.
    """
    falls_up = axis == "request_rate"
    curves = _curves(distserve, experiment, falls_up)
    application = next((a for a in APPLICATIONS if a.name == experiment), None)
    ours: Curves = {}
    if application is not None:
        rate = 0.0 if falls_up else _fixed_rate(distserve, experiment)
        for system, engine in ENGINES.items():
            grid = [x for x, _ in curves[system]]
            ours[system] = simulated_curve(distserve, application, engine, grid, rate)
    note = _remark(experiment)
    rows = _factors(distserve, figure, experiment, axis, (curves, ours))
    labels = Labels(f"figure {figure}", f"{experiment} {AXES[axis]}")
    for system, points in ours.items():
        found = dict(points)
        rows += [
            information(labels.of(f"{system} attainment at {x:g}", "%"), y, found[x], note=note)
            for x, y in curves[system]
            if x in found
        ]
    return rows + _order(labels, curves, ours)


def _remark(experiment: str) -> str:
    known = {application.name for application in APPLICATIONS if application.published_times}
    return NOT_REAL if experiment in known else NO_TIMES


def _factors(
    distserve: Path,
    figure: str,
    experiment: str,
    axis: str,
    both: tuple[Curves, Curves],
) -> list[Row]:
    curves, ours = both
    path = distserve / "improvements_printed.csv"
    columns = ("figure", "experiment", "axis", "baseline", "distserve_over_baseline")
    falls_up = axis == "request_rate"
    rows = []
    for row in read_table(path, *columns):
        if (row["figure"], row["experiment"], row["axis"]) != (figure, experiment, axis):
            continue
        published = number(row, "distserve_over_baseline", path)
        baseline = BASELINES[row["baseline"]]
        what = "rate" if falls_up else "tighter SLO"
        labels = Labels(f"figure {figure}", f"{experiment} {what} over {baseline}")
        drawn = improvement(curves["DistServe"], curves[baseline], falls_up=falls_up)
        hidden = "" if isfinite(drawn) else "the crossing lies behind another curve of the figure"
        subject = labels.of("from the curves", "x")
        rows.append(judged(subject, published, drawn, Tolerance(relative=0.02), note=hidden))
        if baseline in ours:
            subject = labels.of("simulated", "x")
            rows.append(_simulated(subject, published, ours, baseline, _remark(experiment)))
    return rows


def _simulated(subject: Subject, published: float, ours: Curves, baseline: str, remark: str) -> Row:
    falls_up = " rate over " in subject.labels.case
    factor = improvement(ours["DistServe"], ours[baseline], falls_up=falls_up)
    if isfinite(factor):
        return information(subject, published, factor, note=remark)
    shares = [y for _, y in ours[baseline]]
    note = f"not reached: {baseline} lies between {min(shares):.0f} and {max(shares):.0f} % here"
    return information(subject, published, None, note=note)


def _order(labels: Labels, curves: Curves, ours: Curves) -> list[Row]:
    """Whether DistServe and vLLM stand in the published order, where that is clear."""
    if len(ours) < len(ENGINES):
        return []
    theirs = [dict(curves[system]) for system in ENGINES]
    mine = [dict(ours[system]) for system in ENGINES]
    shared = set.intersection(*(set(each) for each in (*theirs, *mine)))
    clear = [x for x in shared if abs(theirs[0][x] - theirs[1][x]) > APART]
    if not clear:
        return []
    same = [(mine[0][x] > mine[1][x]) == (theirs[0][x] > theirs[1][x]) for x in clear]
    subject = labels.of("points in the published order", "%")
    note = f"points of DistServe and vLLM more than {APART:g} apart in the publication"
    return [at_least(subject, 100.0, 100.0 * sum(same) / len(same), 90.0, note=note)]


def _curves(distserve: Path, experiment: str, falls_up: bool) -> Curves:
    """System -> published points; hidden markers lie under another curve and are left out."""
    path = distserve / "fig8_fig9_attainment.csv"
    axis = "per_gpu_rate" if falls_up else "slo_scale"
    curves: Curves = {}
    for row in read_table(path, "experiment", "x_name", "system", "x", "slo_attainment_pct"):
        if row["experiment"].partition(" @")[0] == experiment and row["x_name"] == axis:
            y = optional(row, "slo_attainment_pct", path)
            if y is not None:
                curves.setdefault(row["system"], []).append((number(row, "x", path), y))
    return curves


def _fixed_rate(distserve: Path, experiment: str) -> float:
    """The rate per GPU at which the SLO scale of an experiment is varied."""
    path = distserve / "fig8_fig9_attainment.csv"
    for row in read_table(path, "experiment", "x_name"):
        name, _, at = row["experiment"].partition(" @")
        if name == experiment and at:
            return float(at.removesuffix("/GPU"))
    raise SpecError("no such experiment", source=path, key="experiment", value=experiment)


def simulated_curve(
    distserve: Path,
    application: Application,
    engine: DistServeEngine,
    grid: Sequence[float],
    rate_per_gpu: float,
) -> list[Point]:
    """Joint attainment (percent) over rates per GPU, or over SLO scales at ``rate_per_gpu`` > 0.

    The published grid is carried on at both ends, where our curve may cross the target.
    """
    lengths = sampled(read_lengths(distserve, application.lengths), FIGURE_REQUESTS)
    low, high = min(grid), max(grid)
    wide = sorted({*grid, low / 8, low / 4, low / 2, 1.5 * high, 2 * high, 3 * high})
    shape = application.ours if engine == "distserve" else application.vllm
    cost = application.cost(engine)
    limits = (application.ttft_s, application.tpot_s)
    if rate_per_gpu:
        requests = poisson_trace(lengths, rate_per_gpu * shape.num_gpus)
        outcome = run_with(cost, shape, requests)
        return [(x, 100 * outcome.attainment(x * limits[0], x * limits[1])[2]) for x in wide]
    points = []
    for x in wide:
        outcome = run_with(cost, shape, poisson_trace(lengths, x * shape.num_gpus))
        joint = outcome.attainment(*limits)[2]
        points.append((x, 100 * joint))
        if joint < 0.5 and x >= high:
            break
    return points
