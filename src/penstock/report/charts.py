"""Charts as pure functions: values in, one SVG string out."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from penstock.report.numbers import figure
from penstock.report.svg import (
    element,
    frame,
    linear_ticks,
    log_ticks,
    number,
    points,
    text,
    tooltip,
)

Floats = NDArray[np.float64]
SERIES_STYLES = 8
LEVELS = 9


@dataclass(frozen=True)
class Series:
    """Values under a name; ``style`` picks colour and dash (``0 … SERIES_STYLES - 1``)."""

    label: str
    values: Floats
    style: int


def level(fraction: float) -> int:
    """Step of the colour ramp for a value in [0, 1]."""
    return min(LEVELS - 1, max(0, int(fraction * LEVELS)))


def bar_chart(
    labels: Sequence[str], values: Sequence[float | None], unit: str, *, title: str, name: str
) -> str:
    """Return horizontal bars in the given order; the largest is emphasised."""
    width, row, label_width, value_width = 560.0, 30.0, 150.0, 110.0
    known = [value for value in values if value is not None and math.isfinite(value)]
    largest = max(known, default=0.0)
    room = width - label_width - value_width
    parts = []
    for i, (label, value) in enumerate(zip(labels, values, strict=True)):
        y = i * row + 4
        parts.append(
            text(label_width - 10, y + 15, _short(label, 22), text_anchor="end", class_="label")
        )
        if value is None or not math.isfinite(value):
            parts.append(text(label_width, y + 15, "not defined", class_="muted"))
            continue
        length = room * value / largest if largest > 0 else 0.0
        best = " best" if value == largest and len(known) > 1 else ""
        parts.append(
            element(
                "rect",
                tooltip(f"{label}: {figure(value, unit)}"),
                x=label_width,
                y=y,
                width=max(length, 1.0),
                height=row - 9,
                rx=2,
                class_=f"bar{best}",
            )
        )
        parts.append(
            text(label_width + length + 8, y + 15, figure(value, unit), class_=f"value{best}")
        )
    said = "; ".join(f"{a}: {figure(b, unit)}" for a, b in zip(labels, values, strict=True))
    return frame(width, len(labels) * row + 4, *parts, title=title, description=said, name=name)


def range_chart(
    labels: Sequence[str],
    ranges: Sequence[tuple[float, float, float, float]],
    *,
    title: str,
    name: str,
) -> str:
    """Return (p25, median, p75, p95) of seconds as one bar, mark and whisker a row."""
    width, row, left, right = 560.0, 30.0, 150.0, 84.0
    high = max((r[3] for r in ranges if math.isfinite(r[3])), default=1.0) or 1.0
    height = len(labels) * row

    def x(value: float) -> float:
        return left + (width - left - right) * value / high

    parts = []
    for tick in linear_ticks(0.0, high, 4):
        at = x(tick)
        parts.append(element("line", x1=at, x2=at, y1=0, y2=height, class_="grid"))
        parts.append(text(at, height + 14, _seconds(tick), text_anchor="middle", class_="tick"))
    said = []
    for i, (label, (p25, p50, p75, p95)) in enumerate(zip(labels, ranges, strict=True)):
        middle = i * row + 14.0
        parts.append(
            text(left - 10, middle + 4.5, _short(label, 22), text_anchor="end", class_="label")
        )
        if not math.isfinite(p95):
            parts.append(text(left, middle + 4.5, "not defined", class_="muted"))
            continue
        hint = f"{label}: median {_seconds(p50)}, p95 {_seconds(p95)}"
        said.append(hint)
        parts += [
            element("line", x1=x(p75), x2=x(p95), y1=middle, y2=middle, class_="whisker"),
            element("line", x1=x(p95), x2=x(p95), y1=middle - 5, y2=middle + 5, class_="whisker"),
            element(
                "rect",
                tooltip(hint),
                x=x(p25),
                y=middle - 7,
                height=14,
                width=max(x(p75) - x(p25), 1.0),
                rx=2,
                class_="box",
            ),
            element("line", x1=x(p50), x2=x(p50), y1=middle - 7, y2=middle + 7, class_="median"),
            text(x(p95) + 8, middle + 4.5, _seconds(p95), class_="value"),
        ]
    return frame(width, height + 20, *parts, title=title, description="; ".join(said), name=name)


def cdf_chart(series: Sequence[Series], *, title: str, name: str, axis: str) -> str:
    """Return cumulative distributions of seconds, overlaid; log axis where they span decades."""
    width, height, left, bottom, top, right = 560.0, 300.0, 46.0, 40.0, 10.0, 14.0
    sets = [(s, np.sort(s.values)) for s in series if len(s.values)]
    if not sets:
        return frame(
            width,
            60,
            text(width / 2, 34, "no samples in the window", text_anchor="middle", class_="muted"),
            title=title,
            description="No samples.",
            name=name,
        )
    low = min(float(np.quantile(v, 0.002)) for _, v in sets)
    high = max(float(np.quantile(v, 0.998)) for _, v in sets)
    low = max(low, 1e-4)
    logarithmic = high / low > 20
    if not logarithmic:
        low = 0.0
    high = max(high, low + 1e-3)
    ticks = log_ticks(low, high) if logarithmic else linear_ticks(low, high)

    def x(value: Floats) -> Floats:
        clipped = np.clip(value, low, high)
        part = (
            np.log(clipped / low) / math.log(high / low)
            if logarithmic
            else (clipped - low) / (high - low)
        )
        return np.asarray(left + part * (width - left - right), dtype=float)

    def y(share: Floats) -> Floats:
        return np.asarray(top + (1 - share) * (height - top - bottom), dtype=float)

    parts = []
    for share in (0.0, 0.25, 0.5, 0.75, 0.95, 1.0):
        at = float(y(np.array(share)))
        parts.append(element("line", x1=left, x2=width - right, y1=at, y2=at, class_="grid"))
        if share != 1.0:
            parts.append(text(left - 7, at + 3.5, f"{share:.0%}", text_anchor="end", class_="tick"))
    for tick in ticks:
        at = float(x(np.array(tick)))
        parts.append(element("line", x1=at, x2=at, y1=top, y2=height - bottom, class_="grid"))
        parts.append(
            text(at, height - bottom + 15, _seconds(tick), text_anchor="middle", class_="tick")
        )
    scale = ", log scale" if logarithmic else ""
    parts.append(
        text(
            (left + width - right) / 2,
            height - 6,
            f"{axis}{scale}",
            text_anchor="middle",
            class_="axis",
        )
    )
    shares = np.unique(np.concatenate([np.linspace(0, 1, 101), [0.995, 0.999]]))
    said = []
    for entry, values in sets:
        at = np.quantile(values, shares)
        parts.append(
            element(
                "polyline",
                tooltip(entry.label),
                points=points(x(at).tolist(), y(shares).tolist()),
                class_=f"line s{entry.style % SERIES_STYLES}",
                data_series=entry.label,
            )
        )
        p50, p95 = np.quantile(values, (0.5, 0.95))
        said.append(f"{entry.label}: median {_seconds(p50)}, p95 {_seconds(p95)}")
    scale_of_page = {
        "data_left": left,
        "data_right": width - right,
        "data_top": top,
        "data_bottom": height - bottom,
        "data_low": low,
        "data_high": high,
        "data_log": int(logarithmic),
    }
    return frame(
        width,
        height,
        *parts,
        title=title,
        description="; ".join(said),
        name=name,
        **scale_of_page,
    )


def heat_map(
    values: Floats,
    rows: Sequence[str],
    *,
    start_s: float,
    end_s: float,
    full: float,
    title: str,
    name: str,
    full_label: str,
) -> str:
    """Return ``values`` ``[rows, columns]`` as colour over time; ``full`` has the last colour.

    Neighbours of one colour are one rectangle and one path a colour, so that a page with many
    maps stays small.
    """
    label_width, width, bottom = 120.0, 560.0, 40.0
    count, columns = values.shape
    row = 14.0 if count <= 45 else max(7.0, 640.0 / count)
    room = width - label_width - 8
    step = room / max(columns, 1)
    height = count * row + bottom
    levels = np.clip((np.nan_to_num(values) / full * LEVELS).astype(int), 0, LEVELS - 1)
    paths: list[list[str]] = [[] for _ in range(LEVELS)]
    for r in range(count):
        edges = np.flatnonzero(np.diff(levels[r])) + 1
        begins = [0, *edges.tolist()]
        ends = [*edges.tolist(), columns]
        for begin, end in zip(begins, ends, strict=True):
            paths[levels[r, begin]].append(
                f"M{number(label_width + begin * step)} {number(r * row)}"
                f"h{number((end - begin) * step)}v{number(row - 1)}"
                f"h{number((begin - end) * step)}z"
            )
    parts = [
        element("path", d="".join(path), class_=f"q{i}") for i, path in enumerate(paths) if path
    ]
    every = max(1, math.ceil(9.0 / row))
    parts += [
        text(
            label_width - 8,
            r * row + row * 0.5 + 3.5,
            _short(label, 18),
            text_anchor="end",
            class_="tick",
        )
        for r, label in enumerate(rows)
        if r % every == 0
    ]
    for tick in linear_ticks(start_s, end_s, 6):
        at = label_width + room * (tick - start_s) / max(end_s - start_s, 1e-12)
        anchor = "end" if at > width - 20 else "middle"
        parts.append(
            text(at, count * row + 14, f"{tick:,.0f} s", text_anchor=anchor, class_="tick")
        )
    parts.append(_ramp(label_width, count * row + 24, full_label))
    mean = float(np.nanmean(values)) if values.size else 0.0
    busiest = rows[int(np.nanargmax(np.nan_to_num(values).mean(axis=1)))] if values.size else ""
    return frame(
        width,
        height,
        *parts,
        title=title,
        description=f"Mean {mean:.3g}; highest row: {busiest}. The last colour is {full_label}.",
        name=name,
    )


def _ramp(x: float, y: float, full_label: str) -> str:
    parts = [
        element("rect", x=x + 14 + i * 16.0, y=y, width=16.0, height=8.0, class_=f"q{i}")
        for i in range(LEVELS)
    ]
    return "".join(
        [
            text(x, y + 8, "0", class_="tick"),
            *parts,
            text(x + 20 + LEVELS * 16.0, y + 8, full_label, class_="tick"),
        ]
    )


def _seconds(value: float) -> str:
    if value == 0:
        return "0"
    if abs(value) < 0.9995:
        return f"{value * 1e3:.3g} ms"
    return f"{value:,.0f} s" if value >= 100 else f"{value:.3g} s"


def _short(label: str, most: int) -> str:
    # Names of runs often differ at their end only, so the middle goes.
    if len(label) <= most:
        return label
    tail = most // 2
    return label[: most - 1 - tail] + "…" + label[-tail:]
