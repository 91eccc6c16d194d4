"""Workloads as files: lengths x arrivals x classes, or a trace."""

from __future__ import annotations

import hashlib
import math
from collections.abc import Callable, Sequence
from functools import cache
from pathlib import Path
from typing import Any

from penstock.errors import SpecError
from penstock.spec.arrivals import (
    AllAtOnce,
    BucketArrivals,
    GammaArrivals,
    PoissonArrivals,
    UniformArrivals,
)
from penstock.spec.files import PRESETS, read_yaml
from penstock.spec.lengths import (
    Distribution,
    EmpiricalLengths,
    Fixed,
    LogNormal,
    MarginalLengths,
    Quantiles,
    Uniform,
)
from penstock.spec.names import did_you_mean, normalise
from penstock.spec.strict import validate
from penstock.spec.traces import TraceFile, open_trace, read_column, read_lengths
from penstock.spec.workload import (
    SLO,
    ClosedLoop,
    Lengths,
    OpenLoopArrivals,
    Request,
    Saturating,
    SLOClass,
    Workload,
    parse_multiple,
)
from penstock.spec.workload_schema import (
    ArrivalsFile,
    ClassFile,
    DistributionFile,
    LengthsFile,
    RequestFile,
    TraceSpecFile,
    WorkloadFile,
)

DEFAULT_DURATION_S = 600.0
INLINE_ROWS = 512


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
    classes = _classes(file)
    explicit = [key for key in ("trace", "requests") if getattr(file, key) is not None]
    if len(explicit) > 1 or (explicit and file.arrivals is not None):
        raise SpecError("give a trace, requests or arrivals, not several", key=explicit[0])
    if not explicit and (file.lengths is None or file.arrivals is None):
        missing = "lengths" if file.lengths is None else "arrivals"
        raise SpecError("key is missing", key=missing, fix="or give a trace")
    trace = _trace(file, classes, source)
    duration_s = file.duration
    if duration_s is None:
        last_s = max((request.arrival_s for request in trace), default=0.0) if trace else 0.0
        duration_s = last_s if trace else file.warmup + DEFAULT_DURATION_S
    if duration_s <= file.warmup and not trace:
        raise SpecError(
            "nothing is left to measure",
            key="duration",
            value=duration_s,
            fix=f"give more than the warmup of {file.warmup:g} s",
        )
    return Workload(
        name=file.name or source.stem,
        duration_s=duration_s,
        warmup_s=file.warmup,
        lengths=None if file.lengths is None else _lengths(file.lengths, source),
        arrivals=None if file.arrivals is None else _arrivals(file.arrivals, source),
        trace=trace,
        classes=classes,
        seed=file.seed,
        source=str(source),
    )


def _classes(file: WorkloadFile) -> tuple[SLOClass, ...]:
    entries = [*file.classes, *([file.slo] if file.slo else [])]
    names = [entry.name for entry in entries]
    for i, name in enumerate(names):
        if name in names[:i]:
            raise SpecError("class is named twice", key=f"classes[{i}].name", value=name)
    return tuple(
        SLOClass(
            entry.name,
            _limits(entry),
            entry.share,
            entry.priority,
        )
        for entry in entries
    )


def _limits(entry: ClassFile) -> SLO:
    if isinstance(entry.tpot, str):
        multiple = parse_multiple(entry.tpot)
        return SLO(entry.ttft, None, entry.itl, entry.e2e, multiple)
    return SLO(entry.ttft, entry.tpot, entry.itl, entry.e2e)


def _beside(source: Path, name: str) -> Path:
    path = Path(name)
    return path if path.is_absolute() or path.exists() else source.parent / path


def _trace(
    file: WorkloadFile, classes: tuple[SLOClass, ...], source: Path
) -> tuple[Request, ...] | TraceFile:
    if file.requests is not None:
        return _inline_trace(file.requests)
    if file.trace is None:
        return ()
    spec = TraceSpecFile(file=file.trace) if isinstance(file.trace, str) else file.trace
    trace = open_trace(
        _beside(source, spec.file),
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


@cache
def length_presets() -> dict[str, MarginalLengths]:
    """The bundled length distributions by name."""
    path = PRESETS / "lengths.yaml"
    return {
        name: _marginal(validate(LengthsFile, raw, path)) for name, raw in read_yaml(path).items()
    }


def _lengths(given: LengthsFile | str, source: Path) -> Lengths:
    if isinstance(given, str) or given.preset is not None:
        name = given if isinstance(given, str) else given.preset or ""
        folded = {normalise(known): entry for known, entry in length_presets().items()}
        if normalise(name) not in folded:
            raise SpecError(
                "unknown lengths",
                key="lengths",
                value=name,
                fix=did_you_mean(name, length_presets()),
            )
        return folded[normalise(name)]
    if given.table is not None:
        return EmpiricalLengths(tuple(given.table))
    if given.trace is not None:
        path = _beside(source, given.trace)
        table = read_lengths(path)
        if given.sha256 is not None and given.sha256 != lengths_digest(table):
            raise SpecError(
                "the file no longer holds the lengths this was made with",
                key="lengths.trace",
                value=str(path),
                fix="restore the file, or drop sha256",
            )
        return EmpiricalLengths(table, str(path))
    return _marginal(given)


def _marginal(given: LengthsFile) -> MarginalLengths:
    assert given.prompt is not None
    assert given.output is not None
    return MarginalLengths(
        _distribution(given.prompt, "lengths.prompt"),
        _distribution(given.output, "lengths.output"),
        given.correlation,
    )


def _distribution(given: int | DistributionFile, key: str) -> Distribution:
    if isinstance(given, int):
        return Fixed(given)
    try:
        if given.uniform is not None:
            return Uniform(*given.uniform)
        if given.quantiles is not None:
            return Quantiles(tuple(given.quantiles))
        log = given.lognormal
        assert log is not None
        if log.mean is not None and log.cv is not None:
            return LogNormal.from_mean(log.mean, log.cv, log.min, log.max)
        return LogNormal(log.median or 1.0, log.sigma or 0.0, log.min, log.max)
    except SpecError as error:
        error.key = f"{key}.{error.key}"
        raise SpecError(error.problem, key=error.key, value=error.value) from None


def _arrivals(given: ArrivalsFile, source: Path) -> OpenLoopArrivals | ClosedLoop | Saturating:
    if given.poisson is not None:
        return PoissonArrivals(given.poisson.rate)
    if given.gamma is not None:
        return GammaArrivals(given.gamma.rate, given.gamma.cv)
    if given.uniform is not None:
        return UniformArrivals(given.uniform.rate)
    if given.bucket is not None:
        histogram = given.bucket.histogram
        counts = (
            read_column(_beside(source, histogram), "arrivals")
            if isinstance(histogram, str)
            else tuple(histogram)
        )
        return BucketArrivals(counts, given.bucket.rate, given.bucket.bucket)
    if given.all_at_once is not None:
        return AllAtOnce(given.all_at_once.count)
    if given.closed_loop is not None:
        return ClosedLoop(given.closed_loop.concurrency, given.closed_loop.interval)
    saturating = given.saturating
    assert saturating is not None
    return Saturating(saturating.initial, saturating.feed_mark, saturating.interval)


def workload_from_trace(path: str | Path) -> Workload:
    """A trace file as it is: one class, measured from its first to its last request."""
    trace = open_trace(path)
    return Workload(
        name=Path(path).name.split(".", maxsplit=1)[0],
        duration_s=trace.last_arrival_s,
        trace=trace,
        source=str(path),
    )


def lengths_digest(table: Sequence[tuple[int, int]]) -> str:
    """SHA-256 of the table as ``prompt,output`` lines."""
    digest = hashlib.sha256()
    for prompt, output in table:
        digest.update(f"{prompt},{output}\n".encode())
    return digest.hexdigest()


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
        data["lengths"] = _lengths_dict(workload.lengths)
    if workload.arrivals is not None:
        data["arrivals"] = _arrivals_dict(workload.arrivals)
    if isinstance(workload.trace, TraceFile):
        data["trace"] = _trace_dict(workload.trace)
    elif len(workload.trace):
        data["requests"] = [_request_dict(request) for request in workload.trace]
    if workload.classes:
        data["classes"] = [_class_dict(entry) for entry in workload.classes]
    return data


def _without_none(data: dict[str, Any]) -> dict[str, object]:
    return {key: value for key, value in data.items() if value is not None}


def _lengths_dict(lengths: Lengths) -> dict[str, object]:
    if isinstance(lengths, MarginalLengths):
        for name, entry in length_presets().items():
            if entry == lengths:
                return {"preset": name}
        return {
            "prompt": _distribution_dict(lengths.prompt),
            "output": _distribution_dict(lengths.output),
            "correlation": lengths.correlation,
        }
    if isinstance(lengths, EmpiricalLengths):
        if lengths.source and len(lengths.table) > INLINE_ROWS:
            return {"trace": lengths.source, "sha256": lengths_digest(lengths.table)}
        return {"table": [list(row) for row in lengths.table]}
    raise SpecError("these lengths cannot be written to a file", value=type(lengths).__name__)


def _distribution_dict(entry: Distribution) -> object:
    if isinstance(entry, Fixed):
        return entry.tokens
    if isinstance(entry, Uniform):
        return {"uniform": [entry.low, entry.high]}
    if isinstance(entry, Quantiles):
        return {"quantiles": [list(point) for point in entry.points]}
    if isinstance(entry, LogNormal):
        clip = {"min": entry.low, "max": entry.high}
        return {"lognormal": {"median": entry.median, "sigma": entry.sigma, **clip}}
    raise SpecError("this distribution cannot be written to a file", value=type(entry).__name__)


def _arrivals_dict(arrivals: object) -> dict[str, object]:
    writers: dict[type, tuple[str, Callable[[Any], dict[str, object]]]] = {
        PoissonArrivals: ("poisson", lambda a: {"rate": a.rate_per_s}),
        GammaArrivals: ("gamma", lambda a: {"rate": a.rate_per_s, "cv": a.cv}),
        UniformArrivals: ("uniform", lambda a: {"rate": a.rate_per_s}),
        BucketArrivals: (
            "bucket",
            lambda a: {
                "rate": a.rate_per_s,
                "histogram": list(a.histogram),
                "bucket": a.bucket_s,
            },
        ),
        AllAtOnce: ("all_at_once", lambda a: {"count": a.count}),
        ClosedLoop: (
            "closed_loop",
            lambda a: {"concurrency": a.concurrency, "interval": a.interval_s},
        ),
        Saturating: (
            "saturating",
            lambda a: {"initial": a.initial, "feed_mark": a.feed_mark, "interval": a.interval_s},
        ),
    }
    if type(arrivals) not in writers:
        raise SpecError("these arrivals cannot be written to a file", value=str(type(arrivals)))
    name, write = writers[type(arrivals)]
    return {name: write(arrivals)}


def _trace_dict(trace: TraceFile) -> dict[str, object]:
    return _without_none(
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


def _class_dict(entry: SLOClass) -> dict[str, object]:
    slo = entry.slo
    tpot = slo.tpot_s if slo.tpot_multiple is None else f"{slo.tpot_multiple!r}x"
    return _without_none(
        {
            "name": entry.name,
            "share": entry.share,
            "priority": entry.priority,
            "ttft": slo.ttft_s,
            "tpot": tpot,
            "itl": slo.itl_s,
            "e2e": slo.e2e_s,
        }
    )
