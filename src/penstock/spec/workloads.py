"""Changing a workload: another rate, another length of time."""

from __future__ import annotations

from dataclasses import replace

from penstock.errors import SpecError
from penstock.spec.arrivals import (
    BucketArrivals,
    GammaArrivals,
    PoissonArrivals,
    UniformArrivals,
)
from penstock.spec.traces import TraceFile
from penstock.spec.workload import Workload


def with_rate(workload: Workload, rate_per_s: float) -> Workload:
    """Return ``workload`` at a mean of ``rate_per_s`` requests/s.

    A trace is played faster or slower. Raises ``SpecError`` for arrivals that have no rate
    (closed loop, saturating, all at once).
    """
    if not 0 < rate_per_s < float("inf"):
        raise SpecError("must be finite and above 0", key="rate", value=rate_per_s)
    trace = workload.trace
    if isinstance(trace, TraceFile):
        scaled = trace.at_rate(rate_per_s)
        return replace(workload, trace=scaled, duration_s=scaled.last_arrival_s)
    if len(trace):
        last_s = max(request.arrival_s for request in trace)
        factor = rate_per_s * last_s / len(trace) if last_s > 0 else 1.0
        moved = tuple(replace(request, arrival_s=request.arrival_s / factor) for request in trace)
        return replace(workload, trace=moved, duration_s=last_s / factor)
    arrivals = workload.arrivals
    if isinstance(arrivals, PoissonArrivals | GammaArrivals | UniformArrivals | BucketArrivals):
        return replace(workload, arrivals=replace(arrivals, rate_per_s=rate_per_s))
    raise SpecError(
        f"workload {workload.name} has no request rate to set",
        key="rate",
        value=rate_per_s,
        fix="use one with poisson, gamma, uniform or bucket arrivals, such as azure-conv-online",
    )


def mean_lengths(workload: Workload) -> tuple[float, float]:
    """(prompt, output) tokens of a mean request of ``workload``."""
    if workload.lengths is not None:
        return workload.lengths.mean_prompt_tokens, workload.lengths.mean_output_tokens
    prompts = outputs = count = 0
    for request in workload.trace:
        prompts += request.prompt_tokens
        outputs += request.output_tokens
        count += 1
    return prompts / max(1, count), outputs / max(1, count)
