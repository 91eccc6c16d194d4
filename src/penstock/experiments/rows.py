"""Published figure beside ours: one row, its tolerance, its verdict."""

from __future__ import annotations

import csv
import io
import json
from collections import Counter
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from math import isfinite
from typing import Literal

Verdict = Literal["within", "differs", "better", "worse", "information", "failed"]
COLUMNS = (
    "experiment",
    "case",
    "metric",
    "unit",
    "published",
    "ours",
    "tolerance",
    "verdict",
    "note",
)


@dataclass(frozen=True, slots=True)
class Tolerance:
    """How far ours may be from the published figure: the wider of the two limits rules.

    ``relative`` is a share of the published figure, ``absolute`` is in its unit.
    """

    relative: float = 0.0
    absolute: float = 0.0
    unit: str = ""

    def allows(self, published: float, ours: float) -> bool:
        """Whether ``ours`` is near enough; a hair is granted for binary rounding."""
        limit = max(self.relative * abs(published), self.absolute)
        return abs(ours - published) <= limit * (1 + 1e-9)

    def __str__(self) -> str:
        parts = []
        if self.relative:
            parts.append(f"{100 * self.relative:g} %")
        if self.absolute:
            parts.append(f"{self.absolute:g} {self.unit}".strip())
        return " or ".join(parts)


@dataclass(frozen=True, slots=True)
class Row:
    """One figure. ``published`` is None where nobody published it, ``ours`` where we failed.

    ``tolerance`` is the limit in words; empty for figures that are only shown.
    """

    experiment: str
    case: str
    metric: str
    unit: str
    published: float | None
    ours: float | None
    tolerance: str
    verdict: Verdict
    note: str = ""

    @property
    def difference(self) -> float | None:
        """(ours - published) / published, or None where it has no meaning."""
        if self.ours is None or not self.published:
            return None
        return (self.ours - self.published) / self.published


@dataclass(frozen=True, slots=True)
class Labels:
    """What a case is called; shared by all its figures."""

    experiment: str
    case: str

    def of(self, metric: str, unit: str) -> Subject:
        return Subject(self, metric, unit)


@dataclass(frozen=True, slots=True)
class Subject:
    """What one row is about."""

    labels: Labels
    metric: str
    unit: str


def judged(
    subject: Subject,
    published: float,
    ours: float | None,
    tolerance: Tolerance,
    *,
    note: str = "",
) -> Row:
    """A row that must agree: ``within`` or ``differs``; ``failed`` without a figure of ours."""
    verdict: Verdict = "differs"
    if ours is not None and tolerance.allows(published, ours):
        verdict = "within"
    return _row(subject, (published, ours), verdict, tolerance=str(tolerance), note=note)


def at_least(
    subject: Subject, published: float | None, ours: float | None, goal: float, *, note: str = ""
) -> Row:
    """A row where more is better: ``better`` from ``goal`` on, else ``worse``."""
    verdict: Verdict = "better" if ours is not None and ours >= goal else "worse"
    return _row(subject, (published, ours), verdict, tolerance=f"at least {goal:g}", note=note)


def at_most(
    subject: Subject, published: float | None, ours: float | None, goal: float, *, note: str = ""
) -> Row:
    """A row where less is better: ``better`` up to ``goal``, else ``worse``."""
    verdict: Verdict = "better" if ours is not None and ours <= goal else "worse"
    return _row(subject, (published, ours), verdict, tolerance=f"at most {goal:g}", note=note)


def information(
    subject: Subject, published: float | None, ours: float | None, *, note: str = ""
) -> Row:
    """A row that is shown, not judged."""
    return _row(subject, (published, ours), "information", tolerance="", note=note)


def failed(labels: Labels, error: str) -> Row:
    """The row of a case that gave no figure at all."""
    return _row(labels.of("result", ""), (None, None), "failed", tolerance="", note=error)


def _row(
    subject: Subject,
    figures: tuple[float | None, float | None],
    verdict: Verdict,
    *,
    tolerance: str,
    note: str,
) -> Row:
    published, ours = figures
    if ours is None or not isfinite(ours):
        ours, verdict = None, "failed"
    labels = subject.labels
    return Row(
        labels.experiment,
        labels.case,
        subject.metric,
        subject.unit,
        published,
        ours,
        tolerance,
        verdict,
        note,
    )


def counts(rows: Iterable[Row]) -> Mapping[str, int]:
    """How many rows have each verdict, in the order of first appearance."""
    return dict(Counter(row.verdict for row in rows))


def as_dicts(rows: Sequence[Row]) -> list[dict[str, object]]:
    """Rows as plain values, ready for JSON; figures rounded to seven digits."""
    return [
        {name: _rounded(getattr(row, name)) for name in COLUMNS if name != "note" or row.note}
        for row in rows
    ]


def _rounded(value: object) -> object:
    return float(f"{value:.7g}") if isinstance(value, float) else value


def as_json(rows: Sequence[Row]) -> str:
    return json.dumps(as_dicts(rows), indent=2, allow_nan=False) + "\n"


def as_csv(rows: Sequence[Row]) -> str:
    text = io.StringIO(newline="")
    writer = csv.DictWriter(text, COLUMNS, lineterminator="\n", restval="")
    writer.writeheader()
    writer.writerows(as_dicts(rows))
    return text.getvalue()
