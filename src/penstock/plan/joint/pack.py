"""Where memory is short: the most requests a byte, packed as tightly as it goes."""

from __future__ import annotations

from collections.abc import Sequence
from math import inf

from penstock.plan.joint.evaluate import Evaluator
from penstock.plan.joint.layout import Candidate
from penstock.plan.joint.limits import Limits


def pack(evaluator: Evaluator, limits: Limits, candidate: Candidate) -> Candidate:
    """Give homes to as many as possible of the asked models that have none.

    Models are ranked by priority, then by requests a byte of weights. The longest head of that
    order that fits is placed: heaviest first, each on the group that it leaves least room on.
    """
    problem = evaluator.problem
    missing = [
        m for m in range(len(problem.models)) if problem.asked[m] and m not in candidate.placed
    ]
    sizes = {m: _bytes(evaluator, limits, candidate, m) for m in missing}
    order = sorted(
        (m for m, size in sizes.items() if size < inf),
        key=lambda m: (-problem.models[m].priority, -problem.asked[m] / sizes[m], m),
    )
    for count in range(len(order), 0, -1):
        heavy_first = sorted(order[:count], key=lambda m: (-sizes[m], m))
        found = _tightly(evaluator, limits, candidate, heavy_first)
        if found is not None:
            return found
    return candidate


def _bytes(evaluator: Evaluator, limits: Limits, candidate: Candidate, m: int) -> float:
    """What ``m`` takes over all GPUs of the group where it takes least; infinite without one."""
    form = candidate.forms[m]
    rows = [
        (evaluator.row(m, form, group), group.gpus)
        for group in candidate.groups
        if limits.quick(m, form, group)
    ]
    return min((row.weight_bytes * gpus for row, gpus in rows if row is not None), default=inf)


def _tightly(
    evaluator: Evaluator, limits: Limits, candidate: Candidate, models: Sequence[int]
) -> Candidate | None:
    """``candidate`` with all of ``models``, or None where one of them finds no room."""
    for m in models:
        homes = []
        for g, group in enumerate(candidate.groups):
            if not limits.quick(m, candidate.forms[m], group):
                continue
            grown = candidate.adding(g, m)
            fits = evaluator.fits(group, grown.held[g], grown.forms)
            if fits and limits.allow(grown):
                homes.append((_left_bytes(evaluator, grown, g), g, grown))
        if not homes:
            return None
        candidate = min(homes, key=lambda home: home[:2])[2]
    return candidate


def _left_bytes(evaluator: Evaluator, candidate: Candidate, g: int) -> float:
    """Room on the fullest GPU of group ``g`` beside the weights it holds."""
    rows = [evaluator.row(m, candidate.forms[m], candidate.groups[g]) for m in candidate.held[g]]
    held = [row for row in rows if row is not None]
    return min(row.room_bytes for row in held) - sum(row.weight_bytes for row in held)
