"""Small changes of a candidate: replicas that come, go and move, other forms, other groups."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from random import Random

from penstock.plan.joint.evaluate import Evaluator, Outcome
from penstock.plan.joint.fill import additions, fill, stuff
from penstock.plan.joint.layout import MOST_STAGES, Candidate, Group, linked
from penstock.plan.joint.limits import Limits

Move = Callable[["Neighbours", Candidate, Outcome], Candidate | None]


class Neighbours:
    """Draws a changed candidate that fits and keeps the limits; None where the draw leads nowhere.

    Every asked model that had a home keeps one.
    """

    def __init__(self, evaluator: Evaluator, limits: Limits, random: Random) -> None:
        self.evaluator, self.limits, self.random = evaluator, limits, random
        forms = evaluator.problem.forms
        self.moves: list[tuple[Move, float]] = [
            (Neighbours.add, 3.0),
            (Neighbours.shift, 3.0),
            (Neighbours.exchange, 2.0),
            (Neighbours.drop, 1.0),
            (Neighbours.merge, 1.0),
            (Neighbours.split, 1.0),
            (Neighbours.turn, 1.0),
            (Neighbours.refill, 2.0),
            (Neighbours.crowd, 0.5),
        ]
        if any(len(several) > 1 for several in forms):
            self.moves.append((Neighbours.reform, 2.0))

    def draw(self, candidate: Candidate, outcome: Outcome) -> Candidate | None:
        names = [move for move, _ in self.moves]
        weights = [weight for _, weight in self.moves]
        found = self.random.choices(names, weights)[0](self, candidate, outcome)
        if found is None or found == candidate or not self.holds(found):
            return None
        asked = self.evaluator.problem.asked
        kept = all(m in found.placed for m in candidate.placed if asked[m])
        return found if kept and self.limits.allow(found) else None

    def holds(self, candidate: Candidate) -> bool:
        """Whether every group has room for what it holds, and is quick enough for it."""
        forms = candidate.forms
        for group, held in zip(candidate.groups, candidate.held, strict=True):
            if held and not self.evaluator.fits(group, held, forms):
                return False
            if not all(self.limits.quick(m, forms[m], group) for m in held):
                return False
        return True

    # -- replicas -----------------------------------------------------------------------------

    def add(self, candidate: Candidate, outcome: Outcome) -> Candidate | None:
        likely = additions(self.evaluator, self.limits, candidate, outcome)
        if not likely:
            return None
        group, model = self.random.choice(likely)
        return candidate.adding(group, model)

    def shift(self, candidate: Candidate, outcome: Outcome) -> Candidate | None:
        """A replica goes to another group."""
        taken = self._replica(candidate, outcome)
        if taken is None:
            return None
        group, model = taken
        others = [g for g in range(len(candidate.groups)) if model not in candidate.held[g]]
        if not others:
            return None
        return candidate.removing(group, model).adding(self.random.choice(others), model)

    def exchange(self, candidate: Candidate, outcome: Outcome) -> Candidate | None:
        """Two replicas change places."""
        a, b = self._replica(candidate, outcome), self._replica(candidate, outcome)
        if a is None or b is None or a[0] == b[0] or a[1] == b[1]:
            return None
        found = candidate.removing(*a).removing(*b)
        return found.adding(a[0], b[1]).adding(b[0], a[1])

    def drop(self, candidate: Candidate, outcome: Outcome) -> Candidate | None:
        spare = [
            (g, m)
            for g, held in enumerate(candidate.held)
            for m in held
            if len(candidate.homes(m)) > 1
        ]
        return candidate.removing(*self.random.choice(spare)) if spare else None

    def refill(self, candidate: Candidate, outcome: Outcome) -> Candidate | None:
        """Empty one group or two and place anew what lost its last home."""
        used = [g for g, held in enumerate(candidate.held) if held]
        if not used:
            return None
        for g in self.random.sample(used, min(len(used), self.random.randint(1, 2))):
            candidate = candidate.holding(g, [])
        return fill(self.evaluator, self.limits, candidate)

    def crowd(self, candidate: Candidate, outcome: Outcome) -> Candidate | None:
        """Replicas of whatever misses its limits, until memory is full."""
        return stuff(self.evaluator, self.limits, candidate, outcome)

    def reform(self, candidate: Candidate, outcome: Outcome) -> Candidate | None:
        """A model in another stored form."""
        forms = self.evaluator.problem.forms
        able = [m for m, several in enumerate(forms) if len(several) > 1]
        model = self.random.choice(able)
        others = [f for f in range(len(forms[model])) if f != candidate.forms[model]]
        return candidate.with_form(model, self.random.choice(others))

    def _replica(self, candidate: Candidate, outcome: Outcome) -> tuple[int, int] | None:
        """Some replica, more likely one of a busy group or of a model with misses."""
        missed = self.evaluator.problem.sampled - outcome.good
        busy = outcome.busy / max(1e-9, float(outcome.busy.max(initial=0.0)))
        seats = [(g, m) for g, held in enumerate(candidate.held) for m in held]
        if not seats:
            return None
        most = max(1, int(missed.max(initial=0)))
        weights = [0.1 + busy[g] + missed[m] / most for g, m in seats]
        return self.random.choices(seats, weights)[0]

    # -- groups -------------------------------------------------------------------------------

    def merge(self, candidate: Candidate, outcome: Outcome) -> Candidate | None:
        """Two groups of one type become a pipeline, or one of wider stages where they adjoin."""
        groups = candidate.groups
        g = self.random.randrange(len(groups))
        kind = self.evaluator.kind
        peers = [
            h
            for h, other in enumerate(groups)
            if h != g
            and kind(other).gpu == kind(groups[g]).gpu
            and other.tensor == groups[g].tensor
            and len(other.stages) + len(groups[g].stages) <= MOST_STAGES
        ]
        if not peers:
            return None
        h = self.random.choice(peers)
        stages = tuple(sorted(groups[g].stages + groups[h].stages))
        cluster = self.evaluator.problem.question.cluster
        if not linked([machine for machine, _ in stages], cluster):
            return None
        merged = Group(stages, groups[g].tensor)
        wider = widened(merged)
        if wider is not None and self.random.random() < 0.5:
            merged = wider
        return self._regroup(candidate, [g, h], [merged])

    def split(self, candidate: Candidate, outcome: Outcome) -> Candidate | None:
        g = self.random.randrange(len(candidate.groups))
        ways = halves(candidate.groups[g])
        return self._regroup(candidate, [g], self.random.choice(ways)) if ways else None

    def turn(self, candidate: Candidate, outcome: Outcome) -> Candidate | None:
        """The same GPUs with fewer and wider stages, or more and narrower ones."""
        g = self.random.randrange(len(candidate.groups))
        ways = [one for one in (widened(candidate.groups[g]), narrowed(candidate.groups[g])) if one]
        return self._regroup(candidate, [g], [self.random.choice(ways)]) if ways else None

    def _regroup(
        self, candidate: Candidate, gone: Sequence[int], new: Sequence[Group]
    ) -> Candidate:
        """``gone`` become ``new``: each keeps what fits of all they held, then ``fill`` goes on."""
        models = sorted({m for g in gone for m in candidate.held[g]})
        kept = [g for g in range(len(candidate.groups)) if g not in gone]
        groups = [candidate.groups[g] for g in kept] + list(new)
        held = [candidate.held[g] for g in kept]
        forms = candidate.forms
        both = len(new) == 1 or self.random.random() < 0.5
        for group in new:
            own: list[int] = []
            for m in models if both else []:
                if self.evaluator.fits(group, [*own, m], forms) and self.limits.quick(
                    m, forms[m], group
                ):
                    own.append(m)
            held.append(tuple(own))
        order = sorted(range(len(groups)), key=lambda g: groups[g])
        regrouped = Candidate(tuple(groups[g] for g in order), tuple(held[g] for g in order), forms)
        return fill(self.evaluator, self.limits, regrouped)


def widened(group: Group) -> Group | None:
    """Pairs of stages that lie side by side as one; None where some do not."""
    stages, tensor = group.stages, group.tensor
    if len(stages) % 2:
        return None
    pairs = [(stages[i], stages[i + 1]) for i in range(0, len(stages), 2)]
    if any(a[0] != b[0] or a[1] + tensor != b[1] for a, b in pairs):
        return None
    return Group(tuple(a for a, _ in pairs), 2 * tensor)


def narrowed(group: Group) -> Group | None:
    """Every stage as two of half the GPUs; None where they cannot be halved."""
    half, odd = divmod(group.tensor, 2)
    if odd or 2 * len(group.stages) > MOST_STAGES:
        return None
    stages = [(m, first + at) for m, first in group.stages for at in (0, half)]
    return Group(tuple(stages), half)


def halves(group: Group) -> list[list[Group]]:
    """Ways to split a group: its pipeline, or all its stages, in as few equal parts as it goes."""
    ways = []
    stages = len(group.stages)
    if stages > 1:
        size = stages // _least_factor(stages)
        ways.append(
            [Group(group.stages[i : i + size], group.tensor) for i in range(0, stages, size)]
        )
    if group.tensor > 1:
        size = group.tensor // _least_factor(group.tensor)
        starts = range(0, group.tensor, size)
        ways.append([Group(tuple((m, f + at) for m, f in group.stages), size) for at in starts])
    return ways


def _least_factor(n: int) -> int:
    return next(f for f in range(2, n + 1) if n % f == 0)
