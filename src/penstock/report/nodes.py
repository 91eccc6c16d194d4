"""What the nodes did over time: heat maps and a table."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from penstock.measure.metrics import Summary
from penstock.measure.run import Run
from penstock.plan.plan import Plan
from penstock.report.charts import heat_map
from penstock.report.numbers import DASH, figure, row_figures
from penstock.report.placement_drawing import node_groups

Floats = NDArray[np.float64]

MOST_ROWS = 90
MOST_COLUMNS = 120


@dataclass(frozen=True)
class NodeSection:
    """``table`` rows: name, utilisation, peak KV, batches, mean prompt residence."""

    title: str
    busy: str
    queued: str
    kv_use: str
    aggregated: str
    table: tuple[tuple[str, str, str, str, str], ...]


def node_section(index: int, run: Run, plan: Plan | None, summary: Summary) -> NodeSection | None:
    """Return the maps of ``run``; None when it recorded nothing about nodes.

    More than ``MOST_ROWS`` nodes are averaged by region and type.
    """
    series = run.node_series
    if series is None and not summary.nodes:
        return None
    busy = queued = kv_use = aggregated = ""
    if series is not None and len(series.busy):
        order, rows, groups = _rows(series.names, plan)
        if len(rows) < len(series.names):
            aggregated = f"{len(series.names):,} nodes, averaged by region and type."
        end = series.start_s + series.bucket_s * len(series.busy)

        def drawn(values: Floats, full: float, title: str, label: str, key: str) -> str:
            return heat_map(
                _coarse(values[:, order].T, groups, len(rows)),
                rows,
                start_s=series.start_s,
                end_s=end,
                full=full,
                full_label=label,
                title=f"{title}, {run.name}",
                name=f"{key}-{index}",
            )

        longest = max(float(np.quantile(series.queued, 0.995)), 1.0)
        busy = drawn(series.busy, 1.0, "Busy share of each node over time", "100%", "busy")
        queued = drawn(
            series.queued,
            longest,
            "Waiting iterations at each node",
            f"{longest:,.0f} or more",
            "queued",
        )
        kv_use = drawn(series.kv_use, 1.0, "KV memory in use at each node", "100%", "kv")
    place = _place(plan)
    residence = row_figures([node.mean_prompt_residence_s for node in summary.nodes], "s")
    table = tuple(
        (
            node.name,
            figure(node.utilisation, "share"),
            figure(node.peak_kv_fraction, "share"),
            f"{node.batches:,}",
            text if text == DASH else f"{text} {residence[0]}",
        )
        for node, text in sorted(
            zip(summary.nodes, residence[1], strict=True),
            key=lambda pair: place.get(pair[0].name, len(place)),
        )
    )
    return NodeSection(summary.name, busy, queued, kv_use, aggregated, table)


def _rows(
    names: tuple[str, ...], plan: Plan | None
) -> tuple[NDArray[np.int64], list[str], NDArray[np.int64]]:
    """Order of the nodes, labels of the rows, and the row of each ordered node."""
    group_of = (
        {node.name: label for label, nodes in node_groups(plan) for node in nodes} if plan else {}
    )
    place = _place(plan)
    order = sorted(range(len(names)), key=lambda i: (place.get(names[i], len(place)), i))
    ordered = np.array(order, dtype=np.int64)
    if len(names) <= MOST_ROWS:
        return ordered, [names[i] for i in order], np.arange(len(names))
    of_each = [group_of.get(names[i], "other nodes") for i in order]
    labels = list(dict.fromkeys(of_each))
    row = {label: i for i, label in enumerate(labels)}
    return ordered, labels, np.array([row[label] for label in of_each], dtype=np.int64)


def _place(plan: Plan | None) -> Mapping[str, int]:
    """Position of each used node in the drawing of ``plan``."""
    if plan is None:
        return {}
    names = [node.name for _, nodes in node_groups(plan) for node in nodes]
    return {name: i for i, name in enumerate(names)}


def _coarse(values: Floats, groups: NDArray[np.int64], count: int) -> Floats:
    """Average ``[nodes, buckets]`` to ``[count, at most MOST_COLUMNS]``."""
    sums = np.zeros((count, values.shape[1]))
    np.add.at(sums, groups, np.nan_to_num(values))
    rows = sums / np.maximum(np.bincount(groups, minlength=count), 1)[:, None]
    buckets = rows.shape[1]
    if buckets <= MOST_COLUMNS:
        return rows
    edges = np.linspace(0, buckets, MOST_COLUMNS + 1).astype(np.int64)
    widths = np.diff(edges)
    coarse: Floats = np.add.reduceat(rows, edges[:-1], axis=1) / widths
    return coarse
