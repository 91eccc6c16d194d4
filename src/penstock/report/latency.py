"""The latency section: distributions and percentiles of every run."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass

from penstock.measure.compare import Comparison
from penstock.measure.metrics import Distribution, Group, RankPercentiles, TimeBand
from penstock.measure.run import Run
from penstock.measure.samples import all_gaps, collect, pooled_gaps
from penstock.report.blocks import Cell, Table, TableRow
from penstock.report.charts import SERIES_STYLES, Series, cdf_chart
from penstock.report.numbers import figure, row_figures
from penstock.report.provenance import BANDED

CHART_SAMPLES = 20_001
"""Quantiles that stand for a larger sample in a chart."""


@dataclass(frozen=True)
class LatencySection:
    """Two charts, the runs in them (name, style), and one table a latency."""

    ttft: str
    decode: str
    decode_title: str
    legend: tuple[tuple[str, int], ...]
    tables: tuple[Table, ...]


def latency_section(runs: Sequence[Run], comparison: Comparison) -> LatencySection:
    """Return the section; where a run has the published semantics, all show its two latencies."""
    ttft, decode = [], []
    published = any(not run.first_iteration_is_token for run in runs)
    for i, (run, name) in enumerate(zip(runs, comparison.names, strict=True)):
        samples = collect(run, ())
        gaps = all_gaps(pooled_gaps(run))
        pooled = gaps.iterations if published else gaps.tokens
        first = (
            samples.prompt_latency_s[samples.prompt_in_window]
            if published
            else samples.ttft_s[samples.first_token_in_window]
        )
        ttft.append(Series(name, first, i))
        decode.append(Series(name, pooled.values(CHART_SAMPLES), i))
    first_axis = "prompt latency" if published else "time to first token"
    decode_title = "Decode latency" if published else "Inter-token latency"
    return LatencySection(
        ttft=cdf_chart(
            ttft, title=f"Distribution of {first_axis}", name="cdf-ttft", axis=first_axis
        ),
        decode=cdf_chart(
            decode,
            title=f"Distribution of {decode_title.lower()}",
            name="cdf-decode",
            axis=decode_title.lower(),
        ),
        decode_title=decode_title,
        legend=tuple((name, i % SERIES_STYLES) for i, name in enumerate(comparison.names)),
        tables=_latency_tables(comparison, published),
    )


def class_table(comparison: Comparison) -> Table | None:
    """Service by model and SLO class, a row for each and each run; None without either."""
    columns = ("limits", "sent", "finished", "TTFT p95", "TPOT p95", "attainment", "goodput")
    rows = []
    for name, summary in zip(comparison.names, comparison.summaries, strict=True):
        for group in summary.parts:
            texts = (
                _limits(group),
                f"{group.sent:,}",
                f"{group.finished:,}",
                figure(group.ttft.p95, "s"),
                figure(group.tpot.p95, "s"),
                figure(group.slo_attainment, "share"),
                figure(group.goodput_requests_per_s, "req/s"),
            )
            cells = tuple(Cell(text) for text in texts)
            rows.append(TableRow(f"{name} · {group.name}", "", cells))
    models = any(summary.models for summary in comparison.summaries)
    title = "By model and SLO class" if models else "By SLO class"
    return Table(title, columns, tuple(rows)) if rows else None


def _limits(group: Group) -> str:
    if group.slo is None:
        return "none"
    limits = (
        ("TTFT", group.slo.ttft_s),
        ("TPOT", group.slo.tpot_s),
        ("ITL", group.slo.itl_s),
        ("E2EL", group.slo.e2e_s),
    )
    return ", ".join(f"{name} {figure(value, 's')}" for name, value in limits if value is not None)


_LATENCIES = (
    ("TTFT", "ttft"),
    ("TPOT", "tpot"),
    ("Inter-token latency", "itl"),
    ("End-to-end latency", "e2e"),
    ("Queueing", "queue"),
)


def _latency_tables(comparison: Comparison, published: bool) -> tuple[Table, ...]:
    groups: list[tuple[str, Group]] = []
    bands: list[TimeBand | None] = []
    for name, summary in zip(comparison.names, comparison.summaries, strict=True):
        groups.append((name, summary.overall))
        groups += [(f"{name} · {group.name}", group) for group in summary.parts]
        bands += [summary.band] * (1 + len(summary.parts))
    tables = []
    columns: tuple[str, ...] = ("mean", "p25", "p50", "p75", "p90", "p95", "p99", "p99.9")
    for title, attribute in _LATENCIES:
        spreads: list[Distribution] = [getattr(group, attribute) for _, group in groups]
        rows: list[tuple[float, ...]] = [
            (d.mean, d.p25, d.p50, d.p75, d.p90, d.p95, d.p99, d.p999) for d in spreads
        ]
        heads = columns
        if attribute in BANDED and any(band is not None for band in bands):
            heads = (*columns, "p50 band from", "to")
            rows = [(*row, *_ends(row[2], band)) for row, band in zip(rows, bands, strict=True)]
        if any(d.count and d.maximum > 0 for d in spreads):
            tables.append(_seconds_table(title, heads, [name for name, _ in groups], rows))
    if published:
        columns = ("mean", "p5", "p25", "p50", "p75", "p95")
        for title, attribute in (
            ("Prompt latency, published percentiles", "prompt_latency"),
            ("Decode latency, published percentiles", "decode_latency"),
        ):
            ranks: list[RankPercentiles] = [getattr(group, attribute) for _, group in groups]
            rows = [(d.mean, d.p5, d.p25, d.p50, d.p75, d.p95) for d in ranks]
            tables.append(_seconds_table(title, columns, [name for name, _ in groups], rows))
    return tuple(tables)


def _ends(median_s: float, band: TimeBand | None) -> tuple[float, float]:
    """Where 80 % of measured medians would lie; NaN without a band."""
    if band is None:
        return math.nan, math.nan
    return band.low * median_s, band.high * median_s


def _seconds_table(
    title: str,
    columns: tuple[str, ...],
    names: Sequence[str],
    rows: Sequence[tuple[float, ...]],
) -> Table:
    """All rows in one unit with the same decimals, so that columns can be read down."""
    every = [value for row in rows for value in row]
    formatted = [row_figures(row, "s", scale=every) for row in rows]
    unit = formatted[0][0] if formatted else "s"
    return Table(
        f"{title}, {unit}",
        columns,
        tuple(
            TableRow(name, "", tuple(Cell(text) for text in texts))
            for name, (_, texts) in zip(names, formatted, strict=True)
        ),
    )
