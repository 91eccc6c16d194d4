"""What a planner is: a problem in, a plan out; the evaluator is passed in."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Literal, Protocol

from penstock.plan.placement import PlacementProblem
from penstock.plan.plan import Plan

Objective = Literal["maxflow", "throughput", "goodput"]


@dataclass(frozen=True, slots=True)
class Score:
    """What simulating a candidate gave; ``value`` in the objective's unit, higher is better."""

    value: float
    detail: str = ""


class Evaluator(Protocol):
    """Scores candidate plans, in order. The CLI wires it to the simulator; may use processes."""

    def __call__(self, plans: Sequence[Plan], fidelity: float = 1.0) -> Sequence[Score]:
        """``fidelity`` in (0, 1]: the share of the full measurement to spend on each plan."""
        ...


@dataclass(frozen=True, slots=True)
class Progress:
    """One line of news from long work: ``fraction`` in [0, 1], or None when unknown."""

    message: str
    fraction: float | None = None
    value: float | None = None
    bound: float | None = None


ProgressCallback = Callable[[Progress], None]


def silent(_: Progress) -> None:
    """The progress callback that says nothing."""


@dataclass(frozen=True, slots=True)
class PlannerOptions:
    """``time_limit_s`` is a safety stop; the search budget itself is counted in proposals, so that
    the same seed gives the same plan as long as the limit is not reached."""

    objective: Objective = "throughput"
    seed: int = 0
    time_limit_s: float | None = None
    processes: int = 1
    evaluate: Evaluator | None = None
    progress: ProgressCallback = silent


class Planner(Protocol):
    name: str

    def plan(self, problem: PlacementProblem, options: PlannerOptions) -> Plan: ...
