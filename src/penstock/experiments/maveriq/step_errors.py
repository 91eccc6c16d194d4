"""How far the step times of ``step_tables`` are from runs that they were not made from."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from pathlib import Path

import numpy as np

from penstock.cost.fingerprint import Configuration
from penstock.experiments.maveriq.data import (
    FULL,
    FULL_BATCHED,
    LONG_PROMPT_TOKENS,
    OUTPUT_TOKENS,
    SHORT_PROMPT_TOKENS,
    RunKey,
    profile,
)
from penstock.experiments.maveriq.serving import Logs, read_logs
from penstock.experiments.maveriq.step_tables import BATCHED, StepTables
from penstock.experiments.reference import number
from penstock.experiments.rows import Labels, Row, at_most, information
from penstock.spec.variants import Precision

SENT_PROMPT_TOKENS = 51
"""The mean prompt of the serving runs: 204 characters, at four a token."""
_HELD_OUT_GOAL = 15.0


def step_rows(maveriq: Path) -> list[Row]:
    """Errors [%] on lengths, batches and served requests that were left out."""
    tables = StepTables(maveriq)
    labels = Labels("steps", "one factor of context")
    rows = [information(labels.of("seconds of a KV byte over datasheet", "x"), None,
                        tables.context_factor)]  # fmt: skip
    rows += _errors("batch 1, lengths held out", list(_lengths(maveriq, tables)))
    for name in BATCHED:
        errors = list(_batches(maveriq, StepTables(maveriq, left_out=(name,)), name))
        rows += _errors(f"batches 8 to 64 of {name}, from the other model", errors)
    study = list(_study(maveriq, tables))
    rows += _errors("batches 8 to 64 of llama-2-7b int4 TP2 PP4, held out", study)
    rows += _errors(
        "logged seconds of MaverIQ's requests, held out", list(_logged(maveriq, tables))
    )
    return rows


def _errors(case: str, errors: Sequence[float]) -> list[Row]:
    labels = Labels("steps", case)
    size = np.abs(errors)
    note = f"{len(size)} cases, mean signed error {np.mean(errors):+.1f} %"
    median = labels.of("error median", "%")
    return [
        at_most(median, None, float(np.median(size)), _HELD_OUT_GOAL, note=note),
        information(labels.of("error P90", "%"), None, float(np.percentile(size, 90))),
    ]


def _lengths(maveriq: Path, tables: StepTables) -> Iterator[float]:
    for row in profile(maveriq / "profiles" / FULL):
        if row.output_tokens in (20, 50, 100):
            steps = tables.steps(row.model, row.configuration)
            ours = steps.latency_s(LONG_PROMPT_TOKENS, row.output_tokens)
            yield 100 * (ours / row.measurement.latency_s - 1)


def _batches(maveriq: Path, tables: StepTables, name: str) -> Iterator[float]:
    for row in profile(maveriq / "profiles" / FULL_BATCHED):
        if row.model == name and row.batch > 1:
            steps = tables.steps(name, row.configuration)
            ours = steps.latency_s(SHORT_PROMPT_TOKENS, row.output_tokens, row.batch)
            yield 100 * (ours / row.measurement.latency_s - 1)


def _study(maveriq: Path, tables: StepTables) -> Iterator[float]:
    """The prompts of the study are not published; those of the batched tables are assumed."""
    for row in profile(maveriq / "profiles" / "study_batch_scaling.csv"):
        if 8 <= row.batch <= 64:
            steps = tables.steps(row.model, row.configuration)
            ours = steps.latency_s(SHORT_PROMPT_TOKENS, row.output_tokens, row.batch)
            yield 100 * (ours / row.measurement.latency_s - 1)


def _logged(maveriq: Path, tables: StepTables) -> Iterator[float]:
    """Mean seconds of execution in the logs, of models whose configuration is logged too."""
    logs = read_logs(maveriq)
    path = maveriq / "e2e_results_per_model.csv"
    for key, records in logs.models.items():
        if not key.system.startswith("MaverIQ") or key not in logs.deployments:
            continue
        shapes = _shapes(logs, key)
        for record in records:
            shape = shapes.get(int(record["model_id"]))
            if shape is None or not tables.ran(record["model"], shape):
                continue
            steps = tables.steps(record["model"], shape)
            ours = steps.latency_s(SENT_PROMPT_TOKENS, OUTPUT_TOKENS)
            yield 100 * (ours / number(record, "exec_mean_s", path) - 1)


def _shapes(logs: Logs, key: RunKey) -> dict[int, Configuration]:
    return {
        int(row["model_id"]): Configuration(
            int(row["tp"]), int(row["pp"]), Precision(row["dtype"], row["int8_kv"] == "True")
        )
        for row in logs.deployments[key]
        if row["deployed"] == "1"
    }
