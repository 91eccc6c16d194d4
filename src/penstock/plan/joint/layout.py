"""Groups of GPUs on machines, what they hold, and the ways to cut machines into groups."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, replace
from functools import cached_property
from itertools import pairwise

from penstock.plan.joint.book import Kind
from penstock.plan.parts import Parts
from penstock.spec.cluster import Cluster

MOST_STAGES = 16


@dataclass(frozen=True, slots=True, order=True)
class Group:
    """A pipeline: one stage an entry of ``stages`` (machine, its first GPU), ``tensor`` GPUs each.

    Machines are counted in the order of the cluster.
    """

    stages: tuple[tuple[int, int], ...]
    tensor: int

    @property
    def gpus(self) -> int:
        return self.tensor * len(self.stages)

    @property
    def machines(self) -> frozenset[int]:
        return frozenset(machine for machine, _ in self.stages)

    @property
    def blocks(self) -> tuple[tuple[int, int], ...]:
        """(machine, GPU) of every GPU, in order."""
        return tuple((m, first + i) for m, first in self.stages for i in range(self.tensor))


@dataclass(frozen=True)
class Candidate:
    """Groups, the models each holds (ascending), and the stored form of every model."""

    groups: tuple[Group, ...]
    held: tuple[tuple[int, ...], ...]
    forms: tuple[int, ...]

    def adding(self, group: int, model: int) -> Candidate:
        return self.holding(group, (*self.held[group], model))

    def removing(self, group: int, model: int) -> Candidate:
        return self.holding(group, [m for m in self.held[group] if m != model])

    def holding(self, group: int, models: Sequence[int]) -> Candidate:
        held = list(self.held)
        held[group] = tuple(sorted(set(models)))
        return replace(self, held=tuple(held))

    def with_form(self, model: int, form: int) -> Candidate:
        forms = list(self.forms)
        forms[model] = form
        return replace(self, forms=tuple(forms))

    def homes(self, model: int) -> list[int]:
        return [g for g, held in enumerate(self.held) if model in held]

    @cached_property
    def placed(self) -> frozenset[int]:
        return frozenset(m for held in self.held for m in held)

    @property
    def gpus(self) -> int:
        """GPUs of groups that hold a model."""
        return sum(g.gpus for g, held in zip(self.groups, self.held, strict=True) if held)


def empty(groups: Sequence[Group], forms: Sequence[int]) -> Candidate:
    return Candidate(tuple(groups), ((),) * len(groups), tuple(forms))


def kind_of(group: Group, cluster: Cluster) -> Kind:
    gpu = cluster.nodes[group.stages[0][0]].accelerator.name
    return Kind(gpu, group.tensor, len(group.stages))


def linked(machines: Sequence[int], cluster: Cluster) -> bool:
    """Whether successive machines of a pipeline are joined."""
    names = [cluster.nodes[m].name for m in machines]
    pairs = pairwise(names)
    return all(a == b or cluster.link(a, b) is not None for a, b in pairs)


def parts_of(
    groups: Sequence[Group], cluster: Cluster
) -> tuple[tuple[Parts, ...], dict[int, dict[int, str]]]:
    """Parts of every machine, and the node of each first GPU: names[machine][first GPU].

    GPUs that no group takes form groups of their own between the others.
    """
    parts, names = [], {}
    for m, node in enumerate(cluster.nodes):
        cuts = sorted(
            (first, group.tensor) for group in groups for at, first in group.stages if at == m
        )
        sizes: list[int] = []
        starts: list[int] = []
        done = 0
        for first, size in [*cuts, (node.count, 0)]:
            if first > done:
                sizes.append(first - done)
                starts.append(done)
            if size:
                sizes.append(size)
                starts.append(first)
            done = first + size
        part = Parts(node.name, tuple(sizes))
        parts.append(part)
        names[m] = dict(zip(starts, part.names, strict=True))
    return tuple(parts), names


# -- ways to cut ------------------------------------------------------------------------------


def arrangements(
    machines: Sequence[int], cluster: Cluster, heads: frozenset[int]
) -> Iterator[tuple[Group, ...]]:
    """Ways to cut equal ``machines``: all groups of one shape, or a few wider ones first.

    ``heads``: attention heads of the models, some of which a tensor-parallel size must divide.
    Pipelines over machines take whole machines.
    """
    count = cluster.nodes[machines[0]].count
    inside = _shapes(count, heads)
    across = [
        (tensor, count // tensor * several)
        for several in range(2, len(machines) + 1)
        for tensor, pipeline in inside
        if tensor * pipeline == count and count // tensor * several <= MOST_STAGES
        if linked(machines[:several], cluster)
    ]
    seen: set[tuple[Group, ...]] = set()
    shapes = sorted([*inside, *across], key=lambda shape: (shape[0] * shape[1], shape[1]))
    plans = [(shape, 0, shape) for shape in shapes]
    plans += [
        (small, wide, large)
        for large in shapes
        for small in inside
        if small[0] * small[1] < large[0] * large[1]
        for wide in range(1, len(machines) * count // (large[0] * large[1]) + 1)
        if wide <= 2
    ]
    for small, wide, large in plans:
        found = _cut(machines, count, small, wide, large)
        if found and found not in seen:
            seen.add(found)
            yield found


def _shapes(count: int, heads: frozenset[int]) -> list[tuple[int, int]]:
    """(tensor, pipeline) of groups within a machine of ``count`` GPUs."""
    tensors = [t for t in range(1, count + 1) if any(h % t == 0 for h in heads)]
    return [
        (tensor, pipeline)
        for tensor in tensors
        for pipeline in range(1, count // tensor + 1)
        if tensor & (tensor - 1) == 0 or count % tensor == 0
        if pipeline & (pipeline - 1) == 0 or tensor * pipeline == count
    ]


def _cut(
    machines: Sequence[int],
    count: int,
    small: tuple[int, int],
    wide: int,
    large: tuple[int, int],
) -> tuple[Group, ...]:
    """``wide`` groups of ``large``, then as many of ``small`` as fit, then single GPUs."""
    free: Mapping[int, list[int]] = {m: list(range(count)) for m in machines}
    groups: list[Group] = []
    for shape, most in ((large, wide), (small, len(machines) * count)):
        for _ in range(most):
            found = _take(free, count, shape)
            if found is None:
                break
            groups.append(found)
    if len(groups) < wide:
        return ()
    groups += [Group(((m, gpu),), 1) for m, left in free.items() for gpu in left]
    return tuple(sorted(groups))


def _take(free: Mapping[int, list[int]], count: int, shape: tuple[int, int]) -> Group | None:
    """Take a group of ``shape`` from the first machine, or machines, with room."""
    tensor, pipeline = shape
    need = tensor * pipeline
    if need <= count:
        chosen = next(([m] for m, left in free.items() if len(left) >= need), None)
    else:
        whole = [m for m, left in free.items() if len(left) == count]
        several = need // count
        chosen = whole[:several] if len(whole) >= several else None
    if chosen is None:
        return None
    stages = []
    for m in chosen:
        for _ in range(pipeline // len(chosen)):
            stages.append((m, free[m][0]))
            del free[m][:tensor]
    return Group(tuple(stages), tensor)
