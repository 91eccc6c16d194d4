"""The paper's gains over its baselines, from our replays of both sides."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path

import numpy as np

from penstock.experiments.accelerate.replay import load_blocks
from penstock.experiments.maveriq.data import RunKey
from penstock.experiments.maveriq.serving import OTHER_DRAWS, Logs, read_logs, simulate_run
from penstock.experiments.reference import number, read_table
from penstock.experiments.rows import Labels, Row, Tolerance, judged

FIGURES = ("fig10", "fig11")
POINTS = Tolerance(absolute=3.0, unit="%")
_LATENCY = {"median latency reduction of MaverIQ over", "median latency reduction"}
_FP16 = "reduction latency / user cost / throughput gain / GPU-hours"
_RATE = {"cluster throughput gain (share of MaverIQ)", "throughput gain"}


@dataclass(frozen=True, slots=True)
class Outcome:
    """Seconds and requests per minute of one replay."""

    median_s: float
    per_minute: float


def gain_rows(maveriq: Path) -> list[Row]:
    """Figures 10 and 11: reductions of the median latency and gains in throughput [%]."""
    path = maveriq / "expected_results.csv"
    logs = read_logs(maveriq)
    found: dict[RunKey, Outcome] = {}
    rows = []
    for row in read_table(path, "figure_or_section", "scope", "metric", "system", "value"):
        if row["metric"] == _FP16 and row["figure_or_section"] == "fig12":
            rows += _fp16_rows(maveriq, logs, row["system"], row["value"])
            continue
        known = row["metric"] in _LATENCY | _RATE
        if row["figure_or_section"] not in FIGURES or not known:
            continue
        parts = [part.strip() for part in row["scope"].split(",")]
        if len(parts) < 3 or row["system"] == "MaverIQ":
            continue
        scale = float(parts[2].removeprefix("RS "))
        ours = _key(logs, "MaverIQ", parts, scale)
        theirs = _key(logs, row["system"], parts, scale)
        for key in (ours, theirs):
            if key not in found:
                found[key] = _outcome(maveriq, logs, key)
        case = f"{parts[0]} {parts[1]} {scale:g} over {row['system']}"
        latency = row["metric"] in _LATENCY
        value = _gain(found[ours], found[theirs], latency=latency)
        metric = "median latency reduction" if latency else "throughput gain"
        subject = Labels(row["figure_or_section"], case).of(metric, "%")
        note = OTHER_DRAWS if row["system"].startswith("AlpaServe") else ""
        rows.append(judged(subject, number(row, "value", path), value, POINTS, note=note))
    return rows


def _fp16_rows(maveriq: Path, logs: Logs, system: str, printed: str) -> list[Row]:
    """Figure 12: FP16 on all sides; the first and the third of four printed figures."""
    parts = ["large", "conversation"]
    ours = _outcome(maveriq, logs, _key(logs, "MaverIQ-FP16", parts, 0.4, "min_cost"))
    theirs = _outcome(maveriq, logs, _key(logs, system, parts, 0.4))
    values = [float(part) for part in printed.split("/")]
    labels = Labels("fig12", f"large conversation 0.4 FP16 over {system}")
    return [
        judged(labels.of(metric, "%"), value, _gain(ours, theirs, latency=latency), POINTS)
        for metric, value, latency in (
            ("median latency reduction", values[0], True),
            ("throughput gain", values[2], False),
        )
    ]


def _key(logs: Logs, system: str, parts: list[str], scale: float, intent: str = "None") -> RunKey:
    intent = "min_lat" if system == "MaverIQ" else intent
    kin = [
        key
        for key in logs.summary
        if (key.system, key.model_set, key.trace, key.scale, key.intent)
        == (system, parts[0], parts[1], scale, intent)
    ]
    # The runs at 5x stand for AlpaServe, as in the paper.
    return min(kin, key=lambda key: abs(key.slo_factor - 5.0))


def _outcome(maveriq: Path, logs: Logs, key: RunKey) -> Outcome:
    if key.system == "Accelerate":
        served = simulate_run(maveriq, logs, key, load_blocks)
        # The published rates count waiting twice, and so do the gains made of them.
        return Outcome(float(np.median(served.latency_s)), served.per_minute_waiting_twice)
    served = simulate_run(maveriq, logs, key)
    return Outcome(float(np.median(served.latency_s)), served.per_minute)


def _gain(ours: Outcome, theirs: Outcome, *, latency: bool) -> float:
    if latency:
        return 100 * (1 - ours.median_s / theirs.median_s)
    return 100 * (1 - theirs.per_minute / ours.per_minute)
