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
    from penstock import api

    if to not in FORMATS:
        raise SpecError("unknown format", key="--to", value=to, fix=f"use {', '.join(FORMATS)}")
    check_writable(output)
    api.export(source, to, output)
    note(f"wrote {output}")
