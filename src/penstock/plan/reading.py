"""From plain data to a checked plan: strict keys, one clear line for each mistake."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import cast, get_args

from penstock.cost.base import BatchLimits
from penstock.errors import SpecError
from penstock.plan.fields import (
    Fields,
    nested,
    rows_of,
    to_list,
    to_name,
    to_number,
    to_settings,
    to_text,
    to_whole,
)
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
        if "penstock_pool" in data:
            raise SpecError("this is a plan of many models, and one of one model is needed here")
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
    fields = Fields("", data, _KEYS, _OPTIONAL)
    from penstock.spec.cluster_file import cluster_from_dict  # noqa: PLC0415 - heavy
    from penstock.spec.model_file import model_from_dict  # noqa: PLC0415 - heavy

    cluster = nested("cluster", cluster_from_dict, fields.mapping("cluster"))
    model = nested("model", model_from_dict, fields.mapping("model"))
    return plan_body(fields, cluster, model)


def plan_body(fields: Fields, cluster: Cluster, model: ModelSpec) -> Plan:
    """The plan of ``fields`` on ``cluster``, whose own keys they need not hold."""
    engines = rows_of(fields, "engines", _engine)
    legs = rows_of(fields, "legs", _leg)
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
        unused=rows_of(fields, "unused", _unused),
        reasons=rows_of(fields, "reasons", to_text),
        seed=fields.whole("seed"),
        cost=fields.mapping("cost"),
        version=fields.text("written_by", ""),
        handoff=to_settings("handoff", HandoffSettings, fields.data.get("handoff", {})),
        checkpoint=fields.text("checkpoint", ""),
    )


def _engine(place: str, row: object) -> Engine:
    fields = Fields(place, row, _ENGINE_KEYS, _ENGINE_EXTRAS)
    stages = []
    for i, raw in enumerate(fields.rows("stages")):
        key = f"{place}.stages[{i}]"
        node, start, end = to_list(key, raw, ("node", "first layer", "layer after the last"))
        stages.append(Stage(to_name(key, node), to_whole(key, start), to_whole(key, end)))
    if not stages:
        raise fields.fail("stages", "an engine needs a stage")
    role = fields.one_of("role", get_args(Role)) if "role" in fields.data else "both"
    capacity = fields.whole("kv_capacity_layer_tokens")
    limits = BatchLimits(*(fields.whole(name) for name in _LIMITS))
    data = fields.data
    scheduler = speculation = None
    if "scheduler" in data:
        scheduler = to_settings(f"{place}.scheduler", SchedulerSettings, data["scheduler"])
    if "speculation" in data:
        speculation = to_settings(f"{place}.speculation", SpeculationSettings, data["speculation"])
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


def _leg(place: str, row: object) -> Leg:
    src, dst, flow, capacity = to_list(place, row, ("from", "to", "flow", "capacity"))
    return Leg(
        to_name(place, src), to_name(place, dst), to_number(place, flow), to_number(place, capacity)
    )


def _unused(place: str, row: object) -> Unused:
    fields = Fields(place, row, ("node", "reason"))
    return Unused(fields.text("node"), fields.text("reason"))


def _routing(data: Mapping[str, object]) -> Routing:
    fields = Fields("routing", data, _ROUTING_KEYS, _ENGINE_ROUTERS)

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
