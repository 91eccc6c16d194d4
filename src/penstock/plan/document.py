"""Plans as YAML documents: readable, self-contained, byte-stable.

Layout (version 1): a comment head for people, the result (planner, objective, value, bounds),
routing and admission, reasons, unused nodes, one line per engine and per leg, then the cluster,
the model and the cost model the plan was made for. ``docs/formats.md`` describes every key.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import fields
from pathlib import Path
from typing import TYPE_CHECKING, Any

import yaml

from penstock.plan.plan import Engine, Leg, Plan, Routing, Stage
from penstock.plan.reading import plan_from_dict
from penstock.storage import write_text

if TYPE_CHECKING:
    from _typeshed import DataclassInstance

VERSION = 1
_WIDTH = 100
_ENDLESS = 2**30

__all__ = [
    "format_plan",
    "format_rows",
    "plan_body_to_dict",
    "plan_from_dict",
    "plan_summary",
    "plan_to_dict",
    "read_plan",
    "write_plan",
]


def plan_to_dict(plan: Plan) -> dict[str, object]:
    """Plain data for ``plan``, in the order of the document."""
    from penstock.spec.cluster_file import cluster_to_dict  # noqa: PLC0415 - heavy
    from penstock.spec.model_file import model_to_dict  # noqa: PLC0415 - heavy

    return {
        "penstock_plan": VERSION,
        **plan_body_to_dict(plan),
        "cluster": cluster_to_dict(plan.cluster),
        "model": model_to_dict(plan.model),
        "cost": dict(plan.cost),
    }


def plan_body_to_dict(plan: Plan) -> dict[str, object]:
    """``plan`` without what it was made for: cluster, model and cost."""
    return {
        "written_by": plan.version,
        "planner": plan.planner,
        "objective": plan.objective,
        "value": plan.value,
        "bound": plan.bound,
        "max_flow_tokens_per_s": plan.max_flow_tokens_per_s,
        "max_flow_bound_tokens_per_s": plan.max_flow_bound_tokens_per_s,
        "bound_method": plan.bound_method,
        "proved_optimal": plan.proved_optimal,
        "seed": plan.seed,
        "admission": plan.admission,
        "routing": routing_to_dict(plan.routing),
        **_serving(plan),
        "reasons": list(plan.reasons),
        "unused": [{"node": entry.node, "reason": entry.reason} for entry in plan.unused],
        "engines": [_engine_row(engine) for engine in plan.engines],
        "legs": [_leg_row(leg) for leg in plan.legs],
    }


def routing_to_dict(routing: Routing) -> dict[str, object]:
    """Plain data for ``routing``; routers among whole engines only where they are not default."""
    return {
        "router": routing.router,
        "kv_high_water_mark": routing.kv_high_water_mark,
        "expected_output_tokens": routing.expected_output_tokens,
        "min_flow_share": routing.min_flow_share,
        **_changed(routing, "engine_router", "decode_router"),
    }


def _stage_row(stage: Stage) -> list[object]:
    return [stage.node, stage.start_layer, stage.end_layer]


def _engine_row(engine: Engine) -> dict[str, object]:
    limits = engine.limits
    row: dict[str, object] = {
        "name": engine.name,
        "role": engine.role,
        "stages": [_stage_row(stage) for stage in engine.stages],
        "kv_capacity_layer_tokens": engine.kv_capacity_layer_tokens,
        "max_prefill_seqs": limits.max_prefill_seqs,
        "max_prefill_tokens": limits.max_prefill_tokens,
        "max_decode_seqs": limits.max_decode_seqs,
        "max_decode_context_tokens": limits.max_decode_context_tokens,
    }
    if engine.scheduler is not None:
        row["scheduler"] = {"name": engine.scheduler.name, **_changed(engine.scheduler)}
    if engine.speculation is not None:
        row["speculation"] = {"method": engine.speculation.method, **_changed(engine.speculation)}
    if engine.url:
        row["url"] = engine.url
    return row


def _serving(plan: Plan) -> dict[str, object]:
    """What only some plans set: KV hand-over and the checkpoint."""
    handoff = _changed(plan.handoff)
    found: dict[str, object] = {"handoff": handoff} if handoff else {}
    if plan.checkpoint:
        found["checkpoint"] = plan.checkpoint
    return found


def _changed(settings: DataclassInstance, *names: str) -> dict[str, object]:
    """The settings that differ from their defaults, of ``names`` (default: all)."""
    found: dict[str, object] = {}
    for field in fields(settings):
        value = getattr(settings, field.name)
        if (not names or field.name in names) and value != field.default:
            found[field.name] = value
    return found


def _leg_row(leg: Leg) -> list[object]:
    return [leg.src, leg.dst, leg.flow_tokens_per_s, leg.capacity_tokens_per_s]


_NOTES = {
    "value": "in the unit of the objective; max flow counts prompt and output tokens",
    "engines": "stages: [node, first layer, layer after the last]",
    "legs": "[from, to, planned flow in tokens/s, capacity in tokens/s]",
    "cluster": "what the plan was made for",
}
_ROWS = ("reasons", "unused", "unplaced", "parts", "engines", "legs")


def format_plan(plan: Plan) -> str:
    """The document of ``plan``: the same plan gives the same bytes."""
    head = "".join(f"# {line}\n" for line in _headline(plan))
    return head + format_rows(plan_to_dict(plan), _NOTES)


def format_rows(data: Mapping[str, object], notes: Mapping[str, str]) -> str:
    """YAML of ``data``: engines, legs and the like one a line, ``notes`` before their keys."""
    parts = []
    for key, value in data.items():
        if key in notes:
            parts.append(f"# {notes[key]}\n")
        if key in _ROWS and isinstance(value, list) and value:
            parts.append(f"{key}:\n")
            line = _leg_lines() if key == "legs" else _one_line
            parts += [f"- {line(row)}\n" for row in value]
        else:
            parts.append(_dump(key, value))
    return "".join(parts)


def _headline(plan: Plan) -> list[str]:
    lines = [
        f"Penstock plan by {plan.planner}: {plan.model.name} on {plan.cluster.name}",
        f"{plan.objective} {plan.value:,.2f} {UNITS[plan.objective]}{_bound_text(plan)}",
        f"{len(plan.engines)} engines, {len(plan.legs)} legs, {len(plan.unused)} unused nodes",
    ]
    return [line.replace("\n", " ") for line in lines]


def _bound_text(plan: Plan) -> str:
    if plan.proved_optimal:
        return ", proved optimal"
    if plan.bound is None or plan.gap is None:
        return ""
    return f", bound {plan.bound:,.2f} (gap {100 * plan.gap:.1f} %)"


UNITS: Mapping[str, str] = {
    "maxflow": "tokens/s",
    "throughput": "decode tokens/s",
    "goodput": "good requests/s",
}


def _dump(key: str, value: object) -> str:
    text: str = yaml.dump(
        {key: value},
        Dumper=_Dumper,
        sort_keys=False,
        default_flow_style=None if isinstance(value, (dict, list)) else False,
        width=_WIDTH,
        allow_unicode=True,
    )
    return text


def _one_line(row: object) -> str:
    text: str = yaml.dump(
        [row],
        Dumper=_Dumper,
        sort_keys=False,
        default_flow_style=True,
        width=_ENDLESS,
        allow_unicode=True,
    )
    return text.strip()[1:-1]


def _leg_lines() -> Callable[[list[object]], str]:
    """``_one_line`` for legs, which are many: each name is written once, numbers as YAML does."""
    names: dict[object, str] = {}

    def line(row: list[object]) -> str:
        src, dst, *numbers = row
        for name in (src, dst):
            if name not in names:
                names[name] = _one_line(name)
        return f"[{names[src]}, {names[dst]}, {', '.join(_number(x) for x in numbers)}]"

    return line


def _number(value: object) -> str:
    text = repr(value)
    return text.replace("e", ".0e", 1) if "." not in text else text


class _Dumper(yaml.CSafeDumper):
    """The safe dumper without anchors: equal parts are written out."""

    def ignore_aliases(self, _data: Any) -> bool:
        return True


def write_plan(plan: Plan, path: str | Path) -> None:
    """Write ``format_plan`` in one step. Raises ``StorageError`` when the disk refuses."""
    write_text(Path(path), format_plan(plan))


def read_plan(path: str | Path) -> Plan:
    """Read a plan document. Raises one ``SpecError`` naming file, key, value and fix."""
    from penstock.spec.files import read_yaml  # noqa: PLC0415 - the only YAML reader

    return plan_from_dict(read_yaml(path), source=str(path))


def plan_summary(plan: Plan) -> dict[str, object]:
    """What ``--format json`` prints of a plan."""
    return {
        "planner": plan.planner,
        "objective": plan.objective,
        "unit": UNITS[plan.objective],
        "value": plan.value,
        "bound": plan.bound,
        "gap": plan.gap,
        "proved_optimal": plan.proved_optimal,
        "bound_method": plan.bound_method,
        "max_flow_tokens_per_s": plan.max_flow_tokens_per_s,
        "max_flow_bound_tokens_per_s": plan.max_flow_bound_tokens_per_s,
        "seed": plan.seed,
        "cluster": plan.cluster.name,
        "model": plan.model.name,
        "engines": [
            {
                "name": engine.name,
                "role": engine.role,
                "nodes": [stage.node for stage in engine.stages],
                "start_layer": engine.start_layer,
                "end_layer": engine.end_layer,
                "kv_capacity_layer_tokens": engine.kv_capacity_layer_tokens,
                "flow_tokens_per_s": _inflow(plan.legs, engine.name),
            }
            for engine in plan.engines
        ],
        "unused": [{"node": entry.node, "reason": entry.reason} for entry in plan.unused],
        "reasons": list(plan.reasons),
    }


def _inflow(legs: Sequence[Leg], engine: str) -> float:
    return sum(leg.flow_tokens_per_s for leg in legs if leg.dst == engine)
