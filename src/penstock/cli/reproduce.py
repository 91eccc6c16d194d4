"""``penstock reproduce``: published experiments, run again."""

from __future__ import annotations

import sys
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING

import typer

from penstock.cli.common import Format, check_writable, note, print_json, progress_line

if TYPE_CHECKING:
    from penstock.experiments.rows import Row
    from penstock.plan.planner import ProgressCallback

SYSTEMS = ("helix", "vidur", "adaserve", "distserve", "sds")


def reproduce(
    system: str = typer.Argument(
        help="Published system: helix, vidur, adaserve, distserve or sds."
    ),
    sections: list[str] | None = typer.Argument(
        None,
        help="Sections (helix: 6.3 to 6.9, max-flow; distserve: simulator, search, 8, 9; sds: "
        "policy, pools, operations, trace) or figures (adaserve: fig8); default: all.",
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
        None, "--output", "-o", help="Write rows.json, rows.csv and figures into this folder."
    ),
    output_format: Format = typer.Option(Format.table, "--format", help="How to print."),
) -> None:
    """Run the experiments of a paper again and put the published figures beside ours.

    Example: penstock reproduce helix 6.3 --only "70b offline"
    """
    from penstock.errors import InputError, SpecError
    from penstock.experiments.reference import find_reference
    from penstock.spec.names import did_you_mean

    if system not in SYSTEMS:
        raise SpecError(
            "unknown system", key="SYSTEM", value=system, fix=did_you_mean(system, SYSTEMS)
        )
    if processes is not None and processes < 1:
        raise SpecError("must be at least 1", key="--processes", value=processes, fix="give 1")
    if output is not None and output.exists() and not output.is_dir():
        raise InputError(f"{output}: is a file, and -o names a folder; choose another name")
    check_writable(output)
    data = "distserve" if system == "sds" else system
    folder = find_reference(reference, data)
    choice = _Choice(
        tuple(sections or ()),
        only,
        granularity,
        fair,
        ours,
        processes or _default_processes(),
        output,
    )
    runners = {
        "helix": _helix,
        "vidur": _vidur,
        "adaserve": _adaserve,
        "distserve": _distserve,
        "sds": _sds,
    }
    with progress_line() as progress:
        rows, unfinished = runners[system](folder / data, choice, progress)
    written = _write(rows, output)
    if output_format is Format.json:
        from penstock.experiments.rows import as_dicts

        print_json(as_dicts(rows))
    else:
        _print(rows)
    for path in written:
        note(f"wrote {path}")
    if unfinished:
        note(f"stopped: {len(unfinished)} of the chosen runs are missing")
        raise KeyboardInterrupt


@dataclass(frozen=True)
class _Choice:
    """What was asked for on the command line."""

    sections: tuple[str, ...]
    only: str
    granularity: str
    fair: bool
    ours: bool
    processes: int
    output: Path | None


def _default_processes() -> int:
    from penstock import api

    return min(api.MAX_PROCESSES, api.available_cores())


def _helix(
    helix: Path, choice: _Choice, progress: ProgressCallback
) -> tuple[list[Row], tuple[str, ...]]:
    """The published table unless only --ours or --fair was asked for, then those two."""
    from penstock.experiments.helix.benchmark import benchmark_helix
    from penstock.experiments.helix.reproduce import (
        Request,
        check_granularity,
        check_sections,
        reproduce_helix,
    )

    fair, ours = choice.fair, choice.ours
    request = Request(
        check_sections(choice.sections),
        choice.only,
        check_granularity(choice.granularity),
        choice.processes,
    )
    rows: list[Row] = []
    unfinished: tuple[str, ...] = ()
    if choice.sections or not (fair or ours):
        table = reproduce_helix(helix, request, progress)
        rows += table.rows
        unfinished = table.unfinished
    if (fair or ours) and not unfinished:
        table = benchmark_helix(helix, request, progress, ours=ours, fair=fair)
        rows += table.rows
        unfinished = table.unfinished
    return rows, unfinished


def _adaserve(
    adaserve: Path, choice: _Choice, progress: ProgressCallback
) -> tuple[list[Row], tuple[str, ...]]:
    """The chosen figures; --ours adds the controller's comparison, alone if nothing is named."""
    from penstock.errors import InputError
    from penstock.experiments.adaserve.reproduce import (
        OURS,
        Request,
        check_sections,
        reproduce_adaserve,
    )

    if choice.fair or choice.granularity != "layerwise":
        raise InputError("--fair and --granularity belong to helix; leave them out for adaserve")
    names = [*choice.sections, OURS] if choice.ours else choice.sections
    request = Request(check_sections(names), choice.only, choice.processes)
    table = reproduce_adaserve(adaserve, request, progress)
    return list(table.rows), table.unfinished


def _vidur(
    folder: Path, choice: _Choice, progress: ProgressCallback
) -> tuple[list[Row], tuple[str, ...]]:
    from penstock.experiments.vidur.reproduce import reproduce_vidur

    _refuse_helix_options(choice)
    return reproduce_vidur(folder, choice.sections, choice.processes, progress), ()


def _distserve(
    folder: Path, choice: _Choice, progress: ProgressCallback
) -> tuple[list[Row], tuple[str, ...]]:
    from penstock.experiments.distserve.reproduce import (
        Request,
        check_sections,
        reproduce_distserve,
    )

    _refuse_helix_options(choice)
    request = Request(check_sections(choice.sections), choice.only, choice.processes)
    table = reproduce_distserve(folder, request, progress)
    return list(table.rows), table.unfinished


def _sds(
    folder: Path, choice: _Choice, progress: ProgressCallback
) -> tuple[list[Row], tuple[str, ...]]:
    """Also writes ``distserve-2000-10.exp`` into the output folder."""
    from penstock.experiments.sds.reproduce import Request, check_sections, reproduce_sds

    _refuse_helix_options(choice)
    request = Request(check_sections(choice.sections), choice.only, choice.processes, choice.output)
    table = reproduce_sds(folder, request, progress)
    return list(table.rows), table.unfinished


def _refuse_helix_options(choice: _Choice) -> None:
    from penstock.errors import InputError

    if choice.fair or choice.ours or choice.granularity != "layerwise":
        raise InputError("--fair, --ours and --granularity do not belong here; leave them out")


def _write(rows: Sequence[Row], output: Path | None) -> list[Path]:
    if output is None:
        return []
    from penstock.experiments.figures import write_figures
    from penstock.experiments.output import write_rows

    written = write_rows(rows, output)
    figures, problem = write_figures(rows, output)
    if problem:
        note(problem)
    return [*written, *figures]


def _print(rows: Sequence[Row]) -> None:
    from rich.console import Console

    from penstock.experiments.output import notes, rows_table, verdict_line

    # In a pipe there is no width to keep to: a row stays one line.
    console = Console() if sys.stdout.isatty() else Console(width=200)
    console.print(rows_table(rows))
    for remark in notes(rows):
        console.print(f"- {remark}", markup=False, highlight=False)
    console.print(verdict_line(rows))
