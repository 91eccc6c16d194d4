"""Which GPUs of a cluster form which engines: layouts, and the plans they become."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field
from math import inf

from penstock.cost.steps import StepCostModel
from penstock.errors import SpecError
from penstock.plan.goodput.fleet import EngineChoice
from penstock.plan.goodput.machines import Machines, pipelines
from penstock.plan.goodput.publish import Outcome, Placed, engine_plan, even_stages
from penstock.plan.parts import Parts, cut
from penstock.plan.plan import EngineRouterName, Plan, Routing
from penstock.plan.settings import HandoffSettings
from penstock.spec.cluster import Cluster, Link


@dataclass(frozen=True, slots=True)
class Share:
    """``units`` of ``unit`` GPUs each, of some machines, as engines of one kind.

    ``rate_per_s`` is what one such engine sustains of its phase.
    """

    machines: Machines
    choice: EngineChoice
    unit: int
    first_unit: int
    units: int
    rate_per_s: float

    @property
    def engines(self) -> int:
        shape = self.choice.shape
        groups = self.units * (self.unit // shape.tensor_parallel_size)
        return groups // shape.pipeline_parallel_size


@dataclass(frozen=True, slots=True)
class Layout:
    """Shares of all machines; ``estimate_per_s`` is what their engines sustain on their own."""

    shares: tuple[Share, ...]

    @property
    def apart(self) -> bool:
        return any(share.choice.role != "both" for share in self.shares)

    @property
    def num_gpus(self) -> int:
        return sum(share.engines * share.choice.num_gpus for share in self.shares)

    @property
    def estimate_per_s(self) -> float:
        total = {"both": 0.0, "prefill": 0.0, "decode": 0.0}
        for share in self.shares:
            total[share.choice.role] += share.engines * share.rate_per_s
        return total["both"] + min(total["prefill"], total["decode"])

    def __str__(self) -> str:
        return " + ".join(f"{one.engines} x {one.choice}" for one in self.shares if one.engines)


@dataclass
class _Cutting:
    """Groups of each machine, filled share by share."""

    sizes: dict[str, list[int]] = field(default_factory=dict)
    owners: dict[str, list[int]] = field(default_factory=dict)

    def take(self, owner: int, share: Share) -> None:
        per_machine = share.machines.gpus_per_machine // share.unit
        tensor = share.choice.shape.tensor_parallel_size
        for unit in range(share.first_unit, share.first_unit + share.units):
            machine = share.machines.names[unit // per_machine]
            for _ in range(share.unit // tensor):
                self.sizes.setdefault(machine, []).append(tensor)
                self.owners.setdefault(machine, []).append(owner)

    def leave(self, cluster: Cluster) -> None:
        """What no share takes of a machine is a group of its own."""
        for machine, sizes in self.sizes.items():
            left = cluster.node(machine).count - sum(sizes)
            if left:
                sizes.append(left)


def layout_plan(
    layout: Layout,
    cluster: Cluster,
    cost: StepCostModel,
    outcome: Outcome,
    mean_output_tokens: float,
) -> Plan:
    """The plan of a layout: machines cut into groups, engines on them, hand-over on their links.

    Raises ``SpecError`` where engines that hand over to each other are not joined.
    """
    cutting = _Cutting()
    for owner, share in enumerate(layout.shares):
        cutting.take(owner, share)
    cutting.leave(cluster)
    parts = [Parts(machine, tuple(sizes)) for machine, sizes in cutting.sizes.items()]
    divided = cut(cluster, parts)
    groups: list[list[str]] = [[] for _ in layout.shares]
    for part in parts:
        # The last group of a machine may be what is left of it, and nobody's.
        for name, owner in zip(part.names, cutting.owners[part.machine], strict=False):
            groups[owner].append(name)
    placed: list[Placed] = []
    for share, names in zip(layout.shares, groups, strict=True):
        shape = share.choice.shape
        tokens = cost.kv_capacity_tokens(shape)
        for nodes in pipelines(names, shape.pipeline_parallel_size):
            placed.append(
                Placed(
                    f"{share.choice.role}-{len(placed)}",
                    nodes,
                    tokens,
                    share.choice.role,
                    share.choice.settings,
                    share.rate_per_s,
                )
            )
    used = {name for one in placed for name in one.nodes}
    unused = {
        node.name: "left over: no further engine fits"
        for node in divided.nodes
        if node.name not in used
    }
    roles = [share.choice.role for share in layout.shares if share.engines]
    # Engines of one role that differ take requests by what each sustains.
    mixed = len(set(roles)) < len(roles)
    router: EngineRouterName = "flow-weighted" if mixed else "least-outstanding"
    layers = cost.model.num_hidden_layers
    return engine_plan(
        divided,
        cost,
        placed,
        outcome,
        routing=Routing(
            engine_router=router,
            decode_router=router,
            expected_output_tokens=mean_output_tokens,
        ),
        handoff=link_handoff(divided, placed, layers) if layout.apart else None,
        unused=unused,
    )


def link_handoff(cluster: Cluster, placed: Sequence[Placed], layers: int) -> HandoffSettings:
    """Hand-over at the speed of the slowest link between stages that hold the same layers.

    All stages of an engine send at once, but share one link here: no faster than it really is.
    Raises ``SpecError`` where two such stages are not joined.
    """
    bandwidth, latency_s = inf, 0.0
    receivers = [
        s for one in placed if one.role == "decode" for s in even_stages(one.nodes, layers)
    ]
    senders = [s for one in placed if one.role == "prefill" for s in even_stages(one.nodes, layers)]
    for a in senders:
        for b in receivers:
            if a.end_layer <= b.start_layer or b.end_layer <= a.start_layer:
                continue
            link = cluster.link(a.node, b.node)
            if link is None:
                raise SpecError(
                    f"no link from {a.node} to {b.node}",
                    key="cluster.links",
                    fix="join them, so that KV memory can be handed over",
                )
            bandwidth = min(bandwidth, _through_nics(cluster, a.node, b.node, link))
            latency_s = max(latency_s, link.latency_s)
    return HandoffSettings(bandwidth, latency_s, layer_by_layer=True)


def _through_nics(cluster: Cluster, src: str, dst: str, link: Link) -> float:
    """Bytes/s of a link, and of the NICs at its ends unless it lies inside one machine."""
    if (src, dst) in cluster.pair_links:
        return link.bandwidth_bytes_per_s
    out, into = cluster.node(src).nic_out_bytes_per_s, cluster.node(dst).nic_in_bytes_per_s
    return min(link.bandwidth_bytes_per_s, out, into)
