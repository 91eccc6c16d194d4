"""Our planner: bounds first, constructions, then annealing; the simulator chooses among candidates.

One engine for all fleets (see ``docs/`` and ``plan/search``). For ``maxflow`` it returns the
largest flow it found with a bound, often with a proof of optimality. For ``throughput`` and
``goodput`` it makes candidates that trade flow against hops, slow links and KV memory, and keeps
the one that serves best.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np

from penstock.errors import Infeasible
from penstock.plan.bounds import Bound, best_bound, proves, work_bound
from penstock.plan.build import build_plan
from penstock.plan.fleet import Fleet
from penstock.plan.flow import max_flow
from penstock.plan.placement import Placement, PlacementProblem
from penstock.plan.plan import Plan, Unused
from penstock.plan.planner import PlannerOptions, Progress
from penstock.plan.search.constructors import BlockPlanner, Built, Intervals, serial_chain
from penstock.plan.search.engine import Climb, Deadline, RunJobs, runner
from penstock.plan.search.hierarchy import hierarchical
from penstock.plan.search.ladder import Candidate, Routes
from penstock.plan.search.serving import Scored, Serving

CLIMB_ROUNDS = 6
LARGE = 150
"""More nodes than this are planned in groups: annealing them as one would take hours."""


@dataclass
class _State:
    """Best placement by max flow so far, and its bound."""

    problem: PlacementProblem
    fleet: Fleet
    intervals: Intervals
    value: float
    bound: Bound
    constructed: list[Intervals]

    @property
    def placement(self) -> Placement:
        return self.fleet.placement(self.intervals, self.problem.num_nodes)

    @property
    def proved(self) -> bool:
        return proves(self.bound, self.value)


class PenstockPlanner:
    """See the module; deterministic for a seed as long as ``time_limit_s`` is not reached."""

    name = "penstock"

    def plan(self, problem: PlacementProblem, options: PlannerOptions) -> Plan:
        """Return the best plan found; Ctrl-C ends the search and keeps the best so far.

        Raises ``Infeasible`` when no chain of linked nodes holds all layers.
        """
        deadline = Deadline.after(options.time_limit_s)
        state = self._construct(problem, options)
        with runner(options.processes) as run_jobs:
            if options.objective == "maxflow":
                return self._largest_flow(state, run_jobs, options, deadline)
            if state.value <= 0:
                self._climb(state, run_jobs, options, deadline)
            return self._best_served(state, run_jobs, options, deadline)

    def _construct(self, problem: PlacementProblem, options: PlannerOptions) -> _State:
        fleet = Fleet.of(problem)
        if fleet.num_nodes == 0:
            raise Infeasible(f"no node can hold a layer of {problem.model.name}")

        def evaluate(intervals: Intervals) -> float:
            return max_flow(problem, fleet.placement(intervals, problem.num_nodes)).value

        built = [serial_chain(fleet, evaluate)]
        large = fleet.num_nodes > LARGE
        upper = work_bound(fleet) if large else best_bound(fleet, 0.0)
        planner = None if large else BlockPlanner.of(fleet)
        if large:
            built += _side_by_side(problem, fleet)
        if planner is not None:
            blocks = planner.largest(evaluate, upper.value, built[0].value)
            built += [blocks] if blocks is not None else []
        best = max(built, key=lambda b: b.value)
        state = _State(
            problem,
            fleet,
            best.intervals,
            best.value,
            upper if large else best_bound(fleet, best.value),
            [b.intervals for b in built if b.value > 0],
        )
        self._say(options, state, f"constructed ({best.method})", 0.05)
        return state

    def _climb(
        self, state: _State, run_jobs: RunJobs, options: PlannerOptions, deadline: Deadline
    ) -> None:
        if state.value <= 0 and (split := _split(state.fleet, state.problem.model.name)):
            raise split
        climb = Climb(state.fleet, state.intervals, state.value, state.bound.value, options.seed)
        try:
            for number, value in enumerate(climb.rounds(run_jobs, CLIMB_ROUNDS, deadline), 1):
                if value > state.value:
                    state.intervals, state.value = climb.intervals, value
                self._say(options, state, f"annealing round {number}", number / CLIMB_ROUNDS)
        except KeyboardInterrupt:
            if state.value <= 0:
                raise
        if state.value <= 0:
            raise _no_chain(state.problem)
        state.bound = best_bound(state.fleet, state.value)

    def _largest_flow(
        self, state: _State, run_jobs: RunJobs, options: PlannerOptions, deadline: Deadline
    ) -> Plan:
        if not state.proved and state.fleet.num_nodes <= LARGE:
            self._climb(state, run_jobs, options, deadline)
        made = Routes(state.problem).whole(state.placement, state.value)
        if made is None:
            raise _no_chain(state.problem)
        proof = "proved optimal: " if state.proved else "bound: "
        reasons = (proof + state.bound.sentence,)
        return self._plan(state, made, options, state.value, reasons)

    def _best_served(
        self, state: _State, run_jobs: RunJobs, options: PlannerOptions, deadline: Deadline
    ) -> Plan:
        def make_plan(made: Candidate) -> Plan:
            return self._plan(state, made, options, 0.0, ())

        serving = Serving(
            state.problem,
            state.fleet,
            state.value,
            options.seed,
            make_plan,
            options.evaluate,
            options.progress,
            deadline,
        )
        try:
            serving.run(run_jobs, state.constructed)
        except KeyboardInterrupt:
            if serving.best is None:
                raise
        best = serving.best
        if best is None:
            raise _no_chain(state.problem)
        self._raise_largest(state, serving)
        return self._plan(
            state, best.candidate, options, best.value, _served_reasons(serving, best, options)
        )

    @staticmethod
    def _raise_largest(state: _State, serving: Serving) -> None:
        """A candidate may carry more than the constructions: then the bound is taken anew."""
        flows = [
            max_flow(state.problem, scored.candidate.placement).value
            for scored in [*serving.final, *serving.measured[:4]]
        ]
        if flows and max(flows) > state.value:
            state.value = max(flows)
            state.bound = best_bound(state.fleet, state.value)

    def _plan(
        self,
        state: _State,
        made: Candidate,
        options: PlannerOptions,
        value: float,
        reasons: Sequence[str],
    ) -> Plan:
        is_flow = options.objective == "maxflow"
        flow = max_flow(state.problem, made.placement) if not is_flow else made.flow
        return build_plan(
            state.problem,
            made.placement,
            made.flow,
            planner=self.name,
            objective=options.objective,
            value=value,
            bound=state.bound.value if is_flow else None,
            max_flow=max(flow.value, value) if is_flow else flow.value,
            max_flow_bound=state.bound.value,
            bound_method=state.bound.method,
            proved_optimal=state.proved if is_flow else False,
            unused=_unused(state, made, options),
            reasons=reasons,
            seed=options.seed,
        )

    @staticmethod
    def _say(options: PlannerOptions, state: _State, message: str, fraction: float) -> None:
        value = state.value if options.objective == "maxflow" else None
        bound = state.bound.value if options.objective == "maxflow" else None
        options.progress(Progress(message, fraction, value, bound))


def _side_by_side(problem: PlacementProblem, fleet: Fleet) -> list[Built]:
    """Groups planned apart, measured together."""

    def alone(part: Fleet, intervals: Intervals) -> float:
        return max_flow(problem, part.placement(intervals, problem.num_nodes)).value

    built = []
    for made in hierarchical(fleet, alone):
        value = max_flow(problem, fleet.placement(made.intervals, problem.num_nodes)).value
        built.append(Built(made.intervals, value, made.method))
    return built


def _served_reasons(serving: Serving, best: Scored, options: PlannerOptions) -> tuple[str, ...]:
    """Which candidates there were and what they scored, best first."""
    unit = "good requests/s" if options.objective == "goodput" else "decode tokens/s"
    how = "simulated" if options.evaluate is not None else "estimated"
    pool = serving.final or serving.measured or list(serving.seen.values())
    lines = [
        f"best of {len(serving.seen)} placements from {serving.tried} annealing runs; "
        f"{len(serving.measured)} simulated briefly, {len(serving.final)} in full"
    ]
    for scored in sorted(pool, key=lambda s: -s.value)[:5]:
        made = scored.candidate
        hops = float(made.flow.node_flow.sum() / made.flow.value)
        rung = made.rung
        lines.append(
            f"{how} {scored.value:.1f} {unit}: flow {made.flow.value:.0f} tokens/s, "
            f"{hops:.1f} hops, hop price {rung.hop_price:.2f}, slow-link price "
            f"{rung.slow_price:.2f}, memory {rung.memory:.2f}"
        )
    if best.score is not None and best.score.detail:
        lines.append(best.score.detail)
    return tuple(lines)


def _unused(state: _State, made: Candidate, options: PlannerOptions) -> list[Unused]:
    able = set(state.fleet.origin.tolist())
    idle = []
    for i, interval in enumerate(made.placement.intervals):
        if interval is not None:
            continue
        if i not in able:
            reason = "cannot hold a single layer of the model"
        elif not np.isfinite(np.delete(state.problem.link_latency_s[i], i)).any():
            reason = "no link leaves it"
        elif options.objective == "maxflow" and state.proved:
            reason = "the largest possible flow is reached without it"
        elif options.objective == "maxflow":
            reason = "no placement found carries more with it"
        else:
            reason = "would add hops or slow links without serving more"
        idle.append(Unused(state.problem.cluster.nodes[i].name, reason))
    return idle


def _split(fleet: Fleet, model: str) -> Infeasible | None:
    """The reason when no group of linked nodes can hold the model, however they are placed."""
    held = np.bincount(fleet.components(np.nextafter(0.0, 1.0)), weights=fleet.max_layers)
    largest = int(held.max())
    if largest >= fleet.num_layers:
        return None
    return Infeasible(
        f"no group of linked nodes holds all {fleet.num_layers} layers of {model}: "
        f"the largest group holds {largest}",
        binding="links",
        fix="join the groups by a link, or add nodes to the largest one",
    )


def _no_chain(problem: PlacementProblem) -> Infeasible:
    split = _split(Fleet.of(problem), problem.model.name)
    if split is not None:
        return split
    return Infeasible(
        "no chain of links from the coordinator through all layers and back was found",
        binding="links",
        fix="give the coordinator links to more nodes, or use the full link graph",
    )
