"""What the HTML report shows, as plain values: the template only lays them out."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass

from penstock.cost.base import Provenance
from penstock.measure.compare import Comparison, compare_runs, verdict_sentence
from penstock.measure.definitions import DEFINITIONS
from penstock.measure.fleet import Fleet, fleet_of, fleet_of_run
from penstock.measure.metrics import Summary
from penstock.measure.run import Run
from penstock.plan.plan import Plan
from penstock.report.blocks import Cell, Table, TableRow, Tile
from penstock.report.charts import bar_chart, range_chart
from penstock.report.latency import LatencySection, class_table, latency_section
from penstock.report.nodes import NodeSection, node_section
from penstock.report.numbers import change, figure, row_figures
from penstock.report.plans import PlanSection, plan_section
from penstock.report.provenance import Fact, cost_facts, planner_of, run_facts, run_sources


@dataclass(frozen=True)
class Page:
    title: str
    subtitle: str
    headline: str
    tiles: tuple[Tile, ...]
    bars: str
    bars_title: str
    spread: str
    spread_title: str
    comparison: tuple[Table, ...]
    classes: Table | None
    first_open: int
    verdicts: tuple[tuple[str, str, str, str, str, str], ...]
    verdict: str
    latency: LatencySection | None
    plans: tuple[PlanSection, ...]
    nodes: tuple[NodeSection, ...]
    events: tuple[tuple[str, str, str, str], ...]
    runs: tuple[tuple[str, tuple[Fact, ...]], ...]
    costs: tuple[tuple[str, tuple[Fact, ...]], ...]
    provenance: tuple[Provenance, ...]
    definitions: Mapping[str, str]
    version: str


def build_page(
    runs: Sequence[Run],
    plans: Sequence[Plan],
    *,
    title: str,
    version: str,
    provenance: Sequence[Provenance] = (),
) -> Page:
    """Return everything the report shows about ``runs`` and ``plans`` (either may be empty)."""
    paired = [plan_of(run, plans, i, len(runs)) for i, run in enumerate(runs)]
    fleets = [_fleet(run, plan) for run, plan in zip(runs, paired, strict=True)]
    comparison = compare_runs(runs, fleets=fleets) if runs else None
    best = _best(comparison) if comparison else None
    bars, bars_title = _bars(comparison, plans)
    return Page(
        title=title,
        subtitle=_subtitle(plans, runs),
        headline=_headline(comparison, best, plans),
        tiles=_tiles(comparison, best, paired, plans),
        bars=bars,
        bars_title=bars_title,
        spread=_spread(comparison),
        spread_title="End-to-end latency: p25 to p75, median, p95",
        comparison=_comparison_tables(comparison) if comparison else (),
        classes=class_table(comparison) if comparison else None,
        first_open=best or 0,
        verdicts=_verdicts(comparison) if comparison else (),
        verdict=verdict_sentence(comparison) if comparison else "",
        latency=latency_section(runs, comparison) if comparison else None,
        plans=tuple(
            plan_section(i, plan, _utilisation(plan, comparison, paired))
            for i, plan in enumerate(plans)
        ),
        nodes=tuple(
            section
            for i, run in enumerate(runs)
            if (section := node_section(i, run, paired[i], _summaries(comparison)[i])) is not None
        ),
        events=tuple(
            (run.name, f"{event.time_s:,.1f}", event.kind, event.detail)
            for run in runs
            for event in run.events
        ),
        runs=tuple(
            (name, run_facts(run)) for name, run in zip(_names(comparison), runs, strict=True)
        ),
        costs=cost_facts(plans, runs),
        provenance=tuple(dict.fromkeys((*provenance, *run_sources(runs)))),
        definitions=DEFINITIONS,
        version=version,
    )


def plan_of(run: Run, plans: Sequence[Plan], index: int, count: int) -> Plan | None:
    """Return the plan that ``run`` carried out: by planner, else by position."""
    planner = planner_of(run)
    named = [plan for plan in plans if planner is not None and plan.planner == planner]
    if len(named) == 1:
        return named[0]
    if len(plans) == count and (not named or plans[index] in named):
        return plans[index]
    return None


def _utilisation(
    plan: Plan, comparison: Comparison | None, paired: Sequence[Plan | None]
) -> Mapping[str, float] | None:
    for summary, own in zip(_summaries(comparison), paired, strict=True):
        if own is plan and summary.nodes:
            return {node.name: node.utilisation for node in summary.nodes}
    return None


def _fleet(run: Run, plan: Plan | None) -> Fleet:
    return fleet_of(plan.cluster) if plan is not None else fleet_of_run(run.header)


def _summaries(comparison: Comparison | None) -> Sequence[Summary]:
    return comparison.summaries if comparison else ()


def _names(comparison: Comparison | None) -> Sequence[str]:
    return comparison.names if comparison else ()


def _best(comparison: Comparison) -> int:
    """Column of the best run: by goodput where limits were set, else by decode throughput."""

    def worth(summary: Summary) -> float:
        good = summary.overall.goodput_requests_per_s
        return good if good is not None else summary.overall.decode_throughput_tokens_per_s

    values = [worth(summary) for summary in comparison.summaries]
    return values.index(max(values))


def _subtitle(plans: Sequence[Plan], runs: Sequence[Run]) -> str:
    parts = []
    if plans:
        plan = plans[0]
        gpus = fleet_of(plan.cluster).num_gpus
        regions = len({node.region for node in plan.cluster.nodes})
        where = f"{regions} regions" if regions > 1 else "one region"
        parts = [plan.model.name, f"{plan.cluster.name}: {gpus:,} GPUs in {where}"]
    workloads: list[str] = []
    for run in runs:
        workload = run.header.get("workload")
        name = workload.get("name") if isinstance(workload, Mapping) else workload
        if isinstance(name, str) and name and name not in workloads:
            workloads.append(name)
    parts += workloads[:3]
    return " · ".join(parts)


def _headline(comparison: Comparison | None, best: int | None, plans: Sequence[Plan]) -> str:
    if comparison is None or best is None:
        if not plans:
            return ""
        top = max(plans, key=lambda plan: plan.max_flow_tokens_per_s)
        return f"{top.planner} has the largest max flow."
    group = comparison.summaries[best].overall
    name = comparison.names[best]
    if len(comparison.names) == 1:
        return (
            f"{name} decodes {figure(group.decode_throughput_tokens_per_s, 'tok/s')} "
            f"with a median TTFT of {figure(group.ttft.p50, 's')}."
        )
    judged = group.goodput_requests_per_s is not None

    def worth(summary: Summary) -> float:
        good = summary.overall.goodput_requests_per_s
        return (good or 0.0) if judged else summary.overall.decode_throughput_tokens_per_s

    order = sorted(range(len(comparison.names)), key=lambda i: -worth(comparison.summaries[i]))
    second = order[1]
    mine, other = worth(comparison.summaries[best]), worth(comparison.summaries[second])
    what = "goodput" if judged else "decode throughput"
    if mine == other:
        return f"{name} and {comparison.names[second]} have the same {what}."
    lead = f": {mine / other - 1:.1%} above {comparison.names[second]}" if other > 0 else ""
    return f"{name} has the highest {what}{lead}."


def _tiles(
    comparison: Comparison | None,
    best: int | None,
    paired: Sequence[Plan | None],
    plans: Sequence[Plan],
) -> tuple[Tile, ...]:
    tiles = []
    if comparison is not None and best is not None:
        summary = comparison.summaries[best]
        group = summary.overall
        length = f"over {summary.window_length_s:,.0f} s"
        tiles.append(
            _tile("Decode throughput", group.decode_throughput_tokens_per_s, "tok/s", length)
        )
        if group.goodput_requests_per_s is not None:
            share = f"{group.slo_attainment or 0:.1%} of {group.sent:,} sent meet all limits"
            tiles.append(_tile("Goodput", group.goodput_requests_per_s, "req/s", share))
        tiles.append(
            _tile("TTFT, median", group.ttft.p50, "s", f"p95 {figure(group.ttft.p95, 's')}")
        )
        tiles.append(_tile("ITL, median", group.itl.p50, "s", f"p95 {figure(group.itl.p95, 's')}"))
        plan = paired[best]
        lost = group.rejected + group.dropped + group.failed
        tiles.append(
            Tile(
                "Requests finished",
                f"{group.finished:,}",
                "",
                f"{lost:,} of {group.sent:,} sent were turned away",
            )
        )
    else:
        plan = max(plans, key=lambda p: p.max_flow_tokens_per_s) if plans else None
    if plan is not None:
        note = "proved optimal" if plan.proved_optimal else _flow_gap(plan)
        tiles.append(_tile("Max flow", plan.max_flow_tokens_per_s, "tok/s", note))
    return tuple(tiles)


def _tile(label: str, value: float, unit: str, note: str) -> Tile:
    shown, (text,) = row_figures([value], unit)
    return Tile(label, text, shown, note)


def _flow_gap(plan: Plan) -> str:
    bound = plan.max_flow_bound_tokens_per_s
    if bound is None or plan.max_flow_tokens_per_s <= 0:
        return "no bound known"
    return f"at most {max(0.0, 1 - plan.max_flow_tokens_per_s / bound):.1%} below the best possible"


def _bars(comparison: Comparison | None, plans: Sequence[Plan]) -> tuple[str, str]:
    if comparison is not None:
        values = [s.overall.decode_throughput_tokens_per_s for s in comparison.summaries]
        title = "Decode throughput"
        return bar_chart(comparison.names, values, "tok/s", title=title, name="bars"), title
    if plans:
        flows = [plan.max_flow_tokens_per_s for plan in plans]
        labels = [plan.planner for plan in plans]
        return bar_chart(labels, flows, "tok/s", title="Max flow", name="bars"), "Max flow"
    return "", ""


def _spread(comparison: Comparison | None) -> str:
    if comparison is None or not any(s.overall.e2e.count for s in comparison.summaries):
        return ""
    spreads = [summary.overall.e2e for summary in comparison.summaries]
    return range_chart(
        comparison.names,
        [(d.p25, d.p50, d.p75, d.p95) for d in spreads],
        title="End-to-end latency of each run",
        name="spread",
    )


def _comparison_tables(comparison: Comparison) -> tuple[Table, ...]:
    tables: list[Table] = []
    sections = list(dict.fromkeys(row.metric.section for row in comparison.rows))
    for section in sections:
        rows = []
        for row in comparison.rows:
            if row.metric.section != section:
                continue
            unit, texts = row_figures(row.values, row.metric.unit)
            cells = tuple(
                Cell(
                    text,
                    change(row.relative[i]) if i and row.metric.better != "neither" else "",
                    i in row.best,
                )
                for i, text in enumerate(texts)
            )
            rows.append(TableRow(row.metric.label, unit, cells))
        tables.append(Table(section, comparison.names, tuple(rows)))
    return tuple(tables)


def _verdicts(comparison: Comparison) -> tuple[tuple[str, str, str, str, str, str], ...]:
    result = []
    for item in comparison.verdicts:
        unit, (a, b) = row_figures([item.simulated, item.measured], item.metric.unit)
        label = f"{item.metric.label}, {unit}" if unit else item.metric.label
        result.append((label, a, b, change(item.error), f"{item.tolerance:.0%}", item.verdict))
    return tuple(result)
