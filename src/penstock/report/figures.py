"""Figures for papers, with matplotlib (extra ``report``): published beside ours."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from pathlib import Path
from types import ModuleType
from typing import Any

from penstock.errors import InputError, StorageError

_OURS, _PUBLISHED, _EDGE = "#0072b2", "#b8c4cf", "#16202b"
_STYLES = ("#0072b2", "#d55e00", "#009e73", "#b8558f", "#b98500", "#4a9fd6")


def throughput_bars(
    path: Path,
    labels: Sequence[str],
    published: Sequence[float | None],
    ours: Sequence[float | None],
    *,
    title: str,
    unit: str = "decode tokens/s",
) -> None:
    """Write grouped bars, published beside ours; the suffix of ``path`` is the format.

    Raises ``InputError`` when matplotlib is missing, lengths differ or the format is unknown.
    """
    if not len(labels) == len(published) == len(ours):
        raise InputError("labels, published and ours must have one entry a bar each")
    figure, axes = _canvas(max(3.4, 0.75 * len(labels) + 1.4), 2.6)
    places = range(len(labels))
    for offset, values, colour, name in (
        (-0.2, published, _PUBLISHED, "published"),
        (0.2, ours, _OURS, "ours"),
    ):
        known = [value is not None and math.isfinite(value) for value in values]
        heights = [value if ok else 0.0 for value, ok in zip(values, known, strict=True)]
        bars = axes.bar([i + offset for i in places], heights, 0.38, color=colour, label=name)
        shown = [f"{v:,.0f}" if ok else "" for v, ok in zip(values, known, strict=True)]
        axes.bar_label(bars, labels=shown, fontsize=6.5, padding=1.5)
    axes.set_xticks(list(places), list(labels), fontsize=7.5)
    axes.set_ylabel(unit, fontsize=8)
    axes.margins(y=0.14)
    _finish(figure, axes, title, path)


def latency_percentiles(
    path: Path,
    percentiles: Sequence[float],
    series: Mapping[str, Sequence[float]],
    *,
    title: str,
    published: Mapping[str, Sequence[float]] | None = None,
) -> None:
    """Write latency [s] over percentiles, a line a run; published values are open marks."""
    figure, axes = _canvas(3.8, 2.7)
    reference = published or {}
    for i, (name, values) in enumerate(series.items()):
        colour = _STYLES[i % len(_STYLES)]
        axes.plot(percentiles, values, color=colour, marker="o", markersize=3, lw=1.4, label=name)
        if name in reference:
            axes.plot(
                percentiles,
                reference[name],
                color=colour,
                marker="o",
                markersize=6,
                markerfacecolor="none",
                lw=0,
                label=f"{name}, published",
            )
    every = [v for values in [*series.values(), *reference.values()] for v in values if v > 0]
    if every and max(every) / min(every) > 20:
        axes.set_yscale("log")
    axes.set_xticks(list(percentiles), [f"p{p:g}" for p in percentiles], fontsize=7.5)
    axes.set_ylabel("seconds", fontsize=8)
    _finish(figure, axes, title, path)


def _canvas(width_in: float, height_in: float) -> tuple[Any, Any]:
    figures = _matplotlib()
    figure = figures.Figure(figsize=(width_in, height_in), layout="constrained")
    return figure, figure.add_subplot()


def _matplotlib() -> ModuleType:
    try:
        import matplotlib.figure  # noqa: PLC0415 - an extra, loaded only when a figure is drawn
    except ImportError as error:
        raise InputError(
            "figures need matplotlib, which is not installed; pip install 'penstock[report]'"
        ) from error
    return matplotlib.figure


def _finish(figure: Any, axes: Any, title: str, path: Path) -> None:
    axes.set_title(title, fontsize=9, loc="left", color=_EDGE)
    axes.tick_params(axis="y", labelsize=7.5)
    axes.spines[["top", "right"]].set_visible(False)
    axes.grid(axis="y", lw=0.4, alpha=0.6)
    axes.set_axisbelow(True)
    axes.legend(fontsize=7, frameon=False)
    # Without these, two equal figures differ in their bytes by date and random ids.
    metadata = {".svg": {"Date": None}, ".pdf": {"CreationDate": None}}.get(path.suffix)
    temporary = path.with_name(f".{path.stem}.part{path.suffix}")
    try:
        import matplotlib as mpl  # noqa: PLC0415 - an extra

        with mpl.rc_context({"svg.hashsalt": "penstock"}):
            figure.savefig(temporary, dpi=200, metadata=metadata)
        temporary.replace(path)
    except ValueError as error:
        raise InputError(f"{path}: {error}; use .svg, .pdf or .png") from error
    except OSError as error:
        reason = error.strerror or str(error)
        raise StorageError(f"{path}: cannot be written ({reason}); choose another place") from error
    finally:
        temporary.unlink(missing_ok=True)
