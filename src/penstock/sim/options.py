"""What can be set about a simulation."""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import Literal

from penstock.plan.planner import ProgressCallback, silent
from penstock.spec.faults import FaultSchedule

Granularity = Literal["nodewise", "layerwise"]


@dataclass(frozen=True, slots=True)
class SimulationOptions:
    """Settings of one run.

    ``granularity``: ``nodewise`` runs an iteration through all its layers on a node in one step,
    sends what one batch puts on one link as one transfer, and counts the prompt iteration as the
    first token. ``layerwise`` is Helix's published semantics (artifact specification, section 5).

    ``start_s``: when the workload starts on the run's clock; None = when all nodes have loaded
    their weights, rounded up, plus a second (published). ``drain``: whether the run goes on until
    all requests have ended; None = yes for open-loop arrivals and traces, no for closed loops and
    saturating feeders, which stop at ``start_s + workload.duration_s``.
    ``series_bucket_s``: width of the buckets of the series over time; 0 = no series.
    ``step_by_step``: whole engines run each decode step as an event of its own; the run is the
    same, only slower.
    """

    granularity: Granularity = "nodewise"
    seed: int = 0
    start_s: float | None = None
    drain: bool | None = None
    faults: FaultSchedule = field(default_factory=FaultSchedule)
    series_bucket_s: float = 10.0
    step_by_step: bool = False
    progress: ProgressCallback = silent
