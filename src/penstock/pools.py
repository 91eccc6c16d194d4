"""Pools of several models: what ``simulate`` does with a plan of them."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import replace
from pathlib import Path

from penstock.cost.steps import StepCostModel
from penstock.errors import SpecError
from penstock.measure.run import Run
from penstock.plan.goodput.plan_cost import plan_cost
from penstock.plan.planner import ProgressCallback, silent
from penstock.plan.pool_checker import check_pool
from penstock.plan.pool_document import is_pool_document, pool_to_dict, read_pool
from penstock.plan.pool_plan import PoolPlan
from penstock.policy.baseline import has_relative_limits
from penstock.sim.pools import PoolOptions, simulate_pool
from penstock.spec.served import with_limits
from penstock.spec.workload import Workload
from penstock.spec.workload_file import workload_to_dict


def as_pool(plan: object) -> PoolPlan | None:
    """``plan`` where it is a plan of several models, read and checked where it is the file of one;
    None for all else. Raises ``SpecError``."""
    if isinstance(plan, PoolPlan):
        return plan
    if not isinstance(plan, str | Path) or not is_pool_document(plan):
        return None
    pool = read_pool(plan)
    faults = check_pool(pool)
    if faults:
        fix = f"penstock validate {plan} lists all faults"
        raise SpecError(faults[0], source=str(plan), fix=fix)
    return pool


def pool_costs(pool: PoolPlan) -> dict[str, StepCostModel]:
    """What prices the steps of each model, as its plan says."""
    return {entry.name: plan_cost(entry.plan) for entry in pool.deployments}


def simulate_pool_plan(
    pool: PoolPlan,
    traffic: Workload,
    *,
    seed: int | None = None,
    step_by_step: bool = False,
    others: Mapping[str, object] | None = None,
    progress: ProgressCallback = silent,
) -> Run:
    """Run ``traffic`` on ``pool`` in virtual time; the pool's limits hold where it states none.

    ``others``: flags of ``simulate`` that plans of one model know. Raises ``SpecError`` where one
    of them is given, for limits that are multiples of a baseline, and for a workload that asks
    for none of the models.
    """
    for flag, value in (others or {}).items():
        if value is not None:
            raise SpecError(
                "is for plans of one model", key=flag, value=str(value), fix="leave it out"
            )
    traffic = with_limits(traffic, pool.deployments)
    if has_relative_limits(traffic.classes):
        raise SpecError(
            "a multiple of the baseline differs between the models of a pool",
            source=traffic.source or traffic.name,
            key="tpot",
            fix='give a time such as "50 ms"',
        )
    asked = traffic.models
    if not set(asked) & set(pool.index) and (asked or len(pool.index) > 1):
        raise SpecError(
            f"names none of the models of the pool ({', '.join(pool.index)})",
            source=traffic.source or traffic.name,
            key="models",
            value=", ".join(asked) or None,
            fix="give models: or popularity:, or a trace with the model of each request",
        )
    chosen = traffic.seed if seed is None else seed
    options = PoolOptions(seed=chosen, step_by_step=step_by_step, progress=progress)
    run = simulate_pool(pool, traffic, pool_costs(pool), options)
    documents = {"pool": pool_to_dict(pool), "workload": workload_to_dict(traffic)}
    return replace(run, header={**run.header, **documents})
