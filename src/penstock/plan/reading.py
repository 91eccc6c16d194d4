"""From plain data to a checked plan: strict keys, one clear line for each mistake."""

from __future__ import annotations

import dataclasses
from collections.abc import Callable, Mapping, Sequence
from typing import Any, TypeVar, cast, get_args

from penstock.cost.base import BatchLimits
from penstock.errors import SpecError
from penstock.plan.plan import (
    AdmissionName,
    Engine,
    EngineRouterName,
    Leg,
    Plan,
    Role,
    RouterName,
    Routing,
    Stage,
    Unused,
)
from penstock.plan.planner import Objective
from penstock.plan.settings import HandoffSettings, SchedulerSettings, SpeculationSettings
from penstock.spec.cluster import COORDINATOR, Cluster
from penstock.spec.files import is_finite_number
from penstock.spec.model import ModelSpec
from penstock.spec.names import did_you_mean

VERSION = 1
_LIMITS = (
    "max_prefill_seqs",
    "max_prefill_tokens",
    "max_decode_seqs",
    "max_decode_context_tokens",
)
_ENGINE_EXTRAS = ("role", "scheduler", "speculation", "url")
_ENGINE_KEYS = ("name", "stages", "kv_capacity_layer_tokens", *_LIMITS, *_ENGINE_EXTRAS)
_ENGINE_ROUTERS = ("engine_router", "decode_router")
_ROUTING_KEYS = (
    "router",
    "kv_high_water_mark",
    "expected_output_tokens",
    "min_flow_share",
    *_ENGINE_ROUTERS,
)
_KEYS = (
    "penstock_plan",
    "written_by",
    "planner",
    "objective",
    "value",
    "bound",
    "max_flow_tokens_per_s",
    "max_flow_bound_tokens_per_s",
    "bound_method",
    "proved_optimal",
    "seed",
    "admission",
    "routing",
    "handoff",
    "checkpoint",
    "reasons",
    "unused",
    "engines",
    "legs",
    "cluster",
    "model",
    "cost",
)
_OPTIONAL = (
    "written_by",
    "bound",
    "max_flow_bound_tokens_per_s",
    "bound_method",
    "unused",
    "handoff",
    "checkpoint",
)
_Item = TypeVar("_Item")


def plan_from_dict(data: Mapping[str, object], *, source: str = "plan") -> Plan:
    """Return the plan of ``plan_to_dict``'s data, checked.

    Raises ``SpecError`` for unknown or missing keys, bad values, engines on unknown nodes, layers
    that no engine serves, and legs that do not join.
    """
    try:
        return _plan(data)
    except SpecError as error:
        raise error.at(source) from None


def _plan(data: Mapping[str, object]) -> Plan:
    version = data.get("penstock_plan")
    if version != VERSION:
        if version is None:
            raise SpecError(
                "this is not a Penstock plan (no key penstock_plan)",
                fix="write one with `penstock plan ... -o plan.yaml`",
            )
        raise SpecError(
            f"this version reads plan format {VERSION}",
            key="penstock_plan",
            value=version,
            fix="plan again with this version",
        )
    fields = _Fields("", data, _KEYS, _OPTIONAL)
    from penstock.spec.cluster_file import cluster_from_dict  # noqa: PLC0415 - heavy
    from penstock.spec.model_file import model_from_dict  # noqa: PLC0415 - heavy

    cluster = _nested("cluster", cluster_from_dict, fields.mapping("cluster"))
    model = _nested("model", model_from_dict, fields.mapping("model"))
    engines = _rows(fields, "engines", _engine)
    legs = _rows(fields, "legs", _leg)
    _check_engines(engines, cluster, model)
    _check_legs(legs, engines, cluster, model.num_hidden_layers)
    return Plan(
        cluster=cluster,
        model=model,
        engines=engines,
        legs=legs,
        planner=fields.text("planner"),
        objective=cast(Objective, fields.one_of("objective", get_args(Objective))),
        value=fields.number("value"),
        max_flow_tokens_per_s=fields.number("max_flow_tokens_per_s"),
        bound=fields.number_or_none("bound"),
        max_flow_bound_tokens_per_s=fields.number_or_none("max_flow_bound_tokens_per_s"),
        bound_method=fields.text("bound_method", ""),
        proved_optimal=fields.truth("proved_optimal"),
        routing=_routing(fields.mapping("routing")),
        admission=cast(AdmissionName, fields.one_of("admission", get_args(AdmissionName))),
        unused=_rows(fields, "unused", _unused),
        reasons=_rows(fields, "reasons", _reason),
        seed=fields.whole("seed"),
        cost=fields.mapping("cost"),
        version=fields.text("written_by", ""),
        handoff=_settings("handoff", HandoffSettings, data.get("handoff", {})),
        checkpoint=fields.text("checkpoint", ""),
    )


class _Fields:
    """The keys of one mapping, checked as they are taken."""

    def __init__(
        self, place: str, data: object, known: Sequence[str], optional: Sequence[str] = ()
    ) -> None:
        if not isinstance(data, Mapping):
            raise SpecError("must be a mapping of `key: value`", key=place, value=data)
        self.place, self.data = place, data
        for key in data:
            if key not in known:
                raise SpecError(
                    "unknown key", key=self.key(str(key)), fix=did_you_mean(str(key), known)
                )
        for key in known:
            if key not in data and key not in optional:
                raise SpecError("key is missing", key=self.key(key), fix=f"add {key}: ...")

    def key(self, name: str) -> str:
        return f"{self.place}.{name}" if self.place else name

    def fail(self, name: str, problem: str, fix: str | None = None) -> SpecError:
        return SpecError(problem, key=self.key(name), value=self.data.get(name), fix=fix)

    def text(self, name: str, default: str | None = None) -> str:
        value = self.data.get(name, default)
        if not isinstance(value, str):
            raise self.fail(name, "must be text", "put it in quotes")
        return value

    def truth(self, name: str) -> bool:
        value = self.data[name]
        if not isinstance(value, bool):
            raise self.fail(name, "must be true or false")
        return value

    def number(self, name: str) -> float:
        return _number(self.key(name), self.data[name])

    def number_or_none(self, name: str) -> float | None:
        return None if self.data.get(name) is None else self.number(name)

    def whole(self, name: str) -> int:
        return _whole(self.key(name), self.data[name])

    def mapping(self, name: str) -> Mapping[str, object]:
        value = self.data[name]
        if not isinstance(value, Mapping):
            raise self.fail(name, "must be a mapping of `key: value`")
        return value

    def rows(self, name: str) -> Sequence[object]:
        value = self.data.get(name, [])
        if not isinstance(value, list):
            raise self.fail(name, "must be a list")
        return value

    def one_of(self, name: str, known: Sequence[str]) -> str:
        value = self.text(name)
        if value not in known:
            raise self.fail(name, "unknown value", did_you_mean(value, known))
        return value


def _number(key: str, value: object) -> float:
    if not is_finite_number(value):
        raise SpecError("must be a finite number", key=key, value=value)
    number = float(cast(float, value))
    if number < 0:
        raise SpecError("must be 0 or more", key=key, value=value)
    return number


def _whole(key: str, value: object) -> int:
    if not isinstance(value, int) or isinstance(value, bool) or value < 0:
        raise SpecError("must be a whole number, 0 or more", key=key, value=value)
    return value


def _nested(key: str, convert: Callable[[Mapping[str, object]], _Item], data: object) -> _Item:
    try:
        return convert(cast(Mapping[str, object], data))
    except SpecError as error:
        joined = f"{key}.{error.key}" if error.key else key
        raise SpecError(error.problem, key=joined, value=error.value, fix=error.fix) from None


def _rows(fields: _Fields, name: str, convert: Callable[[str, object], _Item]) -> tuple[_Item, ...]:
    return tuple(convert(f"{name}[{i}]", row) for i, row in enumerate(fields.rows(name)))


def _list(place: str, row: object, what: Sequence[str]) -> list[object]:
    if not isinstance(row, list) or len(row) != len(what):
        raise SpecError(f"must be [{', '.join(what)}]", key=place, value=row)
    return row


def _name(place: str, value: object) -> str:
    if not isinstance(value, str):
        raise SpecError("must be a name", key=place, value=value, fix="put it in quotes")
    return value


def _engine(place: str, row: object) -> Engine:
    fields = _Fields(place, row, _ENGINE_KEYS, _ENGINE_EXTRAS)
    stages = []
    for i, raw in enumerate(fields.rows("stages")):
        key = f"{place}.stages[{i}]"
        node, start, end = _list(key, raw, ("node", "first layer", "layer after the last"))
        stages.append(Stage(_name(key, node), _whole(key, start), _whole(key, end)))
    if not stages:
        raise fields.fail("stages", "an engine needs a stage")
    role = fields.one_of("role", get_args(Role)) if "role" in fields.data else "both"
    capacity = fields.whole("kv_capacity_layer_tokens")
    limits = BatchLimits(*(fields.whole(name) for name in _LIMITS))
    data = fields.data
    scheduler = speculation = None
    if "scheduler" in data:
        scheduler = _settings(f"{place}.scheduler", SchedulerSettings, data["scheduler"])
    if "speculation" in data:
        speculation = _settings(f"{place}.speculation", SpeculationSettings, data["speculation"])
    return Engine(
        fields.text("name"),
        tuple(stages),
        capacity,
        limits,
        cast(Role, role),
        scheduler,
        speculation,
        fields.text("url", ""),
    )


def _settings(place: str, kind: type[_Item], data: object) -> _Item:
    """A dataclass of settings from its keys; each value must have the type of its default."""
    known = {field.name: field for field in dataclasses.fields(cast(Any, kind))}
    checked = _Fields(place, data, tuple(known), tuple(known))
    for name, value in checked.data.items():
        allowed = [part.strip() for part in str(known[name].type).split("|")]
        if not any(_KINDS.get(part, _is_text)(value) for part in allowed):
            raise checked.fail(name, f"must be {' or '.join(map(_kind_name, allowed))}")
    try:
        return kind(**checked.data)
    except SpecError as error:
        last = (error.key or "").rpartition(".")[2]
        raise SpecError(
            error.problem, key=checked.key(last), value=error.value, fix=error.fix
        ) from None


def _is_text(value: object) -> bool:
    return isinstance(value, str)


_KINDS: Mapping[str, Callable[[object], bool]] = {
    "int": lambda value: isinstance(value, int) and not isinstance(value, bool),
    "float": lambda value: isinstance(value, (int, float)) and not isinstance(value, bool),
    "bool": lambda value: isinstance(value, bool),
    "None": lambda value: value is None,
}
_KIND_NAMES = {"int": "a whole number", "float": "a number", "bool": "true or false"}


def _kind_name(kind: str) -> str:
    return _KIND_NAMES.get(kind, "empty" if kind == "None" else "text")


def _leg(place: str, row: object) -> Leg:
    src, dst, flow, capacity = _list(place, row, ("from", "to", "flow", "capacity"))
    return Leg(_name(place, src), _name(place, dst), _number(place, flow), _number(place, capacity))


def _unused(place: str, row: object) -> Unused:
    fields = _Fields(place, row, ("node", "reason"))
    return Unused(fields.text("node"), fields.text("reason"))


def _reason(place: str, row: object) -> str:
    if not isinstance(row, str):
        raise SpecError("must be text", key=place, value=row)
    return row


def _routing(data: Mapping[str, object]) -> Routing:
    fields = _Fields("routing", data, _ROUTING_KEYS, _ENGINE_ROUTERS)

    def share(name: str) -> float:
        value = fields.number(name)
        if value > 1:
            raise fields.fail(name, "must be between 0 and 1")
        return value

    def engine_router(name: str) -> EngineRouterName:
        if name not in fields.data:
            return "least-outstanding"
        return cast(EngineRouterName, fields.one_of(name, get_args(EngineRouterName)))

    return Routing(
        engine_router=engine_router("engine_router"),
        decode_router=engine_router("decode_router"),
        router=cast(RouterName, fields.one_of("router", get_args(RouterName))),
        kv_high_water_mark=share("kv_high_water_mark"),
        expected_output_tokens=fields.number("expected_output_tokens"),
        min_flow_share=share("min_flow_share"),
    )


def _check_engines(engines: Sequence[Engine], cluster: Cluster, model: ModelSpec) -> None:
    """Known nodes, whole pipelines, and an engine for every layer."""
    if not engines:
        raise SpecError("a plan needs an engine", key="engines")
    layers = model.num_hidden_layers
    served = [False] * layers
    names = {COORDINATOR}
    nodes = [node.name for node in cluster.nodes]
    known = set(nodes)
    for i, engine in enumerate(engines):
        place = f"engines[{i}]"
        if engine.name in names:
            raise SpecError("the name is taken", key=f"{place}.name", value=engine.name)
        names.add(engine.name)
        end = engine.start_layer
        for stage in engine.stages:
            if stage.node not in known:
                raise SpecError(
                    "no such node in the plan's cluster",
                    key=f"{place}.stages",
                    value=stage.node,
                    fix=did_you_mean(stage.node, nodes),
                )
            if stage.start_layer != end or not stage.start_layer < stage.end_layer <= layers:
                raise SpecError(
                    f"layers must follow each other within 0 to {layers}",
                    key=f"{place}.stages",
                    value=_text(stage),
                )
            end = stage.end_layer
        served[engine.start_layer : engine.end_layer] = [True] * engine.num_layers
        if engine.scheduler is not None and engine.num_layers != layers:
            raise SpecError(
                f"an engine with a scheduler holds all {layers} layers",
                key=f"{place}.stages",
                value=[_text(stage) for stage in engine.stages],
                fix="add the missing stages, or remove scheduler",
            )
    _check_roles(engines)
    if not all(served):
        first = served.index(False)
        raise SpecError(
            f"layer {first} of {layers} is on no engine", key="engines", fix="plan again"
        )


def _check_roles(engines: Sequence[Engine]) -> None:
    """All engines serve alone or none does, and no phase is left to nobody."""
    alone = [engine.scheduler is not None or bool(engine.url) for engine in engines]
    if any(alone) and not all(alone):
        place = f"engines[{alone.index(False)}]"
        raise SpecError("needs a scheduler, as the other engines have one", key=place)
    roles = {engine.role for engine in engines}
    for phase, other in (("prefill", "decode"), ("decode", "prefill")):
        if phase in roles and other not in roles:
            raise SpecError(
                f"no engine has the role {other}", key="engines", fix=f"add role: {other}"
            )


def _text(stage: Stage) -> list[object]:
    return [stage.node, stage.start_layer, stage.end_layer]


def _check_legs(
    legs: Sequence[Leg], engines: Sequence[Engine], cluster: Cluster, layers: int
) -> None:
    """Known ends, a link below every leg, layers that follow each other, a way in and out."""
    by_name = {engine.name: engine for engine in engines}
    seen: set[tuple[str, str]] = set()
    for i, leg in enumerate(legs):
        place = f"legs[{i}]"
        for end in (leg.src, leg.dst):
            if end != COORDINATOR and end not in by_name:
                raise SpecError(
                    "no such engine", key=place, value=end, fix=did_you_mean(end, by_name)
                )
        if (leg.src, leg.dst) in seen or leg.src == leg.dst:
            raise SpecError("the leg is repeated or ends where it starts", key=place)
        seen.add((leg.src, leg.dst))
        src, dst = by_name.get(leg.src), by_name.get(leg.dst)
        if not _follows(src, dst, layers):
            raise SpecError(
                f"layers do not follow each other from {leg.src} to {leg.dst}", key=place
            )
        a = COORDINATOR if src is None else src.stages[-1].node
        b = COORDINATOR if dst is None else dst.stages[0].node
        if a != b and cluster.link(a, b) is None:
            raise SpecError(f"the cluster has no link from {a} to {b}", key=place)
    for side, ends in (("from", {src for src, _ in seen}), ("to", {dst for _, dst in seen})):
        if COORDINATOR not in ends:
            raise SpecError(f"no leg leads {side} the coordinator", key="legs", fix="plan again")


def _follows(src: Engine | None, dst: Engine | None, layers: int) -> bool:
    if src is None or dst is None:
        return (dst is None or dst.start_layer == 0) and (src is None or src.end_layer == layers)
    if src.role != dst.role and "both" not in (src.role, dst.role):
        return True  # a hand-over of KV between phases, not a layer boundary
    return dst.start_layer == src.end_layer or dst.start_layer < src.end_layer < dst.end_layer
