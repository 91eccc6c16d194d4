"""Workloads of several models: the traffic of each, or one traffic shared by them."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

from penstock.errors import SpecError
from penstock.spec import functions
from penstock.spec.arrivals import GammaArrivals, GivenArrivals, PoissonArrivals
from penstock.spec.minute_bins import BinRules, bin_trace
from penstock.spec.popularity import popularity_rates
from penstock.spec.traces import read_column
from penstock.spec.workload import SLO, ModelStream, OpenLoopArrivals, SLOClass
from penstock.spec.workload_parts import (
    arrivals_to_dict,
    beside,
    class_of,
    class_to_dict,
    lengths_of,
    lengths_to_dict,
    limits_of,
    open_arrivals_of,
)
from penstock.spec.workload_schema import (
    FunctionsFile,
    MinuteBinsFile,
    PopularityFile,
    StreamFile,
    WorkloadFile,
)

SHARED = ("popularity", "functions", "minute_bins")
_DAY_S = 86400.0


def has_streams(file: WorkloadFile) -> bool:
    """Whether ``file`` is of several models."""
    return any(getattr(file, key) is not None for key in ("models", *SHARED))


def streams_of(file: WorkloadFile, source: Path) -> tuple[tuple[ModelStream, ...], float | None]:
    """The traffic of each model, and the seconds it lasts (None: without end)."""
    for key in ("trace", "requests", "arrivals"):
        if getattr(file, key) is not None:
            raise SpecError(
                "is for one model, and this workload names several",
                key=key,
                fix="give it in the entries of models, or leave it out",
            )
    if file.classes:
        raise SpecError(
            "classes belong to one model each", key="classes", fix="give them in its entry"
        )
    entries, arrivals, length_s = _traffic(file, source)
    streams = []
    for i, (entry, own) in enumerate(zip(entries, arrivals, strict=True)):
        lengths = file.lengths if entry.lengths is None else entry.lengths
        if lengths is None:
            raise SpecError(
                "key is missing",
                key=f"models[{i}].lengths",
                fix="give lengths of this model, or of all at the top",
            )
        classes = _classes(file, entry, i)
        streams.append(ModelStream(entry.name, lengths_of(lengths, source), own, classes))
    _check_names(streams)
    return tuple(streams), length_s


def _traffic(
    file: WorkloadFile, source: Path
) -> tuple[Sequence[StreamFile], Sequence[OpenLoopArrivals], float | None]:
    """Entries and arrivals of each model, and the seconds for which there are any."""
    shared = [key for key in SHARED if getattr(file, key) is not None]
    if len(shared) > 1:
        raise SpecError("give one of popularity, functions and minute_bins", key=shared[1])
    if not shared:
        own = file.models or []
        arrivals = []
        for i, entry in enumerate(own):
            if entry.arrivals is None:
                raise SpecError("key is missing", key=f"models[{i}].arrivals")
            try:
                arrivals.append(open_arrivals_of(entry.arrivals, source))
            except SpecError as error:
                raise error.at(source, f"models[{i}]") from None
        return own, arrivals, None
    given = getattr(file, shared[0])
    entries = _entries(file, shared[0], given.models)
    try:
        if isinstance(given, PopularityFile):
            return entries, _popular(given, len(entries)), None
        if isinstance(given, FunctionsFile):
            return (entries, *_functions(given, len(entries), source))
        return (entries, *_bins(given, len(entries), source))
    except SpecError as error:
        raise error.at(source, shared[0]) from None


def _entries(file: WorkloadFile, key: str, names: Sequence[str] | None) -> Sequence[StreamFile]:
    """The entries of models without arrivals of their own, by name where that is all."""
    if (names is None) == (file.models is None):
        raise SpecError(
            "name the models once",
            key=f"{key}.models",
            fix="as a list of names here, or as entries with lengths and limits in models",
        )
    if file.models is None:
        return [StreamFile(name=name) for name in names or ()]
    for i, entry in enumerate(file.models):
        if entry.arrivals is not None:
            raise SpecError(f"{key} gives the arrivals", key=f"models[{i}].arrivals")
    return file.models


def _popular(given: PopularityFile, models: int) -> list[OpenLoopArrivals]:
    rates = popularity_rates(models, given.rate, given.law, given.exponent)
    if given.cv is None:
        return [PoissonArrivals(rate) for rate in rates]
    return [GammaArrivals(rate, given.cv) for rate in rates]


def _functions(
    given: FunctionsFile, models: int, source: Path
) -> tuple[list[OpenLoopArrivals], float]:
    start_s, end_s = given.start, given.end
    if end_s is not None and end_s <= start_s:
        raise SpecError("must be after start", key="end", value=end_s)
    scales = (given.rate_scale, given.cv_scale)
    if given.counts is not None:
        counts = functions.read_counts(beside(source, given.counts))
        first = int(start_s // functions.MINUTE_S)
        last = None if end_s is None else round(end_s / functions.MINUTE_S)
        cut = [own[first:last] for own in counts]
        if not len(cut[0]):
            raise SpecError(f"there are {len(counts[0])} minutes", key="start", value=start_s)
        length_s = len(cut[0]) * functions.MINUTE_S
        each = functions.spread(cut, models, given.mapping)
        return [functions.from_counts(own, *scales) for own in each], length_s
    called = functions.read_invocations(beside(source, given.invocations or ""))
    if end_s is None:
        last_s = max(float(own[-1]) for own in called)
        end_s = max(_DAY_S * (last_s // _DAY_S + 1), start_s + functions.FIT_INTERVAL_S)
    inside = [own[(own >= start_s) & (own < end_s)] - start_s for own in called]
    if not any(len(own) for own in inside):
        raise SpecError("no invocation in this window", key="start", value=start_s)
    length_s = end_s - start_s
    each = functions.gather(inside, models, given.mapping)
    return [functions.from_invocations(own, length_s, *scales) for own in each], length_s


def _bins(given: MinuteBinsFile, models: int, source: Path) -> tuple[list[OpenLoopArrivals], float]:
    counts: Sequence[int]
    if isinstance(given.counts, str):
        counts = read_column(beside(source, given.counts), given.column)
    else:
        counts = given.counts
    rules = BinRules(given.replay, given.window, given.load, given.seed)
    load_bins = list(range(models)) if given.load_bins is None else given.load_bins
    if len(load_bins) != models:
        raise SpecError(f"there are {models} models", key="load_bins", value=load_bins)
    trace = bin_trace(counts, given.scale, load_bins, rules)
    length_s = given.replay * len(counts) + given.load * models
    return [GivenArrivals(tuple(own.tolist())) for own in trace.per_model()], length_s


def _classes(file: WorkloadFile, entry: StreamFile, number: int) -> tuple[SLOClass, ...]:
    if entry.classes:
        for key, given in (("slo", entry.slo is not None), ("priority", entry.priority != 0)):
            if given:
                raise SpecError(
                    "belongs to the classes of this model", key=f"models[{number}].{key}"
                )
        return tuple(class_of(one) for one in entry.classes)
    limits = entry.slo or file.slo
    slo = SLO() if limits is None else limits_of(limits)
    priority = entry.priority
    if entry.slo is None and file.slo is not None and priority == 0:
        priority = file.slo.priority
    return (SLOClass(entry.name, slo, 1.0, priority),)


def _check_names(streams: Sequence[ModelStream]) -> None:
    models: set[str] = set()
    classes: set[str] = set()
    for i, stream in enumerate(streams):
        if stream.model in models:
            raise SpecError("model is named twice", key=f"models[{i}].name", value=stream.model)
        models.add(stream.model)
        for entry in stream.classes:
            if entry.name in classes:
                raise SpecError(
                    "another model, or this one, has a class of this name",
                    key=f"models[{i}].classes",
                    value=entry.name,
                )
            classes.add(entry.name)


def stream_to_dict(stream: ModelStream, classes: Sequence[SLOClass]) -> dict[str, object]:
    """Plain data for the entry of one model; limits are those of ``classes``, by name."""
    limits = {entry.name: entry for entry in classes}
    data: dict[str, object] = {
        "name": stream.model,
        "arrivals": arrivals_to_dict(stream.arrivals),
        "lengths": lengths_to_dict(stream.lengths),
    }
    if stream.classes:
        data["classes"] = [class_to_dict(limits.get(entry.name, entry)) for entry in stream.classes]
    return data
