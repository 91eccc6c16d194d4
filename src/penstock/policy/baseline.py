"""Relative limits: the time per token of a model at near-zero load, from its cost model.

AdaServe (EuroSys'26) promises urgent classes a multiple of this baseline. It is the time of one
decode step of a batch of one; the simulator and the runtime take it from here, so that "1.2x" means
the same seconds in both.
"""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from dataclasses import replace
from math import inf
from typing import cast

from penstock.cost.base import CostModel, LayerTimer
from penstock.cost.network import hop_bytes_per_token, transfer_s
from penstock.cost.steps import EngineShape, StepCostModel, stage_timers
from penstock.errors import Infeasible
from penstock.plan.plan import Engine, Plan
from penstock.policy.speculation.slo import limit_of_slo
from penstock.policy.topology import Topology
from penstock.spec.cluster import COORDINATOR
from penstock.spec.workload import SLOClass, Workload

CONTEXT_TOKENS = 512
"""Context of the sequence that the baseline is taken with. Its KV memory is small beside the
weights, so that the length hardly matters."""


def has_relative_limits(classes: Iterable[SLOClass]) -> bool:
    return any(entry.slo.tpot_multiple is not None for entry in classes)


def absolute_limits(classes: Iterable[SLOClass], baseline_s: float) -> tuple[SLOClass, ...]:
    """``classes`` with every multiple of the baseline turned into seconds.

    ``baseline_s`` is that of ``plan_baseline_s`` or ``engines_baseline_s``.
    """
    return tuple(
        entry
        if entry.slo.tpot_multiple is None
        else replace(
            entry,
            slo=replace(
                entry.slo,
                tpot_s=limit_of_slo(entry.slo).seconds(baseline_s),
                tpot_multiple=None,
            ),
        )
        for entry in classes
    )


def with_absolute_limits(workload: Workload, baseline_s: float) -> Workload:
    """``workload`` with the limits of ``absolute_limits``."""
    return replace(workload, classes=absolute_limits(workload.classes, baseline_s))


def plan_baseline_s(plan: Plan, cost: CostModel | StepCostModel) -> float:
    """Seconds per token of one request alone on ``plan``, at its fastest.

    ``cost`` is a ``StepCostModel`` where the plan has whole engines, else a ``CostModel``. Raises
    ``SpecError`` where it has no figures, ``Infeasible`` where the plan has no path or only
    engines whose times nobody here knows.
    """
    if not plan.whole_engines:
        return paths_baseline_s(cast(CostModel, cost), plan)
    ours = [engine for engine in plan.engines if engine.role != "prefill" and not engine.url]
    if not ours:
        raise Infeasible(
            "a multiple of the baseline needs an engine of known speed that decodes",
            fix='give tpot as a time, such as "50 ms"',
        )
    return min(_engine_s(plan, engine, cast(StepCostModel, cost)) for engine in ours)


def _engine_s(plan: Plan, engine: Engine, cost: StepCostModel) -> float:
    """One decode step through all stages and the links between their nodes."""
    count, total_s = len(engine.stages), 0.0
    size = hop_bytes_per_token(plan.model)
    for i, stage in enumerate(engine.stages):
        node = plan.cluster.node(stage.node)
        shape = EngineShape(node.accelerator, node.count, count)
        share = stage.num_layers * count / engine.num_layers
        total_s += share * stage_timers(cost, shape)[i].decode_s(1, CONTEXT_TOKENS)
        link = plan.cluster.link(engine.stages[i - 1].node, stage.node) if i else None
        if link is not None:
            total_s += transfer_s(size, link)
    return total_s


def engines_baseline_s(cost: StepCostModel, shapes: Sequence[EngineShape]) -> float:
    """Seconds per token of one request alone on the fastest of engines of these shapes.

    Raises ``SpecError`` where the cost model has no figures for a shape.
    """
    return min(
        sum(timer.decode_s(1, CONTEXT_TOKENS) for timer in stage_timers(cost, shape))
        for shape in shapes
    )


def paths_baseline_s(cost: CostModel, plan: Plan) -> float:
    """Seconds per token of one request alone on the fastest path of ``plan``, links included.

    A path is a chain of legs from the coordinator through all layers and back, as requests take
    them. Raises ``Infeasible`` where there is none.
    """
    topology = Topology.of(plan)
    timers = [cost.layer_timer(plan.cluster.node(engine.stages[0].node)) for engine in plan.engines]
    reached = _fastest(plan, topology, timers)
    if reached == inf:
        raise Infeasible("no path of the plan leads through all layers", fix="plan again")
    return reached


def _fastest(plan: Plan, topology: Topology, timers: Sequence[LayerTimer]) -> float:
    """Bellman's recursion over engines, by the layer at which they end: paths only go up."""
    home = topology.coordinator
    best = [inf] * home + [0.0]
    back = inf
    ends = [span[1] for span in topology.spans]
    for vertex in [home, *sorted(range(home), key=lambda engine: (ends[engine], engine))]:
        for leg in topology.out[vertex]:
            hop = topology.hop(leg)
            at = best[vertex] + _hop_s(plan, leg)
            if hop is None:
                back = min(back, at)
                continue
            layers = hop.end_layer - hop.start_layer
            seconds = layers * timers[hop.engine](0, 1, CONTEXT_TOKENS)
            best[hop.engine] = min(best[hop.engine], at + seconds)
    return back


def _hop_s(plan: Plan, leg: int) -> float:
    """Latency and transfer of one token over a leg."""
    src, dst = plan.legs[leg].src, plan.legs[leg].dst
    a = src if src == COORDINATOR else plan.engine(src).stages[-1].node
    b = dst if dst == COORDINATOR else plan.engine(dst).stages[0].node
    link = plan.cluster.link(a, b)
    if link is None:
        return inf
    size = hop_bytes_per_token(plan.model, coordinator=COORDINATOR in (a, b))
    return transfer_s(size, link)
