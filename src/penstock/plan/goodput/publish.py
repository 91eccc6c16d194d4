"""Plans of whole engines: from engines on named nodes, or from a fleet that a sweep has found.

The flow of a leg counts prompt tokens per second: what enters an engine of role ``prefill`` leaves
it as KV memory for engines of role ``decode``, and comes back to the coordinator as answers.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from itertools import pairwise
from math import inf
from typing import TYPE_CHECKING

from penstock import __version__
from penstock.cost.base import BatchLimits
from penstock.cost.steps import EngineShape, StepCostModel
from penstock.errors import SpecError
from penstock.plan.plan import Engine, EngineRouterName, Leg, Plan, Role, Routing, Stage, Unused
from penstock.plan.settings import HandoffSettings, SchedulerSettings, SpeculationSettings
from penstock.spec.cluster import COORDINATOR, Cluster, Link
from penstock.spec.hardware import Coordinator, Node
from penstock.spec.model import ModelSpec

if TYPE_CHECKING:
    from penstock.plan.goodput.fleet import Fleet

REGION = "default"
TOKEN_BYTES = 2.0
MAX_NUM_SEQS = 256
DISK_BYTES_PER_S = 1e9
NIC_BYTES_PER_S = 25e9
"""Of synthesised machines whose links nobody has named (200 Gbit/s)."""


@dataclass(frozen=True, slots=True)
class Placed:
    """An engine on nodes of the cluster, one node a stage; ``weight`` is its share of requests."""

    name: str
    nodes: tuple[str, ...]
    kv_tokens: int
    role: Role = "both"
    scheduler: SchedulerSettings = field(default_factory=SchedulerSettings)
    weight: float = 1.0
    speculation: SpeculationSettings | None = None


@dataclass(frozen=True, slots=True)
class Outcome:
    """What a search found out about its answer.

    ``rate_per_s`` requests per second of ``mean_prompt_tokens`` meet their limits in a share
    ``attainment`` of the cases.
    """

    rate_per_s: float
    attainment: float
    mean_prompt_tokens: float
    planner: str
    reasons: tuple[str, ...] = ()
    seed: int = 0

    @property
    def goodput_per_s(self) -> float:
        return self.rate_per_s * self.attainment


def engine_plan(
    cluster: Cluster,
    cost: StepCostModel,
    placed: Sequence[Placed],
    outcome: Outcome,
    *,
    routing: Routing | None = None,
    handoff: HandoffSettings | None = None,
    unused: Mapping[str, str] | None = None,
) -> Plan:
    """The plan of whole engines on ``cluster``; legs carry the rate of ``outcome``.

    Raises ``SpecError`` where the cluster does not join what has to be joined.
    """
    model = cost.model
    flow = outcome.rate_per_s * outcome.mean_prompt_tokens
    engines = tuple(_engine(one, model) for one in placed)
    why = unused or {}
    return Plan(
        cluster=cluster,
        model=model,
        engines=engines,
        legs=_legs(cluster, model, placed, flow),
        planner=outcome.planner,
        objective="goodput",
        value=outcome.goodput_per_s,
        max_flow_tokens_per_s=flow,
        routing=routing or Routing(),
        unused=tuple(
            Unused(node.name, why[node.name]) for node in cluster.nodes if node.name in why
        ),
        reasons=outcome.reasons,
        seed=outcome.seed,
        cost=cost.to_dict(),
        version=__version__,
        handoff=handoff or HandoffSettings(),
    )


def even_stages(nodes: Sequence[str], layers: int) -> tuple[Stage, ...]:
    """``layers`` over ``nodes`` in order, as evenly as they go; the first ones get one more."""
    each, more = divmod(layers, len(nodes))
    stages, start = [], 0
    for i, node in enumerate(nodes):
        end = start + each + (i < more)
        stages.append(Stage(node, start, end))
        start = end
    return tuple(stages)


def _engine(one: Placed, model: ModelSpec) -> Engine:
    settings = one.scheduler
    seqs = settings.max_num_seqs or MAX_NUM_SEQS
    tokens = settings.max_num_batched_tokens or one.kv_tokens
    return Engine(
        one.name,
        even_stages(one.nodes, model.num_hidden_layers),
        one.kv_tokens * model.num_hidden_layers,
        BatchLimits(seqs, tokens, seqs, one.kv_tokens),
        one.role,
        settings,
        one.speculation,
    )


def _legs(
    cluster: Cluster, model: ModelSpec, placed: Sequence[Placed], flow: float
) -> tuple[Leg, ...]:
    """Coordinator to prompts, prompts to decodes, decodes back; flow by weight."""
    entries = [one for one in placed if one.role != "decode"]
    decoders = [one for one in placed if one.role == "decode"]
    kv_bytes = float(model.kv_bytes_per_token_per_layer * model.num_hidden_layers)
    into = _shares(entries, flow)
    legs = [
        Leg(COORDINATOR, one.name, into[one.name], _tokens(cluster, None, one, TOKEN_BYTES))
        for one in entries
    ]
    apart = sum(into[one.name] for one in entries if one.role == "prefill")
    received = _shares(decoders, apart)
    for one in entries:
        if one.role == "prefill":
            share = into[one.name] / apart if apart else 0.0
            legs += [
                Leg(
                    one.name,
                    other.name,
                    share * received[other.name],
                    _tokens(cluster, one, other, kv_bytes),
                )
                for other in decoders
            ]
    return (
        *legs,
        *(
            Leg(one.name, COORDINATOR, {**into, **received}[one.name],
                _tokens(cluster, one, None, TOKEN_BYTES))
            for one in (*entries, *decoders)
            if one.role != "prefill"
        ),
    )  # fmt: skip


def _shares(members: Sequence[Placed], flow: float) -> dict[str, float]:
    total = sum(one.weight for one in members)
    return {one.name: flow * one.weight / total for one in members}


def _tokens(cluster: Cluster, src: Placed | None, dst: Placed | None, size: float) -> float:
    """Tokens/s of the link between two engines, or between one and the coordinator."""
    a = COORDINATOR if src is None else src.nodes[-1]
    b = COORDINATOR if dst is None else dst.nodes[0]
    link = cluster.link(a, b)
    if link is None:
        raise SpecError(
            f"no link from {a} to {b}", key="cluster.links", fix="join them, or leave a node out"
        )
    return link.bandwidth_bytes_per_s / size


# -- fleets without machines ------------------------------------------------------------------


def fleet_plan(
    fleet: Fleet,
    cost: StepCostModel,
    outcome: Outcome,
    *,
    handoff: HandoffSettings | None = None,
    mean_output_tokens: float = 240.0,
    name: str = "fleet",
) -> Plan:
    """``fleet`` as a plan on machines made up for it: one node a stage, one region for all.

    ``cost`` is of the weights that the fleet runs. Raises ``Infeasible`` where the model does not
    fit an engine, ``SpecError`` for shapes that a plan cannot express.
    """
    handoff = handoff or HandoffSettings()
    nic = handoff.bandwidth_bytes_per_s
    nic = NIC_BYTES_PER_S if nic == inf else nic
    shares = fleet.shares or (1.0,) * len(fleet.engines)
    placed: list[Placed] = []
    nodes: list[Node] = []
    pairs: dict[tuple[str, str], Link | None] = {}
    for kind, ((choice, count), share) in enumerate(zip(fleet.engines, shares, strict=True)):
        kv_tokens = cost.kv_capacity_tokens(choice.shape)
        for i in range(count):
            label = f"{choice.role}-{kind}-{i}"
            own = _machines(label, choice.shape, nic)
            nodes += own
            pairs.update(_inside(own))
            placed.append(
                Placed(
                    label,
                    tuple(node.name for node in own),
                    kv_tokens,
                    choice.role,
                    choice.settings,
                    share,
                    None if choice.role == "prefill" else choice.speculation,
                )
            )
    link = Link(nic, handoff.latency_s)
    cluster = Cluster(
        name, tuple(nodes), Coordinator(REGION, nic, nic), {(REGION, REGION): link}, pairs
    )
    router: EngineRouterName = "flow-weighted" if fleet.shares else "least-outstanding"
    routing = Routing(engine_router=router, expected_output_tokens=mean_output_tokens)
    return engine_plan(cluster, cost, placed, outcome, routing=routing, handoff=handoff)


def _machines(label: str, shape: EngineShape, nic_bytes_per_s: float) -> list[Node]:
    """One node for each stage, with the GPUs of its tensor-parallel group."""
    if shape.data_parallel_size > 1 or shape.expert_parallel_size > 1:
        raise SpecError(
            "a plan has no key for data or expert parallelism",
            key="data_parallel_size",
            value=shape.data_parallel_size,
            fix="use tensor and pipeline parallelism",
        )
    gpu, count = shape.accelerator, shape.tensor_parallel_size
    stages = shape.pipeline_parallel_size
    price = gpu.price_per_hour
    return [
        Node(
            name=label if stages == 1 else f"{label}-stage{stage}",
            accelerator=gpu,
            count=count,
            machine_type=gpu.name if count == 1 else f"{gpu.name}x{count}",
            region=REGION,
            nic_in_bytes_per_s=nic_bytes_per_s,
            nic_out_bytes_per_s=nic_bytes_per_s,
            disk_bytes_per_s=DISK_BYTES_PER_S,
            memory_bytes=gpu.memory_bytes * count,
            price_per_hour=None if price is None else price * count,
        )
        for stage in range(stages)
    ]


def _inside(stages: Sequence[Node]) -> dict[tuple[str, str], Link | None]:
    """Stages of one engine hand over inside one machine, as the cost model assumes."""
    pairs: dict[tuple[str, str], Link | None] = {}
    for a, b in pairwise(stages):
        link = Link(a.accelerator.interconnect_bytes_per_s or NIC_BYTES_PER_S, 0.0)
        pairs[a.name, b.name] = pairs[b.name, a.name] = link
    return pairs
