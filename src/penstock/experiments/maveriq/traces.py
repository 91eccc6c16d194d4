"""Published traces made again from the counts per minute."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

from penstock.errors import InputError
from penstock.experiments.maveriq.data import LoggedEvent, logged_trace, model_set, our_trace
from penstock.experiments.rows import Labels, Row, Tolerance, judged
from penstock.spec.minute_bins import BinTrace

# The logs hold microseconds.
_SAME_S = 1e-6


def trace_rows(maveriq: Path) -> list[Row]:
    """Requests and loads of every logged trace that are equal in time and model."""
    paths = sorted((maveriq / "traces").glob("*_*_0*.csv.gz"))
    if not paths:
        raise InputError(f"{maveriq / 'traces'}: holds no trace; the reference is not complete")
    rows = []
    for path in paths:
        name, trace, scale = path.name.removesuffix(".csv.gz").split("_")
        ours = our_trace(maveriq, model_set(maveriq, name), trace, float(scale))
        logged = logged_trace(path)
        subject = Labels("traces", f"{name} {trace} {scale}").of("equal events", "")
        rows.append(judged(subject, len(logged), equal_events(logged, ours), Tolerance()))
    return rows


def equal_events(logged: Sequence[LoggedEvent], ours: BinTrace) -> int:
    """How many events have the same place, time and model; one more or fewer counts as -1."""
    requests = [event for event in logged if event.event == "request"]
    deploys = [event for event in logged if event.event == "deploy"]
    if (len(requests), len(deploys)) != (len(ours.arrival_s), len(ours.deploy_s)):
        return -1
    made = zip(ours.arrival_s.tolist(), ours.model.tolist(), strict=True)
    same: int = sum(
        bool(abs(event.time_s - at_s) <= _SAME_S) and event.model == model
        for event, (at_s, model) in zip(requests, made, strict=True)
    )
    loads = sum(
        abs(event.time_s - at_s) <= _SAME_S and event.model == model
        for model, (event, at_s) in enumerate(zip(deploys, ours.deploy_s, strict=True))
    )
    return same + loads
