"""Where the published figures lie, and how their tables are read."""

from __future__ import annotations

import csv
import os
from collections.abc import Mapping
from math import isfinite
from pathlib import Path

from penstock.errors import InputError, SpecError

VARIABLE = "PENSTOCK_REFERENCE"
BESIDE = Path("shared") / "reference"
Record = Mapping[str, str]


def find_reference(given: Path | None, system: str) -> Path:
    """Return the folder of reference data that holds ``system``.

    Order: ``given``, ``$PENSTOCK_REFERENCE``, then ``shared/reference`` beside the working
    folder or any folder above it. Raises ``InputError`` with the places looked at.
    """
    named = given if given is not None else os.environ.get(VARIABLE) or None
    if named is not None:
        places = [Path(named)]
    else:
        here = Path.cwd()
        places = [folder / BESIDE for folder in (here, *here.parents)]
    for place in places:
        if (place / system).is_dir():
            return place
    looked = ", ".join(str(place / system) for place in places)
    raise InputError(
        f"the published figures of {system} were not found (looked for {looked}); "
        f"name the folder with --reference or {VARIABLE}"
    )


def read_table(path: Path, *columns: str) -> list[Record]:
    """Read a CSV file with a header as one mapping a row.

    Raises ``InputError`` where the file is absent and ``SpecError`` where a column is.
    """
    try:
        with path.open(encoding="utf-8", newline="") as stream:
            reader = csv.DictReader(stream)
            rows: list[Record] = list(reader)
            header = reader.fieldnames or []
    except OSError as error:
        raise InputError(
            f"{path}: cannot be read ({error.strerror}); the reference folder is not complete"
        ) from error
    except (UnicodeDecodeError, csv.Error) as error:
        raise SpecError("is not a CSV table", source=path, value=str(error)) from error
    for column in columns:
        if column not in header:
            raise SpecError(
                "the column is missing", source=path, key=column, fix="restore the file"
            )
    for line, row in enumerate(rows, start=2):
        if None in row or any(value is None for value in row.values()):
            raise SpecError(
                "the row does not have as many fields as the header",
                source=path,
                key=f"line {line}",
                fix="restore the file",
            )
    return rows


def number(row: Record, column: str, path: Path) -> float:
    """The finite number in ``column``. Raises ``SpecError``."""
    try:
        value = float(row[column])
    except ValueError:
        value = float("nan")
    if not isfinite(value):
        raise SpecError("must be a finite number", source=path, key=column, value=row[column])
    return value


def optional(row: Record, column: str, path: Path) -> float | None:
    """The number in ``column``, or None where the field is empty."""
    return number(row, column, path) if row[column].strip() else None
