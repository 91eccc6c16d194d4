"""Run a plan of whole engines: its engines, routers, hand-over and faults, in virtual time."""

from __future__ import annotations

from dataclasses import replace
from itertools import pairwise

from penstock.cost.steps import EngineShape, SharedMachineCost, StepCostModel
from penstock.errors import InputError, SpecError
from penstock.measure.fleet import header_entries
from penstock.measure.run import Run
from penstock.plan.plan import Engine, Plan
from penstock.policy.fleet import engine_scheduler, engine_weights, plan_admission
from penstock.sim.disaggregated import RoleFleet, simulate_disaggregated
from penstock.sim.disaggregated.faults import FaultySimulation
from penstock.sim.engines import EngineFleet, EngineOptions, EngineSpec, simulate_engines
from penstock.sim.engines.fleet import StageSpec
from penstock.sim.options import SimulationOptions
from penstock.spec.faults import FaultSchedule
from penstock.spec.workload import Workload

_ROUNDS = 3
"""Runs until the busy shares of engines on one machine, and what they cost each other, agree."""


def simulate_engine_plan(
    plan: Plan, workload: Workload, cost: StepCostModel, options: SimulationOptions
) -> Run:
    """Return the run of ``workload`` on the engines of ``plan``.

    Engines that do both phases run apart from those with roles only in how requests reach them.
    Raises ``SpecError`` for settings that cannot work, with the engine's name.
    """
    if options.granularity != "nodewise":
        raise InputError(
            f"granularity {options.granularity} is of paths over nodes, and this plan has whole "
            "engines; leave it out"
        )
    settings = EngineOptions(
        seed=options.seed,
        step_by_step=options.step_by_step,
        until_s=workload.duration_s if options.drain is False else None,
        admission=plan_admission(plan),
        progress=options.progress,
    )
    specs = engine_specs(plan)
    run = _simulate(plan, specs, workload, (cost, settings, options.faults))
    beside = cost.beside if isinstance(cost, SharedMachineCost) else 0.0
    if beside and len(specs) > 1:
        for _ in range(_ROUNDS):
            specs = _slowed(specs, run, beside)
            run = _simulate(plan, specs, workload, (cost, settings, options.faults))
    header = {
        **run.header,
        "planner": plan.planner,
        "admission": plan.admission,
        "cluster": plan.cluster.name,
        **header_entries(plan.cluster, workload.classes),
    }
    return replace(run, name=f"{plan.planner}-{workload.name}", header=header)


def _simulate(
    plan: Plan,
    specs: tuple[EngineSpec, ...],
    workload: Workload,
    rest: tuple[StepCostModel, EngineOptions, FaultSchedule],
) -> Run:
    cost, settings, faults = rest
    if faults.faults:
        nodes = {e.name: tuple(stage.node for stage in e.stages) for e in plan.engines}
        fleet = plan_fleet(plan, specs)
        return FaultySimulation(
            fleet, workload, cost, settings, nodes_of=nodes, faults=faults
        ).run()
    if any(spec.role != "both" for spec in specs):
        return simulate_disaggregated(plan_fleet(plan, specs), workload, cost, settings)
    return simulate_engines(
        EngineFleet(specs, plan.routing.engine_router), workload, cost, settings
    )


def _slowed(specs: tuple[EngineSpec, ...], run: Run, beside: float) -> tuple[EngineSpec, ...]:
    """``specs`` slowed down by as much as the others were busy in ``run``.

    What an engine loses to its neighbours is taken in the mean, so that steps keep their closed
    form; their busy shares follow from a run in turn, and a few rounds settle both.
    """
    nodes = run.nodes
    assert nodes is not None
    seconds = max(run.window_s[1], 1e-9)
    busy = {
        name: min(1.0, float(busy_s) / seconds)
        for name, busy_s in zip(nodes.names, nodes.busy_s, strict=True)
    }
    total = sum(busy.values())
    return tuple(
        replace(spec, slowdown=1 + beside * (total - busy.get(spec.name, 0.0))) for spec in specs
    )


def plan_fleet(plan: Plan, specs: tuple[EngineSpec, ...] | None = None) -> RoleFleet:
    """The engines of ``plan`` with its routers and its hand-over."""
    routing = plan.routing
    return RoleFleet(
        engine_specs(plan) if specs is None else specs,
        plan.handoff,
        routing.engine_router,
        routing.decode_router,
    )


def engine_specs(plan: Plan) -> tuple[EngineSpec, ...]:
    """The engines of ``plan`` as the simulators take them; a node is one tensor-parallel group."""
    return tuple(
        _spec(plan, engine, weight)
        for engine, weight in zip(plan.engines, engine_weights(plan), strict=True)
    )


def _spec(plan: Plan, engine: Engine, weight: float) -> EngineSpec:
    if engine.scheduler is None:
        raise SpecError(
            "is a server of its own, whose batches nobody knows",
            key=f"engines.{engine.name}.url",
            value=engine.url,
            fix="add scheduler: ... to say how it batches",
        )
    engine_scheduler(engine)
    nodes = [plan.cluster.node(stage.node) for stage in engine.stages]
    shape = EngineShape(nodes[0].accelerator, nodes[0].count, len(nodes))
    return EngineSpec(
        engine.name,
        shape,
        engine.scheduler,
        engine.role,
        engine.num_blocks,
        weight,
        stages=_stages(plan, engine) if len(nodes) > 1 else (),
    )


def _stages(plan: Plan, engine: Engine) -> tuple[StageSpec, ...]:
    cluster = plan.cluster
    links = []
    for a, b in pairwise(engine.stages):
        link = cluster.link(a.node, b.node)
        if link is None:
            raise SpecError(
                f"the cluster has no link from {a.node} to {b.node}",
                key=f"engines.{engine.name}.stages",
                fix="join the nodes, or name others",
            )
        links.append(link)
    stages = []
    for stage, to_next in zip(engine.stages, [*links, None], strict=True):
        node = cluster.node(stage.node)
        stages.append(
            StageSpec(node.accelerator, node.count, stage.num_layers, to_next, node.price_per_hour)
        )
    return tuple(stages)
