"""Accelerate's runs: one thread, one request at a time on the whole host, loading in between."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

from penstock.experiments.accelerate.device_map import balanced_map
from penstock.experiments.maveriq.data import (
    FULL,
    GPU_BYTES,
    GPUS,
    MODELS,
    OUTPUT_TOKENS,
    ModelSet,
    RunKey,
    model_of,
    model_set,
    profile,
)
from penstock.experiments.maveriq.serving import Logs, read_logs, run_rows
from penstock.experiments.reference import number
from penstock.experiments.rows import Labels, Row, Tolerance, information, judged
from penstock.spec.minute_bins import BinTrace
from penstock.spec.model import ModelSpec

# The only published load: 124 s for llama-2-70b in 16 bit. Others take time by their bytes.
LOAD_70B_S = 124.0
SYSTEM = "Accelerate"


def block_bytes(model: ModelSpec) -> tuple[float, ...]:
    """Bytes of the embedding, of every layer, and of the head, in 16 bit."""
    ends = model.embedding_parameters
    layers = [2.0 * model.layer_parameters(i) for i in range(model.num_hidden_layers)]
    return (float(ends), *layers, float(ends))


def load_seconds(name: str) -> float:
    """Seconds to load ``name``, at the rate of the published load."""
    return LOAD_70B_S * sum(block_bytes(model_of(name))) / sum(block_bytes(model_of("llama-2-70b")))


def load_blocks(models: ModelSet, trace: BinTrace) -> Sequence[tuple[float, float]]:
    """When each model is asked to load, and for how long that holds the thread."""
    return [
        (at_s, load_seconds(name)) for at_s, name in zip(trace.deploy_s, models.models, strict=True)
    ]


@dataclass(frozen=True, slots=True)
class Spread:
    """A model under a balanced map: GPUs with layers, and the fullest GPU's bytes."""

    gpus: int
    fullest_bytes: float


def spread_of(name: str, free_bytes: Sequence[float]) -> Spread:
    found = balanced_map(block_bytes(model_of(name)), free_bytes)
    return Spread(len(found.gpus), max(found.used_bytes))


def accelerate_runs(logs: Logs) -> list[RunKey]:
    return [key for key in logs.summary if key.system == SYSTEM]


def serving_rows(maveriq: Path) -> list[Row]:
    """All 13 runs: the queue with the logged seconds a request."""
    logs = read_logs(maveriq)
    rows: list[Row] = []
    for key in accelerate_runs(logs):
        rows += run_rows(maveriq, logs, key, load_blocks)
    return rows


def service_rows(maveriq: Path) -> list[Row]:
    """Measured seconds a request beside the least that the same layer order can take."""
    logs = read_logs(maveriq)
    path = maveriq / "e2e_results_per_model.csv"
    floor = {
        row.model: row.measurement.latency_s
        for row in profile(maveriq / "profiles" / FULL)
        if row.configuration.tensor_parallel_size == 1
        and row.configuration.pipeline_parallel_size == GPUS
        and str(row.configuration.precision) == "float16"
        and row.output_tokens == OUTPUT_TOKENS
    }
    note = "published: execution in the log; ours: one pipeline of 8 GPUs in TensorRT-LLM"
    rows = []
    for key in accelerate_runs(logs):
        if (key.model_set, key.trace, key.scale) not in {
            ("large", "conversation", 0.1),
            ("regular", "code", 0.4),
        }:
            continue
        for record in logs.models[key]:
            name = record["model"]
            subject = Labels("service", f"{key} {name} ({record['model_id']})").of("seconds", "s")
            seconds = number(record, "exec_p50_s", path)
            rows.append(information(subject, seconds, floor[name], note=note))
    return rows


def memory_rows(maveriq: Path) -> list[Row]:
    """Every model is spread over all GPUs, and all 21 of the largest set fit together."""
    rows = []
    note = "the buffer of 1.25 blocks lets the first GPUs take all layers of small models"
    for name in MODELS:
        found = spread_of(name, [GPU_BYTES] * GPUS)
        labels = Labels("device map", name)
        subject = labels.of("GPUs with layers", "")
        rows.append(judged(subject, GPUS, found.gpus, Tolerance(), note=note))
        subject = labels.of("fullest GPU", "GiB")
        rows.append(information(subject, None, found.fullest_bytes / 2**30))
    free = [GPU_BYTES] * GPUS
    whole, host = 0, 0.0
    for name in model_set(maveriq, "twentyone").models:
        found_map = balanced_map(block_bytes(model_of(name)), free, offload=True)
        free = [left - taken for left, taken in zip(free, found_map.used_bytes, strict=True)]
        whole += found_map.host_bytes == 0
        host += found_map.host_bytes
    labels = Labels("device map", "twentyone")
    note = "all 21 were loaded; in 16 bit they exceed the GPUs, so the rest is in host memory"
    return [
        *rows,
        information(labels.of("models wholly on GPUs", ""), 21, whole, note=note),
        information(labels.of("offloaded", "GiB"), None, host / 2**30, note=note),
    ]
