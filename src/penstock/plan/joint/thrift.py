"""The same requests served for less: what the intents of the models make of a good candidate.

A model's measure is that of its intent, over all its engines: ``min_memory`` counts the bytes of
its weights; ``min_cost`` these times the mean latency, ``min_gpu_cost`` its share of GPUs times
the mean latency (MaverIQ's measures, for a pool). Candidates may lose at most ``SLACK`` of the
attainment for them. Without such intents nothing is lost for the sake of the measure, which is then
the price of the GPUs in use (their number where a price is unknown).
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping

import numpy as np

from penstock.plan.joint.evaluate import Outcome
from penstock.plan.joint.fill import fill
from penstock.plan.joint.layout import Candidate
from penstock.plan.joint.limits import Limits, stage_weights
from penstock.plan.joint.moves import Neighbours
from penstock.plan.joint.problem import JointProblem
from penstock.plan.joint.search import Found, Search
from penstock.spec.hardware import Node

SLACK = 0.005
"""Of all requests sent."""
MOST_STEPS = 40
HAIR = 1e-9
Measure = tuple[float, float]


def thrifty_models(problem: JointProblem) -> list[int]:
    """Models whose intent is not the latency alone, and that have requests."""
    return [
        m
        for m, model in enumerate(problem.models)
        if model.wish.intent != "min_latency" and problem.asked[m]
    ]


def allowed_loss(problem: JointProblem) -> float:
    """Attainment that may be given up for a lower measure."""
    return SLACK if thrifty_models(problem) else 0.0


def price_of(problem: JointProblem, candidate: Candidate) -> float:
    """Dollars an hour of the GPUs in use; their number where a price is unknown."""
    prices = [_price(node) for node in problem.machines]
    known = [price for price in prices if price is not None]
    each = known if len(known) == len(prices) else [1.0] * len(prices)
    return sum(
        group.tensor * each[m]
        for group, held in zip(candidate.groups, candidate.held, strict=True)
        if held
        for m, _ in group.stages
    )


def _price(node: Node) -> float | None:
    """Dollars an hour of one GPU."""
    if node.price_per_hour is not None:
        return node.price_per_hour / node.count
    return node.accelerator.price_per_hour


def costs(limits: Limits, found: Found) -> Mapping[int, float]:
    """The measure of every thrifty model."""
    problem, candidate = limits.evaluator.problem, found.candidate
    latency = _latency_s(problem, found.outcome)
    result = {}
    for m in thrifty_models(problem):
        homes = candidate.homes(m)
        stages = [len(candidate.groups[g].stages) for g in homes]
        size = sum(
            sum(stage_weights(limits.evaluator, m, candidate.forms[m], count)) for count in stages
        )
        gpus = sum(candidate.groups[g].gpus / len(candidate.held[g]) for g in homes)
        intent = problem.models[m].wish.intent
        if intent == "min_memory":
            result[m] = float(size)
        elif intent == "min_cost":
            result[m] = size * latency[m]
        else:
            result[m] = gpus * latency[m]
    return result


def _latency_s(problem: JointProblem, outcome: Outcome) -> list[float]:
    """Mean latency of every model."""
    asked = np.maximum(1, problem.sampled)
    return [float(s) for s in outcome.seconds / asked]


class Thrift:
    """Lowers the measure step by step; ``reference`` is what measures are relative to."""

    def __init__(self, search: Search, reference: Found) -> None:
        self.search, self.limits = search, search.limits
        self.problem = search.evaluator.problem
        self.reference = costs(self.limits, reference)
        n = self.problem.traffic.num_requests
        self.floor = reference.outcome.attainment(n) - allowed_loss(self.problem) - HAIR
        self.placed = reference.rank[0]

    def measure(self, found: Found) -> Measure:
        """(measures of the thrifty models over those of the reference, price); lower is better."""
        now = costs(self.limits, found)
        relative = sum(now[m] / max(self.reference[m], 1e-12) for m in now)
        return relative, price_of(self.problem, found.candidate)

    def lower(self, found: Found) -> Found:
        """Take the step that saves most, while one keeps the attainment."""
        best = self.measure(found)
        for _ in range(MOST_STEPS):
            taken = None
            for candidate in self._steps(found.candidate):
                tried = self.search.judge(candidate)
                measure = self.measure(tried)
                if self.keeps(tried) and _less(measure, best):
                    taken, best = tried, measure
            if taken is None or self.search.late:
                return taken or found
            found = taken
        return found

    def keeps(self, found: Found) -> bool:
        n = self.problem.traffic.num_requests
        return found.rank[0] >= self.placed and found.outcome.attainment(n) >= self.floor

    def _steps(self, candidate: Candidate) -> Iterator[Candidate]:
        """A replica less, a model in another form, a group emptied into the others."""
        holds = Neighbours(self.search.evaluator, self.limits, self.search.random).holds
        for g, held in enumerate(candidate.held):
            for m in held:
                if len(candidate.homes(m)) > 1:
                    yield candidate.removing(g, m)
        for m, forms in enumerate(self.problem.forms):
            for form in range(len(forms)):
                other = candidate.with_form(m, form)
                if form != candidate.forms[m] and holds(other) and self.limits.allow(other):
                    yield other
        used = [g for g, held in enumerate(candidate.held) if held]
        for g in used if len(used) > 1 else ():
            moved = self._emptied(candidate, g)
            if moved is not None:
                yield moved

    def _emptied(self, candidate: Candidate, gone: int) -> Candidate | None:
        """What group ``gone`` alone holds goes to the groups that are in use."""
        groups = [g for g, held in enumerate(candidate.held) if held and g != gone]
        inner = Candidate(
            tuple(candidate.groups[g] for g in groups),
            tuple(candidate.held[g] for g in groups),
            candidate.forms,
        )
        filled = fill(self.search.evaluator, self.limits, inner)
        asked = [m for m in candidate.held[gone] if self.problem.asked[m]]
        if not all(m in filled.placed for m in asked):
            return None
        held: list[tuple[int, ...]] = [()] * len(candidate.groups)
        for g, models in zip(groups, filled.held, strict=True):
            held[g] = models
        return Candidate(candidate.groups, tuple(held), candidate.forms)


def _less(a: Measure, b: Measure) -> bool:
    """Whether ``a`` is lower, by more than rounding."""
    if abs(a[0] - b[0]) > HAIR * max(1.0, b[0]):
        return a[0] < b[0]
    return a[1] < b[1] * (1 - HAIR)
