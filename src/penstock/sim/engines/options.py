"""What can be set about a run of engines."""

from __future__ import annotations

from dataclasses import dataclass

from penstock.plan.planner import ProgressCallback, silent
from penstock.policy.engine_routing import Admission, Autoscaler, admit_all


@dataclass(frozen=True, slots=True)
class EngineOptions:
    """Settings of one run.

    ``step_by_step`` runs every decode step as an event of its own; the run is the same, only
    slower. ``keep_tokens`` False drops what per-token times are rebuilt from (first and last
    token of every request stay exact). ``until_s`` stops the clock; None = until all requests
    have ended, or until the end of the workload where completions launch requests. ``check``
    recounts all blocks whenever an engine falls idle.
    """

    seed: int = 0
    step_by_step: bool = False
    keep_tokens: bool = True
    until_s: float | None = None
    admission: Admission = admit_all
    autoscaler: Autoscaler | None = None
    autoscale_every_s: float = 10.0
    check: bool = False
    progress: ProgressCallback = silent
