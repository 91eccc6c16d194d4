"""The verbs as functions: ``plan``, ``simulate``, ``compare``. The command line calls these."""

from __future__ import annotations

import os
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, fields, replace
from math import inf
from pathlib import Path
from typing import TYPE_CHECKING, Any, get_args

from penstock.errors import Infeasible, SpecError
from penstock.plan.plan import AdmissionName, EngineRouterName, Plan, RouterName, Routing
from penstock.plan.planner import Objective, PlannerOptions, Progress, ProgressCallback, silent
from penstock.plan.pool_plan import PoolPlan

if TYPE_CHECKING:
    from penstock.cost.base import CostModel, Provenance
    from penstock.cost.steps import StepCostModel
    from penstock.measure.compare import Comparison
    from penstock.measure.run import Run
    from penstock.plan.placement import PlacementProblem
    from penstock.spec.cluster import Cluster
    from penstock.spec.model import ModelSpec
    from penstock.spec.served import ServedModel
    from penstock.spec.workload import SLO, Workload

DEFAULT_WORKLOAD = "azure-conv-offline"
DEFAULT_ENGINE_WORKLOAD = "azure-conv-online"
ENGINE_PLANNERS = ("goodput", "distserve-high", "distserve-low", "vidur-search")
MAX_PROCESSES = 8
SEEDS = 3
"""Runs of a plan of whole engines before it is an answer."""


def available_cores() -> int:
    """Cores this process may use."""
    if hasattr(os, "sched_getaffinity"):
        return len(os.sched_getaffinity(0))
    return os.cpu_count() or 1


def load_problem(
    cluster: Cluster | str | Path,
    model: ModelSpec | str | Path,
    *,
    profiles: str | Path | None = None,
    prune: int | None = None,
    partial_inference: bool = True,
) -> PlacementProblem:
    """Return the placement problem of a cluster and a model, given as values, files or presets."""
    from penstock.cost.load import cost_model
    from penstock.plan.problem import placement_problem
    from penstock.plan.prune import prune as pruned
    from penstock.spec.load import load_cluster, load_model

    fleet = load_cluster(cluster) if isinstance(cluster, (str, Path)) else cluster
    shape = load_model(model) if isinstance(model, (str, Path)) else model
    cost = cost_model(shape, None if profiles is None else Path(profiles))
    problem = placement_problem(fleet, cost, partial_inference=partial_inference)
    if prune is None:
        return problem
    if prune < 1:
        raise SpecError("must be at least 1", key="--prune", value=prune, fix="give 1 or more")
    return pruned(problem, keep=prune)


def plan(
    cluster: Cluster | str | Path,
    model: ModelSpec | str | Path,
    workload: Workload | str | Path | None = None,
    *,
    planner: str = "penstock",
    objective: str | None = None,
    profiles: str | Path | None = None,
    prune: int | None = None,
    partial_inference: bool = True,
    rate: float | None = None,
    attainment: float = 0.9,
    time_limit_s: float | None = None,
    processes: int | None = None,
    seed: int = 0,
    progress: ProgressCallback = silent,
) -> Plan:
    """Place ``model`` on ``cluster`` with ``planner`` for ``objective``.

    For ``throughput`` (the default) and ``goodput`` the plan's value is what the simulator
    measured under ``workload`` (default: a saturating conversation workload); for ``maxflow`` it
    is the max flow. The planners ``goodput``, ``distserve-high``, ``distserve-low`` and
    ``vidur-search`` give plans of whole engines for the highest rate at which a share
    ``attainment`` of the requests meets the limits of its class (default workload: arrivals of
    the same conversations); ``rate`` is then what ``distserve-high`` replicates for.

    Raises ``SpecError`` for what cannot be read and ``Infeasible`` when the model cannot fit.
    """
    from penstock.evaluate import simulated_evaluator
    from penstock.plan.registry import planner as planner_named
    from penstock.policy.baseline import has_relative_limits, with_absolute_limits
    from penstock.sim.options import SimulationOptions
    from penstock.spec.workloads import of_one_model

    goal = _one_of(objective or "throughput", get_args(Objective), "--objective")
    if planner in ENGINE_PLANNERS:
        if objective not in (None, "goodput"):
            raise SpecError(
                f"planner {planner} plans for goodput", key="--objective", value=objective
            )
        unknown = {"--profiles": profiles, "--prune": prune, "--time-limit": time_limit_s}
        for flag, value in unknown.items():
            if value is not None:
                raise SpecError(
                    f"planner {planner} places whole engines and does not know it",
                    key=flag,
                    value=value,
                    fix="leave it out",
                )
        from penstock.engine_planning import plan_engines_for

        return plan_engines_for(
            cluster,
            model,
            workload,
            planner=planner,
            rate=rate,
            attainment=attainment,
            processes=processes,
            seed=seed,
            progress=progress,
        )
    method = planner_named(planner, others=ENGINE_PLANNERS)
    problem = load_problem(
        cluster, model, profiles=profiles, prune=prune, partial_inference=partial_inference
    )
    traffic = of_one_model(load_traffic(workload or DEFAULT_WORKLOAD, rate=rate))
    if goal == "goodput":
        require_limits(traffic)
    if goal == "goodput" and has_relative_limits(traffic.classes):
        raise SpecError(
            "a multiple of the baseline is known only once there is a plan",
            source=traffic.source or traffic.name,
            key="tpot",
            fix='give a time such as "50 ms"',
        )
    # No other objective looks at limits.
    traffic = with_absolute_limits(traffic, inf)
    workers = processes or min(MAX_PROCESSES, available_cores())
    options = PlannerOptions(
        objective=goal, seed=seed, time_limit_s=time_limit_s, processes=workers, progress=progress
    )
    if goal == "maxflow":
        return method.plan(problem, options)
    with simulated_evaluator(traffic, problem.cost, goal, SimulationOptions(), workers) as evaluate:
        found = method.plan(problem, replace(options, evaluate=evaluate))
        if found.objective == goal:
            return found
        score = evaluate([found])[0]
        return replace(found, objective=goal, value=score.value, bound=None)


def plan_pool(
    cluster: Cluster | str | Path,
    models: Sequence[ServedModel] | str | Path,
    workload: Workload | str | Path,
    *,
    planner: str = "joint",
    current: PoolPlan | str | Path | None = None,
    move_budget_bytes: float = inf,
    rate: float | None = None,
    time_limit_s: float | None = None,
    seed: int = 0,
    progress: ProgressCallback = silent,
) -> PoolPlan:
    """Place several models on one pool: see ``penstock.pool_planning``."""
    from penstock import pool_planning

    return pool_planning.plan_pool(
        cluster,
        models,
        workload,
        planner=planner,
        current=current,
        move_budget_bytes=move_budget_bytes,
        rate=rate,
        time_limit_s=time_limit_s,
        seed=seed,
        progress=progress,
    )


def simulate(
    plan: Plan | PoolPlan | str | Path,
    workload: Workload | str | Path = DEFAULT_WORKLOAD,
    *,
    granularity: str = "nodewise",
    router: str | None = None,
    admission: str | None = None,
    kv_high_water_mark: float | None = None,
    expected_output_tokens: float | None = None,
    rate: float | None = None,
    duration_s: float | None = None,
    warmup_s: float | None = None,
    max_concurrency: int | None = None,
    faults: str | Path | None = None,
    profiles: str | Path | None = None,
    profile: str | Path | None = None,
    seed: int | None = None,
    step_by_step: bool = False,
    acceptance: float | str | None = None,
    progress: ProgressCallback = silent,
) -> Run:
    """Run ``plan`` under ``workload`` in virtual time; arguments replace the documents' values.

    A plan of several models knows ``step_by_step``, ``seed`` and what is about the workload.
    ``router`` names one of the kind that the plan has: of paths over nodes, or of whole engines.
    For whole engines only: ``step_by_step`` skips no step (the run is the same, only slower),
    ``acceptance`` is the share of draft tokens that the target accepts (or a file of its curve),
    and ``profile`` a file of ``penstock profile`` that prices the steps.
    """
    from penstock.plan.document import plan_to_dict, read_plan
    from penstock.plan.profiled import profiled
    from penstock.policy.baseline import (
        has_relative_limits,
        plan_baseline_s,
        with_absolute_limits,
    )
    from penstock.pools import as_pool, simulate_pool_plan
    from penstock.sim.options import Granularity, SimulationOptions
    from penstock.sim.simulate import simulate as run_simulation
    from penstock.spec.faults import FaultSchedule, load_faults
    from penstock.spec.workload_file import workload_to_dict
    from penstock.spec.workloads import of_one_model

    traffic = load_traffic(
        workload,
        rate=rate,
        duration_s=duration_s,
        warmup_s=warmup_s,
        max_concurrency=max_concurrency,
    )
    pool = as_pool(plan)
    if pool is not None:
        others = {
            "--router": router,
            "--admission": admission,
            "--kv-high-water-mark": kv_high_water_mark,
            "--expected-output-tokens": expected_output_tokens,
            "--faults": faults,
            "--profiles": profiles,
            "--profile": profile,
            "--acceptance": acceptance,
            "--granularity": None if granularity == "nodewise" else granularity,
        }
        return simulate_pool_plan(
            pool, traffic, seed=seed, step_by_step=step_by_step, others=others, progress=progress
        )
    assert not isinstance(plan, PoolPlan)
    loaded = read_plan(Path(plan)) if isinstance(plan, (str, Path)) else plan
    traffic = of_one_model(traffic)
    if profile is not None:
        loaded = profiled(loaded, profile)
    if loaded.whole_engines:
        if profiles is not None:
            raise SpecError(
                "has times of layers, and this plan has whole engines",
                key="--profiles",
                fix="leave it out",
            )
        check_engines(loaded, None if isinstance(plan, Plan) else plan)
        if acceptance is not None:
            from penstock.plan.goodput.plan_cost import plan_cost

            loaded = replace(loaded, cost=plan_cost(loaded, acceptance).to_dict())
    else:
        for flag, given in (("--step-by-step", step_by_step), ("--acceptance", acceptance)):
            if given:
                raise SpecError("is for plans of whole engines", key=flag, fix="leave it out")
    loaded = _overridden(
        loaded,
        router=router,
        admission=admission,
        kv_high_water_mark=kv_high_water_mark,
        expected_output_tokens=expected_output_tokens,
    )
    options = SimulationOptions(
        granularity=_one_of(granularity, get_args(Granularity), "--granularity"),
        seed=traffic.seed if seed is None else seed,
        faults=FaultSchedule() if faults is None else load_faults(faults),
        step_by_step=step_by_step,
        progress=progress,
    )
    cost = cost_of(loaded, profiles)
    if has_relative_limits(traffic.classes):
        traffic = with_absolute_limits(traffic, plan_baseline_s(loaded, cost))
    run = run_simulation(loaded, traffic, cost, options)
    documents = {"plan": plan_to_dict(loaded), "workload": workload_to_dict(traffic)}
    return replace(run, header={**run.header, **documents})


def _overridden(
    plan: Plan,
    *,
    router: str | None,
    admission: str | None,
    kv_high_water_mark: float | None,
    expected_output_tokens: float | None,
) -> Plan:
    """``plan`` with the values that are given."""
    routing = plan.routing
    if router is not None:
        routing = _routed(plan, routing, router)
    if kv_high_water_mark is not None:
        mark = _share(kv_high_water_mark, "--kv-high-water-mark")
        routing = replace(routing, kv_high_water_mark=mark)
    if expected_output_tokens is not None:
        routing = replace(routing, expected_output_tokens=expected_output_tokens)
    if admission is None:
        return replace(plan, routing=routing)
    name = _one_of(admission, get_args(AdmissionName), "--admission")
    return replace(plan, routing=routing, admission=name)


def _share(value: float, flag: str) -> float:
    if not 0 < value <= 1:
        raise SpecError(
            "must be over 0 and at most 1", key=flag, value=value, fix="give a share, such as 0.9"
        )
    return value


def _routed(plan: Plan, routing: Routing, router: str) -> Routing:
    if plan.whole_engines:
        name = _one_of(router, get_args(EngineRouterName), "--router")
        return replace(routing, engine_router=name)
    return replace(routing, router=_one_of(router, get_args(RouterName), "--router"))


def check_engines(plan: Plan, source: str | Path | None = None) -> None:
    """Refuse engines whose scheduler cannot work, with the name of the file they come from."""
    from penstock.policy.fleet import engine_scheduler

    try:
        for engine in plan.engines:
            if engine.scheduler is not None:
                engine_scheduler(engine)
    except SpecError as error:
        raise error if source is None else error.at(source) from None


@dataclass(frozen=True)
class Showcase:
    """What every planner made of one problem, in the order of the registry."""

    plans: tuple[Plan, ...]
    runs: tuple[Run, ...]
    infeasible: tuple[tuple[str, str], ...]
    provenance: tuple[Provenance, ...]


def showcase(
    cluster: Cluster | str | Path,
    model: ModelSpec | str | Path,
    workload: Workload | str | Path = DEFAULT_WORKLOAD,
    *,
    profiles: str | Path | None = None,
    milp_time_limit_s: float = 8.0,
    search_time_limit_s: float = 35.0,
    seed: int = 0,
    progress: ProgressCallback = silent,
) -> Showcase:
    """Plan with every planner and simulate every plan under the same workload.

    ``milp_time_limit_s`` stops the mixed-integer program, which would run for hours;
    ``search_time_limit_s`` keeps our own search to a part of what ``plan`` spends by default.
    """
    from penstock.evaluate import simulate_all
    from penstock.plan.registry import planners
    from penstock.sim.options import SimulationOptions

    names = list(planners())
    limits = {"helix-milp": milp_time_limit_s, "penstock": search_time_limit_s}
    plans: list[Plan] = []
    infeasible: list[tuple[str, str]] = []
    for done, name in enumerate(names):
        progress(Progress(f"planning with {name}", fraction=done / (len(names) + 1)))
        try:
            plans.append(
                plan(
                    cluster,
                    model,
                    workload,
                    planner=name,
                    objective="throughput" if name == "penstock" else "maxflow",
                    profiles=profiles,
                    time_limit_s=limits.get(name),
                    seed=seed,
                )
            )
        except Infeasible as reason:
            infeasible.append((name, str(reason)))
    if not plans:
        raise Infeasible("no planner found a plan", fix=infeasible[0][1])
    progress(Progress("simulating every plan", fraction=len(names) / (len(names) + 1)))
    cost = cost_of(plans[0], profiles)
    runs = simulate_all(
        plans,
        load_traffic(workload),
        cost,
        SimulationOptions(seed=seed),
        min(MAX_PROCESSES, available_cores()),
    )
    named = tuple(replace(run, name=made.planner) for run, made in zip(runs, plans, strict=True))
    return Showcase(tuple(plans), named, tuple(infeasible), cost.provenance)


def compare(*runs: Run) -> Comparison:
    """Return the metrics of several runs beside each other; the first is the baseline."""
    from penstock.measure.compare import compare_runs

    return compare_runs(list(runs))


def plan_of(run: Run) -> Plan | None:
    """The plan a run was made with, if it carries it."""
    from penstock.plan.document import plan_from_dict

    document = run.header.get("plan")
    if not isinstance(document, Mapping):
        return None
    return plan_from_dict(document, source=f"plan of {run.name}")


def cost_of(plan: Plan, profiles: str | Path | None = None) -> CostModel | StepCostModel:
    """The cost model a plan was made with, or the tables in ``profiles`` instead.

    A plan of whole engines has one of steps, any other plan one of layers.
    """
    from penstock.cost.load import cost_from_dict, cost_model

    if plan.whole_engines:
        from penstock.plan.goodput.plan_cost import plan_cost

        return plan_cost(plan)
    if profiles is not None:
        return cost_model(plan.model, Path(profiles))
    return cost_from_dict(plan.cost, plan.model)


def load_traffic(
    workload: Workload | str | Path,
    *,
    rate: float | None = None,
    duration_s: float | None = None,
    warmup_s: float | None = None,
    max_concurrency: int | None = None,
) -> Workload:
    """Return a workload, read from its file or preset, with the given values replaced."""
    from penstock.spec.load import load_workload
    from penstock.spec.workloads import in_closed_loop, with_rate

    traffic = load_workload(workload) if isinstance(workload, (str, Path)) else workload
    if rate is not None:
        traffic = with_rate(traffic, rate)
    if max_concurrency is not None:
        traffic = in_closed_loop(traffic, max_concurrency)
    if duration_s is not None:
        traffic = replace(traffic, duration_s=duration_s)
    if warmup_s is not None:
        traffic = replace(traffic, warmup_s=warmup_s)
    if 0 < traffic.duration_s <= traffic.warmup_s:
        raise SpecError(
            f"must be shorter than the workload ({traffic.duration_s:g} s)",
            key="--warmup",
            value=traffic.warmup_s,
            fix="give a longer --duration or a shorter --warmup",
        )
    return traffic


def require_limits(traffic: Workload) -> None:
    if not any(_has_limit(entry.slo) for entry in traffic.classes):
        raise SpecError(
            "goodput needs limits, and no class of this workload has any",
            source=traffic.source or traffic.name,
            key="classes",
            fix="add classes with slo: {ttft: ..., tpot: ...}, or use --objective throughput",
        )


def _has_limit(slo: SLO) -> bool:
    return any(getattr(slo, field.name) is not None for field in fields(slo))


def _one_of(value: str, allowed: tuple[str, ...], flag: str) -> Any:
    if value not in allowed:
        raise SpecError("unknown value", key=flag, value=value, fix=f"use {', '.join(allowed)}")
    return value
