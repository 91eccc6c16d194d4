"""The search: cuts of the machines filled greedily, then small changes to the best few."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from functools import cached_property
from random import Random
from time import monotonic

from penstock.plan.joint.evaluate import Evaluator, Outcome
from penstock.plan.joint.fill import fill, replicate
from penstock.plan.joint.layout import Candidate, Group, arrangements, empty
from penstock.plan.joint.limits import Limits
from penstock.plan.joint.moves import Neighbours

KEPT = 6
MOST_CUTS = 24
PROPOSALS = 500
ROUNDS = 2
Rank = tuple[tuple[int, ...], float]


@dataclass(frozen=True)
class Found:
    """A candidate with what it does. Higher ``rank`` is better: models placed, then score."""

    candidate: Candidate
    outcome: Outcome
    rank: Rank


@dataclass
class Search:
    """``best`` holds the best few, best first. ``proposals`` is the budget of changes."""

    evaluator: Evaluator
    limits: Limits
    seed: int = 0
    proposals: int = PROPOSALS
    until_s: float | None = None
    report: Callable[[str, float, float], None] = lambda message, share, value: None
    best: list[Found] = field(default_factory=list)
    tried: int = 0

    @cached_property
    def random(self) -> Random:
        return Random(f"{self.seed}/joint")

    @property
    def late(self) -> bool:
        return self.until_s is not None and monotonic() >= self.until_s

    # -- keeping ------------------------------------------------------------------------------

    def judge(self, candidate: Candidate, outcome: Outcome | None = None) -> Found:
        problem = self.evaluator.problem
        if outcome is None:
            outcome = self.evaluator(candidate)
            self.tried += 1
        levels = sorted({model.priority for model in problem.models}, reverse=True)
        placed = [m for m in candidate.placed if problem.asked[m]]
        counts = tuple(sum(problem.models[m].priority == level for m in placed) for level in levels)
        rank = counts, outcome.score(problem.traffic.num_requests)
        return Found(candidate, outcome, rank)

    def keep(self, found: Found) -> bool:
        """Take ``found`` among the best if it is new and good enough."""
        alike = [one for one in self.best if one.rank == found.rank]
        if alike and any(same(one.candidate, found.candidate, self.evaluator) for one in alike):
            return False
        self.best.append(found)
        self.best.sort(key=lambda one: one.rank, reverse=True)
        self.best = self.best[:KEPT]
        return any(one is found for one in self.best)

    # -- from nothing -------------------------------------------------------------------------

    def construct(self) -> None:
        """Fill cuts of the machines; of one type at a time, with the best so far for the others."""
        problem = self.evaluator.problem
        cluster = problem.question.cluster
        types: dict[tuple[str, int], list[int]] = {}
        for m, node in enumerate(cluster.nodes):
            types.setdefault((node.accelerator.name, node.count), []).append(m)
        heads = frozenset(model.model.num_attention_heads for model in problem.models)
        cuts = [likely(list(arrangements(machines, cluster, heads))) for machines in types.values()]
        current = [several[0] for several in cuts]
        starts = self._forms()
        total = sum(len(several) for several in cuts) * len(starts) * (2 if len(cuts) > 1 else 1)
        done = 0
        for _ in range(ROUNDS if len(cuts) > 1 else 1):
            for at, several in enumerate(cuts):
                ranked: list[tuple[Rank, int]] = []
                for number, cut in enumerate(several):
                    if self.late and self.best:
                        return
                    groups = [g for i, one in enumerate(current) for g in (cut if i == at else one)]
                    ranks = [self._filled(groups, forms).rank for forms in starts]
                    ranked.append((max(ranks), -number))
                    done += len(starts)
                    self.report("cutting machines", 0.5 * done / total, self.value)
                current[at] = several[-max(ranked)[1]]

    def _filled(self, groups: Sequence[Group], forms: Sequence[int]) -> Found:
        found = self.judge(fill(self.evaluator, self.limits, empty(sorted(groups), forms)))
        self.keep(found)
        return found

    def replicate(self) -> None:
        """Add replicas to the best few."""
        for found in list(self.best):
            grown, outcome = replicate(self.evaluator, self.limits, found.candidate)
            self.tried += 1
            self.keep(self.judge(grown, outcome))

    def _forms(self) -> list[tuple[int, ...]]:
        """The most accurate form of every model; the lightest ones, if others."""
        forms = self.evaluator.problem.forms
        accurate = (0,) * len(forms)
        light = tuple(
            min(
                range(len(several)),
                key=lambda f: (
                    several[f].spec.slice_weight_bytes(0, several[f].spec.num_hidden_layers),
                    f,
                ),
            )
            for several in forms
        )
        return [accurate] if light == accurate else [accurate, light]

    # -- from what there is -------------------------------------------------------------------

    def improve(self, *, share: float = 0.5) -> None:
        """Change the best few, ``proposals`` times; ``share`` of the progress is behind us."""
        if not self.best:
            return
        random = self.random
        neighbours = Neighbours(self.evaluator, self.limits, random)
        for number in range(self.proposals):
            if self.late or self.value == 1.0:
                return
            parent = self.best[min(len(self.best) - 1, int(random.expovariate(1.0)))]
            drawn = neighbours.draw(parent.candidate, parent.outcome)
            if drawn is None:
                continue
            self.keep(self.judge(drawn))
            if number % 20 == 0:
                spent = share + (1 - share) * number / self.proposals
                self.report("changing groups and replicas", spent, self.value)

    @property
    def value(self) -> float:
        if not self.best:
            return 0.0
        return self.best[0].outcome.attainment(self.evaluator.problem.traffic.num_requests)


def likely(cuts: Sequence[tuple[Group, ...]]) -> list[tuple[Group, ...]]:
    """At most ``MOST_CUTS``, evenly spread over the list, the first ones in full."""
    if len(cuts) <= MOST_CUTS:
        return list(cuts)
    head = MOST_CUTS // 2
    rest = len(cuts) - head
    return [
        *cuts[:head],
        *(cuts[head + i * rest // (MOST_CUTS - head)] for i in range(MOST_CUTS - head)),
    ]


def same(a: Candidate, b: Candidate, evaluator: Evaluator) -> bool:
    """Whether two candidates differ at most in which of several equal groups is which."""

    def canon(one: Candidate) -> list[tuple[str, tuple[int, ...]]]:
        pairs = zip(one.groups, one.held, strict=True)
        return sorted((str(evaluator.kind(group)), held) for group, held in pairs)

    return a.forms == b.forms and canon(a) == canon(b)
