"""DistServe's published figures beside ours, as one table.

``simulator``: 24 runs of its simulator. ``search``: its placement search. ``8`` and ``9``: the
improvement factors of these figures, once from the published curves and once from simulation.
"""

from __future__ import annotations

import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from functools import partial
from math import isfinite
from pathlib import Path
from typing import get_args

import numpy as np

from penstock.cost.linear import DistServeEngine
from penstock.errors import SpecError
from penstock.experiments.distserve.compat import (
    Probes,
    poisson_trace,
    run_compat,
    sampled,
)
from penstock.experiments.distserve.crossing import Point, improvement
from penstock.experiments.reference import Record, number, optional, read_table
from penstock.experiments.rows import Labels, Row, Tolerance, at_most, failed, information, judged
from penstock.experiments.runner import Task, run_tasks
from penstock.plan.goodput.distserve import (
    Bisection,
    Shape,
    colocated_instances,
    pairs_of_instances,
    search_goodput,
)
from penstock.plan.planner import ProgressCallback, silent
from penstock.spec.load import load_model
from penstock.spec.names import did_you_mean

SECTIONS = ("simulator", "search", "8", "9")
FIGURE_REQUESTS = 1000
NOT_REAL = "synthetic lengths of the published means; the data sets themselves are not published"
# What the search over 13B on 4 GPUs may take; theirs takes 30 CPU seconds.
SEARCH_CPU_S = 1.5


@dataclass(frozen=True)
class Request:
    """What to reproduce. ``only``: words that the name of a case must hold."""

    sections: tuple[str, ...] = SECTIONS
    only: str = ""
    processes: int = 1


@dataclass(frozen=True)
class Table:
    """The rows, and what Ctrl-C left undone."""

    rows: tuple[Row, ...]
    unfinished: tuple[str, ...] = ()


@dataclass(frozen=True)
class Application:
    """One experiment of Figures 8 and 9: lengths, limits (s) and the two shapes compared."""

    name: str
    model: str
    lengths: str
    ttft_s: float
    tpot_s: float
    ours: Shape
    vllm: Shape


_66B = (Shape(4, 1, 2, 2), Shape(4))
APPLICATIONS = (
    Application("OPT-13B ShareGPT", "opt-13b", "sharegpt", 0.25, 0.1, Shape(2, 1, 1, 1), Shape(1)),
    Application("OPT-66B ShareGPT", "opt-66b", "sharegpt", 2.5, 0.15, *_66B),
    Application("OPT-66B HumanEval", "opt-66b", "humaneval", 0.125, 0.2, *_66B),
    Application("OPT-66B LongBench", "opt-66b", "longbench", 15.0, 0.15, *_66B),
)


def check_sections(sections: Sequence[str]) -> tuple[str, ...]:
    """The sections in their own order; none named = all. Raises ``SpecError``."""
    for name in sections:
        if name not in SECTIONS:
            raise SpecError(
                "no such section", key="sections", value=name, fix=did_you_mean(name, SECTIONS)
            )
    return tuple(name for name in SECTIONS if name in sections or not sections)


def reproduce_distserve(
    distserve: Path, request: Request, progress: ProgressCallback = silent
) -> Table:
    """Run the chosen experiments. Raises ``SpecError``/``InputError`` for incomplete data."""
    tasks: list[Task[list[Row]]] = []
    if "simulator" in request.sections:
        table = read_table(distserve / "simulator_runs.csv", "backend", "model", "rate_rps")
        tasks += [_task(f"simulator {i}", simulator_rows, distserve, i) for i in range(len(table))]
    if "search" in request.sections:
        tasks.append(_task("search", search_rows, distserve))
    for figure in ("8", "9"):
        if figure in request.sections:
            tasks += _figure_tasks(distserve, figure)
    outcomes = run_tasks(tasks, request.processes, progress)
    rows: list[Row] = []
    unfinished = []
    for task, outcome in zip(tasks, outcomes.results, strict=True):
        if outcome is None:
            unfinished.append(task.label)
        elif outcome.value is None:
            rows.append(failed(Labels(task.label, ""), outcome.error))
        else:
            rows += outcome.value
    words = request.only.lower().split()
    chosen = [
        row for row in rows if all(w in f"{row.experiment} {row.case}".lower() for w in words)
    ]
    if rows and not chosen:
        raise SpecError(
            "matches no experiment", key="--only", value=request.only, fix="use fewer words"
        )
    return Table(tuple(chosen), tuple(unfinished))


def _task(label: str, call: Callable[..., list[Row]], *arguments: object) -> Task[list[Row]]:
    return Task(label, 0.2, partial(call, *arguments))


def read_lengths(distserve: Path, name: str) -> list[tuple[int, int]]:
    """The synthetic (prompt, output) token pairs of a data set."""
    path = distserve / f"synthetic_{name}_like_lengths.csv"
    return [
        (int(row["prompt_tokens"]), int(row["output_tokens"]))
        for row in read_table(path, "prompt_tokens", "output_tokens")
    ]


# -- the simulator's runs ---------------------------------------------------------------------


def simulator_rows(distserve: Path, index: int) -> list[Row]:
    """One run of ``simulator_runs.csv``: six percentiles and three attainments."""
    path = distserve / "simulator_runs.csv"
    row = read_table(path, "backend", "model")[index]
    shape = Shape(
        int(row["prefill_tp"]),
        int(row["prefill_pp"]),
        int(row["decode_tp"] or 0),
        int(row["decode_pp"] or 0),
    )
    count, rate = int(row["num_requests"]), number(row, "rate_rps", path)
    requests = poisson_trace(sampled(read_lengths(distserve, "sharegpt"), count), rate)
    outcome = run_compat(row["model"], _engine(row["backend"], path), shape, requests)
    name = row["model"].rsplit("/", maxsplit=1)[-1]
    labels = Labels("simulator", f"{row['backend']} {name} {rate:g} req/s, {count} requests")
    rows = []
    for metric, values in (("ttft", outcome.ttft_s), ("tpot", outcome.tpot_s)):
        for percent in (50, 90, 99):
            subject = labels.of(f"{metric.upper()} p{percent}", "ms")
            published = number(row, f"{metric}_p{percent}_ms", path)
            ours = 1e3 * float(np.percentile(values, percent))
            rows.append(judged(subject, published, ours, Tolerance(relative=0.01)))
    limits = (1e-3 * number(row, "ttft_slo_ms", path), 1e-3 * number(row, "tpot_slo_ms", path))
    shares = outcome.attainment(*limits)
    for metric, share in zip(("ttft", "tpot", "joint"), shares, strict=True):
        subject = labels.of(f"{metric} attainment", "%")
        published = number(row, f"{metric}_attainment_pct", path)
        rows.append(judged(subject, published, 100 * share, Tolerance(absolute=0.5, unit="%")))
    return rows


def _engine(name: str, path: Path) -> DistServeEngine:
    for known in get_args(DistServeEngine):
        if name == known:
            return known  # type: ignore[no-any-return]
    raise SpecError("unknown system", source=path, key="backend", value=name)


# -- the search -------------------------------------------------------------------------------


def search_rows(distserve: Path) -> list[Row]:
    """The README example of DistServe (13B on 4 GPUs) and 66B on 8: shape, rate and CPU time."""
    pool = read_lengths(distserve, "sharegpt")
    rate, exact = "goodput per GPU", Tolerance(absolute=1e-6, unit="req/s")
    small, large = load_model("opt-13b"), load_model("opt-66b")
    labels = Labels("search", "OPT-13B, 1 node x 4 GPUs")
    lengths = sampled(pool, 300)
    started = time.process_time()
    probes = Probes("opt-13b", "distserve", lengths, 0.2, 0.1)
    best = search_goodput(pairs_of_instances(small, "low", 1, 4), probes.both).best
    cpu_s = time.process_time() - started
    rows = [
        judged(labels.of(rate, "req/s"), 2.03125, best.rate_per_gpu, exact, note=str(best.shape)),
        at_most(labels.of("CPU time", "s"), 30.0, cpu_s, SEARCH_CPU_S),
    ]
    vllm = Probes("opt-13b", "vllm", lengths, 0.2, 0.1)
    best = search_goodput(colocated_instances(small, 4), vllm.both).best
    labels = Labels("search", "OPT-13B, vLLM on 4 GPUs")
    rows.append(
        judged(labels.of(rate, "req/s"), 1.40625, best.rate_per_gpu, exact, note=str(best.shape))
    )
    probes = Probes("opt-66b", "distserve", sampled(pool, 100), 0.4, 0.1)
    shapes = pairs_of_instances(large, "low", 1, 8)
    best = search_goodput(shapes, probes.both, Bisection(2.0, 0.125)).best
    labels = Labels("search", "OPT-66B, 1 node x 8 GPUs")
    rows.append(
        judged(labels.of(rate, "req/s"), 0.375, best.rate_per_gpu, exact, note=str(best.shape))
    )
    return rows


# -- Figures 8 and 9 --------------------------------------------------------------------------


def _figure_tasks(distserve: Path, figure: str) -> list[Task[list[Row]]]:
    path = distserve / "improvements_printed.csv"
    table = read_table(path, "figure", "experiment", "axis", "baseline", "distserve_over_baseline")
    return [
        _task(
            f"figure {figure} {row['experiment']} {row['axis']} {row['baseline']}",
            factor_rows,
            distserve,
            dict(row),
        )
        for row in table
        if row["figure"] == figure
    ]


def factor_rows(distserve: Path, row: Record) -> list[Row]:
    """One printed factor: from the published curves, and simulated where that is possible."""
    path = distserve / "improvements_printed.csv"
    published = number(row, "distserve_over_baseline", path)
    falls_up = row["axis"] == "request_rate"
    baseline = {"vllm": "vLLM", "deepspeed-mii": "DeepSpeed-MII"}[row["baseline"]]
    what = "rate" if falls_up else "tighter SLO"
    labels = Labels(f"figure {row['figure']}", f"{row['experiment']} {what} over {baseline}")
    curves = _curves(distserve, row["experiment"], falls_up)
    drawn = improvement(curves["DistServe"], curves[baseline], falls_up=falls_up)
    hidden = "" if isfinite(drawn) else "the crossing is hidden behind another curve in the figure"
    subject = labels.of("from the curves", "x")
    rows = [judged(subject, published, drawn, Tolerance(relative=0.02), note=hidden)]
    application = next((a for a in APPLICATIONS if a.name == row["experiment"]), None)
    if application is None or baseline != "vLLM":
        return rows
    grids = {name: [x for x, _ in curves[name]] for name in ("DistServe", "vLLM")}
    rate = _fixed_rate(distserve, row["experiment"]) if not falls_up else 0.0
    ours = simulated_curve(distserve, application, "distserve", grids["DistServe"], rate)
    base = simulated_curve(distserve, application, "vllm", grids["vLLM"], rate)
    factor = improvement(ours, base, falls_up=falls_up)
    subject = labels.of("simulated", "x")
    if not isfinite(factor):
        lowest = min((y for _, y in base), default=0.0), max((y for _, y in base), default=0.0)
        note = f"not reached: vLLM lies between {lowest[0]:.0f} and {lowest[1]:.0f} % here"
        rows.append(information(subject, published, None, note=note))
    else:
        rows.append(information(subject, published, factor, note=NOT_REAL))
    return rows


def _curves(distserve: Path, experiment: str, falls_up: bool) -> dict[str, list[Point]]:
    """System -> published points; hidden markers lie under another curve and are left out."""
    path = distserve / "fig8_fig9_attainment.csv"
    axis = "per_gpu_rate" if falls_up else "slo_scale"
    curves: dict[str, list[Point]] = {}
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
    limits = (application.ttft_s, application.tpot_s)
    if rate_per_gpu:
        requests = poisson_trace(lengths, rate_per_gpu * shape.num_gpus)
        outcome = run_compat(application.model, engine, shape, requests)
        return [(x, 100 * outcome.attainment(x * limits[0], x * limits[1])[2]) for x in wide]
    points = []
    for x in wide:
        requests = poisson_trace(lengths, x * shape.num_gpus)
        outcome = run_compat(application.model, engine, shape, requests)
        joint = outcome.attainment(*limits)[2]
        points.append((x, 100 * joint))
        if joint < 0.5:
            break
    return points
