"""``penstock compare``: several runs beside each other."""

from __future__ import annotations

from pathlib import Path

import typer

from penstock.cli.common import Format, check_writable, note, print_json


def compare(
    runs: list[Path] = typer.Argument(help="Run folders; the first is the baseline."),
    html: Path | None = typer.Option(None, "--html", help="Write a one-file report here."),
    output_format: Format = typer.Option(Format.table, "--format", help="How to print."),
) -> None:
    """Compare runs metric by metric; simulated against measured where both are given.

    Example: penstock compare runs/helix runs/penstock --html compare.html
    """
    from penstock import api
    from penstock.measure.compare import compare_runs, comparison_to_dict
    from penstock.measure.store import read_run

    check_writable(html)
    loaded = [read_run(path) for path in runs]
    comparison = compare_runs(loaded)
    if html is not None:
        from penstock.report.html import write_report

        plans = [plan for plan in map(api.plan_of, loaded) if plan is not None]
        write_report(html, loaded, plans, title="Comparison")
    if output_format is Format.json:
        print_json(comparison_to_dict(comparison))
        return
    from rich.console import Console

    from penstock.report.tables import comparison_table

    Console().print(comparison_table(comparison))
    if html is not None:
        note(f"wrote {html}")
