"""``penstock export``: a plan or a run in other tools' formats."""

from __future__ import annotations

from pathlib import Path

import typer

from penstock.cli.common import check_writable, note
from penstock.errors import SpecError

FORMATS = ("helix", "vllm-bench", "exp", "chrome-trace", "html")


def export(
    source: Path = typer.Argument(help="Plan file or run folder."),
    to: str = typer.Option(..., "--to", help=f"One of: {', '.join(FORMATS)}."),
    output: Path = typer.Option(..., "--output", "-o", help="File, or folder for 'helix'."),
) -> None:
    """Write a plan as Helix ini files, or a run as vLLM bench JSON, .exp, Chrome trace or HTML.

    Example: penstock export run --to chrome-trace -o trace.json
    """
    if to not in FORMATS:
        raise SpecError("unknown format", key="--to", value=to, fix=f"use {', '.join(FORMATS)}")
    check_writable(output, folder=to == "helix")
    if to == "helix":
        _export_plan(source, output)
    else:
        _export_run(source, to, output)
    note(f"wrote {output}")


def _export_plan(source: Path, output: Path) -> None:
    from penstock.plan.document import read_plan
    from penstock.plan.helix_import import export_placement

    if source.is_dir():
        raise SpecError(f"{source} is a run", key="--to", value="helix", fix="give a plan file")
    export_placement(read_plan(source), output)


def _export_run(source: Path, to: str, output: Path) -> None:
    from penstock import api
    from penstock.measure.chrome_trace import write_chrome_trace
    from penstock.measure.formats import write_distserve_exp, write_vllm_bench
    from penstock.measure.store import read_run
    from penstock.report.html import write_report

    run = read_run(source)
    if to == "vllm-bench":
        write_vllm_bench(run, output)
    elif to == "exp":
        write_distserve_exp(run, output)
    elif to == "chrome-trace":
        write_chrome_trace(run, output)
    else:
        plan = api.plan_of(run)
        write_report(output, [run], [plan] if plan else [], title=run.name)
