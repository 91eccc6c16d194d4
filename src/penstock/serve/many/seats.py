"""Places for one more engine on the machines of a pool: free GPUs, or beside an engine."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass, replace

from penstock.plan.parts import Parts, cut
from penstock.plan.plan import Engine
from penstock.plan.pool_plan import Deployment, PoolPlan
from penstock.serve.many.memory import Gpu

Block = tuple[Gpu, ...]
"""The GPUs of one stage: neighbours on one machine."""


@dataclass(frozen=True, slots=True)
class Seats:
    """Stages an engine may stand on; ``shared``: all of them, in this order, beside others."""

    blocks: tuple[Block, ...]
    shared: bool


def seats(plan: PoolPlan, tensor: int) -> Iterator[Seats]:
    """Free GPUs in blocks of ``tensor``, a kind of GPU at a time; then every group in use."""
    used = {gpu for nodes in plan.groups for node in nodes for gpu in plan.gpus_of(node)}
    kinds = {machine.accelerator.name: machine.accelerator for machine in plan.cluster.nodes}
    for kind in kinds:
        blocks: list[Block] = []
        for machine in plan.cluster.nodes:
            if machine.accelerator.name == kind:
                free = [(machine.name, i) for i in range(machine.count)]
                blocks += _blocks([gpu for gpu in free if gpu not in used], tensor)
        if blocks:
            yield Seats(tuple(blocks), shared=False)
    for nodes in plan.groups:
        held = tuple(tuple(sorted(plan.gpus_of(node))) for node in nodes)
        if all(len(block) == tensor for block in held):
            yield Seats(held, shared=True)


def _blocks(gpus: Sequence[Gpu], size: int) -> Iterator[Block]:
    """Neighbours among ``gpus``, ``size`` at a time."""
    run: list[Gpu] = []
    for gpu in gpus:
        if run and gpu[1] != run[-1][1] + 1:
            run = []
        run.append(gpu)
        if len(run) == size:
            yield tuple(run)
            run = []


def recut(plan: PoolPlan, blocks: Sequence[Block]) -> tuple[PoolPlan, tuple[str, ...]]:
    """``plan`` with each of ``blocks`` as a node, and their names.

    Nodes in use stay what they are but may be renamed; free GPUs become nodes of one GPU.
    """
    kept = [
        tuple(sorted(plan.gpus_of(node))) for node in {n for nodes in plan.groups for n in nodes}
    ]
    wanted = {block[0]: block for block in (*kept, *blocks)}
    inside = {gpu for block in wanted.values() for gpu in block}
    parts: list[Parts] = []
    names: dict[Gpu, str] = {}
    for machine in plan.cluster.nodes:
        starts = [
            (machine.name, i)
            for i in range(machine.count)
            if (machine.name, i) in wanted or (machine.name, i) not in inside
        ]
        sizes = tuple(len(wanted.get(gpu, (gpu,))) for gpu in starts)
        part = Parts(machine.name, sizes)
        parts.append(part)
        names.update(zip(starts, part.names, strict=True))
    nodes = cut(plan.cluster, parts)
    renamed = {
        node.name: names[min(plan.gpus_of(node.name))]
        for node in plan.nodes.nodes
        if min(plan.gpus_of(node.name)) in names
    }

    def moved(entry: Deployment) -> Deployment:
        engines = tuple(_renamed(engine, renamed) for engine in entry.plan.engines)
        return replace(entry, plan=replace(entry.plan, cluster=nodes, engines=engines))

    changed = replace(plan, parts=tuple(parts), deployments=tuple(map(moved, plan.deployments)))
    return changed, tuple(names[block[0]] for block in blocks)


def _renamed(engine: Engine, names: dict[str, str]) -> Engine:
    stages = tuple(replace(stage, node=names[stage.node]) for stage in engine.stages)
    return replace(engine, stages=stages)
