"""The placement of a plan: layers across, nodes down, use as colour."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass

import numpy as np

from penstock.plan.plan import Engine, Leg, Plan, Stage
from penstock.report.charts import level
from penstock.report.numbers import figure
from penstock.report.svg import element, frame, linear_ticks, number, text, tooltip
from penstock.spec.cluster import COORDINATOR
from penstock.spec.hardware import Node

MOST_ROWS = 150
MOST_LEGS = 200

_WIDTH, _LEFT, _RIGHT, _TOP = 1080.0, 170.0, 168.0, 34.0
_ROW, _GROUP = 20.0, 30.0


@dataclass(frozen=True)
class _Bar:
    stage: Stage
    engine: Engine
    y: float


def placement_drawing(
    plan: Plan, *, name: str, utilisation: Mapping[str, float] | None = None
) -> str:
    """Draw ``plan``. Colour is ``utilisation`` by node where known, else flow over capacity.

    Up to ``MOST_ROWS`` nodes each have a row, grouped by region and type; a larger plan shows
    one row a group with the number of nodes holding each layer. Legs are drawn where there are
    fewer than ``MOST_LEGS``. Unused nodes have no row.
    """
    groups = node_groups(plan)
    if is_aggregated(plan):
        return _aggregated(plan, groups, utilisation, name)
    return _detailed(plan, groups, utilisation, name)


def is_aggregated(plan: Plan) -> bool:
    """Whether the drawing shows groups of nodes instead of nodes."""
    return len({stage.node for engine in plan.engines for stage in engine.stages}) > MOST_ROWS


def node_groups(plan: Plan) -> list[tuple[str, list[Node]]]:
    """Used nodes by region and machine type, as (label, nodes).

    Regions come in the order of the cluster, types by the layers they hold on average, nodes by
    their first layer: requests flow downwards as far as one order allows.
    """
    spans: dict[str, tuple[int, int]] = {}
    for engine in plan.engines:
        for stage in engine.stages:
            spans.setdefault(stage.node, (stage.start_layer, stage.end_layer))
    regions = list(dict.fromkeys(node.region for node in plan.cluster.nodes))
    groups: dict[tuple[str, str], list[Node]] = {}
    for node in plan.cluster.nodes:
        if node.name in spans:
            groups.setdefault((node.region, node.machine_type), []).append(node)

    def place(item: tuple[tuple[str, str], list[Node]]) -> tuple[int, float]:
        (region, _), nodes = item
        return regions.index(region), sum(sum(spans[node.name]) for node in nodes) / len(nodes)

    return [
        (
            machine if len(regions) == 1 else f"{region} · {machine}",
            sorted(nodes, key=lambda node: spans[node.name]),
        )
        for (region, machine), nodes in sorted(groups.items(), key=place)
    ]


def engine_load(plan: Plan) -> Mapping[str, float]:
    """Flow into each engine (tokens/s), by engine name."""
    load = {engine.name: 0.0 for engine in plan.engines}
    for leg in plan.legs:
        if leg.dst in load:
            load[leg.dst] += leg.flow_tokens_per_s
    return load


def _x(plan: Plan, layer: float) -> float:
    return _LEFT + (_WIDTH - _LEFT - _RIGHT) * layer / plan.model.num_hidden_layers


def _axis(plan: Plan, height: float) -> list[str]:
    layers = plan.model.num_hidden_layers
    ticks = [tick for tick in linear_ticks(0, layers, 8) if float(tick).is_integer()]
    if ticks[-1] != layers:
        ticks = [tick for tick in ticks if layers - tick > layers / 20] + [float(layers)]
    parts = [text(_LEFT, 12, "layer", class_="axis")]
    for tick in ticks:
        at = _x(plan, tick)
        parts.append(element("line", x1=at, x2=at, y1=_TOP - 6, y2=height, class_="grid"))
        parts.append(text(at, _TOP - 10, f"{tick:.0f}", text_anchor="middle", class_="tick"))
    return parts


def _detailed(
    plan: Plan,
    groups: Sequence[tuple[str, list[Node]]],
    utilisation: Mapping[str, float] | None,
    name: str,
) -> str:
    by_node: dict[str, list[tuple[Engine, Stage]]] = {}
    for engine in plan.engines:
        for stage in engine.stages:
            by_node.setdefault(stage.node, []).append((engine, stage))
    load = engine_load(plan)
    shade = _shades(plan, load, utilisation)
    parts: list[str] = []
    bars: list[_Bar] = []
    y = _TOP
    for label, nodes in groups:
        count = f"{len(nodes)} node{'s' if len(nodes) > 1 else ''}"
        parts.append(text(12, y + 19, label, class_="group"))
        parts.append(text(_LEFT - 12, y + 19, count, text_anchor="end", class_="muted"))
        parts.append(element("line", x1=12, x2=_WIDTH - 12, y1=y + 25, y2=y + 25, class_="rule"))
        y += _GROUP
        for node in nodes:
            parts.append(text(_LEFT - 12, y + 13.5, node.name, text_anchor="end", class_="label"))
            bars += [_Bar(stage, engine, y) for engine, stage in by_node[node.name]]
            parts.append(_reading(node, by_node[node.name][0][0], load, utilisation, y))
            y += _ROW
    what = "busy" if utilisation else "share"
    header = [
        text(_WIDTH - 92, 12, what, text_anchor="end", class_="axis"),
        text(_WIDTH - 12, 12, "flow, tok/s", text_anchor="end", class_="axis"),
    ]
    legs = [leg for leg in plan.legs if COORDINATOR not in (leg.src, leg.dst)]
    drawn = _legs(plan, legs, bars) if len(legs) < MOST_LEGS else []
    parts = [
        *_axis(plan, y),
        *header,
        *parts,
        *drawn,
        *(_bar(plan, bar, shade.get(bar.engine.name, 0.0), load) for bar in bars),
    ]
    return frame(
        _WIDTH,
        y + 8,
        *parts,
        title=f"Placement of {plan.model.name} by {plan.planner}",
        description=_spoken(plan, groups),
        name=name,
    )


def _shades(
    plan: Plan, load: Mapping[str, float], utilisation: Mapping[str, float] | None
) -> Mapping[str, float]:
    """A value in [0, 1] for each engine: busy share, else flow over the largest of its type."""
    if utilisation:
        return {
            engine.name: max(utilisation.get(stage.node, 0.0) for stage in engine.stages)
            for engine in plan.engines
        }
    peak = max(load.values(), default=0.0)
    return {key: value / peak if peak > 0 else 0.0 for key, value in load.items()}


def _reading(
    node: Node,
    engine: Engine,
    load: Mapping[str, float],
    utilisation: Mapping[str, float] | None,
    y: float,
) -> str:
    peak = max(load.values(), default=0.0)
    flow = load[engine.name]
    share = utilisation.get(node.name) if utilisation else (flow / peak if peak > 0 else None)
    shown = "" if share is None else f"{share:.0%}"
    return text(_WIDTH - 92, y + 13.5, shown, text_anchor="end", class_="figure") + text(
        _WIDTH - 12, y + 13.5, f"{flow:,.1f}", text_anchor="end", class_="figure"
    )


def _bar(plan: Plan, bar: _Bar, shade: float, load: Mapping[str, float]) -> str:
    stage = bar.stage
    x0, x1 = _x(plan, stage.start_layer), _x(plan, stage.end_layer)
    step = level(shade)
    hint = (
        f"{stage.node}: layers {stage.start_layer} to {stage.end_layer - 1} "
        f"({stage.num_layers}), flow {figure(load[bar.engine.name], 'tok/s')}, {shade:.0%}"
    )
    parts = [
        element(
            "rect",
            tooltip(hint),
            x=x0 + 0.75,
            y=bar.y + 2,
            width=max(x1 - x0 - 1.5, 1.0),
            height=_ROW - 4,
            rx=2.5,
            class_=f"q{step} block",
        )
    ]
    if x1 - x0 >= 18:
        parts.append(
            text(
                (x0 + x1) / 2,
                bar.y + 13.5,
                str(stage.num_layers),
                text_anchor="middle",
                class_=f"t{step} inside",
            )
        )
    return "".join(parts)


def _legs(plan: Plan, legs: Sequence[Leg], bars: Sequence[_Bar]) -> list[str]:
    """Lines from the end of one stage's layers to where the next takes over."""
    of_engine: dict[str, list[_Bar]] = {}
    for bar in sorted(bars, key=lambda bar: bar.stage.start_layer):
        of_engine.setdefault(bar.engine.name, []).append(bar)
    load = engine_load(plan)
    hops = [
        (of_engine[leg.src][-1], of_engine[leg.dst][0], leg.flow_tokens_per_s)
        for leg in legs
        if leg.src in of_engine and leg.dst in of_engine
    ]
    hops += [
        (own[i], own[i + 1], load[name])
        for name, own in of_engine.items()
        for i in range(len(own) - 1)
    ]
    peak = max((flow for _, _, flow in hops), default=0.0)
    return [_leg(plan, src, dst, flow, flow / peak) for src, dst, flow in hops if flow > 0]


def _leg(plan: Plan, src: _Bar, dst: _Bar, flow: float, share: float) -> str:
    x = _x(plan, src.stage.end_layer)
    y0, y1 = src.y + _ROW / 2, dst.y + _ROW / 2
    bend = min(26.0, 6.0 + abs(y1 - y0) * 0.06)
    path = (
        f"M{number(x - 2)} {number(y0)}C{number(x + bend)} {number(y0)} "
        f"{number(x - bend)} {number(y1)} {number(x + 2)} {number(y1)}"
    )
    hint = f"{src.stage.node} to {dst.stage.node}: {figure(flow, 'tok/s')}"
    return element("path", tooltip(hint), d=path, class_="leg", stroke_width=0.6 + 2.2 * share)


def _aggregated(
    plan: Plan,
    groups: Sequence[tuple[str, list[Node]]],
    utilisation: Mapping[str, float] | None,
    name: str,
) -> str:
    layers = plan.model.num_hidden_layers
    held = {label: np.zeros(layers, dtype=np.int64) for label, _ in groups}
    entering = dict.fromkeys(held, 0.0)
    group_of = {node.name: label for label, nodes in groups for node in nodes}
    engine_group = {engine.name: group_of[engine.stages[0].node] for engine in plan.engines}
    for engine in plan.engines:
        for stage in engine.stages:
            held[group_of[stage.node]][stage.start_layer : stage.end_layer] += 1
    for leg in plan.legs:
        if leg.dst in engine_group and engine_group.get(leg.src) != engine_group[leg.dst]:
            entering[engine_group[leg.dst]] += leg.flow_tokens_per_s
    parts = [text(_WIDTH - 12, 12, "entering, tok/s", text_anchor="end", class_="axis")]
    if utilisation:
        parts.append(text(_WIDTH - 108, 12, "busy", text_anchor="end", class_="axis"))
    y, tall = _TOP, 50.0
    for label, nodes in groups:
        peak = max(int(held[label].max()), 1)
        base = y + tall - 8
        steps = []
        for layer in range(layers):
            top = base - (tall - 14) * int(held[label][layer]) / peak
            steps += [(_x(plan, layer), top), (_x(plan, layer + 1), top)]
        shape = " ".join(f"{number(a)},{number(b)}" for a, b in steps)
        end = f"{number(_x(plan, layers))},{number(base)}"
        hint = f"{label}: {len(nodes)} nodes, up to {peak} hold the same layer"
        parts += [
            text(12, y + 20, label, class_="group"),
            text(12, y + 36, f"{len(nodes)} nodes, {peak} deep", class_="muted"),
            element(
                "polygon",
                tooltip(hint),
                points=f"{number(_LEFT)},{number(base)} {shape} {end}",
                class_="area",
            ),
            element("line", x1=12, x2=_WIDTH - 12, y1=y + tall - 2, y2=y + tall - 2, class_="rule"),
            text(
                _WIDTH - 12, y + 30, f"{entering[label]:,.0f}", text_anchor="end", class_="figure"
            ),
        ]
        if utilisation:
            busy = float(np.mean([utilisation.get(node.name, 0.0) for node in nodes]))
            parts.append(
                text(_WIDTH - 108, y + 30, f"{busy:.0%}", text_anchor="end", class_="figure")
            )
        y += tall
    return frame(
        _WIDTH,
        y + 8,
        *_axis(plan, y),
        *parts,
        title=f"Placement of {plan.model.name} by {plan.planner}, nodes holding each layer",
        description=_spoken(plan, groups),
        name=name,
    )


def _spoken(plan: Plan, groups: Sequence[tuple[str, list[Node]]]) -> str:
    sizes = [stage.num_layers for engine in plan.engines for stage in engine.stages]
    counts = ", ".join(f"{len(nodes)} of {label}" for label, nodes in groups)
    spread = f"{min(sizes)} to {max(sizes)}" if sizes else "no"
    return (
        f"{len(sizes)} stages over {plan.model.num_hidden_layers} layers: {counts}; "
        f"{spread} layers each; max flow {figure(plan.max_flow_tokens_per_s, 'tok/s')}."
    )
