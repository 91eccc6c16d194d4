"""MaverIQ's serving runs end to end: its baselines, MaverIQ itself, and our joint planner.

All have the same host, step times, requests and load windows (``pool_questions``) and the same
stored forms to choose from. Ours plans from the rates alone (other draws), loads a model when it
is called for, and batches; see ``baselines`` for what the others are granted.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, replace
from functools import lru_cache
from math import inf
from pathlib import Path

import numpy as np

from penstock.cost.steps import EngineShape, StepCostModel
from penstock.experiments.maveriq.baselines import Outcome, accelerate, alpaserve, maveriq
from penstock.experiments.maveriq.data import GPU_BYTES
from penstock.experiments.maveriq.pool_questions import (
    FP16,
    INT4,
    PLANNING_SEED,
    QUANTISED,
    Case,
    Costs,
    Traffic,
)
from penstock.experiments.maveriq.serving import FACTORS
from penstock.experiments.maveriq.step_tables import TableCost
from penstock.experiments.rows import Labels, Row, at_least, at_most, information
from penstock.plan.joint.planner import JointPlanner
from penstock.plan.plan import Engine
from penstock.plan.planner import silent
from penstock.plan.pool_plan import PoolPlan
from penstock.plan.pool_question import PoolQuestion
from penstock.plan.settings import SchedulerSettings
from penstock.sim.pools.options import PoolOptions
from penstock.sim.pools.simulate import simulate_pool
from penstock.spec.variants import Precision
from penstock.spec.workload import Workload

GIB = 2**30
_SAME_RATE = 0.995
"""Throughputs nearer than this are those of the arrivals, which all have served."""


@dataclass(frozen=True, slots=True)
class Limit:
    """Which stored forms there are; AlpaServe, which does not choose, takes ``alpaserve``."""

    name: str
    precisions: frozenset[Precision]
    alpaserve: frozenset[Precision]


LIMITS = (Limit("fp16", FP16, FP16), Limit("quantised", QUANTISED, INT4))


def case_rows(maveriq_folder: Path, case: Case, limit: Limit) -> list[Row]:
    """Every system at every factor: attainment of sent, requests a minute, median latency."""
    rows = _plan_rows(maveriq_folder, case, limit)
    for factor in FACTORS:
        traffic = Traffic(maveriq_folder, case, factor)
        limits_s = np.array(traffic.limits_s)[traffic.drawn().model]
        outcomes = {name: run(traffic) for name, run in _others(limit).items()}
        ours = serve_ours(traffic, limit)
        labels = Labels("endtoend", f"{case} {limit.name} {factor:g}x")
        shares = {name: 100 * one.attainment(limits_s) for name, one in outcomes.items()}
        rates = {name: one.per_minute for name, one in outcomes.items()}
        medians = {name: one.median_s for name, one in outcomes.items()}
        for name, one in outcomes.items():
            rows.append(information(labels.of(f"attainment of {name}", "%"), None, shares[name],
                                    note=one.detail))  # fmt: skip
            rows.append(information(labels.of(f"rate of {name}", "1/min"), None, rates[name]))
            if medians[name] < inf:
                rows.append(information(labels.of(f"median of {name}", "s"), None, medians[name]))
        best = max(shares, key=lambda name: shares[name])
        rows.append(at_least(labels.of("attainment of ours", "%"), shares[best],
                             100 * ours.attainment(limits_s), shares[best],
                             note=f"against {best}, the best of the others"))  # fmt: skip
        rows += _speed_rows(labels, ours, rates, medians)
        if factor == FACTORS[0]:
            alone = serve_ours(traffic, limit, batches=False).attainment(limits_s)
            note = "the same plan, one request a stage, late requests refused: what batches give"
            subject = labels.of("attainment of ours at batch 1", "%")
            rows.append(information(subject, None, 100 * alone, note=note))
    return rows


def _speed_rows(
    labels: Labels, ours: Outcome, rates: Mapping[str, float], medians: Mapping[str, float]
) -> list[Row]:
    fast = max(rates, key=lambda name: rates[name])
    goal = _SAME_RATE * rates[fast]
    rate = at_least(
        labels.of("rate of ours", "1/min"),
        rates[fast],
        ours.per_minute,
        goal,
        note=f"against {fast}",
    )
    quick = min(medians, key=lambda name: medians[name])
    note = "of all sent; one that is never served counts as infinite"
    subject = labels.of("median of ours", "s")
    if medians[quick] == inf:
        return [rate, information(subject, None, ours.median_s, note=note)]
    median = at_most(
        subject, medians[quick], ours.median_s, medians[quick], note=f"against {quick}; {note}"
    )
    return [rate, median]


def _others(limit: Limit) -> Mapping[str, Callable[[Traffic], Outcome]]:
    return {
        "Accelerate": accelerate,
        "AlpaServe corrected": lambda traffic: alpaserve(traffic, limit.alpaserve),
        "MaverIQ min_lat": lambda traffic: maveriq(traffic, limit.precisions, "min_latency"),
        "MaverIQ min_cost": lambda traffic: maveriq(traffic, limit.precisions, "min_cost"),
    }


# -- ours -----------------------------------------------------------------------------------------


@lru_cache(maxsize=64)
def plan_ours(maveriq_folder: Path, case: Case, limit: Limit) -> PoolPlan:
    """One plan for the tightest limits, from other draws of the same rates."""
    traffic = Traffic(maveriq_folder, case, FACTORS[0])
    question = traffic.question(limit.precisions, seed=PLANNING_SEED)
    return JointPlanner().plan(question, simulated_score(question), silent)


def simulated_score(question: PoolQuestion) -> Callable[[Sequence[PoolPlan]], list[float]]:
    """Share of the question's requests within their limits, all models there from the start."""

    def score(pools: Sequence[PoolPlan]) -> list[float]:
        limits = {entry.name: entry.slo.e2e_s or inf for entry in question.workload.classes}
        bound = np.array([limits[one.class_name] for one in question.workload.requests()])
        return [
            simulated(pool, question.workload, question.cost_of, ()).attainment(bound)
            for pool in pools
        ]

    return score


def simulated(
    pool: PoolPlan,
    workload: Workload,
    cost_of: Callable[..., StepCostModel],
    changes: tuple[tuple[float, PoolPlan], ...],
) -> Outcome:
    final = changes[-1][1] if changes else pool
    costs = {entry.name: cost_of(entry.plan.model) for entry in final.deployments}
    run = simulate_pool(pool, workload, costs, PoolOptions(keep_tokens=False, changes=changes))
    return Outcome(run.requests.arrival_s, run.requests.last_token_s - run.requests.arrival_s)


def serve_ours(traffic: Traffic, limit: Limit, *, batches: bool = True) -> Outcome:
    """The plan under the requests of the case; models load when they are called for.

    Without ``batches`` it serves as AlpaServe would.
    """
    pool = plan_ours(traffic.maveriq, traffic.case, limit)
    pool = pool if batches else one_at_a_time(pool)
    called_s = dict(zip(traffic.names, traffic.drawn().deploy_s, strict=True))
    steps = arriving(pool, called_s)
    return simulated(steps[0][1], traffic.workload(), Costs(traffic.maveriq), tuple(steps[1:]))


def one_at_a_time(pool: PoolPlan) -> PoolPlan:
    """``pool`` with one request a pipeline stage, and late requests refused."""

    def alone(engine: Engine) -> Engine:
        settings = engine.scheduler or SchedulerSettings()
        return replace(engine, scheduler=replace(settings, max_num_seqs=len(engine.stages)))

    deployments = tuple(
        replace(one, plan=replace(one.plan, engines=tuple(map(alone, one.plan.engines))))
        for one in pool.deployments
    )
    return replace(
        pool, deployments=deployments, sharing=replace(pool.sharing, admission="deadline")
    )


def arriving(pool: PoolPlan, called_s: Mapping[str, float]) -> list[tuple[float, PoolPlan]]:
    """``pool`` growing by one model at a time, each at the time it is called for."""
    steps: list[tuple[float, PoolPlan]] = []
    for name in sorted(called_s, key=lambda one: called_s[one]):
        held = tuple(one for one in pool.deployments if called_s[one.name] <= called_s[name])
        if held and (not steps or len(held) > len(steps[-1][1].deployments)):
            steps.append((called_s[name], replace(pool, deployments=held)))
    return steps


def fullest_bytes(pool: PoolPlan, question: PoolQuestion) -> float:
    """What the fullest GPU holds by measurement: every engine with a runtime of its own."""
    held: dict[str, float] = {}
    for entry in pool.deployments:
        cost = question.cost_of(entry.plan.model)
        assert isinstance(cost, TableCost)
        for engine in entry.plan.engines:
            node = pool.nodes.node(engine.stages[0].node)
            shape = EngineShape(node.accelerator, node.count, len(engine.stages))
            for stage in engine.stages:
                held[stage.node] = held.get(stage.node, 0.0) + cost.weight_bytes_per_accelerator(
                    shape
                )
    return max(held.values())


def _plan_rows(maveriq_folder: Path, case: Case, limit: Limit) -> list[Row]:
    pool = plan_ours(maveriq_folder, case, limit)
    question = Traffic(maveriq_folder, case, FACTORS[0]).question(limit.precisions)
    labels = Labels("endtoend", f"{case} {limit.name}")
    groups = " | ".join(
        f"TP{pool.nodes.node(nodes[0]).count} PP{len(nodes)}: "
        + ", ".join(f"{name} {pool.deployment(name).precision}" for name, _ in engines)
        for nodes, engines in pool.groups.items()
    )
    gpus = sum(pool.nodes.node(node).count for nodes in pool.groups for node in nodes)
    fullest = fullest_bytes(pool, question) / GIB
    accuracy = float(np.mean([one.accuracy for one in pool.deployments]))
    subject = labels.of("measured memory of the fullest GPU", "GiB")
    return [
        at_most(subject, None, fullest, GPU_BYTES / GIB, note=groups),
        information(labels.of("mean accuracy of ours over FP16", "%"), None, 100 * accuracy),
        information(labels.of("models placed by ours", ""), None, float(len(pool.deployments))),
        information(labels.of("GPUs used by ours", ""), None, float(gpus)),
    ]
