"""What a candidate must keep: latency wishes of models, and the bytes that may be loaded."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from math import inf

from penstock.plan.goodput.publish import even_stages
from penstock.plan.joint.evaluate import Evaluator
from penstock.plan.joint.layout import Candidate, Group

Seat = tuple[int, int, Group]
"""(model, form, group): what is held where."""
HAIR = 1e-9


@dataclass
class Limits:
    """``latency_s`` [models]: what a mean request alone must stay below.

    ``seats`` are held now, at no cost; ``budget_bytes`` is what a candidate may load beside them.
    """

    evaluator: Evaluator
    latency_s: Sequence[float]
    seats: frozenset[Seat] = frozenset()
    budget_bytes: float = inf
    _quick: dict[tuple[int, int, object], bool] = field(default_factory=dict)
    _bytes: dict[tuple[int, int, int], int] = field(default_factory=dict)

    def quick(self, model: int, form: int, group: Group) -> bool:
        """Whether a mean request of ``model`` alone on ``group`` stays below its wish."""
        limit = self.latency_s[model]
        if limit == inf:
            return True
        key = (model, form, self.evaluator.kind(group))
        if key not in self._quick:
            self._quick[key] = alone_s(self.evaluator, model, form, group) < limit
        return self._quick[key]

    def allow(self, candidate: Candidate) -> bool:
        """Whether no more has to be loaded than the budget."""
        return self.budget_bytes == inf or self.load_bytes(candidate) <= self.budget_bytes

    def load_bytes(self, candidate: Candidate) -> int:
        """Bytes of weights that ``candidate`` loads beyond the seats."""
        total = 0
        for group, held in zip(candidate.groups, candidate.held, strict=True):
            for m in held:
                if (m, candidate.forms[m], group) not in self.seats:
                    total += self._weights(m, candidate.forms[m], len(group.stages))
        return total

    def _weights(self, model: int, form: int, stages: int) -> int:
        key = (model, form, stages)
        if key not in self._bytes:
            self._bytes[key] = sum(stage_weights(self.evaluator, model, form, stages))
        return self._bytes[key]


def stage_weights(evaluator: Evaluator, model: int, form: int, stages: int) -> list[int]:
    """Bytes of the weights of every stage."""
    spec = evaluator.problem.forms[model][form].spec
    cut = even_stages([""] * stages, spec.num_hidden_layers)
    return [spec.slice_weight_bytes(stage.start_layer, stage.end_layer) for stage in cut]


def alone_s(evaluator: Evaluator, model: int, form: int, group: Group) -> float:
    """Seconds of a mean request on the idle group; infinite where the model does not fit."""
    row = evaluator.row(model, form, group)
    if row is None:
        return inf
    problem = evaluator.problem
    return problem.book.alone_s(row, problem.mean_prompt[model], problem.mean_output[model])


def load_seconds(
    evaluator: Evaluator, seats: frozenset[Seat], *, model: int, form: int, group: Group
) -> float:
    """Seconds until weights are read from idle disks; 0 for a seat that is held."""
    if (model, form, group) in seats:
        return 0.0
    nodes = evaluator.problem.machines
    speeds = [nodes[m].disk_bytes_per_s * group.tensor / nodes[m].count for m, _ in group.stages]
    sizes = stage_weights(evaluator, model, form, len(group.stages))
    return max(size / speed for size, speed in zip(sizes, speeds, strict=True))


def latency_limits(
    evaluator: Evaluator, groups: Sequence[Group]
) -> tuple[tuple[float, ...], Mapping[int, str]]:
    """([models] limits, reasons of the models that no group of ``groups`` can serve).

    ``or_nearest`` takes the lowest latency there is where nothing meets the wish.
    """
    problem = evaluator.problem
    kinds = {evaluator.kind(group): group for group in groups}
    found, without = [], {}
    for m, model in enumerate(problem.models):
        times = [
            alone_s(evaluator, m, form, group)
            for form in range(len(problem.forms[m]))
            for group in kinds.values()
        ]
        limit = inf if model.wish.latency_slo_s is None else model.wish.latency_slo_s
        least = min(times)
        if least == inf:
            without[m] = "it fits no group of this cluster"
        elif least >= limit and model.wish.or_nearest:
            limit = least * (1 + HAIR)
        elif least >= limit:
            without[m] = f"a mean request takes {least:.3g} s at best; latency_slo is {limit:g} s"
        found.append(limit)
    return tuple(found), without
