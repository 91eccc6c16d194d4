"""From groups of GPUs and the replicas they hold to a pool plan."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, replace

from penstock import __version__
from penstock.cost.steps import StepCostModel
from penstock.plan.goodput.publish import Outcome, Placed, engine_plan, even_stages
from penstock.plan.parts import cut
from penstock.plan.plan import Plan, Routing, Stage
from penstock.plan.pool_plan import Deployment, PoolPlan, Sharing, Unplaced
from penstock.plan.published.asked import Asked
from penstock.plan.published.equal_gpus import Seated, Wanted, seat
from penstock.plan.settings import SchedulerSettings
from penstock.spec.served import ServedModel
from penstock.spec.variants import Variant


@dataclass(frozen=True, slots=True)
class Replica:
    """A model on group ``group``; ``layers`` by stage (empty = as even as they go).

    ``requests`` are in the engine at once.
    """

    group: int
    requests: int
    layers: tuple[int, ...] = ()


@dataclass(frozen=True, slots=True)
class Placing:
    """One model with its form and replicas."""

    served: ServedModel
    form: Variant
    replicas: tuple[Replica, ...]


@dataclass(frozen=True, slots=True)
class Verdict:
    """What a planner says of its answer."""

    planner: str
    value: float
    sharing: Sharing
    unplaced: tuple[Unplaced, ...] = ()
    reasons: tuple[str, ...] = ()


def pool_of(
    asked: Asked, groups: Sequence[Wanted], placings: Sequence[Placing], verdict: Verdict
) -> PoolPlan:
    """The plan of ``placings`` on ``groups``, which share no GPU; those that hold nothing go."""
    held = sorted({one.group for placing in placings for one in placing.replicas})
    seated = seat(asked.machines, [groups[g] for g in held])
    place = {g: i for i, g in enumerate(held)}
    deployments = tuple(
        Deployment(
            placing.served.name,
            _plan(asked, placing, seated, place, verdict),
            placing.form.precision,
            placing.form.accuracy,
            placing.served.priority,
            placing.served.limits,
        )
        for placing in placings
        if placing.replicas
    )
    question = asked.question
    return PoolPlan(
        question.cluster,
        seated.parts,
        deployments,
        verdict.planner,
        verdict.value,
        verdict.sharing,
        verdict.unplaced,
        verdict.reasons,
        question.seed,
        __version__,
    )


def _plan(
    asked: Asked,
    placing: Placing,
    seated: Seated,
    place: dict[int, int],
    verdict: Verdict,
) -> Plan:
    name = placing.served.name
    cost = asked.cost(placing.served, placing.form.precision)
    placed = [
        Placed(
            f"both-{i}",
            seated.nodes[place[one.group]],
            asked.kv_tokens(name, one.requests),
            scheduler=SchedulerSettings(max_num_seqs=one.requests),
        )
        for i, one in enumerate(placing.replicas)
    ]
    mean = asked.means[name]
    outcome = Outcome(
        mean.rate_per_s,
        verdict.value,
        float(mean.prompt_tokens),
        verdict.planner,
        seed=asked.question.seed,
    )
    divided = cut(asked.question.cluster, seated.parts)
    routing = Routing(expected_output_tokens=float(mean.output_tokens))
    plan = engine_plan(divided, cost, placed, outcome, routing=routing)
    engines = tuple(
        replace(engine, stages=_stages(seated.nodes[place[one.group]], one.layers, cost))
        for engine, one in zip(plan.engines, placing.replicas, strict=True)
    )
    return replace(plan, engines=engines, checkpoint=placing.served.checkpoint)


def _stages(nodes: Sequence[str], layers: Sequence[int], cost: StepCostModel) -> tuple[Stage, ...]:
    if not layers:
        return even_stages(nodes, cost.model.num_hidden_layers)
    ends = [sum(layers[: i + 1]) for i in range(len(layers))]
    return tuple(
        Stage(node, end - count, end) for node, count, end in zip(nodes, layers, ends, strict=True)
    )
