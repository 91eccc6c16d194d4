"""Column files: CSV with typed columns, read strictly."""

from __future__ import annotations

import csv
import io
import math
from collections.abc import Mapping, Sequence
from pathlib import Path

import numpy as np
from numpy.typing import NDArray

from penstock.errors import SpecError

WRITE_AGAIN = "write the run again with `penstock simulate` or `penstock bench`"


def cells(column: NDArray[np.generic]) -> list[object]:
    """Values of a column as CSV cells: floats exact, NaN empty."""
    return ["" if isinstance(v, float) and math.isnan(v) else v for v in column.tolist()]


def write_csv(path: Path, names: Sequence[str], columns: Sequence[Sequence[object]]) -> None:
    """Write equal-length ``columns`` under the header ``names``."""
    out = io.StringIO()
    writer = csv.writer(out, lineterminator="\n")
    writer.writerow(names)
    writer.writerows(zip(*columns, strict=True))
    with open(path, "w", encoding="utf-8", newline="\n") as file:
        file.write(out.getvalue())


def read_csv(path: Path, names: Sequence[str]) -> Mapping[str, list[str]]:
    """Read a file whose header is exactly ``names``; raises ``SpecError`` for any other."""
    try:
        with open(path, encoding="utf-8", newline="") as file:
            rows = list(csv.reader(file))
    except FileNotFoundError as error:
        raise SpecError("missing", source=path, fix=WRITE_AGAIN) from error
    except (OSError, UnicodeDecodeError, csv.Error) as error:
        raise SpecError(f"unreadable: {error}", source=path, fix=WRITE_AGAIN) from error
    header = rows[0] if rows else []
    if header != list(names):
        raise SpecError(
            f"the first line must be {','.join(names)}",
            source=path,
            value=",".join(header),
            fix=WRITE_AGAIN,
        )
    for number, row in enumerate(rows[1:], start=2):
        if len(row) != len(names):
            raise SpecError(
                f"{len(row)} columns instead of {len(names)}",
                source=path,
                key=f"line {number}",
                fix=WRITE_AGAIN,
            )
    columns = zip(*rows[1:], strict=True) if len(rows) > 1 else ((),) * len(names)
    return {name: list(column) for name, column in zip(names, columns, strict=True)}


def floats(path: Path, name: str, column: Sequence[str]) -> NDArray[np.float64]:
    """Parse seconds, bytes or fractions; an empty cell is NaN."""
    try:
        return np.array([float(cell) if cell else np.nan for cell in column], dtype=np.float64)
    except ValueError as error:
        raise SpecError(f"not a number: {error}", source=path, key=name, fix=WRITE_AGAIN) from error


def integers(path: Path, name: str, column: Sequence[str]) -> NDArray[np.int64]:
    """Parse whole numbers; raises ``SpecError`` for anything else."""
    try:
        return np.array([int(cell) for cell in column], dtype=np.int64)
    except (ValueError, OverflowError) as error:
        raise SpecError(
            f"not a whole number: {error}", source=path, key=name, fix=WRITE_AGAIN
        ) from error


def read_array(path: Path, dimensions: int) -> NDArray[np.generic]:
    """Read a ``.npy`` file of ``dimensions`` axes; raises ``SpecError`` when it is not one."""
    try:
        array = np.load(path, allow_pickle=False)
    except FileNotFoundError as error:
        raise SpecError("missing", source=path, fix=WRITE_AGAIN) from error
    except (OSError, ValueError, EOFError) as error:
        raise SpecError(f"not a NumPy array: {error}", source=path, fix=WRITE_AGAIN) from error
    if not isinstance(array, np.ndarray) or array.ndim != dimensions:
        raise SpecError(f"must have {dimensions} axes", source=path, fix=WRITE_AGAIN)
    return array
