"""What a planner of many models is asked, and how it answers."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from math import inf
from typing import Protocol

from penstock.cost.steps import StepCostModel
from penstock.plan.planner import ProgressCallback
from penstock.plan.pool_plan import PoolPlan, Sharing
from penstock.spec.cluster import Cluster
from penstock.spec.model import ModelSpec
from penstock.spec.served import ServedModel
from penstock.spec.workload import Workload

CostOf = Callable[[ModelSpec], StepCostModel]
"""The step-cost model of a model in one precision (``spec.served.in_precision``)."""

Score = Callable[[Sequence[PoolPlan]], Sequence[float]]
"""Share of the requests of the question's workload that meet their limits, a plan each, over all
requests sent. Slow: planners ask it for their finalists only."""


@dataclass(frozen=True)
class PoolQuestion:
    """Models and their traffic on one cluster.

    ``workload`` names the model of every request. Limits come from its classes; a class without
    limits is met by being served. ``current`` is what the pool holds now (None = nothing), and
    ``move_budget_bytes`` what a new plan may load at most beyond it.
    """

    cluster: Cluster
    models: tuple[ServedModel, ...]
    workload: Workload
    cost_of: CostOf
    sharing: Sharing = field(default_factory=Sharing)
    gpu_memory_utilization: float = 0.9
    current: PoolPlan | None = None
    move_budget_bytes: float = inf
    seed: int = 0


class PoolPlanner(Protocol):
    """Answers a question with a plan. Raises ``Infeasible`` where a model fits nowhere at all."""

    def plan(
        self, question: PoolQuestion, score: Score, progress: ProgressCallback
    ) -> PoolPlan: ...
