"""The 24 runs of DistServe's own simulator, and its tables of KV memory."""

from __future__ import annotations

from pathlib import Path

import numpy as np

from penstock.experiments.distserve.compat import poisson_trace, run_compat, sampled
from penstock.experiments.distserve.data import engine_named, read_lengths
from penstock.experiments.reference import number, read_table
from penstock.experiments.rows import Labels, Row, Tolerance, judged
from penstock.plan.goodput.distserve import Shape


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
    outcome = run_compat(row["model"], engine_named(row["backend"], path), shape, requests)
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
