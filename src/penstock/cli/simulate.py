"""``penstock simulate``: run a plan in virtual time."""

from __future__ import annotations

from pathlib import Path

import typer

from penstock.cli.common import (
    Format,
    check_run_folder,
    check_writable,
    note,
    positive,
    print_json,
    progress_line,
)


def simulate(
    plan: Path = typer.Argument(help="Plan file, as written by 'penstock plan -o'."),
    workload: str = typer.Argument(
        "azure-conv-offline", help="Traffic: YAML, trace file or preset."
    ),
    granularity: str = typer.Option(
        "nodewise", "--granularity", help="nodewise, or layerwise (Helix's published semantics)."
    ),
    router: str | None = typer.Option(
        None,
        "--router",
        help="maxflow, swarm, random or shortest-queue; of whole engines: least-outstanding, "
        "round-robin, flow-weighted, prefix-affinity, ...; default: the plan's.",
    ),
    admission: str | None = typer.Option(
        None, "--admission", help="queue (fair retry), drop (published) or none."
    ),
    kv_high_water_mark: float | None = typer.Option(
        None, "--kv-high-water-mark", help="Largest expected share of a node's KV memory."
    ),
    expected_output_tokens: float | None = typer.Option(
        None, "--expected-output-tokens", help="Output length the admission expects."
    ),
    rate: float | None = typer.Option(
        None, "--rate", "--request-rate", help="Requests per second; replaces the workload's."
    ),
    duration: float | None = typer.Option(
        None, "--duration", help="Seconds of traffic, warm-up included."
    ),
    warmup: float | None = typer.Option(None, "--warmup", help="Seconds before the window."),
    max_concurrency: int | None = typer.Option(
        None, "--max-concurrency", help="Closed loop with this many requests in flight."
    ),
    faults: Path | None = typer.Option(
        None, "--faults", help="Schedule of node and link failures and slow-downs (YAML)."
    ),
    profiles: Path | None = typer.Option(
        None, "--profiles", help="Layer tables to use instead of the plan's cost model."
    ),
    profile: Path | None = typer.Option(
        None, "--profile", help="Whole engines: measured profile to use instead of the plan's cost."
    ),
    step_by_step: bool = typer.Option(
        False, "--step-by-step", help="Whole engines: skip no step (the same run, slower)."
    ),
    acceptance: str | None = typer.Option(
        None, "--acceptance", help="Speculation: share of draft tokens accepted, or a curve's file."
    ),
    seed: int | None = typer.Option(None, "--seed", help="Seed; default: the workload's."),
    output: Path | None = typer.Option(None, "--output", "-o", help="Write the run here (folder)."),
    html: Path | None = typer.Option(None, "--html", help="Write a one-file report here."),
    chrome_trace: Path | None = typer.Option(
        None, "--chrome-trace", help="Write a Chrome/Perfetto trace here."
    ),
    output_format: Format = typer.Option(Format.table, "--format", help="How to print."),
) -> None:
    """Simulate a plan under a workload: TTFT, TPOT, throughput, goodput, utilisation.

    Example: penstock simulate plan.yaml azure-conv-online --rate 0.5 -o run --html report.html
    """
    from penstock import api
    from penstock.measure.metrics import summarise, summary_to_dict

    check_run_folder(output)
    for path in (html, chrome_trace):
        check_writable(path)
    for value, flag in ((rate, "--rate"), (duration, "--duration")):
        positive(value, flag)
    with progress_line() as progress:
        run = api.simulate(
            plan,
            workload,
            granularity=granularity,
            router=router,
            admission=admission,
            kv_high_water_mark=kv_high_water_mark,
            expected_output_tokens=expected_output_tokens,
            rate=rate,
            duration_s=duration,
            warmup_s=warmup,
            max_concurrency=max_concurrency,
            faults=faults,
            profiles=profiles,
            profile=profile,
            seed=seed,
            step_by_step=step_by_step,
            acceptance=acceptance,
            progress=progress,
        )
    if output is not None:
        from penstock.measure.store import write_run

        write_run(run, output)
    if html is not None:
        from penstock.report.html import write_report

        used = api.plan_of(run)
        provenance = () if used is None else api.cost_of(used, profiles).provenance
        write_report(
            html,
            [run],
            [used] if used else [],
            title=f"Simulation of {plan.name}",
            provenance=provenance,
        )
    if chrome_trace is not None:
        from penstock.measure.chrome_trace import write_chrome_trace

        write_chrome_trace(run, chrome_trace)
    summary = summarise(run)
    if output_format is Format.json:
        print_json(summary_to_dict(summary))
        return
    from rich.console import Console

    from penstock.report.tables import summary_table

    Console().print(summary_table(summary))
    for path in (output, html, chrome_trace):
        if path is not None:
            note(f"wrote {path}")
