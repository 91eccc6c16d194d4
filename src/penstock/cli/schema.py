"""``penstock schema``: JSON Schema of the input files."""

from __future__ import annotations

import typer

from penstock.cli.common import print_json


def schema(
    kind: str = typer.Argument(help="cluster, model, models (of a pool) or workload."),
) -> None:
    """Print the JSON Schema of an input file, for editors and other programs.

    Example: penstock schema cluster > cluster.schema.json
    """
    from penstock.spec.load import json_schema

    print_json(json_schema(kind))
