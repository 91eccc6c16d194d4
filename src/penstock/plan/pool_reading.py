"""From plain data to a checked pool plan: strict keys, one clear line for each mistake."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import cast, get_args

from penstock.errors import SpecError
from penstock.plan.document import routing_to_dict
from penstock.plan.fields import Fields, nested, rows_of, to_text, to_whole
from penstock.plan.parts import Parts, cut
from penstock.plan.plan import Routing
from penstock.plan.pool_plan import (
    Deployment,
    PoolAdmission,
    PoolPlan,
    Sharing,
    TurnRule,
    Unplaced,
)
from penstock.plan.reading import plan_body
from penstock.spec.cluster import Cluster
from penstock.spec.names import did_you_mean
from penstock.spec.served import parse_precision
from penstock.spec.workload import SLO

VERSION = 1
_KEYS = (
    "penstock_pool",
    "written_by",
    "planner",
    "value",
    "seed",
    "sharing",
    "reasons",
    "unplaced",
    "parts",
    "deployments",
    "cluster",
)
_OPTIONAL = ("written_by", "seed", "sharing", "reasons", "unplaced", "parts")
_OWN = ("name", "precision", "accuracy", "priority", "slo", "model", "cost")
_LIMITS = ("ttft_s", "tpot_s", "itl_s", "e2e_s")


def pool_from_dict(data: Mapping[str, object], *, source: str = "pool plan") -> PoolPlan:
    """Return the pool plan of ``pool_to_dict``'s data, checked.

    Raises ``SpecError`` for unknown or missing keys, bad values, machines cut into more or fewer
    GPUs than they have, models named twice, and engines that overlap in part.
    """
    try:
        return _pool(data)
    except SpecError as error:
        raise error.at(source) from None


def usual_body(version: str, planner: str, seed: int) -> dict[str, object]:
    """What the plan of a deployment says unless its entry says otherwise."""
    return {
        "written_by": version,
        "planner": planner,
        "objective": "goodput",
        "value": 0.0,
        "bound": None,
        "max_flow_tokens_per_s": 0.0,
        "max_flow_bound_tokens_per_s": None,
        "bound_method": "",
        "proved_optimal": False,
        "seed": seed,
        "admission": "queue",
        "routing": routing_to_dict(Routing()),
        "handoff": {},
        "checkpoint": "",
        "reasons": [],
        "unused": [],
        "engines": [],
        "legs": [],
    }


def _pool(data: Mapping[str, object]) -> PoolPlan:
    version = data.get("penstock_pool")
    if version is None:
        raise SpecError(
            "this is not a pool plan (no key penstock_pool)",
            fix="write one with `penstock plan cluster.yaml models.yaml workload.yaml`",
        )
    if version != VERSION:
        raise SpecError(
            f"this version reads pool plans of format {VERSION}",
            key="penstock_pool",
            value=version,
            fix="plan again with this version",
        )
    fields = Fields("", data, _KEYS, _OPTIONAL)
    from penstock.spec.cluster_file import cluster_from_dict  # noqa: PLC0415 - heavy

    cluster = nested("cluster", cluster_from_dict, fields.mapping("cluster"))
    parts = rows_of(fields, "parts", _part)
    _check_parts(parts, cluster)
    nodes = cut(cluster, parts)
    written_by, planner = fields.text("written_by", ""), fields.text("planner")
    seed = fields.whole("seed") if "seed" in data else 0
    usual = usual_body(written_by, planner, seed)
    pool = PoolPlan(
        cluster=cluster,
        parts=parts,
        deployments=tuple(
            nested(f"deployments[{i}]", lambda row: _deployment(row, nodes, usual), row)
            for i, row in enumerate(
                cast(Sequence[Mapping[str, object]], fields.rows("deployments"))
            )
        ),
        planner=planner,
        value=fields.number("value"),
        sharing=nested("sharing", _sharing, data.get("sharing", {})),
        unplaced=rows_of(fields, "unplaced", _unplaced),
        reasons=rows_of(fields, "reasons", to_text),
        seed=seed,
        version=written_by,
    )
    _check_names(pool)
    _check_seats(pool)
    return pool


def _part(place: str, row: object) -> Parts:
    fields = Fields(place, row, ("machine", "sizes"))
    sizes = [to_whole(f"{place}.sizes[{i}]", size) for i, size in enumerate(fields.rows("sizes"))]
    if not sizes or 0 in sizes:
        raise fields.fail("sizes", "must be a list of 1 or more GPUs each")
    return Parts(fields.text("machine"), tuple(sizes))


def _check_parts(parts: Sequence[Parts], cluster: Cluster) -> None:
    """Each machine once, all of its GPUs, and names that no machine has."""
    machines = {node.name: node.count for node in cluster.nodes}
    seen: set[str] = set()
    for i, part in enumerate(parts):
        place = f"parts[{i}]"
        if part.machine not in machines:
            raise SpecError(
                "no such machine",
                key=f"{place}.machine",
                value=part.machine,
                fix=did_you_mean(part.machine, machines),
            )
        if part.machine in seen:
            raise SpecError("is cut twice", key=f"{place}.machine", value=part.machine)
        seen.add(part.machine)
        if sum(part.sizes) != machines[part.machine]:
            raise SpecError(
                f"must add up to the {machines[part.machine]} GPUs of {part.machine}",
                key=f"{place}.sizes",
                value=list(part.sizes),
            )
        taken = [name for name in part.names if name in machines and name != part.machine]
        if taken:
            raise SpecError("a machine has the name of a part", key=place, value=taken[0])


def _deployment(
    row: Mapping[str, object], nodes: Cluster, usual: Mapping[str, object]
) -> Deployment:
    from penstock.spec.model_file import model_from_dict  # noqa: PLC0415 - heavy

    known = (*_OWN, *usual)
    given = Fields(
        "", row, known, ("accuracy", "priority", "slo", *(set(usual) - {"engines", "legs"}))
    )
    fields = Fields("", {"accuracy": 1.0, "priority": 0, "slo": None, **usual, **row}, known)
    model = nested("model", model_from_dict, given.mapping("model"))
    plan = plan_body(fields, nodes, model)
    if not plan.whole_engines:
        raise SpecError(
            "a pool has whole engines only", key="engines[0].scheduler", fix="add scheduler: {}"
        )
    priority = fields.data["priority"]
    if not isinstance(priority, int) or isinstance(priority, bool):
        raise fields.fail("priority", "must be a whole number")
    accuracy = fields.number("accuracy")
    if not 0 < accuracy <= 1:
        raise fields.fail("accuracy", "must be above 0 and at most 1")
    precision = parse_precision(fields.text("precision"))
    limits = None if fields.data["slo"] is None else nested("slo", _limits, fields.mapping("slo"))
    return Deployment(fields.text("name"), plan, precision, accuracy, priority, limits)


def limits_to_dict(slo: SLO) -> dict[str, float]:
    """The limits that ``slo`` states, in seconds. Raises ``SpecError`` for a multiple."""
    if slo.tpot_multiple is not None:
        raise SpecError(
            "a multiple of the baseline is no limit of a pool", key="slo.tpot", fix="give a time"
        )
    return {name: value for name in _LIMITS if (value := getattr(slo, name)) is not None}


def _limits(data: Mapping[str, object]) -> SLO:
    fields = Fields("", data, _LIMITS, _LIMITS)
    for name in data:
        if fields.number(name) <= 0:
            raise fields.fail(name, "must be above 0 seconds")
    if not data:
        raise SpecError("states no limit", fix=f"give one of {', '.join(_LIMITS)}, or no slo")
    return SLO(*(fields.number_or_none(name) for name in _LIMITS))


def _sharing(data: Mapping[str, object]) -> Sharing:
    usual = Sharing()
    defaults = {"turns": usual.turns, "admission": usual.admission}
    Fields("", data, tuple(defaults), tuple(defaults))
    fields = Fields("", {**defaults, **data}, tuple(defaults))
    return Sharing(
        cast(TurnRule, fields.one_of("turns", get_args(TurnRule))),
        cast(PoolAdmission, fields.one_of("admission", get_args(PoolAdmission))),
    )


def _unplaced(place: str, row: object) -> Unplaced:
    fields = Fields(place, row, ("model", "reason"))
    return Unplaced(fields.text("model"), fields.text("reason"))


def _check_names(pool: PoolPlan) -> None:
    seen: set[str] = set()
    names = [(f"deployments[{i}].name", one.name) for i, one in enumerate(pool.deployments)]
    names += [(f"unplaced[{i}].model", one.model) for i, one in enumerate(pool.unplaced)]
    for place, name in names:
        if name in seen:
            raise SpecError(
                "the model is named twice", key=place, value=name, fix="give each another name"
            )
        seen.add(name)


def _check_seats(pool: PoolPlan) -> None:
    """Two engines stand on the same nodes in the same order, or on none in common."""
    held: dict[str, tuple[str, ...]] = {}
    for i, entry in enumerate(pool.deployments):
        for j, engine in enumerate(entry.plan.engines):
            nodes = tuple(stage.node for stage in engine.stages)
            for node in nodes:
                if held.setdefault(node, nodes) != nodes:
                    raise SpecError(
                        f"overlaps an engine on {', '.join(held[node])} in part",
                        key=f"deployments[{i}].engines[{j}].stages",
                        value=list(nodes),
                        fix="use the same nodes in the same order, or others",
                    )
