"""Figures of a reproduction: published beside ours, throughputs as bars, percentiles as lines."""

from __future__ import annotations

from collections.abc import Sequence
from importlib.util import find_spec
from pathlib import Path

from penstock.experiments.rows import Row
from penstock.report.figures import latency_percentiles, throughput_bars

MISSING = "no figures: matplotlib is not installed; pip install 'penstock[report]' adds it"
FORMAT = ".svg"
RATE = "decode throughput"
PHASES = ("prompt latency", "decode latency")
PERCENTS = (5.0, 25.0, 50.0, 75.0, 95.0)
MOST_BARS = 14


def write_figures(rows: Sequence[Row], directory: Path) -> tuple[list[Path], str]:
    """Draw every experiment into ``directory``; return the paths and a remark, if any.

    Without matplotlib nothing is drawn and the remark says how to get it.
    """
    if find_spec("matplotlib") is None:
        return [], MISSING
    return [*_throughputs(rows, directory), *_latencies(rows, directory)], ""


def _throughputs(rows: Sequence[Row], directory: Path) -> list[Path]:
    groups: dict[str, list[Row]] = {}
    for row in rows:
        if row.metric == RATE and row.published is not None:
            groups.setdefault(f"{row.experiment} {_family(row)}".strip(), []).append(row)
    paths = []
    for name, group in groups.items():
        for first in range(0, len(group), MOST_BARS):
            part = group[first : first + MOST_BARS]
            page = f" {first // MOST_BARS + 1}" if len(group) > MOST_BARS else ""
            path = directory / _file_name(f"{name}{page}")
            throughput_bars(
                path,
                [_member(row).replace(" ", "\n") for row in part],
                [row.published for row in part],
                [row.ours for row in part],
                title=name,
                unit=f"{RATE}, {part[0].unit}",
            )
            paths.append(path)
    return paths


def _latencies(rows: Sequence[Row], directory: Path) -> list[Path]:
    groups: dict[str, dict[str, list[Row]]] = {}
    for row in rows:
        phase, _, percentile = row.metric.rpartition(" ")
        if phase in PHASES and percentile != "mean" and None not in (row.published, row.ours):
            name = f"{row.experiment} {_family(row)} {phase}"
            groups.setdefault(name, {}).setdefault(_member(row), []).append(row)
    paths = []
    for name, members in groups.items():
        whole = {member: found for member, found in members.items() if len(found) == len(PERCENTS)}
        if not whole:
            continue
        path = directory / _file_name(name)
        latency_percentiles(
            path,
            PERCENTS,
            {member: [row.ours or 0.0 for row in found] for member, found in whole.items()},
            title=name,
            published={
                member: [row.published or 0.0 for row in found] for member, found in whole.items()
            },
        )
        paths.append(path)
    return paths


def _family(row: Row) -> str:
    """What the cases of one figure share: the model, and whether real hardware is beside us."""
    words = row.case.split()
    return " ".join([words[0], *(word for word in words if word == "(prototype)")])


def _member(row: Row) -> str:
    return " ".join(word for word in row.case.split()[1:] if word != "(prototype)") or row.case


def _file_name(text: str) -> str:
    name = "".join(c if c.isalnum() or c in ".+" else "-" for c in text)
    return "-".join(part for part in name.split("-") if part) + FORMAT
