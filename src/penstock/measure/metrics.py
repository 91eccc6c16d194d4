"""What a run gave: latency, throughput, goodput, by SLO class and over all.

Samples belong to the measured window by the moment they are complete: a TTFT by its first
token, a TPOT and an end-to-end latency by the last token, an ITL by the later of its two tokens.
Attainment alone goes by arrival: it is a share of the requests *sent* in the window. The
sentences shown to users are in ``measure/definitions.py``.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, fields

import numpy as np
from numpy.typing import NDArray

from penstock.measure.fleet import Fleet, classes_of, fleet_of_run
from penstock.measure.pooled import PooledSeconds
from penstock.measure.run import STATUS, Run
from penstock.measure.samples import Gaps, Samples, all_gaps, collect, gaps_by_model, pooled_gaps
from penstock.spec.workload import SLO, SLOClass

Floats = NDArray[np.float64]
Mask = NDArray[np.bool_]


@dataclass(frozen=True, slots=True)
class Distribution:
    """Order statistics of a set of seconds; linear interpolation between samples.

    All values are NaN without samples. ``p999`` is NaN below 1,000 samples.
    """

    count: int
    mean: float
    std: float
    minimum: float
    p25: float
    p50: float
    p75: float
    p90: float
    p95: float
    p99: float
    p999: float
    maximum: float

    @property
    def median(self) -> float:
        return self.p50


@dataclass(frozen=True, slots=True)
class RankPercentiles:
    """Percentile p is ``sorted[int(n * p)]``, as the published Helix figures take it."""

    count: int
    mean: float
    p5: float
    p25: float
    p50: float
    p75: float
    p95: float


@dataclass(frozen=True, slots=True)
class Group:
    """The metrics of one SLO class, of one model, or of all requests (``name`` = "").

    Counts are of requests that arrived in the window, except ``finished`` (last token in the
    window) and ``preemptions`` (of all requests of the group). Rates are per second of window.
    """

    name: str
    sent: int
    finished: int
    rejected: int
    dropped: int
    failed: int
    unfinished: int
    preemptions: int
    mean_prompt_tokens: float
    mean_output_tokens: float
    request_throughput_per_s: float
    output_throughput_tokens_per_s: float
    total_throughput_tokens_per_s: float
    decode_throughput_tokens_per_s: float
    tokens_per_s_per_user: float
    ttft: Distribution
    tpot: Distribution
    itl: Distribution
    e2e: Distribution
    queue: Distribution
    prompt_latency: RankPercentiles
    decode_latency: RankPercentiles
    slo: SLO | None
    slo_attainment: float | None
    ttft_attainment: float | None
    tpot_attainment: float | None
    goodput_requests_per_s: float | None
    goodput_tokens_per_s: float | None


@dataclass(frozen=True, slots=True)
class NodeUse:
    """One node in the window (utilisation) and over the whole run (the rest)."""

    name: str
    utilisation: float
    peak_kv_fraction: float
    batches: int
    mean_prompt_residence_s: float


@dataclass(frozen=True, slots=True)
class TimeBand:
    """How far predicted times may be off: 80 % of measured ones lie between ``low`` and ``high``
    times the prediction. ``extrapolated`` names accelerators beyond the measurements."""

    low: float
    high: float
    extrapolated: tuple[str, ...] = ()


@dataclass(frozen=True)
class Summary:
    """All metrics of one run. ``totals`` counts requests by status over the whole run.

    ``models`` is () where there is one model.
    ``band`` is that of the cost model; None where it has none, and for measured runs.
    """

    name: str
    kind: str
    window_s: tuple[float, float]
    overall: Group
    classes: tuple[Group, ...]
    nodes: tuple[NodeUse, ...]
    totals: Mapping[str, int]
    num_gpus: int | None
    tokens_per_s_per_gpu: float | None
    goodput_tokens_per_s_per_gpu: float | None
    price_per_hour: float | None
    cost_per_million_output_tokens: float | None
    mean_utilisation: float | None
    band: TimeBand | None = None
    models: tuple[Group, ...] = ()

    @property
    def parts(self) -> tuple[Group, ...]:
        """What tables show beside all requests: models, and classes that are not a model's own."""
        named = {group.name for group in self.models}
        return (*self.models, *(group for group in self.classes if group.name not in named))

    @property
    def window_length_s(self) -> float:
        return self.window_s[1] - self.window_s[0]


def summarise(
    run: Run, classes: Sequence[SLOClass] | None = None, *, fleet: Fleet | None = None
) -> Summary:
    """Compute every metric of ``run``.

    ``classes`` are the limits to hold it against; by default those of the workload in the
    header. A single class without a name covers all requests. ``fleet`` (GPUs, $/h) is by
    default that of the plan in the header; figures per GPU and per price are None without it.
    """
    classes = classes_of(run.header) if classes is None else tuple(classes)
    fleet = fleet_of_run(run.header) if fleet is None else fleet
    samples = collect(run, classes)
    models = run.requests.model_index
    gaps, model_gaps = (pooled_gaps(run), ()) if models is None else gaps_by_model(run)
    everyone = np.ones(len(run.requests.id), dtype=bool)
    limited = {entry.name: entry.slo for entry in classes}
    single = classes[0].slo if len(classes) == 1 else None
    overall = _group(
        run, samples, everyone, "", gaps=all_gaps(gaps), slo=single, judged=bool(classes)
    )
    groups = tuple(
        _group(
            run,
            samples,
            run.requests.class_index == i,
            name,
            gaps=gaps[i],
            slo=limited.get(name),
            judged=name in limited,
        )
        for i, name in enumerate(run.class_names)
        if len(run.class_names) > 1 or name
    )
    nodes = _nodes(run)
    per_hour, gpus = fleet.price_per_hour, fleet.num_gpus
    rate = overall.output_throughput_tokens_per_s
    good = overall.goodput_tokens_per_s
    utilisation = [node.utilisation for node in nodes]
    return Summary(
        name=run.name,
        kind=str(run.header.get("kind", "simulated")),
        window_s=run.window_s,
        overall=overall,
        classes=groups,
        nodes=nodes,
        totals={
            name: int(np.count_nonzero(run.requests.status == i)) for i, name in enumerate(STATUS)
        },
        num_gpus=gpus,
        tokens_per_s_per_gpu=rate / gpus if gpus else None,
        goodput_tokens_per_s_per_gpu=good / gpus if gpus and good is not None else None,
        price_per_hour=per_hour,
        cost_per_million_output_tokens=(
            per_hour / 3600.0 / rate * 1e6 if per_hour is not None and rate > 0 else None
        ),
        mean_utilisation=float(np.mean(utilisation)) if utilisation else None,
        band=_band(run.header.get("band")),
        models=tuple(
            _group(
                run,
                samples,
                models == i,
                name,
                gaps=model_gaps[i],
                slo=limited.get(name),
                judged=bool(classes),
            )
            for i, name in enumerate(run.model_names)
        )
        if models is not None
        else (),
    )


def _band(entry: object) -> TimeBand | None:
    """The band of a run's header; None where it is absent or not understood."""
    if not isinstance(entry, Mapping):
        return None
    low, high, beyond = (entry.get(key) for key in ("low", "high", "extrapolated"))
    if not (isinstance(low, int | float) and isinstance(high, int | float)):
        return None
    names = beyond if isinstance(beyond, list | tuple) else ()
    return TimeBand(float(low), float(high), tuple(str(name) for name in names))


def summary_to_dict(summary: Summary) -> dict[str, object]:
    """Return ``summary`` as JSON types, with the unit in every key; undefined is null."""
    return {
        "name": summary.name,
        "kind": summary.kind,
        "window_s": list(summary.window_s),
        "num_gpus": summary.num_gpus,
        "tokens_per_s_per_gpu": _number(summary.tokens_per_s_per_gpu),
        "goodput_tokens_per_s_per_gpu": _number(summary.goodput_tokens_per_s_per_gpu),
        "price_per_hour": _number(summary.price_per_hour),
        "cost_per_million_output_tokens": _number(summary.cost_per_million_output_tokens),
        "mean_utilisation": _number(summary.mean_utilisation),
        "band": None
        if summary.band is None
        else {
            "low": summary.band.low,
            "high": summary.band.high,
            "extrapolated": list(summary.band.extrapolated),
        },
        "requests_by_status": dict(summary.totals),
        "overall": _group_to_dict(summary.overall),
        "classes": {group.name: _group_to_dict(group) for group in summary.classes},
        **(
            {"models": {group.name: _group_to_dict(group) for group in summary.models}}
            if summary.models
            else {}
        ),
        "nodes": [
            {
                "name": node.name,
                "utilisation": _number(node.utilisation),
                "peak_kv_fraction": _number(node.peak_kv_fraction),
                "batches": node.batches,
                "mean_prompt_residence_s": _number(node.mean_prompt_residence_s),
            }
            for node in summary.nodes
        ],
    }


def distribution(seconds: Floats) -> Distribution:
    """Order statistics of ``seconds`` (any order, no NaN)."""
    pooled = PooledSeconds(exact=True)
    pooled.add(seconds)
    return pooled_distribution(pooled)


_FRACTIONS = np.array([0.25, 0.5, 0.75, 0.9, 0.95, 0.99, 0.999])


def pooled_distribution(pooled: PooledSeconds) -> Distribution:
    """Order statistics of a pooled sample."""
    if not pooled.count:
        return Distribution(0, *([float("nan")] * 11))
    p25, p50, p75, p90, p95, p99, p999 = pooled.quantiles(_FRACTIONS).tolist()
    return Distribution(
        count=pooled.count,
        mean=pooled.mean,
        std=pooled.std,
        minimum=pooled.minimum,
        p25=p25,
        p50=p50,
        p75=p75,
        p90=p90,
        p95=p95,
        p99=p99,
        p999=p999 if pooled.count >= 1000 else float("nan"),
        maximum=pooled.maximum,
    )


def rank_percentiles(seconds: Floats) -> RankPercentiles:
    """Percentiles by rank, ``sorted[int(n * p)]`` (Helix artifact, section 5 "Metrics")."""
    pooled = PooledSeconds(exact=True)
    pooled.add(seconds)
    return pooled_ranks(pooled)


def pooled_ranks(pooled: PooledSeconds) -> RankPercentiles:
    """``rank_percentiles`` of a pooled sample."""
    n = pooled.count
    if not n:
        return RankPercentiles(0, *([float("nan")] * 6))
    ranks = np.array([int(n * p) for p in (0.05, 0.25, 0.5, 0.75, 0.95)])
    return RankPercentiles(n, pooled.mean, *pooled.at_ranks(ranks).tolist())


def _group(
    run: Run,
    samples: Samples,
    members: Mask,
    name: str,
    *,
    gaps: Gaps,
    slo: SLO | None,
    judged: bool,
) -> Group:
    table, start_end = run.requests, run.window_s
    length = start_end[1] - start_end[0]
    sent = members & samples.arrived_in_window
    done = members & samples.finished_in_window
    prompts = members & samples.prompt_in_window
    # Every iteration but the prompt's ends a gap. Without iteration times nobody knows which
    # tokens fell into the window.
    known = run.tokens.kept or not table.generated_tokens.any()
    decode = float(gaps.iterations.count) if known else float("nan")
    prompt_tokens = np.count_nonzero(prompts) if run.first_iteration_is_token else 0
    output_tokens = decode + float(prompt_tokens)
    status = table.status

    def count(wanted: str) -> int:
        return int(np.count_nonzero(sent & (status == STATUS.index(wanted))))

    tpot = samples.tpot_s[done]
    tpot_distribution = distribution(tpot[~np.isnan(tpot)])
    good = samples.good & members
    finished = int(np.count_nonzero(done))
    good_done = good & done
    return Group(
        name=name,
        sent=int(np.count_nonzero(sent)),
        finished=finished,
        rejected=count("rejected"),
        dropped=count("dropped"),
        failed=count("failed"),
        unfinished=count("running") + count("queued"),
        preemptions=int(table.preemptions[members].sum()),
        mean_prompt_tokens=_mean(table.prompt_tokens[prompts]),
        mean_output_tokens=_mean(table.generated_tokens[done]),
        request_throughput_per_s=finished / length,
        output_throughput_tokens_per_s=output_tokens / length,
        total_throughput_tokens_per_s=(output_tokens + int(table.prompt_tokens[prompts].sum()))
        / length,
        decode_throughput_tokens_per_s=decode / length,
        tokens_per_s_per_user=_inverse(tpot_distribution.p50),
        ttft=distribution(samples.ttft_s[members & samples.first_token_in_window]),
        tpot=tpot_distribution,
        itl=pooled_distribution(gaps.tokens),
        e2e=distribution(samples.e2e_s[done]),
        queue=distribution(samples.queue_s[members & samples.admitted_in_window]),
        prompt_latency=rank_percentiles(samples.prompt_latency_s[prompts]),
        decode_latency=pooled_ranks(gaps.iterations),
        slo=slo,
        slo_attainment=_share(good, sent) if judged else None,
        ttft_attainment=_share(samples.ttft_met, sent) if judged else None,
        tpot_attainment=_share(samples.tpot_met, sent) if judged else None,
        goodput_requests_per_s=np.count_nonzero(good_done) / length if judged else None,
        goodput_tokens_per_s=(
            float(table.generated_tokens[good_done].sum()) / length if judged else None
        ),
    )


def _nodes(run: Run) -> tuple[NodeUse, ...]:
    totals = run.nodes
    if totals is None:
        return ()
    use = _utilisation(run)
    visits = np.maximum(totals.prompt_visits, 1)
    residence = np.where(totals.prompt_visits > 0, totals.prompt_residence_s / visits, np.nan)
    return tuple(
        NodeUse(
            name=name,
            utilisation=float(use[i]),
            peak_kv_fraction=float(totals.peak_kv_fraction[i]),
            batches=int(totals.batches[i]),
            mean_prompt_residence_s=float(residence[i]),
        )
        for i, name in enumerate(totals.names)
    )


def _utilisation(run: Run) -> Floats:
    """Busy fraction of each node of ``run.nodes``, over the window where the series allows."""
    assert run.nodes is not None
    series = run.node_series
    if series is not None and series.names == run.nodes.names and len(series.busy):
        edges = series.start_s + series.bucket_s * np.arange(len(series.busy) + 1)
        inside = np.clip(edges[1:], *run.window_s) - np.clip(edges[:-1], *run.window_s)
        if inside.sum() > 0:
            average: Floats = inside @ series.busy / inside.sum()
            return average
    begin = float(run.requests.arrival_s.min()) if len(run.requests.id) else run.window_s[0]
    end = max(run.window_s[1], run.tokens.last_s)
    fraction: Floats = np.minimum(run.nodes.busy_s / max(end - begin, 1e-12), 1.0)
    return fraction


def _share(hits: Mask, of: Mask) -> float:
    total = int(np.count_nonzero(of))
    return int(np.count_nonzero(hits & of)) / total if total else float("nan")


def _mean(values: NDArray[np.int64]) -> float:
    return float(values.mean()) if len(values) else float("nan")


def _inverse(seconds: float) -> float:
    return 1.0 / seconds if seconds > 0 else float("nan")


def _number(value: float | None) -> float | None:
    return None if value is None or not np.isfinite(value) else float(value)


_SECONDS = ("ttft", "tpot", "itl", "e2e", "queue", "prompt_latency", "decode_latency")


def _group_to_dict(group: Group) -> dict[str, object]:
    result: dict[str, object] = {}
    for field in fields(group):
        value = getattr(group, field.name)
        if field.name in _SECONDS:
            entries = {part.name: getattr(value, part.name) for part in fields(value)}
            count = entries.pop("count")
            numbers = {key: _number(item) for key, item in entries.items()}
            result[f"{field.name}_s"] = {"count": count, **numbers}
        elif isinstance(value, SLO):
            result["slo"] = {
                part.name: getattr(value, part.name)
                for part in fields(value)
                if getattr(value, part.name) is not None
            }
        elif isinstance(value, float):
            result[field.name] = _number(value)
        else:
            result[field.name] = value
    return result
