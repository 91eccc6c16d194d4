"""AlpaServe (OSDI'23) on a pool: groups of one shape, replicas by search, batch 1, rejection.

The profile is what the question's cost model says of a mean request alone: a stage is busy for
its prompt and all its output tokens. A replica takes its weights and the KV memory of as many of
the longest requests as the pipeline has stages.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

from penstock.cost.steps import StepCostModel
from penstock.errors import Infeasible, SpecError
from penstock.plan.planner import Progress, ProgressCallback
from penstock.plan.pool.model import (
    LatencyProfile,
    PoolCluster,
    PoolModel,
    PoolPlacement,
    PoolProblem,
    Shape,
    Timing,
)
from penstock.plan.pool.policies import STATIC_POLICIES, place
from penstock.plan.pool.search import AS_PUBLISHED, ShapeLimits
from penstock.plan.pool.simulate import simulate_pool
from penstock.plan.pool_plan import PoolPlan, Sharing, Unplaced
from penstock.plan.pool_question import PoolQuestion, Score
from penstock.plan.published.asked import Asked, best_form
from penstock.plan.published.assemble import Placing, Replica, Verdict, pool_of
from penstock.plan.published.equal_gpus import Wanted, equal_machines, refuse_budget
from penstock.spec.names import did_you_mean
from penstock.spec.served import ServedModel

NAME = "alpaserve"
REJECTING = Sharing(turns="first-come", admission="deadline")


@dataclass(frozen=True, slots=True)
class AlpaServePlanner:
    """``policy``: one of ``STATIC_POLICIES``. ``limits``: the widest group."""

    policy: str = "mp-search"
    limits: ShapeLimits = AS_PUBLISHED

    def plan(self, question: PoolQuestion, score: Score, progress: ProgressCallback) -> PoolPlan:
        """Its own fast simulator scores; ``score`` is not asked.

        Raises ``SpecError`` for unequal machines or an unknown policy, ``Infeasible`` for a model
        that no group holds.
        """
        if self.policy not in STATIC_POLICIES:
            raise SpecError(
                "unknown policy",
                key="policy",
                value=self.policy,
                fix=did_you_mean(self.policy, STATIC_POLICIES),
            )
        refuse_budget(question, NAME)
        asked = Asked(question, equal_machines(question.cluster, NAME))
        progress(Progress("profiling every model in every shape"))
        problem = pool_problem(asked, self.limits)
        progress(Progress(f"searching with {self.policy}"))
        placement = place(self.policy, problem, _limits(asked, self.limits))
        problem.check(placement)
        return _published(asked, problem, placement, self.policy)


def _limits(asked: Asked, limits: ShapeLimits) -> ShapeLimits:
    """Powers of two that divide a machine, so that no tensor-parallel group spans two."""
    within = asked.machines.gpus_per_machine
    return ShapeLimits(min(limits.max_op, within & -within), limits.max_pp)


def pool_problem(asked: Asked, limits: ShapeLimits = AS_PUBLISHED) -> PoolProblem:
    """The question as AlpaServe knows it. Raises ``Infeasible`` for a model that fits nowhere."""
    limits = _limits(asked, limits)
    costs = [asked.cost(one, best_form(one).precision) for one in asked.question.models]
    rooms = [
        asked.room_bytes(cost, one.name)
        for cost, one in zip(costs, asked.question.models, strict=True)
    ]
    for one, room in zip(asked.question.models, rooms, strict=True):
        if not room:
            raise Infeasible(
                f"{one.name} fits on no pipeline of {asked.machines.num_gpus} x "
                f"{asked.machines.accelerator.name}",
                binding="accelerator memory",
                fix="add GPUs, or allow narrower weights",
            )
    models = tuple(
        PoolModel(
            _profile(asked, cost, one, limits),
            _tightest(asked, index),
            asked.means[one.name].rate_per_s,
        )
        for index, (cost, one) in enumerate(zip(costs, asked.question.models, strict=True))
    )
    machines = asked.machines
    pool = PoolCluster(machines.num_gpus, min(rooms), machines.gpus_per_machine)
    return PoolProblem(models, pool, asked.traffic)


def _tightest(asked: Asked, index: int) -> float:
    own = asked.traffic.slo_s[asked.traffic.model == index]
    return float(own.min()) if len(own) else float("inf")


def _profile(
    asked: Asked, cost: StepCostModel, served: ServedModel, limits: ShapeLimits
) -> LatencyProfile:
    """Shapes of powers of two that the cost model knows."""
    timings = {}
    for tensor in _powers(min(limits.max_op, asked.machines.gpus_per_machine)):
        for pipeline in _powers(min(limits.max_pp, asked.machines.num_gpus // tensor)):
            shape = asked.shape(tensor, pipeline)
            try:
                seconds = asked.latency_s(cost, served.name, shape)
                held = asked.held_bytes(cost, served.name, shape, pipeline)
            except (SpecError, Infeasible):
                continue
            timings[Shape(tensor, pipeline)] = Timing({1: seconds}, (held,) * pipeline)
    return LatencyProfile(served.name, timings)


def _powers(most: int) -> list[int]:
    return [1 << bit for bit in range(most.bit_length())]


def _published(
    asked: Asked, problem: PoolProblem, placement: PoolPlacement, policy: str
) -> PoolPlan:
    # Wider groups first: then every one starts at a multiple of its own width.
    groups = sorted((g for g in placement.groups if g.models), key=lambda group: -group.shape.op)
    outcome = simulate_pool(problem, PoolPlacement(tuple(groups)))
    placings = [
        Placing(
            served,
            best_form(served),
            tuple(Replica(g, group.shape.pp) for g, group in enumerate(groups)
                  if m in group.models),
        )
        for m, served in enumerate(asked.question.models)
    ]  # fmt: skip
    unplaced = tuple(
        Unplaced(one.served.name, _why(problem, m))
        for m, one in enumerate(placings)
        if not one.replicas
    )
    shapes = " | ".join(
        f"{group.shape}: {', '.join(asked.names[m] for m in sorted(group.models))}"
        for group in groups
    )
    reasons = (
        f"{policy}: {shapes}",
        f"its own simulator, batch 1 and no loading: {outcome.attainment:.1%} within their limits",
        "an engine takes one request a pipeline stage; a late request is refused on arrival",
    )
    verdict = Verdict(NAME, outcome.attainment, REJECTING, unplaced, reasons)
    return pool_of(asked, _consecutive([group.shape for group in groups]), placings, verdict)


def _why(problem: PoolProblem, model: int) -> str:
    if not problem.models[model].profile.timings:
        return "no shape of powers of two holds it"
    return "no group has memory left for it where a replica would serve most"


def _consecutive(shapes: Sequence[Shape]) -> list[Wanted]:
    """GPUs in order, a group after the other."""
    wanted, first = [], 0
    for shape in shapes:
        stages = tuple(
            tuple(range(first + s * shape.op, first + (s + 1) * shape.op)) for s in range(shape.pp)
        )
        wanted.append(Wanted(stages))
        first += shape.gpus
    return wanted
