"""Plans of many models on one pool: who is asked, with what, and how answers are scored."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, replace
from math import inf
from pathlib import Path

from penstock.api import load_traffic
from penstock.cost.step_roofline import StepRoofline
from penstock.errors import SpecError
from penstock.measure.metrics import summarise
from penstock.plan.moves import moves
from penstock.plan.planner import ProgressCallback, silent
from penstock.plan.pool_plan import PoolPlan, Sharing
from penstock.plan.pool_question import PoolPlanner, PoolQuestion, Score
from penstock.plan.published.by_name import PUBLISHED, published_planner
from penstock.policy.baseline import has_relative_limits
from penstock.policy.replan import ReplanController, ReplanSettings, rates_of
from penstock.pools import as_pool
from penstock.sim.pools import PoolOptions, simulate_pool
from penstock.sim.pools.options import Replan
from penstock.spec.cluster import Cluster
from penstock.spec.load import load_cluster
from penstock.spec.names import did_you_mean
from penstock.spec.served import ServedModel, in_precision, with_limits
from penstock.spec.served_file import load_served
from penstock.spec.workload import ClosedLoop, Request, Saturating, Workload

JOINT = "joint"


@dataclass(frozen=True)
class SimulatedPools:
    """Scores plans by simulating the question's workload, token by token.

    With a pool in place a run starts from it: what a plan loads serves when it is loaded.
    """

    question: PoolQuestion

    def __call__(self, plans: Sequence[PoolPlan]) -> list[float]:
        return [self.share(plan) for plan in plans]

    def share(self, plan: PoolPlan) -> float:
        """Share of the requests sent that meet their limits; 1 where none is sent."""
        asked = self.question
        specs = {model.name: model.model for model in asked.models}
        costs = {
            entry.name: asked.cost_of(in_precision(specs[entry.name], entry.precision))
            for entry in plan.deployments
        }
        tokens = any(entry.slo.itl_s is not None for entry in asked.workload.classes)
        options = PoolOptions(seed=asked.workload.seed, keep_tokens=tokens)
        start = plan
        if asked.current is not None:
            start, options = asked.current, replace(options, changes=((0.0, plan),))
        run = simulate_pool(start, asked.workload, costs, options)
        overall = summarise(run, classes=asked.workload.classes).overall
        if overall.slo_attainment is not None:
            return overall.slo_attainment
        return overall.finished / overall.sent if overall.sent else 1.0


def plan_pool(
    cluster: Cluster | str | Path,
    models: Sequence[ServedModel] | str | Path,
    workload: Workload | str | Path,
    *,
    planner: str = JOINT,
    current: PoolPlan | str | Path | None = None,
    move_budget_bytes: float = inf,
    sharing: Sharing | None = None,
    rate: float | None = None,
    time_limit_s: float | None = None,
    seed: int = 0,
    progress: ProgressCallback = silent,
) -> PoolPlan:
    """Place ``models`` on ``cluster`` for ``workload``, which names the model of every request.

    ``current`` is what the pool holds now; of what it does not hold, ``move_budget_bytes`` of
    weights may be loaded. The plan's value is the share of requests sent that meet their limits.
    Raises ``SpecError`` for what cannot be read and ``Infeasible`` where a model fits nowhere.
    """
    fleet = load_cluster(cluster) if isinstance(cluster, (str, Path)) else cluster
    served = load_served(models) if isinstance(models, (str, Path)) else tuple(models)
    traffic = with_limits(load_traffic(workload, rate=rate), served)
    _check_traffic(traffic)
    question = PoolQuestion(
        fleet,
        served,
        traffic,
        StepRoofline,
        sharing or Sharing(),
        current=_current(current, fleet),
        move_budget_bytes=move_budget_bytes,
        seed=seed,
    )
    return pool_planner(planner, time_limit_s).plan(question, pool_score(question), progress)


def pool_score(question: PoolQuestion) -> Score:
    """What planners ask about their finalists."""
    return SimulatedPools(question)


def pool_planner(name: str, time_limit_s: float | None = None) -> PoolPlanner:
    """The planner of pools called ``name``; ``SpecError`` with the nearest name if there is none.

    ``time_limit_s`` is for ``joint`` only.
    """
    if name == JOINT:
        # The search needs Numba, which takes a while to load.
        from penstock.plan.joint.planner import JointPlanner  # noqa: PLC0415

        return JointPlanner(time_limit_s=time_limit_s)
    found = published_planner(name)
    if found is None:
        raise SpecError(
            "unknown planner of pools",
            key="--planner",
            value=name,
            fix=did_you_mean(name, (JOINT, *PUBLISHED)),
        )
    if time_limit_s is not None:
        raise SpecError(
            f"planner {name} ends by itself", key="--time-limit", value=time_limit_s,
            fix="leave it out",
        )  # fmt: skip
    return found


def _current(current: PoolPlan | str | Path | None, cluster: Cluster) -> PoolPlan | None:
    """What the pool holds. Raises ``SpecError`` for another cluster than ``cluster``."""
    if current is None or isinstance(current, PoolPlan):
        pool = current
    else:
        pool = as_pool(current)
        if pool is None:
            raise SpecError("is not a plan of many models", key="--current", value=str(current))
    if pool is not None and pool.cluster.nodes != cluster.nodes:
        raise SpecError(
            "was made for other machines than the cluster's",
            key="--current",
            value=pool.cluster.name,
            fix="give the cluster that the plan was made for",
        )
    return pool


def _check_traffic(traffic: Workload) -> None:
    source = traffic.source or traffic.name
    if isinstance(traffic.arrivals, ClosedLoop | Saturating):
        raise SpecError(
            "a pool is planned for arrivals that do not depend on it",
            source=source,
            key="arrivals",
            fix="give open-loop arrivals, such as poisson, or a trace",
        )
    if has_relative_limits(traffic.classes):
        raise SpecError(
            "a multiple of the baseline differs between the models of a pool",
            source=source,
            key="tpot",
            fix='give a time such as "50 ms"',
        )


def replanner(
    question: PoolQuestion, planner: PoolPlanner, settings: ReplanSettings | None = None
) -> Replan:
    """Plans anew where traffic has moved: what ``sim.pools.PoolOptions.replan`` asks.

    Each answer starts from the plan in force and loads at most the question's budget; None where
    nothing has moved or nothing better is found. It remembers what it has seen: one for each run.
    """
    controller = ReplanController(rates_of(question.workload), settings)

    def ask(now_s: float, current: PoolPlan, seen: Sequence[Request]) -> PoolPlan | None:
        controller.observe(now_s, seen)
        traffic = controller.ask(now_s, question.workload)
        if traffic is None:
            return None
        asked = replace(question, workload=traffic, current=current)
        found = planner.plan(asked, pool_score(asked), silent)
        step = moves(current, found)
        return found if step.loaded or step.removed else None

    return ask
