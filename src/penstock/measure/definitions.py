"""The metrics by name: label, unit, which way is better, and what exactly is counted."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass
from types import MappingProxyType
from typing import Literal

from penstock.measure.metrics import Summary

Better = Literal["higher", "lower", "neither"]


@dataclass(frozen=True, slots=True)
class Metric:
    """One figure of a ``Summary``; ``read`` gives None or NaN where it is undefined."""

    key: str
    label: str
    unit: str
    better: Better
    section: str
    read: Callable[[Summary], float | None]


DEFINITIONS: Mapping[str, str] = MappingProxyType(
    {
        "window": "All rates are per second of the stated window, both ends included. A sample "
        "belongs to the window "
        "in which it completes: TTFT by its first token, TPOT and end-to-end latency by the last "
        "token, ITL by the later of its two tokens.",
        "decode throughput": "Decode iterations completed in the window, per second; the prompt "
        "iteration of a request is not one of them.",
        "output throughput": "Output tokens completed in the window, per second.",
        "total throughput": "Output tokens, and prompt tokens of the prompts completed in the "
        "window, per second.",
        "TTFT": "Time to first token: first output token minus arrival, all queueing included.",
        "TPOT": "Time per output token: (end-to-end latency - TTFT) / (output tokens - 1), one "
        "value per finished request; undefined for a single output token.",
        "ITL": "Inter-token latency: every gap between two successive output tokens of a request, "
        "pooled over requests.",
        "E2EL": "End-to-end latency: last token minus arrival, of finished requests.",
        "queue": "Admission minus arrival.",
        "prompt latency": "Arrival to completion of the prompt iteration. Percentile p is the "
        "sorted sample at rank int(n p), as in the published Helix figures.",
        "decode latency": "One decode iteration, a full round trip through all layers. "
        "Percentile p is the sorted sample at rank int(n p).",
        "SLO attainment": "Share of the requests sent in the window that finished within all "
        "limits of their class. Rejected, dropped, failed and unfinished requests are misses. "
        "An ITL limit holds for every gap of a request.",
        "goodput": "Requests per second (and output tokens of those requests per second) that "
        "finished in the window within all their limits.",
        "tokens/s per GPU": "Output throughput over all provisioned GPUs, used or not.",
        "tokens/s per user": "1 / median TPOT.",
        "utilisation": "Share of the window in which a node was computing; the mean is over all "
        "nodes of the plan.",
        "cost": "Price of all provisioned GPUs for the time that one million output tokens take "
        "at the measured output throughput.",
        "percentiles": "Linear interpolation between samples, except prompt and decode latency.",
    }
)


def metrics() -> tuple[Metric, ...]:
    """Return the metrics of a comparison, in the order in which tables show them."""
    through, latency, service, cost = "Throughput", "Latency", "Service", "Efficiency"
    return (
        Metric(
            "decode_throughput_tokens_per_s",
            "Decode throughput",
            "tok/s",
            "higher",
            through,
            lambda s: s.overall.decode_throughput_tokens_per_s,
        ),
        Metric(
            "output_throughput_tokens_per_s",
            "Output throughput",
            "tok/s",
            "higher",
            through,
            lambda s: s.overall.output_throughput_tokens_per_s,
        ),
        Metric(
            "total_throughput_tokens_per_s",
            "Total throughput",
            "tok/s",
            "higher",
            through,
            lambda s: s.overall.total_throughput_tokens_per_s,
        ),
        Metric(
            "request_throughput_per_s",
            "Requests finished",
            "req/s",
            "higher",
            through,
            lambda s: s.overall.request_throughput_per_s,
        ),
        Metric("ttft_mean_s", "TTFT mean", "s", "lower", latency, lambda s: s.overall.ttft.mean),
        Metric("ttft_p50_s", "TTFT p50", "s", "lower", latency, lambda s: s.overall.ttft.p50),
        Metric("ttft_p95_s", "TTFT p95", "s", "lower", latency, lambda s: s.overall.ttft.p95),
        Metric("ttft_p99_s", "TTFT p99", "s", "lower", latency, lambda s: s.overall.ttft.p99),
        Metric("tpot_mean_s", "TPOT mean", "s", "lower", latency, lambda s: s.overall.tpot.mean),
        Metric("tpot_p50_s", "TPOT p50", "s", "lower", latency, lambda s: s.overall.tpot.p50),
        Metric("tpot_p99_s", "TPOT p99", "s", "lower", latency, lambda s: s.overall.tpot.p99),
        Metric("itl_p50_s", "ITL p50", "s", "lower", latency, lambda s: s.overall.itl.p50),
        Metric("itl_p99_s", "ITL p99", "s", "lower", latency, lambda s: s.overall.itl.p99),
        Metric("e2e_p50_s", "E2EL p50", "s", "lower", latency, lambda s: s.overall.e2e.p50),
        Metric("e2e_p99_s", "E2EL p99", "s", "lower", latency, lambda s: s.overall.e2e.p99),
        Metric(
            "slo_attainment",
            "SLO attainment",
            "share",
            "higher",
            service,
            lambda s: s.overall.slo_attainment,
        ),
        Metric(
            "goodput_requests_per_s",
            "Goodput",
            "req/s",
            "higher",
            service,
            lambda s: s.overall.goodput_requests_per_s,
        ),
        Metric("sent", "Requests sent", "", "neither", service, lambda s: s.overall.sent),
        Metric(
            "finished", "Requests finished", "", "neither", service, lambda s: s.overall.finished
        ),
        Metric(
            "unfinished",
            "Unfinished at the end",
            "",
            "neither",
            service,
            lambda s: s.overall.unfinished,
        ),
        Metric(
            "not_served",
            "Rejected, dropped or failed",
            "",
            "lower",
            service,
            lambda s: s.overall.rejected + s.overall.dropped + s.overall.failed,
        ),
        Metric("preemptions", "Preemptions", "", "lower", service, lambda s: s.overall.preemptions),
        Metric(
            "mean_prompt_tokens",
            "Mean prompt served",
            "tokens",
            "neither",
            service,
            lambda s: s.overall.mean_prompt_tokens,
        ),
        Metric(
            "mean_utilisation",
            "Mean node utilisation",
            "share",
            "neither",
            cost,
            lambda s: s.mean_utilisation,
        ),
        Metric(
            "tokens_per_s_per_gpu",
            "Output per GPU",
            "tok/s",
            "higher",
            cost,
            lambda s: s.tokens_per_s_per_gpu,
        ),
        Metric(
            "tokens_per_s_per_user",
            "Output per user",
            "tok/s",
            "higher",
            cost,
            lambda s: s.overall.tokens_per_s_per_user,
        ),
        Metric(
            "cost_per_million_output_tokens",
            "Cost per 1M output tokens",
            "$",
            "lower",
            cost,
            lambda s: s.cost_per_million_output_tokens,
        ),
    )
