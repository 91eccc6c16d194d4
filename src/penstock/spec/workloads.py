"""Changing a workload: another rate, a closed loop; and what it says as a whole."""

from __future__ import annotations

from dataclasses import replace

from penstock.errors import SpecError
from penstock.spec.arrivals import (
    BucketArrivals,
    GammaArrivals,
    GivenArrivals,
    IntervalArrivals,
    PoissonArrivals,
    UniformArrivals,
)
from penstock.spec.traces import TraceFile
from penstock.spec.workload import ClosedLoop, ModelStream, OpenLoopArrivals, Workload


def with_rate(workload: Workload, rate_per_s: float) -> Workload:
    """Return ``workload`` at a mean of ``rate_per_s`` requests/s.

    A trace is played faster or slower. Raises ``SpecError`` for arrivals that have no rate
    (closed loop, saturating, all at once).
    """
    if not 0 < rate_per_s < float("inf"):
        raise SpecError("must be finite and above 0", key="rate", value=rate_per_s)
    if workload.streams:
        return _streams_at(workload, rate_per_s)
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


def in_closed_loop(workload: Workload, max_concurrency: int) -> Workload:
    """``workload`` with a constant number of requests in flight. Raises ``SpecError``."""
    if max_concurrency < 1:
        raise SpecError("must be at least 1", key="--max-concurrency", value=max_concurrency)
    if workload.streams:
        raise SpecError(
            "closed loops are of one model", key="--max-concurrency", fix="leave it out"
        )
    return replace(workload, arrivals=ClosedLoop(max_concurrency))


def of_one_model(workload: Workload) -> Workload:
    """``workload``, for a plan of one model. Raises ``SpecError`` where it names several."""
    if len(workload.models) > 1:
        raise SpecError(
            f"names {len(workload.models)} models, and the plan is of one",
            source=workload.source or workload.name,
            fix="plan with a file of models, or take a workload of one",
        )
    return workload


def _streams_at(workload: Workload, rate_per_s: float) -> Workload:
    """All models together at that rate; each keeps its share."""
    factor = rate_per_s / sum(stream_rate_per_s(stream) for stream in workload.streams)
    streams = tuple(
        replace(stream, arrivals=_faster(stream.arrivals, factor)) for stream in workload.streams
    )
    explicit = all(isinstance(stream.arrivals, GivenArrivals) for stream in streams)
    duration_s = workload.duration_s / factor if explicit else workload.duration_s
    return replace(workload, streams=streams, duration_s=duration_s)


def stream_rate_per_s(stream: ModelStream) -> float:
    """Mean rate of the requests of one model. Raises ``SpecError`` where arrivals have none."""
    rate: float | None = getattr(stream.arrivals, "rate_per_s", None)
    if rate is None or rate == float("inf"):
        raise SpecError("has no request rate to set", key=f"arrivals of {stream.model}")
    return rate


def _faster(arrivals: OpenLoopArrivals, factor: float) -> OpenLoopArrivals:
    if isinstance(arrivals, GivenArrivals):
        return GivenArrivals(tuple(time_s / factor for time_s in arrivals.times_s))
    if isinstance(arrivals, IntervalArrivals):
        return replace(arrivals, rates_per_s=tuple(factor * rate for rate in arrivals.rates_per_s))
    if isinstance(arrivals, PoissonArrivals | GammaArrivals | UniformArrivals | BucketArrivals):
        return replace(arrivals, rate_per_s=factor * arrivals.rate_per_s)
    raise SpecError("has no request rate to set", value=type(arrivals).__name__)


def mean_lengths(workload: Workload) -> tuple[float, float]:
    """(prompt, output) tokens of a mean request of ``workload``."""
    if workload.streams:
        rates = [stream_rate_per_s(stream) for stream in workload.streams]
        prompt = sum(
            rate * stream.lengths.mean_prompt_tokens
            for rate, stream in zip(rates, workload.streams, strict=True)
        )
        output = sum(
            rate * stream.lengths.mean_output_tokens
            for rate, stream in zip(rates, workload.streams, strict=True)
        )
        return prompt / sum(rates), output / sum(rates)
    if workload.lengths is not None:
        return workload.lengths.mean_prompt_tokens, workload.lengths.mean_output_tokens
    prompts = outputs = count = 0
    for request in workload.trace:
        prompts += request.prompt_tokens
        outputs += request.output_tokens
        count += 1
    return prompts / max(1, count), outputs / max(1, count)
