"""``penstock demo``: every planner on a mixed cluster, with no data of your own."""

from __future__ import annotations

from pathlib import Path

import typer

from penstock.cli.common import Format, check_writable, note, print_json, progress_line

CLUSTER = "single24"
MODEL = "llama2-70b"


def demo(
    output: Path = typer.Option(
        Path("penstock-demo.html"), "--output", "-o", help="Where to write the report."
    ),
    seed: int = typer.Option(0, "--seed", help="Seed of searches and traffic."),
    output_format: Format = typer.Option(Format.table, "--format", help="How to print."),
) -> None:
    """Plan LLaMA-2 70B on 4 A100, 8 L4 and 12 T4 with every planner, simulate, and report.

    Example: penstock demo -o report.html
    """
    from penstock import api
    from penstock.measure.compare import comparison_to_dict
    from penstock.report.html import write_report

    check_writable(output)
    with progress_line() as progress:
        show = api.showcase(CLUSTER, MODEL, seed=seed, progress=progress)
    write_report(
        output,
        show.runs,
        show.plans,
        title="LLaMA-2 70B on 4 A100, 8 L4 and 12 T4",
        provenance=show.provenance,
    )
    comparison = api.compare(*show.runs)
    if output_format is Format.json:
        print_json({**comparison_to_dict(comparison), "report": output})
        return
    from rich.console import Console

    from penstock.report.tables import planners_table

    Console().print(planners_table(show.plans, comparison.summaries))
    for name, reason in show.infeasible:
        note(f"{name}: {reason}")
    note(f"wrote {output}; next: penstock init, then plan your own cluster")
