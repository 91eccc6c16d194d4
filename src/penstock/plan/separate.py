"""Separate pipelines: one per machine type, layers in equal parts (SP), plus mixed ones (SP+).

Source: the hand-written baselines of Helix's evaluation (specification section 3.5). They fill
nodes beyond the recommended layer counts ("force_set"), with more GPU memory given to the engine
than elsewhere, and with KV capacities typed by hand, which disagree with each other;
``full_memory_kv`` states what KV memory is then left.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace
from itertools import pairwise
from random import Random

import numpy as np

from penstock.cost.base import CostModel
from penstock.cost.tables import LayerTableCost
from penstock.cost.typical import typical_throughput
from penstock.errors import Infeasible
from penstock.plan.placement import Interval, Placement, PlacementProblem
from penstock.plan.plan import Engine, Plan, Unused
from penstock.plan.planner import PlannerOptions
from penstock.plan.publish import LegList, pipeline_legs, published_plan
from penstock.spec.hardware import Node

LONGEST_SEQUENCE_TOKENS = 4096
"""A node is full when the KV cache of one sequence of this length no longer fits beside."""

RAISED_MEMORY_SHARE = 0.1
"""Tables are profiled with 0.8 of the GPU memory; published over-full pipelines run with 0.9."""

Pipeline = list[tuple[int, Interval]]


class SeparatePlanner:
    """One pipeline (or several, where nodes are many) per machine type that can hold the model."""

    def __init__(self, *, mix_left_over: bool = False) -> None:
        self.mix_left_over = mix_left_over
        self.name = "separate+" if mix_left_over else "separate"

    def plan(self, problem: PlacementProblem, options: PlannerOptions) -> Plan:
        most = full_memory_layers(problem)
        groups = [
            [i for i in range(problem.num_nodes) if problem.node_type[i] == kind]
            for kind in range(len(problem.type_names))
        ]
        pipelines: list[Pipeline] = []
        left_over: list[int] = []
        for group in groups:
            found = equal_pipelines(problem, group, most)
            pipelines += found
            left_over += group if not found else []
        mixed = equal_pipelines(problem, left_over, most) if self.mix_left_over else []
        pipelines += mixed
        if not pipelines:
            raise Infeasible(
                f"no machine type of {problem.cluster.name} holds all {problem.num_layers} layers "
                "by itself",
                binding="memory",
                fix="--planner penstock mixes types"
                if self.mix_left_over
                else "--planner separate+",
            )
        reasons = [f"pipelines of equal parts, one or more per machine type: {len(pipelines)}"]
        if mixed:
            names = dict.fromkeys(problem.type_names[problem.node_type[i]] for i in left_over)
            reasons.append(f"of these mixing the left-over types {', '.join(names)}: {len(mixed)}")
        return self._plan(problem, options, pipelines, most, reasons)

    def _plan(
        self,
        problem: PlacementProblem,
        options: PlannerOptions,
        pipelines: list[Pipeline],
        most: list[int],
        reasons: list[str],
    ) -> Plan:
        intervals: list[Interval | None] = [None] * problem.num_nodes
        legs: LegList = []
        for pipeline in pipelines:
            legs += pipeline_legs(problem, [i for i, _ in pipeline])
            for i, interval in pipeline:
                intervals[i] = interval
        beyond = [
            problem.cluster.nodes[i].name
            for i, interval in enumerate(intervals)
            if interval is not None
            and interval[1] - interval[0] > problem.cost.max_layers(problem.cluster.nodes[i])
        ]
        if beyond:
            reasons.append(
                f"{len(beyond)} nodes hold more layers than recommended: KV memory and T(k) are "
                "extrapolated"
            )
        return published_plan(
            over_full_problem(problem),
            Placement(tuple(intervals)),
            legs,
            options,
            planner=self.name,
            router="random",
            unused=_unused(problem, intervals, most),
            reasons=reasons,
            adjust_engine=lambda engine: _with_full_memory(problem, engine),
        )


def over_full_problem(problem: PlacementProblem) -> PlacementProblem:
    """``problem`` with T(k) for any number of layers: beyond the recommended ones, as published,
    a node does as many layer-tokens a second as at its recommended count."""
    cluster = problem.cluster
    wide = typical_throughput(cluster, problem.cost, composition=cluster, over_full=True)
    return replace(problem, max_layers=wide.max_layers, throughput=wide.throughput)


def full_memory_kv(cost: CostModel, node: Node, layers: int) -> int:
    """KV entries left when ``node`` holds ``layers`` layers and all the memory one may use.

    Up to ``cost.max_layers`` these are the cost model's. Beyond a table each layer takes what the
    last one took, and the raised memory share is added.
    """
    recommended = cost.max_layers(node)
    if layers <= recommended or not isinstance(cost, LayerTableCost):
        return cost.kv_capacity_layer_tokens(node, layers)
    last = cost.kv_capacity_layer_tokens(node, recommended)
    entry = cost.model.kv_bytes_per_token_per_layer
    if recommended > 1:
        per_layer = float(cost.kv_capacity_layer_tokens(node, recommended - 1) - last)
    else:
        per_layer = cost.layer_weight_bytes / entry
    raised = RAISED_MEMORY_SHARE * node.memory_bytes / entry
    return max(0, int(last - (layers - recommended) * per_layer + raised))


def full_memory_layers(problem: PlacementProblem) -> list[int]:
    """``[n]`` most layers of each node that leave KV room for one long sequence."""
    cost, model = problem.cost, problem.model
    longest = min(LONGEST_SEQUENCE_TOKENS, model.max_position_embeddings)
    by_type: dict[int, int] = {}
    for node, kind in zip(problem.cluster.nodes, problem.node_type.tolist(), strict=True):
        if kind in by_type:
            continue
        layers = 0
        while layers < problem.num_layers and full_memory_kv(cost, node, layers + 1) >= longest * (
            layers + 1
        ):
            layers += 1
        by_type[kind] = layers
    return [by_type[kind] for kind in problem.node_type.tolist()]


def equal_pipelines(
    problem: PlacementProblem, nodes: Sequence[int], most: Sequence[int]
) -> list[Pipeline]:
    """Split ``nodes`` into as many pipelines as their recommended layers fill, at least one.

    Within a pipeline all parts are equal to one layer, as far as ``most`` allows. Returns [] when
    the nodes cannot hold the model even at ``most`` layers each.
    """
    layers = problem.num_layers
    able = [i for i in nodes if most[i] > 0]
    recommended = [int(problem.node_max_layers[i]) for i in able]
    for count in range(max(1, sum(recommended) // layers), 0, -1):
        groups = _deal(problem, able, count)
        limit = problem.node_max_layers.tolist() if count > 1 else list(most)
        if all(sum(limit[i] for i in group) >= layers for group in groups):
            return [_pipeline(problem, group, limit) for group in groups]
    return []


def _deal(problem: PlacementProblem, nodes: Sequence[int], count: int) -> list[list[int]]:
    """``count`` groups of the same mix of types: consecutive nodes of each type stay together."""
    groups: list[list[int]] = [[] for _ in range(count)]
    kinds = dict.fromkeys(int(problem.node_type[i]) for i in nodes)
    for kind in kinds:
        members = [i for i in nodes if problem.node_type[i] == kind]
        cuts = [g * len(members) // count for g in range(count + 1)]
        for group, (a, b) in zip(groups, pairwise(cuts), strict=True):
            group += members[a:b]
    return groups


def _pipeline(problem: PlacementProblem, group: list[int], most: Sequence[int]) -> Pipeline:
    """One chain through ``group``, in the order of the published files.

    Over equal links: nodes in their order, the shorter parts first. Over unequal links: nodes in
    reverse (as the Swarm code that made those files puts them), or, where parts differ, shuffled
    with seed 0, the longer parts first.
    """
    group = group[: problem.num_layers]
    even = problem.num_layers % len(group) == 0
    longer_first = not _equal_links(problem, group)
    if longer_first and even:
        group = group[::-1]
    elif longer_first:
        group = list(group)
        Random(0).shuffle(group)
    parts = _parts(problem.num_layers, [most[i] for i in group], longer_first=longer_first)
    pipeline: Pipeline = []
    start = 0
    for i, part in zip(group, parts, strict=True):
        if part:
            pipeline.append((i, (start, start + part)))
            start += part
    return pipeline


def _equal_links(problem: PlacementProblem, group: Sequence[int]) -> bool:
    between = np.ix_(group, group)
    off = ~np.eye(len(group), dtype=bool)
    speed, latency = problem.link_tokens_per_s[between][off], problem.link_latency_s[between][off]
    return len(speed) == 0 or bool((speed == speed[0]).all() and (latency == latency[0]).all())


def _parts(layers: int, most: Sequence[int], *, longer_first: bool) -> list[int]:
    """Parts that sum to ``layers``, as equal as ``most`` allows."""
    parts = [0] * len(most)
    left = layers
    while left > 0:
        open_ = [p for p in range(len(most)) if parts[p] < most[p]]
        each, extra = divmod(left, len(open_))
        chosen = range(len(open_)) if longer_first else range(len(open_) - 1, -1, -1)
        longer = set(list(chosen)[:extra])
        for rank, p in enumerate(open_):
            given = min(each + (rank in longer), most[p] - parts[p])
            parts[p] += given
            left -= given
    return parts


def _with_full_memory(problem: PlacementProblem, engine: Engine) -> Engine:
    stage = engine.stages[0]
    node = problem.cluster.node(stage.node)
    return replace(
        engine, kv_capacity_layer_tokens=full_memory_kv(problem.cost, node, stage.num_layers)
    )


def _unused(
    problem: PlacementProblem, intervals: Sequence[Interval | None], most: Sequence[int]
) -> list[Unused]:
    """Why each node without layers has none: its whole type falls short, or it is left over."""
    unused = []
    for i, node in enumerate(problem.cluster.nodes):
        if intervals[i] is not None:
            continue
        kind = problem.node_type[i]
        members = np.flatnonzero(problem.node_type == kind).tolist()
        room = sum(most[j] for j in members)
        name = problem.type_names[kind]
        if room < problem.num_layers:
            reason = (
                f"the {len(members)} {name} hold {room} of {problem.num_layers} layers by "
                "themselves, even at full memory"
            )
        else:
            reason = f"left over: more {name} than layers to share"
        unused.append(Unused(node.name, reason))
    return unused
