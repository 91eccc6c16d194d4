"""The placement program published with Helix, on an open solver.

Source: Helix (ASPLOS'25), section 4.4 and its artifact (specification section 3.2). Big-M
switches make its relaxation useless as a bound, and HiGHS rarely improves on a good start within
minutes: this is the honest baseline, not a good planner. Switches may also leak within the
solver's tolerance, so every incumbent is valued by a real max flow.
"""

from __future__ import annotations

from dataclasses import dataclass, replace

import numpy as np
from numpy.typing import NDArray

from penstock.errors import Infeasible
from penstock.plan.bounds import helix_bound, work_bound
from penstock.plan.fleet import Fleet
from penstock.plan.flow import Flow, max_flow
from penstock.plan.milp_model import MilpModel, followers
from penstock.plan.petals import petals_placement
from penstock.plan.placement import Placement, PlacementProblem
from penstock.plan.plan import Plan
from penstock.plan.planner import PlannerOptions, Progress
from penstock.plan.prune import prune
from penstock.plan.publish import published_plan
from penstock.plan.solver import HighsSolver, SearchState, Solution, Solver, SolverOptions
from penstock.plan.swarm import stage_placement, stage_sizes, swarm_stages

DEFAULT_TIME_LIMIT_S = 60.0


@dataclass(frozen=True, slots=True)
class StopRules:
    """When to stop, as published: near the upper bound, or well up and without news.

    ``share_of_bound`` and ``patience_s``: an incumbent of this share of Helix's upper bound that
    has not improved for so long is enough; one of ``near_bound`` is enough at once.
    """

    share_of_bound: float = 0.95
    patience_s: float = 100.0
    near_bound: float = 0.995

    def met(self, state: SearchState, improved_s: float, upper: float) -> bool:
        if state.value >= self.near_bound * upper:
            return True
        patient = state.seconds - improved_s >= self.patience_s
        return patient and state.value >= self.share_of_bound * upper


class HelixMilpPlanner:
    """Solve Helix's program from the better of the Petals and Swarm placements.

    ``keep_links`` prunes the cluster first (Helix used 12 on its larger problems). ``warm_start``
    gives the solver the heuristic's placement with its flow. Partial inference follows the
    problem (the published runs have it off).
    """

    name = "helix-milp"

    def __init__(
        self,
        *,
        solver: Solver | None = None,
        keep_links: int | None = None,
        warm_start: bool = True,
        rules: StopRules | None = None,
    ) -> None:
        self.solver = HighsSolver() if solver is None else solver
        self.keep_links = keep_links
        self.warm_start = warm_start
        self.rules = StopRules() if rules is None else rules

    def plan(self, problem: PlacementProblem, options: PlannerOptions) -> Plan:
        """Raises ``Infeasible`` when the time limit passes and no placement carries flow."""
        if self.keep_links is not None:
            problem = prune(problem, self.keep_links)
        limit_s = DEFAULT_TIME_LIMIT_S if options.time_limit_s is None else options.time_limit_s
        search = _Search(problem, options, self.rules, limit_s)
        start, origin = heuristic_start(problem) if self.warm_start else (None, "")
        vector = None
        if start is not None:
            flow = search.consider(start, 0.0, np.inf, f"start: {origin}")
            vector = search.model.vector(start, flow)
        solution = self.solver.solve(
            search.model.program,
            SolverOptions(
                time_limit_s=limit_s,
                seed=options.seed,
                start=vector,
                on_incumbent=search.improving,
                stop=search.stop,
            ),
        )
        if solution.x is not None:
            search.consider(search.model.placement(solution.x), limit_s, solution.bound, "last")
        if search.best is None or search.best_value <= 0:
            raise self._nothing(problem, solution, limit_s)
        return self._plan(problem, options, search, solution, origin)

    def _nothing(self, problem: PlacementProblem, solution: Solution, limit_s: float) -> Infeasible:
        if solution.status in ("infeasible", "optimal"):
            return Infeasible(
                f"no placement of {problem.model.name} on {problem.cluster.name} carries flow",
                binding="layers each node can hold, and links",
                fix="add nodes or links",
            )
        return Infeasible(
            f"{self.solver.name} found no placement that carries flow within {limit_s:g} s",
            binding="time limit",
            fix="--planner penstock, or a longer --time-limit",
        )

    def _plan(
        self,
        problem: PlacementProblem,
        options: PlannerOptions,
        search: _Search,
        solution: Solution,
        origin: str,
    ) -> Plan:
        assert search.best is not None
        proved = min(solution.bound, search.solver_bound)
        reasons = [
            f"{search.model.program.num_rows} rows x {search.model.program.num_columns} columns "
            f"on {self.solver.name}: {_ending(solution)}",
            f"{search.improvements} improving placements"
            + (f" after the start from {origin}" if origin else ", without a start"),
        ]
        if np.isfinite(proved):
            reasons.append(f"the solver's own bound is {proved:,.2f} tokens/s")
        plan = published_plan(
            problem,
            search.best,
            followers(problem, search.best),
            options,
            planner=self.name,
            reasons=reasons,
        )
        if plan.objective != "maxflow":
            return plan
        return _with_solver_bound(plan, proved)


def _with_solver_bound(plan: Plan, proved: float) -> Plan:
    """``plan`` with the solver's bound, where that is tighter."""
    if plan.bound is not None and proved >= plan.bound:
        return plan
    bound = max(proved, plan.value)
    return replace(
        plan,
        bound=bound,
        max_flow_bound_tokens_per_s=bound,
        bound_method="branch and bound",
        proved_optimal=bound <= plan.value * (1 + 1e-6),
    )


def _ending(solution: Solution) -> str:
    if solution.interrupted:
        return "interrupted, best so far kept"
    return "search completed" if solution.status == "optimal" else "stopped by its limits"


def heuristic_start(problem: PlacementProblem) -> tuple[Placement | None, str]:
    """The better of the Petals and Swarm placements on these links, with its name.

    (None, "") when neither carries flow: pruning may have cut every leg they need.
    """
    best: Placement | None = None
    best_value, origin = 0.0, ""
    for name, make in (("petals", petals_placement), ("swarm", _swarm_placement)):
        try:
            placement = make(problem)
        except Infeasible:
            continue
        value = max_flow(problem, placement, legs=followers(problem, placement)).value
        if value > best_value:
            best, best_value, origin = placement, value, name
    return best, origin


def _swarm_placement(problem: PlacementProblem) -> Placement:
    sizes, _ = stage_sizes(problem)
    return stage_placement(problem, sizes, swarm_stages(problem, sizes))


class _Search:
    """What happened so far: the best placement by real max flow, and when it last improved."""

    def __init__(
        self,
        problem: PlacementProblem,
        options: PlannerOptions,
        rules: StopRules,
        limit_s: float,
    ) -> None:
        self.problem, self.options, self.rules, self.limit_s = problem, options, rules, limit_s
        self.model = MilpModel.of(problem)
        fleet = Fleet.of(problem)
        self.upper = helix_bound(fleet).value
        self.work = work_bound(fleet).value
        self.best: Placement | None = None
        self.best_value = 0.0
        self.improvements = 0
        self.improved_s = 0.0
        self.solver_bound = float("inf")

    def consider(self, placement: Placement, seconds: float, bound: float, label: str) -> Flow:
        """Value ``placement`` by max flow; keep and announce it when it is the best."""
        flow = max_flow(self.problem, placement, legs=followers(self.problem, placement))
        if flow.value > self.best_value * (1 + 1e-9):
            self.best, self.best_value, self.improved_s = placement, flow.value, seconds
            self.options.progress(
                Progress(
                    f"helix-milp {label}",
                    fraction=min(1.0, seconds / self.limit_s),
                    value=flow.value,
                    bound=min(bound, self.work),
                )
            )
        return flow

    def improving(self, x: NDArray[np.float64], state: SearchState) -> None:
        before = self.best_value
        self.consider(self.model.placement(x), state.seconds, state.bound, "incumbent")
        self.improvements += self.best_value > before

    def stop(self, state: SearchState) -> bool:
        self.solver_bound = min(self.solver_bound, state.bound)
        current = SearchState(self.best_value, state.bound, state.seconds)
        return self.rules.met(current, self.improved_s, self.upper)
