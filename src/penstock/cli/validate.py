"""``penstock validate``: check input files without running anything."""

from __future__ import annotations

from pathlib import Path

import typer

from penstock.cli.common import Format, print_json
from penstock.errors import InputError


def validate(
    files: list[Path] = typer.Argument(help="Plans, pool plans and files of models to check."),
    output_format: Format = typer.Option(Format.table, "--format", help="How to print."),
) -> None:
    """Check plans with a checker that shares no code with the planners.

    Plans of many models are checked as one, and files of models for what they name.

    Example: penstock validate plan.yaml
    """
    rows = [{"plan": str(path), "violations": _violations(path)} for path in files]
    if output_format is Format.json:
        print_json({"plans": rows})
    else:
        for row in rows:
            print(f"{row['plan']}: {'; '.join(row['violations']) or 'ok'}")
    if any(row["violations"] for row in rows):
        raise InputError("a plan breaks its own rules; plan again, or correct the file")


def _violations(path: Path) -> list[str]:
    """What is wrong with a plan. Raises ``SpecError`` for what cannot be read."""
    from penstock import api
    from penstock.plan.checker import check_plan
    from penstock.plan.document import read_plan
    from penstock.plan.pool_checker import check_pool
    from penstock.plan.pool_document import is_pool_document, read_pool
    from penstock.spec.served_file import is_served_file, load_served

    if is_pool_document(path):
        pool = read_pool(path)
        for entry in pool.deployments:
            api.check_engines(entry.plan, path)
        return check_pool(pool)
    if is_served_file(path):
        load_served(path)
        return []
    plan = read_plan(path)
    api.check_engines(plan, path)
    return check_plan(plan)
