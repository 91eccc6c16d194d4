"""``penstock trace``: convert and describe request traces."""

from __future__ import annotations

from pathlib import Path

import typer

from penstock.cli.common import Format, check_writable, note, print_json


def trace(
    source: str = typer.Argument(help="Trace file or workload (file or preset)."),
    output: Path | None = typer.Option(
        None, "--output", "-o", help="Write Penstock's CSV, or Azure's with --azure."
    ),
    azure: bool = typer.Option(False, "--azure", help="Write the Azure LLM trace format."),
    rate: float | None = typer.Option(None, "--rate", help="Scale to this many requests/s."),
    seed: int = typer.Option(0, "--seed", help="Seed for synthetic workloads."),
    output_format: Format = typer.Option(Format.table, "--format", help="How to print."),
) -> None:
    """Describe a trace, or convert it from any format that Penstock reads.

    Example: penstock trace AzureLLMInferenceTrace_conv.csv -o trace.csv
    """
    from penstock import api

    check_writable(output)
    description = api.convert_trace(source, output, azure=azure, rate=rate, seed=seed)
    if output_format is Format.json:
        print_json(description)
        return
    for key, value in description.items():
        print(f"{key:28} {value:,.3f}" if isinstance(value, float) else f"{key:28} {value}")
    if output is not None:
        note(f"wrote {output}")
