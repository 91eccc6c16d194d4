"""A first filling of given groups, and replicas where requests still miss their limits."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np

from penstock.plan.joint.evaluate import Evaluator, Outcome
from penstock.plan.joint.layout import Candidate
from penstock.plan.joint.limits import Limits
from penstock.plan.joint.pack import pack
from penstock.plan.joint.state import Floats

TOGETHER = 4
"""Requests that are taken to decode together where only a rough load is asked for."""
TRIED_MODELS, TRIED_GROUPS = 3, 2
TOO_SLOW = 10.0


def fill(evaluator: Evaluator, limits: Limits, candidate: Candidate) -> Candidate:
    """Put every asked model that has no home yet onto the group it burdens least.

    Models that few groups can hold choose first, then the heavier ones; a higher priority goes
    before all of that. Where some are left out, the tightest packing is taken if it holds more.
    """
    spread = _spread(evaluator, limits, candidate)
    asked = evaluator.problem.asked
    if all(m in spread.placed for m in np.flatnonzero(asked).tolist()):
        return spread
    packed = pack(evaluator, limits, candidate)
    return packed if _held(evaluator, packed) > _held(evaluator, spread) else spread


def _held(evaluator: Evaluator, candidate: Candidate) -> tuple[tuple[int, ...], int]:
    """Models with a home by priority, the highest first, and their requests."""
    problem = evaluator.problem
    placed = [m for m in candidate.placed if problem.asked[m]]
    levels = sorted({model.priority for model in problem.models}, reverse=True)
    counts = tuple(sum(problem.models[m].priority == level for m in placed) for level in levels)
    return counts, sum(int(problem.asked[m]) for m in placed)


def _spread(evaluator: Evaluator, limits: Limits, candidate: Candidate) -> Candidate:
    """The models of ``fill`` by least load."""
    problem = evaluator.problem
    missing = [
        m for m in range(len(problem.models)) if problem.asked[m] and m not in candidate.placed
    ]
    loads = {m: _loads(evaluator, limits, candidate, m) for m in missing}
    use = np.zeros(len(candidate.groups))
    for m in candidate.placed:
        homes = candidate.homes(m)
        use[homes] += _loads(evaluator, limits, candidate, m)[homes] / len(homes)

    def turn(m: int) -> tuple[float, ...]:
        able = loads[m][np.isfinite(loads[m])]
        least = float(able.min()) if len(able) else np.inf
        return (-problem.models[m].priority, len(able), -least, m)

    for m in sorted(missing, key=turn):
        for g in np.argsort(use + loads[m], kind="stable").tolist():
            if not np.isfinite(loads[m][g]):
                break
            grown = candidate.adding(g, m)
            if evaluator.fits(grown.groups[g], grown.held[g], grown.forms) and limits.allow(grown):
                candidate = grown
                use[g] += loads[m][g]
                break
    return candidate


def _loads(evaluator: Evaluator, limits: Limits, candidate: Candidate, m: int) -> Floats:
    """[groups] share of its time that each would spend on all requests of ``m``."""
    problem = evaluator.problem
    found = np.full(len(candidate.groups), np.inf)
    prompt, output = problem.mean_prompt[m], problem.mean_output[m]
    for g, group in enumerate(candidate.groups):
        row = evaluator.row(m, candidate.forms[m], group)
        if row is None or not limits.quick(m, candidate.forms[m], group):
            continue
        busy_s = problem.book.busy_s(row, prompt, output, TOGETHER) / len(group.stages)
        found[g] = problem.asked[m] * busy_s / problem.duration_s
        if problem.book.alone_s(row, prompt, output) > problem.norm_s[m]:
            found[g] += TOO_SLOW
    return found


def replicate(
    evaluator: Evaluator, limits: Limits, candidate: Candidate
) -> tuple[Candidate, Outcome]:
    """Add the replica that helps most, of a few likely ones, until none helps."""
    problem = evaluator.problem
    n = problem.traffic.num_requests
    outcome = evaluator(candidate)
    while outcome.attainment(n) < 1.0:
        best = None
        for g, m in additions(evaluator, limits, candidate, outcome):
            grown = candidate.adding(g, m)
            found = evaluator(grown)
            if best is None or found.score(n) > best[1].score(n):
                best = grown, found
        if best is None or best[1].score(n) <= outcome.score(n):
            break
        candidate, outcome = best
    stuffed = stuff(evaluator, limits, candidate, outcome)
    found = evaluator(stuffed)
    return (stuffed, found) if found.score(n) > outcome.score(n) else (candidate, outcome)


def stuff(
    evaluator: Evaluator, limits: Limits, candidate: Candidate, outcome: Outcome
) -> Candidate:
    """Replicas of all models with misses, those with most first, until memory is full.

    Single replicas may show no gain where many together do: bursts find more homes.
    """
    missed = evaluator.problem.sampled - outcome.good
    order = [m for m in np.argsort(-missed, kind="stable").tolist() if missed[m]]
    for g in np.argsort(outcome.busy, kind="stable").tolist():
        group = candidate.groups[g]
        for m in order:
            if m in candidate.held[g] or m not in candidate.placed:
                continue
            grown = candidate.adding(g, m)
            quick = limits.quick(m, candidate.forms[m], group)
            if quick and evaluator.fits(group, grown.held[g], grown.forms) and limits.allow(grown):
                candidate = grown
    return candidate


def additions(
    evaluator: Evaluator, limits: Limits, candidate: Candidate, outcome: Outcome
) -> Sequence[tuple[int, int]]:
    """(group, model) of likely replicas: models with most misses on groups with least to do."""
    missed = evaluator.problem.sampled - outcome.good
    found: list[tuple[int, int]] = []
    for m in np.argsort(-missed, kind="stable")[:TRIED_MODELS].tolist():
        if not missed[m] or m not in candidate.placed:
            continue
        kept, kinds = 0, set()
        for g in np.argsort(outcome.busy, kind="stable").tolist():
            group = candidate.groups[g]
            if m in candidate.held[g] or not limits.quick(m, candidate.forms[m], group):
                continue
            sort = (evaluator.kind(group), candidate.held[g])
            grown = candidate.adding(g, m)
            if sort in kinds or not evaluator.fits(group, grown.held[g], grown.forms):
                continue
            if not limits.allow(grown):
                continue
            kinds.add(sort)
            found.append((g, m))
            kept += 1
            if kept == TRIED_GROUPS:
                break
    return found
