"""What the commands share: formats, printing, progress, and the files they read."""

from __future__ import annotations

import json
import math
import sys
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from enum import StrEnum
from pathlib import Path
from typing import TYPE_CHECKING, Any

from penstock.errors import SpecError, StorageError

if TYPE_CHECKING:
    from penstock.plan.planner import ProgressCallback


class Format(StrEnum):
    """How a command prints its answer."""

    table = "table"
    json = "json"


def print_json(document: Mapping[str, Any] | Sequence[Any]) -> None:
    """Print the one JSON document of a command; not-a-number becomes null."""
    print(json.dumps(_plain(document), indent=2, allow_nan=False))


def _plain(value: Any) -> Any:
    """Turn numpy scalars, paths and tuples into JSON's own types."""
    if isinstance(value, Mapping):
        return {str(key): _plain(item) for key, item in value.items()}
    if isinstance(value, (list, tuple)):
        return [_plain(item) for item in value]
    if isinstance(value, Path):
        return str(value)
    if hasattr(value, "tolist"):
        return _plain(value.tolist())
    if isinstance(value, float) and not math.isfinite(value):
        return None
    return value


@contextmanager
def progress_line(*, enabled: bool = True) -> Iterator[ProgressCallback]:
    """Yield a callback that draws one bar on a terminal (stderr) and is silent in a pipe."""
    from penstock.plan.planner import Progress, silent

    if not enabled or not sys.stderr.isatty():
        yield silent
        return
    from rich.console import Console
    from rich.progress import BarColumn, TextColumn, TimeElapsedColumn
    from rich.progress import Progress as Bar

    bar = Bar(
        TextColumn("{task.description}"),
        BarColumn(bar_width=30),
        TextColumn("{task.percentage:>3.0f}%"),
        TimeElapsedColumn(),
        console=Console(stderr=True),
        transient=True,
    )
    with bar:
        task = bar.add_task("", total=1.0)

        def show(news: Progress) -> None:
            text = news.message
            if news.value is not None:
                text += f"  value {news.value:,.2f}"
            if news.bound is not None:
                text += f"  bound {news.bound:,.2f}"
            if news.fraction is None:
                bar.update(task, description=text)
            else:
                bar.update(task, description=text, completed=news.fraction)

        yield show


def check_writable(path: Path | None, *, folder: bool = False) -> None:
    """Refuse an output path that cannot work before long work starts.

    Raises ``StorageError`` where the folder above ``path`` is missing or not a folder, or where
    a file is to be written and ``path`` is a folder.
    """
    if path is None:
        return
    if not folder and path.is_dir():
        raise StorageError(f"{path}: is a folder, and a file is written here; name a file")
    parent = path.absolute().parent
    if not parent.is_dir():
        raise StorageError(
            f"{path}: the folder {parent} does not exist; create it, or correct the path"
        )


def check_run_folder(path: Path | None) -> None:
    """Refuse a folder that no run can be written to, before long work starts."""
    from penstock.measure.store import check_replaceable

    check_writable(path, folder=True)
    if path is not None:
        check_replaceable(path)


def positive(value: float | None, flag: str) -> None:
    """Refuse a flag that must be a finite number over zero."""
    if value is not None and not 0 < value < float("inf"):
        raise SpecError("must be a finite number over 0", key=flag, value=value, fix="correct it")


def duration_of(text: str, flag: str) -> float:
    """Seconds that ``flag`` states. Raises ``SpecError`` that names the flag."""
    from penstock.spec.units import parse_duration

    try:
        return parse_duration(text)
    except SpecError as error:
        raise error.at(flag) from None


def note(text: str) -> None:
    """Print a remark on stderr, so that it never mixes with the answer."""
    print(text, file=sys.stderr)
