"""Overlapping sets of GPUs as groups that are the same or share nothing.

A pool's engines stand on the same nodes or on none in common. Deployments whose GPUs overlap
otherwise are widened: all of them get one shape over all the GPUs they touch together.
"""

from __future__ import annotations

from collections.abc import Sequence

from penstock.errors import Infeasible, SpecError
from penstock.plan.intent.select import Choice
from penstock.plan.published.asked import Asked
from penstock.plan.published.assemble import Replica
from penstock.plan.published.equal_gpus import Wanted
from penstock.spec.served import ServedModel

Chosen = tuple[ServedModel, Choice | None]


def widened(
    asked: Asked, chosen: Sequence[Chosen]
) -> tuple[list[Wanted], list[Replica], list[str]]:
    """Groups, the replica of every model, and what was widened, in words.

    Raises ``Infeasible`` where models that overlap do not fit any common shape.
    """
    groups: list[Wanted] = []
    replicas: dict[int, Replica] = {}
    notes = []
    for members in _touching([_gpus(one) for one in chosen]):
        wanted = {_stages(chosen[i]) for i in members}
        if len(wanted) == 1:
            for i in members:
                replicas[i] = Replica(len(groups), 1, _choice(chosen[i]).layer_map.layers)
            groups.append(Wanted(wanted.pop()))
            continue
        gpus = sorted({gpu for i in members for gpu in _gpus(chosen[i])})
        tensor, pipeline = _common_shape(asked, [chosen[i] for i in members], len(gpus))
        used = gpus[: tensor * pipeline]
        stages = tuple(tuple(used[s * tensor : (s + 1) * tensor]) for s in range(pipeline))
        for i in members:
            replicas[i] = Replica(len(groups), 1)
        groups.append(Wanted(stages))
        names = ", ".join(chosen[i][0].name for i in members)
        notes.append(
            f"{names} overlap on GPUs {', '.join(map(str, gpus))} without being equal: widened to "
            f"one group of TP{tensor} PP{pipeline} that they take turns on"
        )
    return groups, [replicas[i] for i in range(len(chosen))], notes


def _choice(one: Chosen) -> Choice:
    assert one[1] is not None
    return one[1]


def _gpus(one: Chosen) -> frozenset[int]:
    return frozenset(_choice(one).layer_map.gpus)


def _stages(one: Chosen) -> tuple[tuple[int, ...], ...]:
    return tuple(tuple(sorted(group)) for group in _choice(one).layer_map.groups)


def _touching(sets: Sequence[frozenset[int]]) -> list[list[int]]:
    """Indices of sets that overlap, directly or through others; in order of the first."""
    found: list[tuple[set[int], list[int]]] = []
    for i, own in enumerate(sets):
        joined, members = set(own), [i]
        apart = []
        for gpus, indices in found:
            if gpus & own:
                joined |= gpus
                members = [*indices, *members]
            else:
                apart.append((gpus, indices))
        found = [*apart, (joined, members)]
    return sorted(sorted(members) for _, members in found)


def _common_shape(asked: Asked, chosen: Sequence[Chosen], gpus: int) -> tuple[int, int]:
    """The (TP, PP) on at most ``gpus`` GPUs with the least work a second that holds them all."""
    best: tuple[float, int, int] | None = None
    for tensor in range(1, gpus + 1):
        for pipeline in range(1, gpus // tensor + 1):
            work_s = _work_s(asked, chosen, tensor, pipeline)
            if work_s is not None and (best is None or work_s < best[0]):
                best = work_s, tensor, pipeline
    if best is None:
        names = ", ".join(served.name for served, _ in chosen)
        raise Infeasible(
            f"{names} overlap on {gpus} GPUs, and no shape holds them all there",
            binding="accelerator memory",
            fix="use --planner joint",
        )
    return best[1], best[2]


def _work_s(asked: Asked, chosen: Sequence[Chosen], tensor: int, pipeline: int) -> float | None:
    """Seconds of service a second, one request at a time; None where a model does not fit."""
    shape = asked.shape(tensor, pipeline)
    work_s = held = 0.0
    room = float("inf")
    for served, choice in chosen:
        if choice is None or pipeline > served.model.num_hidden_layers:
            return None
        cost = asked.cost(served, choice.configuration.precision)
        try:
            seconds = asked.latency_s(cost, served.name, shape)
            held += asked.held_bytes(cost, served.name, shape, 1)
        except (SpecError, Infeasible):
            return None
        room = min(room, asked.room_bytes(cost, served.name))
        work_s += asked.means[served.name].rate_per_s * sum(seconds)
    return work_s if held <= room else None
