"""An independent check of a plan: plain scans and an LP, no code shared with flow or search.

The checker reads the document (engines, legs, cluster) and a table of node throughputs, nothing
else of the planner. It says what is wrong, in sentences; an empty list means the plan holds.
"""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from penstock.plan.engine_checker import check_engine_plan
from penstock.plan.plan import Engine, Leg, Plan
from penstock.spec.cluster import COORDINATOR

Throughput = Mapping[str, Sequence[float]]
"""Node name -> T(k) in tokens/s for k = 0, 1, 2, ... layers."""

RELATIVE = 1e-6
TOKEN_BYTES = 2.0


@dataclass(frozen=True)
class Check:
    """``violations`` in words; ``max_flow_tokens_per_s`` of the plan's engines, found by an LP."""

    violations: tuple[str, ...]
    max_flow_tokens_per_s: float


def check_plan(plan: Plan) -> list[str]:
    """Violations of a plan document, in words; T(k) comes from the plan's own cost model.

    Plans of whole engines have rules of their own. Raises ``SpecError`` when the cost model
    cannot be rebuilt.
    """
    if plan.whole_engines:
        return check_engine_plan(plan)
    from penstock.cost.load import cost_from_dict  # noqa: PLC0415 - reads tables
    from penstock.plan.problem import placement_problem  # noqa: PLC0415

    cost = cost_from_dict(plan.cost, plan.model)
    problem = placement_problem(plan.cluster, cost)
    kinds = dict(zip((n.name for n in plan.cluster.nodes), problem.node_type.tolist(), strict=True))
    most = {name: int(problem.max_layers[kind]) for name, kind in kinds.items()}
    stages = [stage for engine in plan.engines for stage in engine.stages]
    if any(stage.num_layers > most[stage.node] for stage in stages):
        problem = placement_problem(plan.cluster, cost, over_full=True)
    tables = {name: problem.throughput[kind].tolist() for name, kind in kinds.items()}
    exact = check(plan, tables)
    if not exact.violations:
        return []
    # Plans may route into the middle of an interval: that, too, is a max flow.
    return list(check(plan, tables, partial_inference=True).violations)


def check(plan: Plan, throughput: Throughput, *, partial_inference: bool = False) -> Check:
    """Verify flows, capacities, layer order and the stated max flow of ``plan``."""
    violations = [
        *_intervals(plan, throughput),
        *_legs(plan),
        *_conservation(plan),
        *_capacities(plan, throughput),
    ]
    value = max_flow_by_lp(plan, throughput, partial_inference=partial_inference)
    stated = plan.max_flow_tokens_per_s
    if abs(stated - value) > RELATIVE * max(1.0, value):
        violations.append(f"the plan states a max flow of {stated:.6f}, an LP finds {value:.6f}")
    if plan.objective == "maxflow":
        carried = sum(leg.flow_tokens_per_s for leg in plan.legs if leg.src == COORDINATOR)
        if abs(carried - plan.value) > RELATIVE * max(1.0, carried):
            violations.append(f"legs carry {carried:.6f} but the plan's value is {plan.value:.6f}")
    bound = plan.max_flow_bound_tokens_per_s
    if bound is not None and value > bound * (1 + RELATIVE):
        violations.append(f"max flow {value:.6f} is above the stated bound {bound:.6f}")
    return Check(tuple(violations), value)


def _intervals(plan: Plan, throughput: Throughput) -> list[str]:
    found = []
    layers = plan.model.num_hidden_layers
    names = [stage.node for engine in plan.engines for stage in engine.stages]
    found += [f"node {name} is used twice" for name in sorted(set(names)) if names.count(name) > 1]
    for engine in plan.engines:
        start, end = engine.start_layer, engine.end_layer
        if not 0 <= start < end <= layers:
            found.append(f"engine {engine.name} holds [{start}, {end}) of {layers} layers")
        for before, after in zip(engine.stages, engine.stages[1:], strict=False):
            if before.end_layer != after.start_layer:
                found.append(f"engine {engine.name} has a gap after layer {before.end_layer}")
        for stage in engine.stages:
            held, table = stage.end_layer - stage.start_layer, throughput[stage.node]
            if held >= len(table) or table[held] <= 0:
                found.append(f"node {stage.node} cannot hold {held} layers")
        if engine.kv_capacity_layer_tokens <= 0:
            found.append(f"engine {engine.name} has no KV memory")
    return found


def _ends(plan: Plan) -> dict[str, Engine]:
    return {engine.name: engine for engine in plan.engines}


def _legs(plan: Plan) -> list[str]:
    found = []
    engines = _ends(plan)
    layers = plan.model.num_hidden_layers
    for leg in plan.legs:
        label = f"leg {leg.src} -> {leg.dst}"
        if leg.flow_tokens_per_s < 0:
            found.append(f"{label} has a negative flow")
        unknown = [end for end in (leg.src, leg.dst) if end != COORDINATOR and end not in engines]
        if unknown:
            found.append(f"{label} touches {unknown[0]}, which is no engine")
            continue
        if leg.src == COORDINATOR:
            follows = engines[leg.dst].start_layer == 0
        elif leg.dst == COORDINATOR:
            follows = engines[leg.src].end_layer == layers
        else:
            at, head = engines[leg.src].end_layer, engines[leg.dst]
            follows = head.start_layer <= at < head.end_layer
        if not follows:
            found.append(f"{label}: layers do not follow each other")
        if _link_capacity(plan, leg) <= 0:
            found.append(f"{label}: the cluster has no such link")
    return found


def _conservation(plan: Plan) -> list[str]:
    balance: dict[str, float] = defaultdict(float)
    through: dict[str, float] = defaultdict(float)
    for leg in plan.legs:
        balance[leg.dst] += leg.flow_tokens_per_s
        balance[leg.src] -= leg.flow_tokens_per_s
        through[leg.dst] += leg.flow_tokens_per_s
    return [
        f"engine {engine.name} takes in and gives out flows that differ by {balance[engine.name]}"
        for engine in plan.engines
        if abs(balance[engine.name]) > RELATIVE * max(1.0, through[engine.name])
    ]


def _first_node(plan: Plan, end: str) -> str:
    return end if end == COORDINATOR else _ends(plan)[end].stages[0].node


def _last_node(plan: Plan, end: str) -> str:
    return end if end == COORDINATOR else _ends(plan)[end].stages[-1].node


def _bytes_per_token(plan: Plan, leg: Leg) -> float:
    if COORDINATOR in (leg.src, leg.dst):
        return TOKEN_BYTES
    return TOKEN_BYTES + plan.model.activation_bytes_per_token


def _link_capacity(plan: Plan, leg: Leg) -> float:
    """Tokens/s of the link under a leg; 0 where there is none."""
    link = plan.cluster.link(_last_node(plan, leg.src), _first_node(plan, leg.dst))
    return 0.0 if link is None else link.bandwidth_bytes_per_s / _bytes_per_token(plan, leg)


def _capacities(plan: Plan, throughput: Throughput) -> list[str]:
    found = []
    inbound: dict[str, float] = defaultdict(float)
    outbound: dict[str, float] = defaultdict(float)
    passed: dict[str, float] = defaultdict(float)
    for leg in plan.legs:
        flow = leg.flow_tokens_per_s
        if flow > _link_capacity(plan, leg) * (1 + RELATIVE):
            found.append(f"leg {leg.src} -> {leg.dst} carries more than its link")
        outbound[leg.src] += flow * _bytes_per_token(plan, leg)
        inbound[leg.dst] += flow * _bytes_per_token(plan, leg)
        passed[leg.dst] += flow
    for engine in plan.engines:
        slowest = min(throughput[s.node][s.end_layer - s.start_layer] for s in engine.stages)
        if passed[engine.name] > slowest * (1 + RELATIVE):
            found.append(f"engine {engine.name} carries more than its throughput of {slowest:.3f}")
        first, last = (
            plan.cluster.node(engine.stages[0].node),
            plan.cluster.node(engine.stages[-1].node),
        )
        if inbound[engine.name] > first.nic_in_bytes_per_s * (1 + RELATIVE):
            found.append(f"engine {engine.name} takes in more than its NIC")
        if outbound[engine.name] > last.nic_out_bytes_per_s * (1 + RELATIVE):
            found.append(f"engine {engine.name} gives out more than its NIC")
    host = plan.cluster.coordinator
    if outbound[COORDINATOR] > host.nic_out_bytes_per_s * (1 + RELATIVE):
        found.append("the coordinator gives out more than its NIC")
    if inbound[COORDINATOR] > host.nic_in_bytes_per_s * (1 + RELATIVE):
        found.append("the coordinator takes in more than its NIC")
    return found


def max_flow_by_lp(plan: Plan, throughput: Throughput, *, partial_inference: bool = False) -> float:
    """Max flow of the plan's engines over every link of its cluster, as a linear program.

    A NIC counts every token at the size of the largest that its legs can carry, as published
    (Helix specification, section 3.1).
    """
    import highspy  # noqa: PLC0415 - heavy

    legs = _possible_legs(plan, partial_inference)
    solver: Any = highspy.Highs
    lp = solver()
    lp.setOptionValue("output_flag", False)
    lp.setOptionValue("threads", 1)
    infinity = lp.getInfinity()
    for leg in legs:
        gain = -1.0 if leg.src == COORDINATOR else 0.0
        lp.addCol(gain, 0.0, leg.capacity_tokens_per_s, 0, [], [])

    def add_row(low: float, high: float, entries: Sequence[tuple[int, float]]) -> None:
        lp.addRow(low, high, len(entries), [c for c, _ in entries], [v for _, v in entries])

    into: dict[str, list[tuple[int, float]]] = defaultdict(list)
    out: dict[str, list[tuple[int, float]]] = defaultdict(list)
    for column, leg in enumerate(legs):
        out[leg.src].append((column, _bytes_per_token(plan, leg)))
        into[leg.dst].append((column, _bytes_per_token(plan, leg)))
    for engine in plan.engines:
        name = engine.name
        one_in, one_out = _ones(into[name]), _ones(out[name])
        add_row(0.0, 0.0, one_in + [(c, -1.0) for c, _ in one_out])
        slowest = min(throughput[s.node][s.end_layer - s.start_layer] for s in engine.stages)
        add_row(-infinity, slowest, one_in)
        first = plan.cluster.node(engine.stages[0].node)
        last = plan.cluster.node(engine.stages[-1].node)
        add_row(-infinity, first.nic_in_bytes_per_s / _largest(into[name]), one_in)
        add_row(-infinity, last.nic_out_bytes_per_s / _largest(out[name]), one_out)
    host = plan.cluster.coordinator
    add_row(-infinity, host.nic_out_bytes_per_s / TOKEN_BYTES, _ones(out[COORDINATOR]))
    add_row(-infinity, host.nic_in_bytes_per_s / TOKEN_BYTES, _ones(into[COORDINATOR]))
    lp.run()
    return -float(lp.getInfo().objective_function_value)


def _ones(entries: Sequence[tuple[int, float]]) -> list[tuple[int, float]]:
    return [(column, 1.0) for column, _ in entries]


def _largest(entries: Sequence[tuple[int, float]]) -> float:
    return max((size for _, size in entries), default=TOKEN_BYTES)


def _possible_legs(plan: Plan, partial_inference: bool) -> list[Leg]:
    layers = plan.model.num_hidden_layers
    pairs: list[tuple[str, str]] = []
    for engine in plan.engines:
        if engine.start_layer == 0:
            pairs.append((COORDINATOR, engine.name))
        if engine.end_layer == layers:
            pairs.append((engine.name, COORDINATOR))
        for other in plan.engines:
            inside = other.start_layer < engine.end_layer < other.end_layer
            exact = other.start_layer == engine.end_layer
            if exact or (partial_inference and inside):
                pairs.append((engine.name, other.name))
    legs = []
    for src, dst in pairs:
        leg = Leg(src, dst, 0.0, 0.0)
        capacity = _link_capacity(plan, leg)
        if capacity > 0:
            legs.append(Leg(src, dst, 0.0, capacity))
    return legs
