"""``penstock reproduce``: published experiments, run again."""

from __future__ import annotations

import sys
from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING

import typer

from penstock.cli.common import Format, check_writable, note, print_json, progress_line

if TYPE_CHECKING:
    from penstock.experiments.rows import Row
    from penstock.experiments.system import Request, Table
    from penstock.sim.options import Granularity


def reproduce(
    system: str = typer.Argument(
        help="Published system: helix, vidur, adaserve, distserve, sds, alpaserve, maveriq or "
        "accelerate."
    ),
    sections: list[str] | None = typer.Argument(
        None,
        help="Sections or figures (helix: 6.3 to 6.9, max-flow; vidur: s1 to s3; adaserve: fig1, "
        "fig8 to fig15, ours; distserve: simulator, tables, search, 1, 8 to 12, 175b; sds: policy, "
        "pools, operations, trace; maveriq: profiles, estimator, ours, deployments, traces, "
        "serving, gains, steps, endtoend; accelerate: serving, service, memory); default: all.",
    ),
    only: str = typer.Option(
        "", "--only", help="Run only cases whose name holds all these words ('70b offline helix')."
    ),
    granularity: str = typer.Option(
        "layerwise", "--granularity", help="Helix: layerwise (as published) or nodewise."
    ),
    fair: bool = typer.Option(
        False, "--fair", help="Helix: all methods at equal load, fair retry, honest KV memory."
    ),
    ours: bool = typer.Option(
        False, "--ours", help="Our own planner or controller in the published benchmark."
    ),
    processes: int | None = typer.Option(
        None, "--processes", help="Processes to use; default: all cores, at most 8."
    ),
    reference: Path | None = typer.Option(
        None, "--reference", help="Folder of published figures; default: $PENSTOCK_REFERENCE."
    ),
    output: Path | None = typer.Option(
        None, "--output", "-o", help="Write rows.json, rows.csv and artifact files here."
    ),
    figures: Path | None = typer.Option(
        None, "--figures", help="Draw the figures (SVG) into this folder; default: that of -o."
    ),
    output_format: Format = typer.Option(Format.table, "--format", help="How to print."),
) -> None:
    """Run the experiments of a paper again and put the published figures beside ours.

    Example: penstock reproduce helix 6.3 --only "70b offline"
    """
    from penstock.errors import SpecError
    from penstock.experiments.reference import find_reference
    from penstock.experiments.registry import SYSTEMS
    from penstock.experiments.system import Request, check_options, chosen_sections
    from penstock.spec.names import did_you_mean

    if system not in SYSTEMS:
        raise SpecError(
            "unknown system", key="SYSTEM", value=system, fix=did_you_mean(system, SYSTEMS)
        )
    if processes is not None and processes < 1:
        raise SpecError("must be at least 1", key="--processes", value=processes, fix="give 1")
    for folder, flag in ((output, "-o"), (figures, "--figures")):
        _check_folder(folder, flag)
    published = SYSTEMS[system]
    data = find_reference(reference, published.data) / published.data
    request = Request(
        chosen_sections(sections or (), published.sections),
        only,
        processes or _default_processes(),
        output,
        _granularity(granularity),
        ours,
        fair,
        named=bool(sections),
    )
    check_options(published, request)
    with progress_line() as progress:
        table = published.reproduce(data, request, progress)
    written = _write(table, request, figures or output)
    if output_format is Format.json:
        from penstock.experiments.rows import as_dicts

        print_json(as_dicts(table.rows))
    else:
        _print(table.rows)
    for path in written:
        note(f"wrote {path}")
    if table.unfinished:
        note(f"stopped: {len(table.unfinished)} of the chosen runs are missing")
        raise KeyboardInterrupt


def _granularity(name: str) -> Granularity:
    from penstock.experiments.helix.reproduce import check_granularity

    return check_granularity(name)


def _check_folder(folder: Path | None, flag: str) -> None:
    from penstock.errors import InputError

    if folder is not None and folder.exists() and not folder.is_dir():
        raise InputError(f"{folder}: is a file, and {flag} names a folder; choose another name")
    check_writable(folder, folder=True)


def _default_processes() -> int:
    from penstock import api

    return min(api.MAX_PROCESSES, api.available_cores())


def _write(table: Table, request: Request, figures: Path | None) -> list[Path]:
    """Rows into ``-o``, figures into their folder."""
    written: list[Path] = []
    if request.output is not None:
        from penstock.experiments.output import write_rows

        written += write_rows(table.rows, request.output)
    if figures is not None:
        from penstock.experiments.figures import write_figures

        written += write_figures(table.plots, figures)
    return written


def _print(rows: Sequence[Row]) -> None:
    from rich.console import Console

    from penstock.experiments.output import notes, rows_table, verdict_line

    # In a pipe there is no width to keep to: a row stays one line.
    console = Console() if sys.stdout.isatty() else Console(width=200)
    console.print(rows_table(rows))
    for remark in notes(rows):
        console.print(f"- {remark}", markup=False, highlight=False)
    console.print(verdict_line(rows))
