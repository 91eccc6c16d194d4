"""An independent check of plans of whole engines: plain scans, no code shared with the search."""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Iterator
from math import inf

from penstock.plan.plan import Engine, Leg, Plan, Stage
from penstock.spec.cluster import COORDINATOR

RELATIVE = 1e-6
TOKEN_BYTES = 2.0


def check_engine_plan(plan: Plan) -> list[str]:
    """Violations of a plan of whole engines, in words; an empty list means that it holds."""
    return [
        *_pipelines(plan),
        *_memory(plan),
        *_legs(plan),
        *_flows(plan),
        *_handoff(plan),
    ]


def _pipelines(plan: Plan) -> Iterator[str]:
    """Every layer once, every node once, and links between successive stages."""
    users: dict[str, list[str]] = defaultdict(list)
    heads, layers = plan.model.num_attention_heads, plan.model.num_hidden_layers
    for engine in plan.engines:
        held = [layer for s in engine.stages for layer in range(s.start_layer, s.end_layer)]
        if held != list(range(layers)) and engine.scheduler is not None:
            yield f"engine {engine.name} does not hold layers 0 to {layers - 1} in order"
        for stage in engine.stages:
            users[stage.node].append(engine.name)
            gpus = plan.cluster.node(stage.node).count
            if heads % gpus:
                yield f"node {stage.node}: {gpus} GPUs do not divide {heads} attention heads"
        for i in range(1, len(engine.stages)):
            a, b = engine.stages[i - 1].node, engine.stages[i].node
            if plan.cluster.link(a, b) is None:
                yield f"engine {engine.name}: the cluster has no link from {a} to {b}"
        if engine.role == "prefill" and engine.speculation is not None:
            yield f"engine {engine.name} only computes prompts, so it cannot speculate"
    for node, names in users.items():
        if len(names) > 1:
            yield f"node {node} is used by {', '.join(names)}"


def _memory(plan: Plan) -> Iterator[str]:
    """Weights and KV memory of each stage fit its GPUs; every engine holds at least a block."""
    model = plan.model
    for engine in plan.engines:
        if engine.scheduler is None:
            continue
        if engine.kv_capacity_layer_tokens < engine.num_layers * engine.scheduler.block_size:
            yield f"engine {engine.name} has less KV memory than one block"
        for stage in engine.stages:
            node = plan.cluster.node(stage.node)
            entries = engine.kv_capacity_layer_tokens * stage.num_layers / engine.num_layers
            kv_bytes = entries * model.kv_bytes_per_token_per_layer
            weights = stage.num_layers * model.layer_weight_bytes
            room = node.count * node.accelerator.memory_bytes
            if weights + kv_bytes > room * (1 + RELATIVE):
                yield (
                    f"node {stage.node}: weights and KV memory take "
                    f"{(weights + kv_bytes) / 2**30:.1f} GiB of {room / 2**30:.1f}"
                )


def _legs(plan: Plan) -> Iterator[str]:
    """Requests enter where prompts are computed, and answers leave where they are decoded."""
    role = {engine.name: engine.role for engine in plan.engines}
    for leg in plan.legs:
        label = f"leg {leg.src} -> {leg.dst}"
        if leg.src == COORDINATOR:
            right = role[leg.dst] != "decode"
        elif leg.dst == COORDINATOR:
            right = role[leg.src] != "prefill"
        else:
            right = (role[leg.src], role[leg.dst]) == ("prefill", "decode")
        if not right:
            yield f"{label} does not go from prompts to decodes"
        if leg.flow_tokens_per_s > _capacity(plan, leg) * (1 + RELATIVE):
            yield f"{label} carries more than its link"
    ends = {(leg.src, leg.dst) for leg in plan.legs}
    for engine in plan.engines:
        first = engine.role != "decode"
        if first and (COORDINATOR, engine.name) not in ends:
            yield f"engine {engine.name} gets no requests: no leg leads there"
        if engine.role != "prefill" and (engine.name, COORDINATOR) not in ends:
            yield f"engine {engine.name} cannot answer: no leg leads to the coordinator"


def _capacity(plan: Plan, leg: Leg) -> float:
    """Tokens/s of the link below a leg; 0 where there is none."""
    engines = {engine.name: engine for engine in plan.engines}
    a = COORDINATOR if leg.src == COORDINATOR else engines[leg.src].stages[-1].node
    b = COORDINATOR if leg.dst == COORDINATOR else engines[leg.dst].stages[0].node
    link = plan.cluster.link(a, b)
    if link is None:
        return 0.0
    size = TOKEN_BYTES
    if COORDINATOR not in (leg.src, leg.dst):
        size = float(plan.model.kv_bytes_per_token_per_layer * plan.model.num_hidden_layers)
    return link.bandwidth_bytes_per_s / size


def _flows(plan: Plan) -> Iterator[str]:
    into: dict[str, float] = defaultdict(float)
    out: dict[str, float] = defaultdict(float)
    for leg in plan.legs:
        into[leg.dst] += leg.flow_tokens_per_s
        out[leg.src] += leg.flow_tokens_per_s
    for engine in plan.engines:
        name = engine.name
        if abs(into[name] - out[name]) > RELATIVE * max(1.0, into[name]):
            gap = into[name] - out[name]
            yield f"engine {name} takes in and gives out flows that differ by {gap}"
    stated, sent = plan.max_flow_tokens_per_s, out[COORDINATOR]
    if abs(stated - sent) > RELATIVE * max(1.0, sent):
        yield f"the plan states a flow of {stated:.6f}, its legs carry {sent:.6f}"
    if plan.value < 0:
        yield f"the plan's value is {plan.value}"


def _handoff(plan: Plan) -> Iterator[str]:
    """KV memory moves no faster than the links between stages of the same layers."""
    stated = plan.handoff.bandwidth_bytes_per_s
    if stated == inf:
        return
    for a, b in _exchanges(plan):
        link = plan.cluster.link(a.node, b.node)
        if link is None:
            yield f"KV memory cannot go from {a.node} to {b.node}: the cluster has no link"
        elif stated > link.bandwidth_bytes_per_s * (1 + RELATIVE):
            yield f"handoff is faster than the link from {a.node} to {b.node}"


def _exchanges(plan: Plan) -> Iterator[tuple[Stage, Stage]]:
    """Stages of prefill and decode engines that hold the same layer."""

    def stages(role: str) -> list[Stage]:
        engines: list[Engine] = [engine for engine in plan.engines if engine.role == role]
        return [stage for engine in engines for stage in engine.stages]

    for a in stages("prefill"):
        for b in stages("decode"):
            if max(a.start_layer, b.start_layer) < min(a.end_layer, b.end_layer):
                yield a, b
