"""A candidate as a pool plan, and a pool plan as a candidate."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import replace

from penstock import __version__
from penstock.plan.goodput.publish import Outcome, Placed, engine_plan, even_stages
from penstock.plan.joint.evaluate import Evaluator
from penstock.plan.joint.layout import Candidate, Group, parts_of
from penstock.plan.joint.limits import Seat
from penstock.plan.joint.problem import JointProblem
from penstock.plan.joint.state import CHUNK_TOKENS, MAX_SEQS
from penstock.plan.parts import cut
from penstock.plan.plan import Engine, Routing
from penstock.plan.pool_plan import Deployment, PoolPlan, Unplaced
from penstock.plan.settings import SchedulerSettings
from penstock.spec.cluster import Cluster

PLANNER = "joint"
SETTINGS = SchedulerSettings("vllm", max_num_seqs=MAX_SEQS, max_num_batched_tokens=CHUNK_TOKENS)


def publish(
    evaluator: Evaluator,
    candidate: Candidate,
    value: float,
    *,
    unplaced: Mapping[int, str],
    reasons: Sequence[str] = (),
) -> PoolPlan:
    """The plan of ``candidate``, whose requests meet their limits in a share ``value``.

    Raises ``SpecError`` where the cluster does not join what has to be joined.
    """
    problem = evaluator.problem
    question = problem.question
    parts, names = parts_of(candidate.groups, question.cluster)
    nodes = cut(question.cluster, parts)
    deployments = tuple(
        _deployment(evaluator, candidate, m, nodes, names)
        for m in range(len(problem.models))
        if m in candidate.placed
    )
    return PoolPlan(
        question.cluster,
        tuple(part for part in parts if len(part.sizes) > 1),
        deployments,
        PLANNER,
        value,
        question.sharing,
        tuple(Unplaced(problem.models[m].name, why) for m, why in sorted(unplaced.items())),
        tuple(reasons),
        question.seed,
        __version__,
    )


def _deployment(
    evaluator: Evaluator,
    candidate: Candidate,
    m: int,
    nodes: Cluster,
    names: Mapping[int, Mapping[int, str]],
) -> Deployment:
    problem = evaluator.problem
    model, form = problem.models[m], problem.forms[m][candidate.forms[m]]
    placed: list[Placed] = []
    for g in sorted(candidate.homes(m), key=lambda g: order_of(evaluator, candidate, g)):
        group = candidate.groups[g]
        tokens = evaluator.kv_tokens(candidate, g)[candidate.held[g].index(m)]
        stages = tuple(names[machine][first] for machine, first in group.stages)
        placed.append(Placed(f"engine-{len(placed)}", stages, tokens, scheduler=SETTINGS))
    rate = float(problem.asked[m]) / problem.duration_s
    outcome = Outcome(
        rate,
        1.0,
        float(problem.mean_prompt[m]) or 1.0,
        PLANNER,
        seed=problem.question.seed,
    )
    routing = Routing(expected_output_tokens=float(problem.mean_output[m]) or 1.0)
    plan = engine_plan(nodes, problem.book.cost(form.spec), placed, outcome, routing=routing)
    return Deployment(
        model.name,
        replace(plan, checkpoint=model.checkpoint),
        form.variant.precision,
        form.variant.accuracy,
        model.priority,
        model.limits,
    )


def order_of(evaluator: Evaluator, candidate: Candidate, g: int) -> tuple[object, ...]:
    """Engines of a model in the order that routers meet them: that of the replay."""
    kind = evaluator.kind(candidate.groups[g])
    return (-kind.gpus, kind.gpu, kind.tensor), candidate.held[g], g


def candidate_of(problem: JointProblem, pool: PoolPlan) -> tuple[Candidate, frozenset[Seat]]:
    """What ``pool`` holds now, as far as the question still asks for it, and the seats.

    Engines of models or stored forms that the question does not allow are let go, and so are
    those whose layers are split otherwise than evenly.
    """
    index = {model.name: i for i, model in enumerate(problem.models)}
    machines = {node.name: i for i, node in enumerate(problem.machines)}
    forms = [0] * len(problem.models)
    held: dict[Group, set[int]] = {}
    for deployment in pool.deployments:
        m = index.get(deployment.name)
        if m is None:
            continue
        known = [
            i for i, f in enumerate(problem.forms[m]) if f.variant.precision == deployment.precision
        ]
        if not known or problem.forms[m][known[0]].spec != deployment.plan.model:
            continue
        forms[m] = known[0]
        for engine in deployment.plan.engines:
            group = _group(engine, pool, machines)
            if group is not None:
                held.setdefault(group, set()).add(m)
    groups = [*held, *_free_groups(held, problem)]
    order = sorted(groups)
    candidate = Candidate(
        tuple(order), tuple(tuple(sorted(held.get(group, ()))) for group in order), tuple(forms)
    )
    seats = frozenset((m, forms[m], group) for group, models in held.items() for m in models)
    return candidate, seats


def _group(engine: Engine, pool: PoolPlan, machines: Mapping[str, int]) -> Group | None:
    """The group an engine stands on; None where another planner cut it in ways we do not."""
    even = even_stages([stage.node for stage in engine.stages], engine.num_layers)
    gpus = [sorted(pool.gpus_of(stage.node)) for stage in engine.stages]
    if engine.stages != even or len({len(held) for held in gpus}) > 1 or engine.url:
        return None
    if any(held[0][0] not in machines for held in gpus):
        return None
    return Group(tuple((machines[held[0][0]], held[0][1]) for held in gpus), len(gpus[0]))


def _free_groups(held: Mapping[Group, set[int]], problem: JointProblem) -> list[Group]:
    """GPUs that no engine stands on, one by one."""
    taken = {block for group in held for block in group.blocks}
    return [
        Group(((m, gpu),), 1)
        for m, node in enumerate(problem.machines)
        for gpu in range(node.count)
        if (m, gpu) not in taken
    ]
