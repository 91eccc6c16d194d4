"""The equal GPUs that the published planners know, and groups of them as parts of machines."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from math import inf

from penstock.errors import SpecError
from penstock.plan.goodput.machines import Machines, machines_of
from penstock.plan.parts import Parts
from penstock.plan.pool_question import PoolQuestion
from penstock.spec.cluster import Cluster


def equal_machines(cluster: Cluster, planner: str) -> Machines:
    """The machines of ``cluster``, which must be alike. Raises ``SpecError``."""
    kinds = machines_of(cluster)
    if len(kinds) != 1:
        held = ", ".join(f"{len(k.names)} of {k.gpus_per_machine} x {k.accelerator.name}"
                         for k in kinds)  # fmt: skip
        raise SpecError(
            f"knows equal machines only, and {cluster.name} has {held}",
            key="--planner",
            value=planner,
            fix="use joint",
        )
    return kinds[0]


def refuse_budget(question: PoolQuestion, planner: str) -> None:
    """The published planners plan anew. Raises ``SpecError`` where little may be loaded."""
    if question.move_budget_bytes < inf:
        raise SpecError(
            f"{planner} plans anew and keeps to no budget",
            key="--move-budget",
            value=question.move_budget_bytes,
            fix="leave it out, or use joint",
        )


def one_machine(cluster: Cluster, planner: str) -> Machines:
    """The only machine of ``cluster``. Raises ``SpecError`` where there are more."""
    found = equal_machines(cluster, planner)
    if len(found.names) != 1:
        raise SpecError(
            f"knows one machine only, and {cluster.name} has {len(found.names)}",
            key="--planner",
            value=planner,
            fix="use alpaserve or joint",
        )
    return found


@dataclass(frozen=True, slots=True)
class Wanted:
    """A group of GPUs: ``stages[i]`` holds the numbers of the GPUs of stage i in the pool."""

    stages: tuple[tuple[int, ...], ...]

    @property
    def gpus(self) -> frozenset[int]:
        return frozenset(gpu for stage in self.stages for gpu in stage)


@dataclass(frozen=True, slots=True)
class Seated:
    """Machines cut so that every stage is a node; ``nodes[g][s]`` is stage s of group g."""

    parts: tuple[Parts, ...]
    nodes: tuple[tuple[str, ...], ...]


def seat(machines: Machines, groups: Sequence[Wanted]) -> Seated:
    """Cut the machines for ``groups``, which share no GPU; a stage stays within one machine.

    GPUs of a machine are alike, so that its stages take its GPUs in order of their first one.
    What no group wants of a machine is a part of its own.
    """
    size = machines.gpus_per_machine
    by_machine: dict[int, list[tuple[int, int, int]]] = {}
    for g, group in enumerate(groups):
        for s, stage in enumerate(group.stages):
            machine = stage[0] // size
            if any(gpu // size != machine for gpu in stage):
                raise AssertionError(f"stage {stage} spans machines of {size} GPUs")
            by_machine.setdefault(machine, []).append((min(stage), g, s))
    parts: list[Parts] = []
    found: dict[tuple[int, int], str] = {}
    for machine, stages in sorted(by_machine.items()):
        stages.sort()
        sizes = [len(groups[g].stages[s]) for _, g, s in stages]
        left = size - sum(sizes)
        if left:
            sizes.append(left)
        part = Parts(machines.names[machine], tuple(sizes))
        parts.append(part)
        for name, (_, g, s) in zip(part.names, stages, strict=False):
            found[g, s] = name
    nodes = tuple(
        tuple(found[g, s] for s in range(len(group.stages))) for g, group in enumerate(groups)
    )
    return Seated(tuple(parts), nodes)
