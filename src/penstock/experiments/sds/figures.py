"""SDS has no published figures; ours show its fixed pools and its replays."""

from __future__ import annotations

from collections.abc import Sequence

from penstock.experiments.figures import bar_plots
from penstock.experiments.rows import Row
from penstock.report.plots import Plot


def sds_plots(rows: Sequence[Row]) -> list[Plot]:
    """Pools: a figure a metric. Replays: what every one of them cost."""
    pools: dict[str, dict[str, Row]] = {}
    replays: dict[str, dict[str, Row]] = {}
    for row in rows:
        name = f"{row.metric}, {row.unit}".rstrip(", ")
        if row.experiment == "pools":
            pools.setdefault(name, {})[row.case] = row
        elif row.experiment in ("operations", "trace") and row.ours is not None:
            replays.setdefault(name, {})[row.case] = row
    plots = []
    for kind, groups in (("sds pools", pools), ("sds replays", replays)):
        for metric, group in groups.items():
            plots += bar_plots(f"{kind} {metric.partition(',')[0]}", group, metric)
    return plots
