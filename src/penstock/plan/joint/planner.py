"""The joint planner: search by replay, finalists by simulation, the best one as a pool plan."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from math import inf
from time import monotonic

from penstock.errors import Infeasible
from penstock.plan.joint.evaluate import Evaluator
from penstock.plan.joint.fill import fill
from penstock.plan.joint.layout import Candidate, Group, arrangements
from penstock.plan.joint.limits import Limits, Seat, latency_limits, load_seconds
from penstock.plan.joint.problem import JointProblem, joint_problem
from penstock.plan.joint.publish import candidate_of, publish
from penstock.plan.joint.search import PROPOSALS, Found, Search, same
from penstock.plan.joint.thrift import Thrift, allowed_loss
from penstock.plan.planner import Progress, ProgressCallback
from penstock.plan.pool_plan import PoolPlan
from penstock.plan.pool_question import PoolQuestion, Score

FINALISTS = 6


@dataclass(frozen=True, slots=True)
class JointPlanner:
    """Group shapes, placement, stored forms and replicas together, on unequal GPUs.

    The budget is counted in candidates (``proposals``), so that the same question gives the same
    plan; ``time_limit_s`` is a safety stop. Ctrl-C gives the best plan so far.
    """

    proposals: int = PROPOSALS
    finalists: int = FINALISTS
    time_limit_s: float | None = None

    def plan(self, question: PoolQuestion, score: Score, progress: ProgressCallback) -> PoolPlan:
        """Raises ``Infeasible`` where a model fits nowhere, ``SpecError`` for what is not clear."""
        session = _Session(self, question, progress)
        try:
            session.search_all()
        except KeyboardInterrupt:
            if not session.search.best:
                raise
        return session.answer(score)


class _Session:
    """One question on its way to an answer."""

    def __init__(
        self, planner: JointPlanner, question: PoolQuestion, progress: ProgressCallback
    ) -> None:
        self.planner, self.progress = planner, progress
        self.problem = joint_problem(question)
        nodes = question.cluster.nodes
        self.problem.book.accelerators.update(
            {node.accelerator.name: node.accelerator for node in nodes}
        )
        self.current: Candidate | None = None
        seats: frozenset[Seat] = frozenset()
        self.evaluator = Evaluator(self.problem)
        if question.current is not None:
            self.current, seats = candidate_of(self.problem, question.current)
            self.evaluator.load_s = _loads(self.evaluator, seats)
        wishes, self.without = latency_limits(self.evaluator, _every_group(self.problem))
        self._refuse_misfits()
        self.limits = Limits(self.evaluator, wishes, seats, question.move_budget_bytes)
        self.search = Search(
            self.evaluator,
            self.limits,
            question.seed,
            planner.proposals,
            None if planner.time_limit_s is None else monotonic() + planner.time_limit_s,
            lambda message, share, value: progress(Progress(message, 0.8 * share, value)),
        )

    def _refuse_misfits(self) -> None:
        """A model that no group can hold at all has no answer."""
        for m, why in self.without.items():
            if why.startswith("it fits no group"):
                name = self.problem.models[m].name
                form = self.problem.forms[m][-1].spec
                said = [text for (spec, _), text in self.problem.book.why.items() if spec == form]
                raise Infeasible(
                    f"{name}: {why}" + (f"; {said[-1]}" if said else ""),
                    binding="accelerator memory",
                    fix="allow a narrower precision, or add GPUs",
                )

    # -- searching ----------------------------------------------------------------------------

    def search_all(self) -> None:
        """Fill ``search.best``; with a pool in place start from what it holds."""
        if self.current is not None:
            self._start_from(self.current)
        if self.limits.budget_bytes == inf:
            self.search.construct()
        self.search.replicate()
        self.search.improve()
        if self.search.best:
            thrift = Thrift(self.search, self.search.best[0])
            for found in list(self.search.best[:2]):
                self.search.best.append(thrift.lower(found))

    def _start_from(self, current: Candidate) -> None:
        self.search.keep(self.search.judge(current))
        filled = fill(self.evaluator, self.limits, current)
        self.search.keep(self.search.judge(filled))

    # -- answering ----------------------------------------------------------------------------

    def answer(self, score: Score) -> PoolPlan:
        finalists = self._finalists()
        plans = [self._published(found) for found in finalists]
        self.progress(Progress("simulating the finalists", 0.85))
        try:
            values = list(score(plans))
        except KeyboardInterrupt:
            n = self.problem.traffic.num_requests
            values = [found.outcome.attainment(n) for found in finalists]
        thrift = Thrift(self.search, finalists[0])
        measures = [thrift.measure(found) for found in finalists]
        placed = [found.rank[0] for found in finalists]
        able = [i for i in range(len(plans)) if placed[i] == max(placed)]
        floor = max(values[i] for i in able) - allowed_loss(self.problem) - 1e-9
        able = [i for i in able if values[i] >= floor]
        chosen = min(able, key=lambda i: (measures[i], -values[i], i))
        self.progress(Progress("done", 1.0, values[chosen]))
        return publish(
            self.evaluator,
            finalists[chosen].candidate,
            values[chosen],
            unplaced=self._unplaced(finalists[chosen].candidate),
            reasons=self._reasons(finalists[chosen], values, len(plans)),
        )

    def _finalists(self) -> list[Found]:
        """The best candidates that differ, the thrifty ones and what there is now among them."""
        best = list(self.search.best)
        if self.current is not None:
            best.append(self.search.judge(self.current))
        found: list[Found] = []
        kept = [*best[: self.planner.finalists], *best[self.planner.finalists :]]
        for one in kept:
            if not any(same(one.candidate, other.candidate, self.evaluator) for other in found):
                found.append(one)
        return [self._with_idle(one) for one in found[: self.planner.finalists + 3]]

    def _with_idle(self, found: Found) -> Found:
        """Models without requests go where there is room."""
        candidate = found.candidate
        for m in range(len(self.problem.models)):
            if self.problem.asked[m] or m in candidate.placed or m in self.without:
                continue
            for g in sorted(range(len(candidate.groups)), key=lambda g: found.outcome.busy[g]):
                grown = candidate.adding(g, m)
                group, held = grown.groups[g], grown.held[g]
                quick = self.limits.quick(m, grown.forms[m], group)
                fits = self.evaluator.fits(group, held, grown.forms)
                if quick and fits and self.limits.allow(grown):
                    candidate = grown
                    break
        return found if candidate is found.candidate else self.search.judge(candidate)

    def _published(self, found: Found) -> PoolPlan:
        n = self.problem.traffic.num_requests
        return publish(
            self.evaluator,
            found.candidate,
            found.outcome.attainment(n),
            unplaced=self._unplaced(found.candidate),
        )

    def _unplaced(self, candidate: Candidate) -> Mapping[int, str]:
        found = {}
        for m in range(len(self.problem.models)):
            if m in candidate.placed:
                continue
            size = self.problem.forms[m][candidate.forms[m]].spec
            weights = size.slice_weight_bytes(0, size.num_hidden_layers) / 2**30
            beside = f"its {weights:.1f} GiB of weights do not fit beside the other models"
            if self.limits.budget_bytes < inf:
                beside += f", or may not be loaded ({self.limits.budget_bytes / 2**30:.1f} GiB may)"
            found[m] = self.without.get(m, beside)
        return found

    def _reasons(self, found: Found, values: Sequence[float], simulated: int) -> list[str]:
        n = self.problem.traffic.num_requests
        replayed = 100 * found.outcome.attainment(n)
        return [
            f"{self.search.tried} candidates replayed, {simulated} simulated: "
            f"{100 * min(values):.2f} to {100 * max(values):.2f} % within limits",
            f"the replay of the search gave this one {replayed:.2f} %",
        ]


def _loads(evaluator: Evaluator, seats: frozenset[Seat]) -> Callable[[int, int, Group], float]:
    def load_s(model: int, form: int, group: Group) -> float:
        return load_seconds(evaluator, seats, model=model, form=form, group=group)

    return load_s


def _every_group(problem: JointProblem) -> list[Group]:
    """A group of every shape that the search may meet."""
    cluster = problem.question.cluster
    types: dict[tuple[str, int], list[int]] = {}
    for m, node in enumerate(cluster.nodes):
        types.setdefault((node.accelerator.name, node.count), []).append(m)
    heads = frozenset(model.model.num_attention_heads for model in problem.models)
    return [
        group
        for machines in types.values()
        for groups in arrangements(machines, cluster, heads)
        for group in groups
    ]
