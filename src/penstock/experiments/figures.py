"""Figures of a reproduction as SVG files: published beside ours."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path

from penstock.experiments.output import make_folder
from penstock.experiments.rows import Row
from penstock.report.plots import Curve, Plot
from penstock.storage import write_text

FORMAT = ".svg"
MOST_BARS = 8


def write_figures(plots: Sequence[Plot], directory: Path) -> list[Path]:
    """Write every plot into ``directory``, which is made; return the paths.

    Raises ``InputError`` where the folder cannot be made, ``StorageError`` for a file.
    """
    make_folder(directory)
    paths = []
    for plot in plots:
        path = directory / file_name(plot.name)
        write_text(path, plot.to_svg() + "\n")
        paths.append(path)
    return paths


def file_name(text: str) -> str:
    """``text`` as a file name: letters, digits, points and hyphens."""
    name = "".join(c if c.isalnum() or c in ".+" else "-" for c in text)
    return "-".join(part for part in name.split("-") if part) + FORMAT


def bar_plots(name: str, rows: Mapping[str, Row], unit: str) -> list[Plot]:
    """Bars of one metric, a group a row, in pages of at most ``MOST_BARS`` groups."""
    pages = []
    labels = list(rows)
    for first in range(0, len(labels), MOST_BARS):
        part = labels[first : first + MOST_BARS]
        page = f" {first // MOST_BARS + 1}" if len(labels) > MOST_BARS else ""
        curves = tuple(
            Curve(
                label,
                tuple((i, value) for i, value in enumerate(values) if value is not None),
                0,
                published=label == "published",
            )
            for label, values in (
                ("published", [rows[each].published for each in part]),
                ("ours", [rows[each].ours for each in part]),
            )
        )
        pages.append(Plot(f"{name}{page}", f"{name}{page}", "", unit, curves, tuple(part)))
    return pages


def curve_plot(
    name: str,
    points: Mapping[str, Sequence[tuple[float, Row]]],
    x_label: str,
    y_label: str,
    ticks: tuple[tuple[float, str], ...] = (),
) -> Plot:
    """Lines of published and our values over x, one pair of lines a label, in one colour."""
    curves = []
    for style, (label, found) in enumerate(points.items()):
        theirs = tuple((x, row.published) for x, row in found if row.published is not None)
        ours = tuple((x, row.ours) for x, row in found if row.ours is not None)
        if theirs:
            curves.append(Curve(label, theirs, style, published=True))
        if ours:
            curves.append(Curve(label, ours, style))
    return Plot(name, name, x_label, y_label, tuple(curves), ticks=ticks)
