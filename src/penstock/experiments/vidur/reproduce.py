"""Vidur's runs beside ours: every request's times, the counts, the summary figures, the speed."""

from __future__ import annotations

import csv
import gzip
import json
from collections.abc import Mapping
from dataclasses import replace
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from penstock.errors import InputError
from penstock.experiments.rows import Labels, Row, Tolerance, at_least, information, judged
from penstock.experiments.runner import Task
from penstock.experiments.system import Request, System, Table, table_of
from penstock.experiments.vidur.figures import vidur_plots
from penstock.experiments.vidur.scenarios import SCENARIOS, Scenario, simulate_scenario
from penstock.measure.run import Run
from penstock.plan.planner import ProgressCallback, silent

SECTIONS = tuple(SCENARIOS)
SPEED_GOAL = 40.0
"""Times faster than Vidur's event loop that s1 has to be."""

_EXACT = Tolerance(absolute=1e-6, unit="s")
_SAME = Tolerance()
_PRINTED = Tolerance(absolute=1e-6, relative=1e-6, unit="s")
_TIMES = (
    ("scheduled_at", "first schedule", "admitted_s"),
    ("prefill_completed_at", "first token", "first_token_s"),
    ("completed_at", "completion", "last_token_s"),
)


def reproduce_vidur(vidur: Path, request: Request, progress: ProgressCallback = silent) -> Table:
    """Run the scenarios with the inputs under ``vidur`` and put Vidur's figures beside ours."""
    tasks = [
        Task(f"vidur {name}", 1.0, partial(scenario_rows, vidur / "runs", SCENARIOS[name]))
        for name in request.sections
    ]
    table = table_of(tasks, request, progress)
    return replace(table, plots=tuple(vidur_plots(table.rows)))


def _labels(scenario: Scenario) -> Labels:
    return Labels(f"vidur {scenario.name}", f"{scenario.model} {scenario.scheduler}")


def scenario_rows(runs: Path, scenario: Scenario) -> list[Row]:
    labels = _labels(scenario)
    published, requests = _published(runs, scenario)
    results = published["results"]
    simulated = simulate_scenario(runs, scenario)
    run = simulated.run
    rows = []
    for column, what, ours in _TIMES:
        theirs = np.array([float(row[column]) for row in requests])
        worst = float(np.abs(getattr(run.requests, ours) - theirs).max())
        subject = labels.of(f"largest difference of any {what}", "s")
        rows.append(judged(subject, 0.0, worst, _EXACT, note=f"{len(theirs)} requests"))
    for key, counter in (("iterations", "batches"), ("restarts", "preemptions")):
        rows.append(judged(labels.of(key, ""), results[key], run.counters[counter], _SAME))
    makespan = float(np.nanmax(run.requests.last_token_s))
    rows.append(judged(labels.of("makespan", "s"), results["makespan_s"], makespan, _PRINTED))
    for metric, seconds in _latencies(run).items():
        for figure, value in _figures(seconds).items():
            subject = labels.of(f"{metric} {figure}", "s")
            rows.append(judged(subject, results[f"{metric}_s"][figure], value, _PRINTED))
    times = min(simulated.cpu_s, simulate_scenario(runs, scenario).cpu_s)
    rows.append(
        information(labels.of("CPU time of the event loop", "s"), scenario.loop_cpu_s, times)
    )
    speed = labels.of("times faster than Vidur's event loop", "")
    if scenario.name == "s1":
        rows.append(at_least(speed, 1.0, scenario.loop_cpu_s / times, SPEED_GOAL))
    else:
        rows.append(information(speed, 1.0, scenario.loop_cpu_s / times))
    return rows


def _published(runs: Path, scenario: Scenario) -> tuple[Mapping[str, Any], list[Mapping[str, str]]]:
    folder = next(iter(sorted(runs.glob(f"{scenario.name}_*"))), None)
    if folder is None:
        raise InputError(f"{runs}: holds no run {scenario.name}; the reference is not complete")
    try:
        summary = json.loads((folder / "summary.json").read_text(encoding="utf-8"))
        with gzip.open(folder / "requests.csv.gz", "rt", encoding="utf-8", newline="") as file:
            return summary, list(csv.DictReader(file))
    except (OSError, ValueError, EOFError) as error:
        raise InputError(f"{folder}: cannot be read ({error})") from error


def _latencies(run: Run) -> Mapping[str, NDArray[np.float64]]:
    """Per request, as the published summaries define them (conventions: TTFT, TPOT, E2EL)."""
    table = run.requests
    many = table.output_tokens > 1
    decode = (table.last_token_s - table.first_token_s)[many]
    return {
        "ttft": table.first_token_s - table.arrival_s,
        "tpot": decode / (table.output_tokens[many] - 1),
        "e2e": table.last_token_s - table.arrival_s,
        "scheduling_delay": table.admitted_s - table.arrival_s,
    }


def _figures(seconds: NDArray[np.float64]) -> Mapping[str, float]:
    p50, p90, p99 = (float(np.percentile(seconds, p)) for p in (50, 90, 99))
    return {
        "p50": p50,
        "p90": p90,
        "p99": p99,
        "mean": float(seconds.mean()),
        "max": float(seconds.max()),
    }


VIDUR_SYSTEM = System("vidur", SECTIONS, reproduce_vidur)
