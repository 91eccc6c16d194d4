"""Tables for the terminal."""

from __future__ import annotations

from collections.abc import Sequence

from rich.console import Group as Stack
from rich.table import Table
from rich.text import Text

from penstock.measure.compare import Comparison, verdict_sentence
from penstock.measure.metrics import Distribution, Group, Summary
from penstock.plan.plan import Plan
from penstock.report.numbers import change, figure, row_figures
from penstock.report.placement_drawing import engine_load
from penstock.report.provenance import BANDED, band_sentence


def summary_table(summary: Summary) -> Stack:
    """One run: rates, counts, then latency percentiles by class and over all; a row a model."""
    parts = [group for group in summary.parts if group not in summary.models]
    if len(summary.parts) < 2:
        # One class is the whole: its rows would repeat those of all requests.
        parts = []
    groups = [("all", summary.overall), *((group.name, group) for group in parts)]
    rates = Table(title=f"{summary.name} ({summary.kind})", title_justify="left")
    rates.add_column("")
    for name, _ in groups:
        rates.add_column(name, justify="right")
    for label, unit, values in _rates(summary, [group for _, group in groups]):
        shown, texts = row_figures(values, unit)
        rates.add_row(f"{label} [dim]{shown}[/dim]", *texts)
    columns = ("mean", "p25", "p50", "p75", "p90", "p95", "p99", "p99.9")
    latency = Table(title="Latency", title_justify="left")
    latency.add_column("")
    for column in columns:
        latency.add_column(column, justify="right")
    band = summary.band
    if band is not None:
        latency.add_column("p50 band", justify="right")
    for label, attribute in (
        ("TTFT", "ttft"),
        ("TPOT", "tpot"),
        ("ITL", "itl"),
        ("E2EL", "e2e"),
    ):
        for name, group in groups:
            spread: Distribution = getattr(group, attribute)
            if spread.count == 0:
                continue
            shown_values = (spread.mean, spread.p25, spread.p50, spread.p75, spread.p90, spread.p95)
            scale = [*shown_values, spread.p99, spread.p999]
            unit, texts = row_figures(scale, "s")
            if band is not None and attribute in BANDED:
                ends = (band.low * spread.p50, band.high * spread.p50)
                texts = [*texts, " to ".join(row_figures(ends, "s", scale=scale)[1])]
            who = f" {name}" if len(groups) > 1 else ""
            latency.add_row(f"{label}{who} [dim]{unit}[/dim]", *texts)
    start, end = summary.window_s
    note = Text(f"window {start:,.1f} s to {end:,.1f} s ({summary.window_length_s:,.1f} s)", "dim")
    if band is not None:
        note.append("\n" + band_sentence(band))
    tables = [rates, *([latency] if latency.rows else [])]
    if summary.models:
        tables.append(model_table([summary.name], [summary]))
    return Stack(*tables, note)


def comparison_table(comparison: Comparison) -> Stack:
    """Metrics down, runs across; the best of a row is bold, differences are to the first run."""
    table = Table(title="Comparison", title_justify="left")
    table.add_column("metric")
    for name in comparison.names:
        table.add_column(name, justify="right", overflow="fold")
    section = ""
    for row in comparison.rows:
        if section and row.metric.section != section:
            table.add_section()
        section = row.metric.section
        unit, texts = row_figures(row.values, row.metric.unit)
        cells = []
        for i, text in enumerate(texts):
            cell = Text(text, "bold green" if i in row.best else "")
            if i:
                differs = row.metric.better != "neither" and row.relative[i] is not None
                # Equal widths keep the figures of a column below each other.
                shown = change(row.relative[i]) if differs else ""
                cell.append(f" {shown:>9}", "dim not bold")
            cells.append(cell)
        table.add_row(Text.assemble(row.metric.label, (f" {unit}", "dim")), *cells)
    parts: list[Table | Text | Stack] = [table]
    if comparison.verdicts:
        parts.append(verdict_table(comparison))
    if any(summary.models for summary in comparison.summaries):
        parts.append(model_table(comparison.names, comparison.summaries))
    lengths = [summary.window_length_s for summary in comparison.summaries]
    if max(lengths) - min(lengths) > 1e-6 * max(lengths):
        parts.append(Text("the windows differ in length; rates are per second of each", "dim"))
    return Stack(*parts)


def model_table(names: Sequence[str], summaries: Sequence[Summary]) -> Table:
    """What each model got in each run; attainment is over all requests sent to it."""
    models = dict.fromkeys(group.name for summary in summaries for group in summary.models)
    rows = [
        (name, group)
        for model in models
        for name, summary in zip(names, summaries, strict=True)
        for group in summary.models
        if group.name == model
    ]
    groups = [group for _, group in rows]
    table = Table(title="By model", title_justify="left")
    table.add_column("model", overflow="fold")
    columns = [[group.name for group in groups]]
    if len(names) > 1:
        table.add_column("run", overflow="fold")
        columns.append([name for name, _ in rows])
    figures: list[tuple[str, str, list[float | None]]] = [
        ("sent", "", [group.sent for group in groups]),
        ("SLO", "share", [group.slo_attainment for group in groups]),
    ]
    for label, attribute in (("TTFT", "ttft"), ("TPOT", "tpot"), ("E2EL", "e2e")):
        spreads: list[Distribution] = [getattr(group, attribute) for group in groups]
        figures.append((f"{label}\np50", "s", [spread.p50 for spread in spreads]))
        figures.append((f"{label}\np99", "s", [spread.p99 for spread in spreads]))
    for label, unit, values in figures:
        shown, texts = row_figures(values, unit)
        table.add_column(f"{label}\n[dim]{shown}[/dim]", justify="right")
        columns.append(texts)
    for cells in zip(*columns, strict=True):
        table.add_row(*(Text(cell) for cell in cells))
    return table


def verdict_table(comparison: Comparison) -> Stack:
    """What was predicted beside what was measured, and whether that is good enough."""
    table = Table(title="Simulated against measured", title_justify="left")
    table.add_column("metric")
    for column in ("simulated", "measured", "error", "allowed"):
        table.add_column(column, justify="right")
    table.add_column("verdict")
    for item in comparison.verdicts:
        colour = "green" if item.verdict == "within" else "red"
        table.add_row(
            Text(item.metric.label, "bold" if item.goal else ""),
            figure(item.simulated, item.metric.unit),
            figure(item.measured, item.metric.unit),
            change(item.error),
            f"{item.tolerance:.0%}",
            Text(item.verdict, colour),
        )
    if comparison.holds is None:
        return Stack(table)
    return Stack(table, Text(verdict_sentence(comparison), "bold"))


def plan_table(plan: Plan) -> Table:
    """Stages of a plan: where the layers are and what flows through."""
    load = engine_load(plan)
    table = Table(title=f"{plan.model.name} on {plan.cluster.name}", title_justify="left")
    table.add_column("node")
    table.add_column("type")
    table.add_column("region")
    for column in ("layers", "count", "flow tok/s"):
        table.add_column(column, justify="right")
    rows = [
        (stage.start_layer, i, stage, engine)
        for i, engine in enumerate(plan.engines)
        for stage in engine.stages
    ]
    for _, _, stage, engine in sorted(rows, key=lambda row: row[:2]):
        node = plan.cluster.node(stage.node)
        table.add_row(
            stage.node,
            node.machine_type,
            node.region,
            f"{stage.start_layer}-{stage.end_layer - 1}",
            str(stage.num_layers),
            f"{load[engine.name]:,.1f}",
        )
    return table


def planners_table(plans: Sequence[Plan], summaries: Sequence[Summary]) -> Table:
    """Planners down, what their users get across; the most decode tokens/s is bold."""
    table = Table(title="Every planner, simulated under the same workload", title_justify="left")
    table.add_column("planner", no_wrap=True)
    for column in (
        "decode\ntok/s",
        "TTFT p50\ns",
        "TTFT p95\ns",
        "TPOT p50\ns",
        "max flow\ntok/s",
        "of bound\n%",
    ):
        table.add_column(column, justify="right", no_wrap=True)
    best = max(summary.overall.decode_throughput_tokens_per_s for summary in summaries)
    for plan, summary in zip(plans, summaries, strict=True):
        group = summary.overall
        decode = group.decode_throughput_tokens_per_s
        bound = plan.max_flow_bound_tokens_per_s
        table.add_row(
            plan.planner,
            Text(f"{decode:,.1f}", "bold green" if decode == best else ""),
            f"{group.ttft.p50:,.2f}",
            f"{group.ttft.p95:,.2f}",
            f"{group.tpot.p50:,.2f}",
            f"{plan.max_flow_tokens_per_s:,.1f}",
            "" if bound is None else f"{100 * plan.max_flow_tokens_per_s / bound:,.1f}",
        )
    return table


def _rates(summary: Summary, groups: list[Group]) -> list[tuple[str, str, list[float | None]]]:
    rows: list[tuple[str, str, list[float | None]]] = [
        ("decode throughput", "tok/s", [g.decode_throughput_tokens_per_s for g in groups]),
        ("output throughput", "tok/s", [g.output_throughput_tokens_per_s for g in groups]),
        ("requests finished", "req/s", [g.request_throughput_per_s for g in groups]),
        ("goodput", "req/s", [g.goodput_requests_per_s for g in groups]),
        ("SLO attainment", "share", [g.slo_attainment for g in groups]),
        ("sent", "", [g.sent for g in groups]),
        ("finished", "", [g.finished for g in groups]),
        ("unfinished", "", [g.unfinished for g in groups]),
        ("rejected", "", [g.rejected for g in groups]),
        ("dropped", "", [g.dropped for g in groups]),
        ("failed", "", [g.failed for g in groups]),
        ("preemptions", "", [g.preemptions for g in groups]),
        ("mean prompt served", "tokens", [g.mean_prompt_tokens for g in groups]),
    ]
    blank: list[float | None] = [None] * (len(groups) - 1)
    for label, unit, value in (
        ("mean node utilisation", "share", summary.mean_utilisation),
        ("output per GPU", "tok/s", summary.tokens_per_s_per_gpu),
        ("cost per 1M output tokens", "$", summary.cost_per_million_output_tokens),
    ):
        rows.append((label, unit, [value, *blank]))
    optional = {"rejected", "dropped", "failed", "preemptions"}
    return [
        row
        for row in rows
        if any(value is not None for value in row[2]) and (row[0] not in optional or any(row[2]))
    ]
