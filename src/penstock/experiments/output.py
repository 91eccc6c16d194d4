"""Rows as files, as a table for a terminal, and as figures."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

from rich.table import Table
from rich.text import Text

from penstock.errors import InputError
from penstock.experiments.rows import Row, Verdict, as_csv, as_json, counts
from penstock.storage import write_text

STYLES: dict[Verdict, str] = {
    "within": "green",
    "better": "green",
    "differs": "yellow",
    "worse": "yellow",
    "failed": "red",
    "information": "dim",
}


def write_rows(rows: Sequence[Row], directory: Path) -> list[Path]:
    """Write ``rows.json`` and ``rows.csv``; the folder is made. Raises ``StorageError``."""
    make_folder(directory)
    texts = {"rows.json": as_json(rows), "rows.csv": as_csv(rows)}
    for name, text in texts.items():
        write_text(directory / name, text)
    return [directory / name for name in texts]


def make_folder(directory: Path) -> None:
    """Make ``directory`` where it is absent. Raises ``InputError``."""
    try:
        directory.mkdir(parents=True, exist_ok=True)
    except OSError as error:
        raise InputError(
            f"{directory}: cannot be made ({error.strerror}); name another folder"
        ) from error


def rows_table(rows: Sequence[Row]) -> Table:
    """The rows, grouped by experiment and case; each name is printed once."""
    table = Table(box=None, pad_edge=False, header_style="bold")
    for name in ("experiment", "case", "metric"):
        table.add_column(name, overflow="fold")
    table.add_column("unit", no_wrap=True)
    for name in ("published", "ours", "difference", "tolerance"):
        table.add_column(name, justify="right", no_wrap=True)
    table.add_column("verdict", no_wrap=True)
    above: Row | None = None
    for row in rows:
        same_experiment = above is not None and above.experiment == row.experiment
        same_case = same_experiment and above is not None and above.case == row.case
        share = row.difference
        table.add_row(
            "" if same_experiment else row.experiment,
            "" if same_case else row.case,
            row.metric,
            row.unit,
            _figure(row.published),
            _figure(row.ours),
            "" if share is None else f"{100 * share:+.2f} %",
            row.tolerance,
            Text(row.verdict, style=STYLES[row.verdict]),
        )
        above = row
    return table


def _figure(value: float | None) -> str:
    if value is None:
        return "-"
    return f"{value:,.2f}" if abs(value) >= 1 else f"{value:.3f}"


def notes(rows: Sequence[Row]) -> list[str]:
    """Every distinct remark with the cases it belongs to, in order of appearance."""
    where: dict[str, list[str]] = {}
    for row in rows:
        if row.note:
            case = f"{row.experiment} {row.case}"
            cases = where.setdefault(row.note, [])
            if case not in cases:
                cases.append(case)
    return [
        f"{note} ({cases[0] if len(cases) == 1 else f'{len(cases)} cases'})"
        for note, cases in where.items()
    ]


def verdict_line(rows: Sequence[Row]) -> Text:
    """How many rows have each verdict."""
    parts = [Text(f"{n} {name}", style=STYLES[name]) for name, n in _ordered(rows)]
    return Text(", ").join(parts) if parts else Text("no rows")


def _ordered(rows: Sequence[Row]) -> list[tuple[Verdict, int]]:
    found = counts(rows)
    return [(name, found[name]) for name in STYLES if name in found]
