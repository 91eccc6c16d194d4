"""Runs beside each other, and predictions beside measurements."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from types import MappingProxyType
from typing import Literal

from penstock.errors import InputError
from penstock.measure.definitions import DEFINITIONS, Metric, metrics
from penstock.measure.fleet import Fleet
from penstock.measure.metrics import Summary, summarise, summary_to_dict
from penstock.measure.run import Run
from penstock.spec.workload import SLOClass

GOALS: Mapping[str, float] = MappingProxyType(
    {
        "output_throughput_tokens_per_s": 0.05,
        "request_throughput_per_s": 0.05,
        "ttft_mean_s": 0.15,
        "tpot_mean_s": 0.07,
    }
)
"""Largest relative error of a prediction that is good enough, for the metrics that decide."""


@dataclass(frozen=True)
class Row:
    """One metric over all runs. ``relative`` is value / first - 1; None = undefined.

    ``best`` holds the columns of the best value; it is empty where no way is better or all
    values are equal.
    """

    metric: Metric
    values: tuple[float | None, ...]
    relative: tuple[float | None, ...]
    best: tuple[int, ...]


@dataclass(frozen=True)
class Verdict:
    """A prediction against the measurement of the same thing; ``error`` is signed, relative.

    ``goal``: the metric is one of those that decide whether the prediction is good.
    """

    metric: Metric
    simulated: float
    measured: float
    error: float
    tolerance: float
    goal: bool = False

    @property
    def verdict(self) -> Literal["within", "outside"]:
        return "within" if abs(self.error) <= self.tolerance else "outside"


@dataclass(frozen=True)
class Comparison:
    """``rows`` in the order of the metrics; ``names`` are the columns, all different."""

    names: tuple[str, ...]
    summaries: tuple[Summary, ...]
    rows: tuple[Row, ...]
    verdicts: tuple[Verdict, ...]

    @property
    def holds(self) -> bool | None:
        """Whether the prediction is within all goals; None where nothing decides it."""
        deciding = [item.verdict == "within" for item in self.verdicts if item.goal]
        return all(deciding) if deciding else None


def compare_runs(
    runs: Sequence[Run],
    *,
    classes: Sequence[SLOClass] | None = None,
    fleets: Sequence[Fleet] | None = None,
    tolerance: float = 0.1,
) -> Comparison:
    """Compare ``runs``; the first is the baseline. Raises ``InputError`` without any run."""
    given = fleets if fleets is not None else [None] * len(runs)
    return compare_summaries(
        [summarise(run, classes, fleet=fleet) for run, fleet in zip(runs, given, strict=True)],
        tolerance=tolerance,
    )


def compare_summaries(summaries: Sequence[Summary], *, tolerance: float = 0.1) -> Comparison:
    """Compare ``summaries``; rows that no run defines are left out.

    Where simulated and measured runs are among them, the first simulated one is held against the
    first measured one. A metric is within where its relative error is at most that of ``GOALS``,
    or ``tolerance`` where it has no goal of its own.
    """
    if not summaries:
        raise InputError("nothing to compare; give at least one run folder")
    rows = []
    for metric in metrics():
        values = tuple(_defined(metric.read(summary)) for summary in summaries)
        if any(value is not None for value in values):
            rows.append(Row(metric, values, _relative(values), _best(metric, values)))
    predicted = next((i for i, s in enumerate(summaries) if s.kind == "simulated"), None)
    observed = next((i for i, s in enumerate(summaries) if s.kind == "measured"), None)
    verdicts: tuple[Verdict, ...] = ()
    if predicted is not None and observed is not None:
        verdicts = _verdicts(rows, predicted, observed, tolerance)
    names = _distinct([summary.name for summary in summaries])
    return Comparison(names, tuple(summaries), tuple(rows), verdicts)


def verdict_sentence(comparison: Comparison) -> str:
    """Whether the prediction is good enough, and which goals it misses; "" where none is known."""
    if comparison.holds is None:
        return ""
    deciding = [item for item in comparison.verdicts if item.goal]
    missed = [
        f"{item.metric.label} {item.error:+.1%} (goal {item.tolerance:.0%})"
        for item in deciding
        if item.verdict == "outside"
    ]
    if missed:
        return f"The prediction misses {len(missed)} of {len(deciding)} goals: {', '.join(missed)}."
    return f"The prediction is within all {len(deciding)} goals."


def comparison_to_dict(comparison: Comparison) -> dict[str, object]:
    """Return ``comparison`` as JSON types; undefined is null."""
    return {
        "runs": [
            {**summary_to_dict(summary), "name": name}
            for name, summary in zip(comparison.names, comparison.summaries, strict=True)
        ],
        "metrics": [
            {
                "metric": row.metric.key,
                "unit": row.metric.unit,
                "better": row.metric.better,
                "values": list(row.values),
                "relative_to_first": list(row.relative),
                "best": [comparison.names[i] for i in row.best],
            }
            for row in comparison.rows
        ],
        "simulated_against_measured": [
            {
                "metric": item.metric.key,
                "unit": item.metric.unit,
                "simulated": item.simulated,
                "measured": item.measured,
                "relative_error": item.error,
                "tolerance": item.tolerance,
                "goal": item.goal,
                "verdict": item.verdict,
            }
            for item in comparison.verdicts
        ],
        "prediction_holds": comparison.holds,
        "definitions": dict(DEFINITIONS),
    }


def _defined(value: float | None) -> float | None:
    return None if value is None or not math.isfinite(value) else float(value)


def _relative(values: Sequence[float | None]) -> tuple[float | None, ...]:
    first = values[0]
    if first is None or first == 0:
        return (None,) * len(values)
    return tuple(None if value is None else value / first - 1 for value in values)


def _best(metric: Metric, values: Sequence[float | None]) -> tuple[int, ...]:
    known = [value for value in values if value is not None]
    if metric.better == "neither" or len(set(known)) < 2:
        return ()
    best = max(known) if metric.better == "higher" else min(known)
    return tuple(i for i, value in enumerate(values) if value == best)


def _verdicts(
    rows: Sequence[Row], predicted: int, observed: int, tolerance: float
) -> tuple[Verdict, ...]:
    result = []
    for row in rows:
        simulated, measured = row.values[predicted], row.values[observed]
        if row.metric.better == "neither" or simulated is None or not measured:
            continue
        error = simulated / measured - 1
        key = row.metric.key
        allowed = GOALS.get(key, tolerance)
        result.append(Verdict(row.metric, simulated, measured, error, allowed, key in GOALS))
    return tuple(result)


def _distinct(names: Sequence[str]) -> tuple[str, ...]:
    """Number repeated names, so that every column can be told apart."""
    seen: dict[str, int] = {}
    result = []
    for name in names:
        seen[name] = seen.get(name, 0) + 1
        result.append(name if seen[name] == 1 else f"{name} ({seen[name]})")
    return tuple(result)
