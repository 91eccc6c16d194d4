"""Figures of a reproduction: published beside ours, one file an experiment and unit."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

from penstock.experiments.rows import Row

MISSING = "no figures: matplotlib is not installed; pip install 'penstock[report]' adds it"
PUBLISHED_COLOUR = "#9aa5b1"
OURS_COLOUR = "#0b6e99"
MOST_BARS = 60


def write_figures(rows: Sequence[Row], directory: Path) -> tuple[list[Path], str]:
    """Draw every experiment into ``directory``; return the paths and a remark, if any.

    Without matplotlib nothing is drawn and the remark says how to get it.
    """
    try:
        import matplotlib as mpl  # noqa: PLC0415
    except ImportError:
        return [], MISSING
    mpl.use("Agg")
    groups: dict[tuple[str, str], list[Row]] = {}
    for row in rows:
        if row.published is not None and row.ours is not None:
            groups.setdefault((row.experiment, row.unit), []).append(row)
    paths = []
    for (experiment, unit), group in groups.items():
        for number in range(0, len(group), MOST_BARS):
            part = group[number : number + MOST_BARS]
            page = f"-{number // MOST_BARS + 1}" if len(group) > MOST_BARS else ""
            path = directory / f"{_file_name(experiment)}-{_file_name(unit)}{page}.png"
            _bars(part, experiment, unit, path)
            paths.append(path)
    return paths, ""


def _file_name(text: str) -> str:
    return "".join(c if c.isalnum() or c in ".-" else "-" for c in text).strip("-") or "figure"


def _bars(rows: Sequence[Row], experiment: str, unit: str, path: Path) -> None:
    """Horizontal pairs of bars, first row on top; a log axis where figures span decades."""
    from matplotlib.figure import Figure  # noqa: PLC0415

    figure = Figure(figsize=(9, 1.2 + 0.34 * len(rows)), layout="constrained")
    axes = figure.subplots()
    places = range(len(rows))
    published = [row.published or 0.0 for row in rows]
    ours = [row.ours or 0.0 for row in rows]
    axes.barh([p - 0.19 for p in places], published, 0.36, color=PUBLISHED_COLOUR)
    axes.barh([p + 0.19 for p in places], ours, 0.36, color=OURS_COLOUR)
    axes.set_yticks(list(places), [f"{row.case}: {row.metric}" for row in rows], fontsize=7)
    axes.invert_yaxis()
    axes.set_xlabel(unit)
    axes.set_title(f"{experiment}: published (grey) and ours (blue)", fontsize=10)
    positive = [value for value in (*published, *ours) if value > 0]
    if positive and max(positive) > 50 * min(positive):
        axes.set_xscale("log")
    for side in ("top", "right"):
        axes.spines[side].set_visible(False)
    figure.savefig(path, dpi=110, metadata={"Software": None})
