"""Lengths, arrivals and classes: from the strict form of a file to values, and back."""

from __future__ import annotations

import hashlib
from collections.abc import Callable, Sequence
from functools import cache
from pathlib import Path
from typing import Any

from penstock.errors import SpecError
from penstock.spec.arrivals import (
    AllAtOnce,
    BucketArrivals,
    GammaArrivals,
    GivenArrivals,
    IntervalArrivals,
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
from penstock.spec.traces import read_column, read_lengths
from penstock.spec.workload import (
    SLO,
    ClosedLoop,
    Lengths,
    OpenLoopArrivals,
    Saturating,
    SLOClass,
    parse_multiple,
)
from penstock.spec.workload_schema import (
    ArrivalsFile,
    ClassFile,
    DistributionFile,
    LengthsFile,
    LimitsFile,
)

INLINE_ROWS = 512


def limits_of(entry: LimitsFile) -> SLO:
    if isinstance(entry.tpot, str):
        multiple = parse_multiple(entry.tpot)
        return SLO(entry.ttft, None, entry.itl, entry.e2e, multiple)
    return SLO(entry.ttft, entry.tpot, entry.itl, entry.e2e)


def class_of(entry: ClassFile) -> SLOClass:
    return SLOClass(entry.name, limits_of(entry), entry.share, entry.priority)


def beside(source: Path, name: str) -> Path:
    path = Path(name)
    return path if path.is_absolute() or path.exists() else source.parent / path


@cache
def length_presets() -> dict[str, MarginalLengths]:
    """The bundled length distributions by name."""
    path = PRESETS / "lengths.yaml"
    return {
        name: _marginal(validate(LengthsFile, raw, path)) for name, raw in read_yaml(path).items()
    }


def lengths_of(given: LengthsFile | str, source: Path) -> Lengths:
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
        path = beside(source, given.trace)
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


def arrivals_of(given: ArrivalsFile, source: Path) -> OpenLoopArrivals | ClosedLoop | Saturating:
    if given.closed_loop is not None:
        return ClosedLoop(given.closed_loop.concurrency, given.closed_loop.interval)
    if given.saturating is not None:
        full = given.saturating
        return Saturating(full.initial, full.feed_mark, full.interval)
    return open_arrivals_of(given, source)


def open_arrivals_of(given: ArrivalsFile, source: Path) -> OpenLoopArrivals:
    """Arrivals that do not depend on the system. Raises ``SpecError`` for others."""
    if given.closed_loop is not None or given.saturating is not None:
        raise SpecError(
            "depend on completions", key="arrivals", fix="give open-loop ones, such as poisson"
        )
    if given.poisson is not None:
        return PoissonArrivals(given.poisson.rate)
    if given.gamma is not None:
        return GammaArrivals(given.gamma.rate, given.gamma.cv)
    if given.uniform is not None:
        return UniformArrivals(given.uniform.rate)
    if given.bucket is not None:
        histogram = given.bucket.histogram
        counts = (
            read_column(beside(source, histogram), "arrivals")
            if isinstance(histogram, str)
            else tuple(histogram)
        )
        return BucketArrivals(counts, given.bucket.rate, given.bucket.bucket)
    if given.all_at_once is not None:
        return AllAtOnce(given.all_at_once.count)
    if given.intervals is not None:
        bins = given.intervals
        return IntervalArrivals(tuple(bins.rates), tuple(bins.cvs), bins.interval)
    return GivenArrivals(tuple(given.times or ()))


def lengths_digest(table: Sequence[tuple[int, int]]) -> str:
    """SHA-256 of the table as ``prompt,output`` lines."""
    digest = hashlib.sha256()
    for prompt, output in table:
        digest.update(f"{prompt},{output}\n".encode())
    return digest.hexdigest()


def without_none(data: dict[str, Any]) -> dict[str, object]:
    return {key: value for key, value in data.items() if value is not None}


def lengths_to_dict(lengths: Lengths) -> dict[str, object]:
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


def arrivals_to_dict(arrivals: object) -> dict[str, object]:
    writers: dict[type, tuple[str, Callable[[Any], object]]] = {
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
        IntervalArrivals: (
            "intervals",
            lambda a: {
                "interval": a.interval_s,
                "rates": list(a.rates_per_s),
                "cvs": list(a.cvs),
            },
        ),
        GivenArrivals: ("times", lambda a: list(a.times_s)),
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


def class_to_dict(entry: SLOClass) -> dict[str, object]:
    slo = entry.slo
    tpot = slo.tpot_s if slo.tpot_multiple is None else f"{slo.tpot_multiple!r}x"
    return without_none(
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
