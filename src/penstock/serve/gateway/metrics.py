"""Prometheus metrics under vLLM's names, so that its dashboards and autoscalers work unchanged.

Histograms and token counts are taken here, as the client sees them; what engines hold is asked of
the runtime when the page is read. ``Generator.model_counters`` may name ``prefix_queried_tokens``,
``prefix_hit_tokens``, ``drafts``, ``draft_tokens`` and ``accepted_tokens``: shown as vLLM's; any
other as ``penstock:<name>_total``.
"""

from __future__ import annotations

import re
from collections.abc import Iterable, Iterator, Sequence

from prometheus_client import CollectorRegistry, Counter, Histogram, generate_latest
from prometheus_client.core import CounterMetricFamily, GaugeMetricFamily
from prometheus_client.metrics_core import Metric
from prometheus_client.registry import Collector

from penstock.serve.protocol import EngineStatus, Generator

_TTFT_S = (0.001, 0.005, 0.01, 0.02, 0.04, 0.06, 0.08, 0.1, 0.25, 0.5, 0.75, 1, 2.5, 5, 7.5, 10,
           20, 40, 80, 160, 640, 2560)  # fmt: skip
_ITL_S = (0.01, 0.025, 0.05, 0.075, 0.1, 0.15, 0.2, 0.3, 0.4, 0.5, 0.75, 1, 2.5, 5, 7.5, 10, 20,
          40, 80)  # fmt: skip
_REQUEST_S = (0.3, 0.5, 0.8, 1, 1.5, 2, 2.5, 5, 10, 15, 20, 30, 40, 50, 60, 120, 240, 480, 960,
              1920, 7680)  # fmt: skip
_TOKENS = tuple(digit * 10**power for power in range(6) for digit in (1, 2, 5))

# Sum of the runtime: vLLM's metric and what it means.
_VLLM_COUNTERS = {
    "prefix_queried_tokens": ("prefix_cache_queries", "Prompt tokens looked up in the cache."),
    "prefix_hit_tokens": ("prefix_cache_hits", "Prompt tokens found in the cache."),
    "drafts": ("spec_decode_num_drafts", "Drafts verified."),
    "draft_tokens": ("spec_decode_num_draft_tokens", "Draft tokens verified."),
    "accepted_tokens": ("spec_decode_num_accepted_tokens", "Draft tokens accepted."),
}
# What metrics above say already, and what is no sum.
_TOLD_ELSEWHERE = frozenset(
    {"prompt_tokens", "generation_tokens", "preemptions", "outstanding", "waiting"}
)


class ModelMetrics:
    """The series of one model."""

    def __init__(self, metrics: Metrics, model: str) -> None:
        self.ttft_s = metrics.ttft_s.labels(model)
        self.itl_s = metrics.itl_s.labels(model)
        self.tpot_s = metrics.tpot_s.labels(model)
        self.e2e_s = metrics.e2e_s.labels(model)
        self.queue_s = metrics.queue_s.labels(model)
        self.prefill_s = metrics.prefill_s.labels(model)
        self.decode_s = metrics.decode_s.labels(model)
        self.inference_s = metrics.inference_s.labels(model)
        self.request_prompt_tokens = metrics.request_prompt_tokens.labels(model)
        self.request_generation_tokens = metrics.request_generation_tokens.labels(model)
        self.prompt_tokens = metrics.prompt_tokens.labels(model)
        self.generation_tokens = metrics.generation_tokens.labels(model)


class Metrics:
    """One registry for each app: nothing global."""

    def __init__(self, generator: Generator) -> None:
        self.registry = CollectorRegistry()
        seconds, tokens = self._seconds, self._tokens
        self.ttft_s = seconds("time_to_first_token", "Arrival to first token.", _TTFT_S)
        self.itl_s = seconds("inter_token_latency", "Gap between two tokens.", _ITL_S)
        self.tpot_s = seconds(
            "request_time_per_output_token", "(e2e - TTFT) / (tokens - 1) of a request.", _ITL_S
        )
        self.e2e_s = seconds("e2e_request_latency", "Arrival to last token.", _REQUEST_S)
        self.queue_s = seconds("request_queue_time", "Arrival to the first batch.", _REQUEST_S)
        self.prefill_s = seconds("request_prefill_time", "First batch to first token.", _REQUEST_S)
        self.decode_s = seconds("request_decode_time", "First token to last token.", _REQUEST_S)
        self.inference_s = seconds(
            "request_inference_time", "First batch to last token.", _REQUEST_S
        )
        self.request_prompt_tokens = tokens("request_prompt_tokens", "Prompt of a request.")
        self.request_generation_tokens = tokens(
            "request_generation_tokens", "Tokens generated for a request."
        )
        self.prompt_tokens = self._counter("prompt_tokens", "Prompt tokens processed.")
        self.generation_tokens = self._counter("generation_tokens", "Tokens generated.")
        self.success = self._counter("request_success", "Finished requests.", ("finished_reason",))
        self.failed = Counter(
            "penstock:request_failures",
            "Answers that were errors, by code.",
            ("code",),
            registry=self.registry,
        )
        self._models: dict[str, ModelMetrics] = {}
        self.registry.register(_Runtime(generator))

    def model(self, name: str) -> ModelMetrics:
        found = self._models.get(name)
        if found is None:
            found = self._models[name] = ModelMetrics(self, name)
        return found

    def page(self) -> bytes:
        """The text format of Prometheus."""
        return generate_latest(self.registry)

    def _seconds(self, name: str, text: str, buckets: Sequence[float]) -> Histogram:
        return Histogram(
            f"vllm:{name}_seconds", text, ("model_name",), buckets=buckets, registry=self.registry
        )

    def _tokens(self, name: str, text: str) -> Histogram:
        return Histogram(
            f"vllm:{name}", text, ("model_name",), buckets=_TOKENS, registry=self.registry
        )

    def _counter(self, name: str, text: str, labels: tuple[str, ...] = ()) -> Counter:
        return Counter(f"vllm:{name}", text, ("model_name", *labels), registry=self.registry)


class _Runtime(Collector):
    """What the engines say at the moment the page is read."""

    def __init__(self, generator: Generator) -> None:
        self._generator = generator

    def describe(self) -> Iterable[Metric]:
        """Empty: the runtime need not be up when the app is made."""
        return ()

    def collect(self) -> Iterator[Metric]:
        engines = self._generator.engines()
        yield _gauge(
            "vllm:num_requests_running",
            "Requests in batches.",
            [(engine, engine.running) for engine in engines],
        )
        yield _gauge(
            "vllm:num_requests_waiting",
            "Requests that wait for a batch.",
            [(engine, engine.waiting) for engine in engines],
        )
        yield _gauge(
            "vllm:kv_cache_usage_perc",
            "KV blocks in use; 1 means all.",
            [(engine, engine.kv_use) for engine in engines],
        )
        yield _gauge(
            "penstock:engine_alive",
            "1 while the engine serves.",
            [(engine, float(engine.alive)) for engine in engines],
        )
        yield _gauge(
            "penstock:engine_busy_share",
            "Share of the time with a batch in flight.",
            [(engine, engine.busy_share) for engine in engines],
        )
        preemptions = CounterMetricFamily(
            "vllm:num_preemptions", "Preemptions.", labels=("model_name", "engine")
        )
        for engine in engines:
            preemptions.add_metric((engine.model, engine.name), engine.preemptions)
        yield preemptions
        yield from self._counters()

    def _counters(self) -> Iterator[Metric]:
        found: dict[str, dict[str, float]] = {}
        for model, counters in self._generator.model_counters().items():
            sums = {"prefix_queried_tokens": 0.0, "prefix_hit_tokens": 0.0, **counters}
            for name in sums.keys() - _TOLD_ELSEWHERE:
                found.setdefault(name, {})[model] = sums[name]
        for name, values in sorted(found.items()):
            plain = re.sub(r"[^a-zA-Z0-9_]", "_", name.removesuffix("_total"))
            shown, text = f"penstock:{plain}", f"{plain} of the runtime."
            if name in _VLLM_COUNTERS:
                known, text = _VLLM_COUNTERS[name]
                shown = f"vllm:{known}"
            family = CounterMetricFamily(shown, text, labels=("model_name",))
            for model, value in values.items():
                family.add_metric((model,), value)
            yield family


def _gauge(name: str, text: str, values: Sequence[tuple[EngineStatus, float]]) -> Metric:
    family = GaugeMetricFamily(name, text, labels=("model_name", "engine"))
    for engine, value in values:
        family.add_metric((engine.model, engine.name), value)
    return family
