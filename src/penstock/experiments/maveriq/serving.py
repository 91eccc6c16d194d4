"""The published serving runs in the serial queue that served them, beside their logs.

Seconds a request are those the run itself logged for each model (mean of the execution, without
waiting), so that what is compared is the queue: waiting, throughput, completed, attainment.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np

from penstock.experiments.maveriq.data import (
    GPUS,
    ModelSet,
    RunKey,
    by_run,
    model_set,
    our_trace,
)
from penstock.experiments.maveriq.fifo import Served, Server, serve_fifo
from penstock.experiments.reference import Record, number, read_table
from penstock.experiments.rows import Labels, Row, Tolerance, information, judged
from penstock.spec.minute_bins import BinTrace

FACTORS = (2.5, 5.0, 7.5)
RATE = Tolerance(relative=0.03)
COUNT = Tolerance(relative=0.03)
MEDIAN = Tolerance(relative=0.15, absolute=0.1, unit="s")
SHARE = Tolerance(absolute=5.0, unit="%")

OTHER_DRAWS = "AlpaServe was replayed with other draws of the model of each request"
WAITING_TWICE = (
    "the published rate fits a span in which waiting counts twice; completed over the true span "
    "is higher"
)

Loads = Callable[[ModelSet, BinTrace], Sequence[tuple[float, float]]]


@dataclass(frozen=True, slots=True)
class Logs:
    """The three result files, by run."""

    summary: Mapping[RunKey, Sequence[Record]]
    models: Mapping[RunKey, Sequence[Record]]
    deployments: Mapping[RunKey, Sequence[Record]]


def read_logs(maveriq: Path) -> Logs:
    return Logs(
        by_run(maveriq / "e2e_results_summary.csv", "requests_completed", "e2e_p50_s"),
        by_run(maveriq / "e2e_results_per_model.csv", "model_id", "exec_mean_s"),
        by_run(maveriq / "deployments.csv", "model_id", "gpus", "deployed"),
    )


def nearest_run(logs: Logs, key: RunKey) -> RunKey | None:
    """The run whose deployments stand for ``key``: itself, or the one of nearest scale."""
    if key in logs.deployments:
        return key
    kin = [
        one
        for one in logs.deployments
        if (one.system, one.model_set, one.intent) == (key.system, key.model_set, key.intent)
    ]

    def distance(one: RunKey) -> tuple[bool, float, float]:
        return one.trace != key.trace, abs(one.scale - key.scale), one.slo_factor

    return min(kin, key=distance, default=None)


def trace_ids(models: ModelSet, rows: Sequence[Record]) -> Mapping[int, int]:
    """The model of the trace (from 0) for every id of a run.

    AlpaServe counts replicas as further ids: an id that does not name the model whose turn it is
    repeats the one before.
    """
    found: dict[int, int] = {}
    extra, before = 0, -1
    for row in rows:
        number_of = int(row["model_id"])
        place = number_of - 1 - extra
        if place >= len(models.models) or models.models[place] != row["model"]:
            extra += 1
            place = before
        found[number_of] = place
        before = place
    return found


def run_servers(
    models: ModelSet, rows: Sequence[Record], seconds: Mapping[int, float]
) -> Mapping[int, Sequence[Server]]:
    """Replicas of every model; ``seconds`` by the run's ids. Unknown GPUs are the first ones."""
    ids = trace_ids(models, rows)
    servers: dict[int, list[Server]] = {}
    for row in rows:
        number_of = int(row["model_id"])
        if row["deployed"] != "1" or number_of not in seconds:
            continue
        gpus = [int(part) for part in row["gpus"].split(",") if part]
        gpus = gpus or list(range(int(row["tp"]) * int(row["pp"])))
        servers.setdefault(ids[number_of], []).append(Server(tuple(gpus), seconds[number_of]))
    return servers


def simulate_run(maveriq: Path, logs: Logs, key: RunKey, loads: Loads | None = None) -> Served:
    """Serve the trace of ``key`` as its system did; Accelerate holds all GPUs for a request."""
    models = model_set(maveriq, key.model_set)
    trace = our_trace(maveriq, models, key.trace, key.scale)
    path = maveriq / "e2e_results_per_model.csv"
    seconds = {int(r["model_id"]): number(r, "exec_mean_s", path) for r in logs.models[key]}
    near = nearest_run(logs, key)
    if near is None:
        servers: Mapping[int, Sequence[Server]] = {
            i - 1: [Server(tuple(range(GPUS)), value)] for i, value in seconds.items()
        }
    else:
        servers = run_servers(models, logs.deployments[near], seconds)
    blocked = loads(models, trace) if loads is not None else ()
    return serve_fifo(trace.arrival_s, trace.model, servers, blocked_s=blocked)


def slo_limits(maveriq: Path, models: ModelSet, factor: float) -> tuple[float, ...]:
    """Seconds within which requests of each model must end."""
    path = maveriq / "slo_base.csv"
    base = {row["model"]: number(row, "e2e20_s", path) for row in read_table(path, "e2e20_s")}
    return tuple(factor * base[name] for name in models.models)


def run_rows(maveriq: Path, logs: Logs, key: RunKey, loads: Loads | None = None) -> list[Row]:
    """Median latency, requests per minute, completed, and attainment with both denominators."""
    path = maveriq / "e2e_results_summary.csv"
    published = logs.summary[key][0]
    served = simulate_run(maveriq, logs, key, loads)
    models = model_set(maveriq, key.model_set)
    labels = Labels("serving", str(key))
    near = nearest_run(logs, key)
    note = ""
    if near is not None and near != key:
        note = f"its own deployments are not in the log; those of {near} stand for them"
    elif key.system.startswith("AlpaServe"):
        note = OTHER_DRAWS
    median = float(np.median(served.latency_s)) if np.any(served.done) else float("nan")
    rate = served.per_minute
    if key.system == "Accelerate":
        rate, note = served.per_minute_waiting_twice, WAITING_TWICE
    figures = (
        ("median latency", "s", "e2e_p50_s", median, MEDIAN),
        ("requests per minute", "1/min", "cluster_rpm", rate, RATE),
        ("completed", "requests", "requests_completed", float(served.done.sum()), COUNT),
    )
    rows = [
        judged(labels.of(metric, unit), number(published, column, path), ours, limit, note=note)
        for metric, unit, column, ours, limit in figures
    ]
    if key.system == "Accelerate":
        subject = labels.of("requests per minute of the true span", "1/min")
        rows.append(information(subject, None, served.per_minute))
    for factor in FACTORS:
        shares = served.attainment(slo_limits(maveriq, models, factor))
        for share, whole in zip(shares, ("completed", "sent"), strict=True):
            subject = labels.of(f"attainment at {factor:g}x of {whole}", "%")
            theirs = number(published, f"slo{factor:g}_att_pct_of_{whole}", path)
            rows.append(judged(subject, theirs, 100 * share, SHARE, note=note))
    return rows


def serving_rows(maveriq: Path) -> list[Row]:
    """All runs of MaverIQ, AlpaServe and AlpaServe*, and the gains that the paper states."""
    logs = read_logs(maveriq)
    rows: list[Row] = []
    for key in logs.summary:
        if key.system != "Accelerate":
            rows += run_rows(maveriq, logs, key)
    return rows + queue_law_rows(logs)


def queue_law_rows(logs: Logs) -> list[Row]:
    """Throughput under load is 60 / mean service: one serial queue."""
    rows = []
    for key, found in logs.summary.items():
        if key.system == "Accelerate" or key.scale != 0.4 or key.model_set != "large":
            continue
        record = found[0]
        mean, rate = float(record["exec_mean_s"]), float(record["cluster_rpm"])
        subject = Labels("queue law", str(key)).of("60 / mean service", "1/min")
        rows.append(information(subject, rate, 60 / mean, note="published is what was measured"))
    return rows
