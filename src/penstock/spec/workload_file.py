"""Workloads as files: lengths x arrivals x classes, or a trace."""

from __future__ import annotations

import math
from pathlib import Path

from penstock.errors import SpecError
from penstock.spec.strict import validate
from penstock.spec.traces import TraceFile, open_trace
from penstock.spec.workload import Request, SLOClass, Workload
from penstock.spec.workload_parts import (
    arrivals_of,
    arrivals_to_dict,
    beside,
    class_of,
    class_to_dict,
    lengths_of,
    lengths_to_dict,
    without_none,
)
from penstock.spec.workload_schema import RequestFile, TraceSpecFile, WorkloadFile
from penstock.spec.workload_streams import has_streams, stream_to_dict, streams_of

DEFAULT_DURATION_S = 600.0


def workload_from_dict(data: object, source: str | Path = "workload") -> Workload:
    """Return the workload that ``data`` (the content of a workload file) describes.

    Paths in it are taken from the folder of ``source``. Raises ``SpecError`` naming the key.
    """
    file = validate(WorkloadFile, data, source)
    try:
        return _build(file, Path(str(source)))
    except SpecError as error:
        raise error.at(source) from None


def _build(file: WorkloadFile, source: Path) -> Workload:
    if has_streams(file):
        streams, length_s = streams_of(file, source)
        return Workload(
            name=file.name or source.stem,
            duration_s=_duration_s(file, length_s),
            warmup_s=file.warmup,
            classes=tuple(entry for stream in streams for entry in stream.classes),
            seed=file.seed,
            source=str(source),
            streams=streams,
        )
    classes = _classes(file)
    explicit = [key for key in ("trace", "requests") if getattr(file, key) is not None]
    if len(explicit) > 1 or (explicit and file.arrivals is not None):
        raise SpecError("give a trace, requests or arrivals, not several", key=explicit[0])
    if not explicit and (file.lengths is None or file.arrivals is None):
        missing = "lengths" if file.lengths is None else "arrivals"
        raise SpecError("key is missing", key=missing, fix="or give a trace")
    trace = _trace(file, classes, source)
    if trace:
        last_s = max((request.arrival_s for request in trace), default=0.0)
        duration_s = last_s if file.duration is None else file.duration
    else:
        duration_s = _duration_s(file, None)
    return Workload(
        name=file.name or source.stem,
        duration_s=duration_s,
        warmup_s=file.warmup,
        lengths=None if file.lengths is None else lengths_of(file.lengths, source),
        arrivals=None if file.arrivals is None else arrivals_of(file.arrivals, source),
        trace=trace,
        classes=classes,
        seed=file.seed,
        source=str(source),
    )


def _duration_s(file: WorkloadFile, length_s: float | None) -> float:
    """Seconds of traffic: as asked, else as long as there is any, else ten minutes."""
    duration_s = file.duration
    if duration_s is None:
        duration_s = file.warmup + DEFAULT_DURATION_S if length_s is None else length_s
    if duration_s <= file.warmup:
        raise SpecError(
            "nothing is left to measure",
            key="duration",
            value=duration_s,
            fix=f"give more than the warmup of {file.warmup:g} s",
        )
    return duration_s


def _classes(file: WorkloadFile) -> tuple[SLOClass, ...]:
    entries = [*file.classes, *([file.slo] if file.slo else [])]
    names = [entry.name for entry in entries]
    for i, name in enumerate(names):
        if name in names[:i]:
            raise SpecError("class is named twice", key=f"classes[{i}].name", value=name)
    return tuple(class_of(entry) for entry in entries)


def _trace(
    file: WorkloadFile, classes: tuple[SLOClass, ...], source: Path
) -> tuple[Request, ...] | TraceFile:
    if file.requests is not None:
        return _inline_trace(file.requests)
    if file.trace is None:
        return ()
    spec = TraceSpecFile(file=file.trace) if isinstance(file.trace, str) else file.trace
    trace = open_trace(
        beside(source, spec.file),
        rate_scale=spec.rate_scale,
        start_s=spec.start,
        end_s=math.inf if spec.end is None else spec.end,
        max_requests=spec.max_requests,
        classes=classes,
        seed=file.seed,
    )
    return trace if spec.rate is None else trace.at_rate(spec.rate)


def _inline_trace(entries: list[RequestFile]) -> tuple[Request, ...]:
    if not entries:
        raise SpecError("the list of requests is empty", key="requests")
    for i in range(1, len(entries)):
        if entries[i].arrival < entries[i - 1].arrival:
            raise SpecError(
                "arrivals must not go back in time",
                key=f"requests[{i}].arrival",
                value=entries[i].arrival,
            )
    return tuple(
        Request(
            i,
            entry.arrival,
            entry.prompt_tokens,
            entry.output_tokens,
            entry.class_name,
            entry.model,
            entry.prefix_hashes,
        )
        for i, entry in enumerate(entries)
    )


def workload_from_trace(path: str | Path) -> Workload:
    """A trace file as it is: one class, measured from its first to its last request."""
    trace = open_trace(path)
    return Workload(
        name=Path(path).name.split(".", maxsplit=1)[0],
        duration_s=trace.last_arrival_s,
        trace=trace,
        source=str(path),
    )


def workload_to_dict(workload: Workload) -> dict[str, object]:
    """Return ``workload`` as plain data; ``workload_from_dict`` gives it back.

    Long tables and trace files are named by path (tables also by SHA-256), not copied.
    """
    data: dict[str, object] = {
        "name": workload.name,
        "duration": workload.duration_s,
        "warmup": workload.warmup_s,
        "seed": workload.seed,
    }
    if workload.lengths is not None:
        data["lengths"] = lengths_to_dict(workload.lengths)
    if workload.arrivals is not None:
        data["arrivals"] = arrivals_to_dict(workload.arrivals)
    if isinstance(workload.trace, TraceFile):
        data["trace"] = _trace_dict(workload.trace)
    elif len(workload.trace):
        data["requests"] = [_request_dict(request) for request in workload.trace]
    if workload.streams:
        data["models"] = [stream_to_dict(stream, workload.classes) for stream in workload.streams]
    elif workload.classes:
        data["classes"] = [class_to_dict(entry) for entry in workload.classes]
    return data


def _trace_dict(trace: TraceFile) -> dict[str, object]:
    return without_none(
        {
            "file": trace.path,
            "start": trace.start_s,
            "end": None if math.isinf(trace.end_s) else trace.end_s,
            "rate_scale": trace.rate_scale,
            "max_requests": trace.max_requests,
        }
    )


def _request_dict(request: Request) -> dict[str, object]:
    data: dict[str, object] = {
        "arrival": request.arrival_s,
        "prompt_tokens": request.prompt_tokens,
        "output_tokens": request.output_tokens,
    }
    if request.class_name:
        data["class"] = request.class_name
    if request.model:
        data["model"] = request.model
    if request.prefix_hashes:
        data["prefix_hashes"] = list(request.prefix_hashes)
    return data
