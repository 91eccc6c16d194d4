"""``penstock trace``: convert and describe request traces."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING

import typer

from penstock.cli.common import Format, check_writable, note, positive, print_json
from penstock.errors import InputError

if TYPE_CHECKING:
    from penstock.spec.workload import Request


def trace(
    source: str = typer.Argument(help="Trace file or workload (file or preset)."),
    output: Path | None = typer.Option(
        None, "--output", "-o", help="Write Penstock's CSV, or Azure's with --azure."
    ),
    azure: bool = typer.Option(False, "--azure", help="Write the Azure LLM trace format."),
    rate: float | None = typer.Option(None, "--rate", help="Scale to this many requests/s."),
    seed: int | None = typer.Option(None, "--seed", help="Seed for synthetic workloads."),
    output_format: Format = typer.Option(Format.table, "--format", help="How to print."),
) -> None:
    """Describe a trace, or convert it from any format that Penstock reads.

    Example: penstock trace AzureLLMInferenceTrace_conv.csv -o trace.csv
    """
    from penstock import api
    from penstock.spec.traces import write_trace
    from penstock.spec.workload import ClosedLoop, Saturating

    check_writable(output)
    positive(rate, "--rate")
    workload = api.load_traffic(source, rate=rate)
    if isinstance(workload.arrivals, (ClosedLoop, Saturating)):
        raise InputError(
            f"{source}: its requests arrive when others end, so there is no trace to write; "
            "use a workload with open-loop arrivals, or give --rate"
        )
    requests = list(workload.requests(workload.seed if seed is None else seed))
    if not requests:
        raise InputError(f"{source}: holds no request; lengthen the duration or raise the rate")
    if output is not None:
        write_trace(output, requests, azure=azure)
    description = _describe(requests)
    if output_format is Format.json:
        print_json({"name": workload.name, **description})
        return
    for key, value in description.items():
        print(f"{key:24} {value:,.3f}" if isinstance(value, float) else f"{key:24} {value:,}")
    if output is not None:
        note(f"wrote {output}")


def _describe(requests: Sequence[Request]) -> dict[str, float | int]:
    import numpy as np

    prompts = np.array([request.prompt_tokens for request in requests])
    outputs = np.array([request.output_tokens for request in requests])
    span_s = requests[-1].arrival_s - requests[0].arrival_s
    rows: dict[str, float | int] = {
        "requests": len(requests),
        "span_s": span_s,
        "rate_requests_per_s": (len(requests) - 1) / span_s if span_s > 0 else 0.0,
    }
    for name, values in (("prompt", prompts), ("output", outputs)):
        rows[f"mean_{name}_tokens"] = float(values.mean())
        for percent in (50, 95, 99):
            rows[f"p{percent}_{name}_tokens"] = float(np.percentile(values, percent))
    return rows
