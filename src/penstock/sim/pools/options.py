"""What can be set about a run of a pool."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from math import inf

from penstock.errors import InputError
from penstock.plan.planner import ProgressCallback, silent
from penstock.plan.pool_plan import PoolPlan
from penstock.spec.workload import Request

Replan = Callable[[float, PoolPlan, Sequence[Request]], PoolPlan | None]
"""Asked with the time, the plan in force and the requests that have come since it was asked last;
the plan to change to, or None to stay."""


@dataclass(frozen=True, slots=True)
class PoolOptions:
    """Settings of one run.

    ``step_by_step`` runs every decode step as an event of its own; the run is the same, only
    slower. ``until_s`` stops the clock; None = until all requests have ended, or until the end of
    the workload where completions launch requests. ``changes`` are plans to change to, with their
    times, ascending; ``replan`` is asked every ``replan_every_s``. ``check`` recounts all blocks
    whenever nodes fall idle.
    """

    seed: int = 0
    step_by_step: bool = False
    until_s: float | None = None
    keep_tokens: bool = True
    changes: tuple[tuple[float, PoolPlan], ...] = ()
    replan: Replan | None = None
    replan_every_s: float = 60.0
    check: bool = False
    progress: ProgressCallback = silent

    def __post_init__(self) -> None:
        times = [time_s for time_s, _ in self.changes]
        if times != sorted(times):
            raise InputError(f"changes of plan must be in order of time (got {times})")
        if self.replan is not None and not 0 < self.replan_every_s < inf:
            raise InputError(f"replan_every_s must be above 0 (got {self.replan_every_s})")
