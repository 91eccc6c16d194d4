"""``penstock validate``: check input files without running anything."""

from __future__ import annotations

from pathlib import Path

import typer

from penstock.cli.common import Format, print_json
from penstock.errors import InputError


def validate(
    plans: list[Path] = typer.Argument(help="Plan files to check."),
    output_format: Format = typer.Option(Format.table, "--format", help="How to print."),
) -> None:
    """Check plans with a checker that shares no code with the planners.

    Example: penstock validate plan.yaml
    """
    from penstock import api
    from penstock.plan.checker import check_plan
    from penstock.plan.document import read_plan

    rows = []
    for path in plans:
        plan = read_plan(path)
        api.check_engines(plan, path)
        rows.append({"plan": str(path), "violations": check_plan(plan)})
    if output_format is Format.json:
        print_json({"plans": rows})
    else:
        for row in rows:
            print(f"{row['plan']}: {'; '.join(row['violations']) or 'ok'}")
    if any(row["violations"] for row in rows):
        raise InputError("a plan breaks its own rules; plan again, or correct the file")
